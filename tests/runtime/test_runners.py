"""PyTorch modules and ONNX files as callables: named arrays in, named arrays out."""

from __future__ import annotations

import re
import subprocess
import sys

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from mlflow_e2eai.artifacts import graphs
from mlflow_e2eai.errors import InvalidInputError, RunnerError
from mlflow_e2eai.precision.quantize import quantize
from mlflow_e2eai.pytorch.runner import torch_runner
from mlflow_e2eai.runtime import ort
from mlflow_e2eai.runtime.ort import onnxruntime_devices, onnxruntime_runner

X = np.array([[1, -2, 3]], dtype=np.float32)
EXACT = "session.x64quantprecision"
TEXT = """
<ir_version: 8, opset_import: ["" : 18]>
main (float[N, 3] x) => (float[N, 3] y, float[N, 3] z) {
    y = Relu(x)
    z = Neg(x)
}"""


@pytest.fixture
def graph(tmp_path):
    graphs.write(onnx.parser.parse_model(TEXT), tmp_path / "model.onnx")
    return tmp_path / "model.onnx"


SHARED = """
<ir_version: 8, opset_import: ["" : 18]>
main (float[N, 4] x) => (float[N, 4] y)
<float[4, 4] w = {1,2,3,4,5,6,7,8,9,8,7,6,5,4,3,2}> {
    h = MatMul(x, w)
    y = MatMul(h, w)
}"""


# ONNX Runtime


@pytest.mark.parametrize("saturates", [True, False])
def test_int8_runs_exactly_where_the_instructions_would_saturate(saturates, tmp_path, monkeypatch):
    """A weight that two products read is one that the exact kernel's conversion fails at."""
    seen = []
    start = onnxruntime.InferenceSession

    def watch(path, options, **rest):
        seen.append(options.get_session_config_entry(EXACT) if saturates else None)
        return start(path, options, **rest)

    x = np.random.default_rng(0).standard_normal((8, 4)).astype(np.float32)
    source = onnx.parser.parse_model(SHARED)
    graphs.write(quantize(source, "int8", [{"x": x}]).model, tmp_path / "int8.onnx")
    saturates_here = ort.machine.int8_saturates()
    monkeypatch.setattr(ort.machine, "int8_saturates", lambda: saturates)
    monkeypatch.setattr(onnxruntime, "InferenceSession", watch)
    with onnxruntime_runner(tmp_path / "int8.onnx") as infer:
        given = infer({"x": x})["y"]
    weight = np.array([1, 2, 3, 4, 5, 6, 7, 8, 9, 8, 7, 6, 5, 4, 3, 2], np.float32).reshape(4, 4)
    wanted = x @ weight @ weight
    if saturates or not saturates_here:
        assert np.abs(given - wanted).max() < 0.02 * np.abs(wanted).max()
    assert set(seen) == ({"1"} if saturates else {None})


def test_onnxruntime_answers_under_the_names_of_the_graph(graph):
    with onnxruntime_runner(graph) as infer:
        answer = infer({"x": X})
    assert list(answer) == ["y", "z"]
    np.testing.assert_array_equal(answer["y"], np.maximum(X, 0))
    np.testing.assert_array_equal(answer["z"], -X)


@pytest.mark.parametrize("content", [b"", b"no graph"], ids=["empty", "garbage"])
def test_a_file_that_is_no_graph_cannot_be_loaded(content, tmp_path):
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    with (
        pytest.raises(RunnerError, match=r"cannot load model\.onnx on cpu: ."),
        onnxruntime_runner(path),
    ):
        pass


def test_a_missing_file_cannot_be_loaded(tmp_path):
    with (
        pytest.raises(RunnerError, match=r"cannot load gone\.onnx"),
        onnxruntime_runner(tmp_path / "gone.onnx"),
    ):
        pass


def test_an_operator_that_nothing_implements_cannot_be_loaded(tmp_path):
    path = tmp_path / "model.onnx"
    text = TEXT.replace('"" : 18', '"" : 18, "devtech" : 1').replace("Relu", "devtech.FooOp")
    graphs.write(onnx.parser.parse_model(text), path)
    with pytest.raises(RunnerError, match="FooOp"), onnxruntime_runner(path):
        pass


@pytest.mark.parametrize(
    "inputs",
    [{}, {"w": X}, {"x": X.astype(np.float64)}, {"x": X[0]}, {"x": X[:, :2]}],
    ids=["nothing", "strange name", "dtype", "rank", "size"],
)
def test_inputs_that_do_not_fit_are_an_error_of_the_runner(inputs, graph):
    with (
        onnxruntime_runner(graph) as infer,
        pytest.raises(RunnerError, match=r"cannot run model\.onnx on these inputs: ."),
    ):
        infer(inputs)


def test_a_provider_that_was_dropped_silently_is_an_error(graph, monkeypatch):
    class FellBack(onnxruntime.InferenceSession):
        """A session as ONNX Runtime gives it where the GPU provider does not start."""

        def __init__(self, path, options, providers, **_):
            assert "CUDAExecutionProvider" in repr(providers)
            super().__init__(path, options, providers=["CPUExecutionProvider"])

    monkeypatch.setattr(onnxruntime, "InferenceSession", FellBack)
    monkeypatch.setattr(onnxruntime, "preload_dlls", lambda: None, raising=False)
    with (
        pytest.raises(RunnerError, match=r"requested with CUDA.* but started CPUExecutionProvider"),
        onnxruntime_runner(graph, device="cuda"),
    ):
        pass


def test_on_cuda_fp32_is_asked_for_without_tf32(graph, monkeypatch):
    """ONNX Runtime rounds fp32 to TF32 on CUDA unless told otherwise; here fp32 means fp32."""
    asked = []

    def session(*arguments, **named):
        asked.append((arguments[2:], named))
        message = "that is all there is to see"
        raise RuntimeError(message)

    monkeypatch.setattr(onnxruntime, "InferenceSession", session)
    monkeypatch.setattr(onnxruntime, "preload_dlls", lambda: None, raising=False)
    with pytest.raises(RunnerError), onnxruntime_runner(graph, device="cuda"):
        pass
    assert re.search(r"'use_tf32': '?(0|False)", repr(asked))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU, so CUDA may well start")
def test_cuda_without_a_gpu_is_an_error_and_no_fallback(graph):
    with pytest.raises(RunnerError), onnxruntime_runner(graph, device="cuda"):
        pass


@pytest.mark.parametrize(
    ("providers", "gpu", "devices"),
    [
        (["CUDAExecutionProvider", "CPUExecutionProvider"], True, ("cuda", "cpu")),
        (["CUDAExecutionProvider", "CPUExecutionProvider"], False, ("cpu",)),
        (["CPUExecutionProvider"], True, ("cpu",)),
    ],
)
def test_cuda_is_a_device_where_both_provider_and_gpu_are_there(
    providers, gpu, devices, monkeypatch
):
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: providers)
    monkeypatch.setattr(ort, "has_gpu", lambda: gpu)
    assert onnxruntime_devices() == devices


def test_importing_the_runners_imports_nothing_heavy():
    heavy = ["torch", "onnx", "onnxruntime", "mlflow"]
    code = f"import sys, {ort.__name__}; print([m for m in {heavy} if m in sys.modules])"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert said.stdout.strip() == "[]"


# PyTorch


class Difference(torch.nn.Module):
    def forward(self, first, second):
        return first - 2 * second


class Normed(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = torch.nn.BatchNorm1d(3)
        self.drop = torch.nn.Dropout(0.5)

    def forward(self, x):
        return self.drop(self.norm(x))


def answers_of(forward, outputs):
    class Model(torch.nn.Module):
        def forward(self, x):
            return forward(x)

    with torch_runner(Model(), inputs=["x"], outputs=outputs) as infer:
        return infer({"x": X})


def test_a_single_tensor_gets_the_name_that_was_given():
    np.testing.assert_array_equal(answers_of(lambda x: -x, ["y"])["y"], -X)


@pytest.mark.parametrize(
    "forward",
    [lambda x: (x, -x), lambda x: [x, -x], lambda x: {"p": x, "q": -x}],
    ids=["tuple", "list", "mapping"],
)
def test_several_tensors_get_the_names_in_their_order(forward):
    answer = answers_of(forward, ["a", "b"])
    np.testing.assert_array_equal(answer["a"], X)
    np.testing.assert_array_equal(answer["b"], -X)


def test_one_name_too_few_is_no_answer():
    with pytest.raises(ValueError, match="longer"):
        answers_of(lambda x: (x, -x), ["a"])


def test_something_that_is_no_tensor_is_refused():
    with pytest.raises(InvalidInputError, match="forward returned int as 'output_1'"):
        answers_of(lambda x: (x, 3), ["a", "b"])


def test_arrays_are_bound_by_name_whatever_their_order():
    model = Difference()
    for inputs in (["first", "second"], ["second", "first"]):
        with torch_runner(model, inputs=inputs, outputs=["y"]) as infer:
            answer = infer({"second": 10 * X, "first": X})
        np.testing.assert_array_equal(answer["y"], -19 * X)


def test_arrays_with_names_of_their_own_are_bound_by_position():
    with torch_runner(Difference(), inputs=["left", "right"], outputs=["y"]) as infer:
        np.testing.assert_array_equal(infer({"right": 10 * X, "left": X})["y"], -19 * X)


def test_the_module_answers_as_in_inference_and_without_gradients():
    model = Normed().train()
    x = np.random.default_rng(0).standard_normal((4, 3), dtype=np.float32)
    with torch_runner(model, inputs=["x"], outputs=["y"]) as infer:
        first, second = infer({"x": x}), infer({"x": x})
    np.testing.assert_array_equal(first["y"], second["y"])
    np.testing.assert_allclose(first["y"], x, rtol=1e-4)
    assert model.norm.num_batches_tracked == 0


@pytest.mark.parametrize("fails", [False, True])
def test_each_part_gets_its_own_mode_back(fails):
    model = Normed().train()
    model.norm.eval()
    try:
        with torch_runner(model, inputs=["x"], outputs=["y"]) as infer:
            assert not any(part.training for part in model.modules())
            infer({"x": X[:, :2] if fails else X})
    except (ValueError, RuntimeError):
        assert fails
    assert (model.training, model.norm.training, model.drop.training) == (True, False, True)


def test_an_answer_is_the_callers_own():
    """A module that hands its input back must not tie answer and question together."""
    given = X.copy()
    with torch_runner(torch.nn.Identity(), inputs=["input"], outputs=["y"]) as infer:
        answer = infer({"input": given})
    given[:] = 0
    np.testing.assert_array_equal(answer["y"], X)


def test_a_module_that_writes_into_its_input_does_not_change_the_callers():
    class Overwrites(torch.nn.Module):
        def forward(self, x):
            return x.mul_(0)

    given = X.copy()
    with torch_runner(Overwrites(), inputs=["x"], outputs=["y"]) as infer:
        infer({"x": given})
    np.testing.assert_array_equal(given, X)
