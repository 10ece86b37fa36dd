"""bf16: the converter, the evaluator that rounds as it does, and what is said of it."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto

import mlflow_e2eai
from mlflow_e2eai import bisect, compile, convert
from mlflow_e2eai.artifacts import graphs
from mlflow_e2eai.artifacts.values import Axis
from mlflow_e2eai.errors import InvalidInputError, PrecisionError
from mlflow_e2eai.evaluation.stage import evaluate
from mlflow_e2eai.precision.half import to_bf16
from mlflow_e2eai.pytorch.runner import torch_runner
from mlflow_e2eai.pytorch.stage import export
from mlflow_e2eai.runtime.isolation import isolated_onnxruntime
from mlflow_e2eai.runtime.ort import onnxruntime_runner

pytestmark = pytest.mark.usefixtures("on_threads")

N = Axis("N", min=1, opt=2, max=4)


class Small(torch.nn.Module):
    """Operators that take bf16 from opset 22 on only, and an integer output."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv = torch.nn.Conv2d(3, 8, 3)
        self.norm = torch.nn.LayerNorm(16)
        self.line = torch.nn.Linear(8, 16)

    def forward(self, x):
        pooled = torch.nn.functional.max_pool2d(torch.relu(self.conv(x)), 2)
        y = self.norm(self.line(pooled.mean((2, 3))))
        return torch.softmax(y, -1), y.argmax(-1), y


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    x = np.random.default_rng(0).standard_normal((2, 3, 16, 16)).astype(np.float32)
    module = Small().eval()
    out = tmp_path_factory.mktemp("small") / "raw.onnx"
    source, _ = export(module, {"x": x}, out=out, dynamic_axes={"x": {0: N}})
    made, report = convert(source, "bf16", out=out.with_name("bf16.onnx"))
    return module, x, source, made, report


def model_of(text):
    return onnx.parser.parse_model(text)


def test_a_graph_in_bf16_is_valid_in_the_opset_that_it_needs_and_keeps_its_interface(small):
    _, _, source, made, report = small
    assert (made.precision, made.opset, made.inputs) == ("bf16", 22, source.inputs)
    assert [o.name for o in made.outputs] == [o.name for o in source.outputs]
    assert report.casts == 3  # the input, and two outputs
    model = graphs.read(made.path)
    graphs.check(model)
    assert {w.data_type for w in model.graph.initializer if w.name.endswith("in_bf16")} == {
        TensorProto.BFLOAT16
    }
    assert made.path.stat().st_size < 0.6 * source.path.stat().st_size + 4000


def test_the_evaluator_gives_what_torch_gives_in_bf16(small):
    module, x, _, made, _ = small
    with isolated_onnxruntime(made.path, rounded=True) as infer:
        given = list(infer({"x": x}).values())
    with torch.no_grad():
        right = Small().eval()
        right.load_state_dict(module.state_dict())
        wanted = [y.float().numpy() for y in right.bfloat16()(torch.from_numpy(x).bfloat16())]
    for one, other in zip(given, wanted, strict=True):
        np.testing.assert_allclose(one, other, rtol=2**-7, atol=2**-8)


def test_the_evaluator_gives_what_onnx_s_own_gives(small):
    _, x, _, made, _ = small
    with isolated_onnxruntime(made.path, rounded=True) as infer:
        given = list(infer({"x": x}).values())
    wanted = onnx.reference.ReferenceEvaluator(graphs.read(made.path)).run(None, {"x": x})
    for one, other in zip(given, wanted, strict=True):
        np.testing.assert_allclose(one, other, rtol=2**-6, atol=2**-6)


def test_rounding_is_to_the_nearest_even_and_keeps_the_range_of_fp32(tmp_path):
    text = '<ir_version: 10, opset_import: ["" : 22]> g (float[n] x) => (float[n] y) '
    model = model_of(text + "{ b = Cast <to: int = 16> (x) y = Cast <to: int = 1> (b) }")
    graphs.write(model, tmp_path / "casts.onnx")
    x = np.array([1 + 2**-8, 1 + 3 * 2**-8, 1e-40, 3e38, np.inf, np.nan], np.float32)
    with onnxruntime_runner(tmp_path / "casts.onnx", rounded=True) as infer:
        given = infer({"x": x})["y"]
    bits = [0x3F80, 0x3F82, 0x0001, 0x7F62, 0x7F80, 0x7FC0]
    np.testing.assert_array_equal(given.view(np.uint32) >> 16, bits)


def test_a_kept_node_computes_in_fp32_with_its_own_weights(tmp_path):
    text = '<ir_version: 10, opset_import: ["" : 22]> g (float[n, 2] x) => (float[n, 2] y) '
    body = "<float[2, 2] w = {1.001, 0.0, 0.0, 1.001}> { h = MatMul (x, w) y = MatMul (h, w) }"
    model = model_of(text + body)
    *_, last = graphs.node_names(model)
    graphs.write(to_bf16(model, keep_fp32=[last]), tmp_path / "kept.onnx")
    x = np.ones((1, 2), np.float32)
    with onnxruntime_runner(tmp_path / "kept.onnx", rounded=True) as infer:
        np.testing.assert_allclose(infer({"x": x})["y"], [[1.001, 1.001]], rtol=1e-6)
    with pytest.raises(InvalidInputError, match="no node 'nothing'"):
        to_bf16(model, keep_fp32=["nothing"])


def test_what_is_inside_a_subgraph_stays_in_fp32_and_reads_the_values_of_outside(tmp_path):
    then = "then () => (float[n] a) { a = Mul (h, h) }"
    other = "other () => (float[n] b) { b = Neg (h) }"
    text = (
        '<ir_version: 10, opset_import: ["" : 22]> g (float[n] x, bool c) => (float[n] y) '
        f"{{ h = Relu (x) y = If (c) <then_branch = {then}, else_branch = {other}> }}"
    )
    graphs.write(to_bf16(model_of(text)), tmp_path / "if.onnx")
    with onnxruntime_runner(tmp_path / "if.onnx", rounded=True) as infer:
        given = infer({"x": np.array([3.0], np.float32), "c": np.array(1, np.bool_)})["y"]
    np.testing.assert_array_equal(given, [9.0])


def test_a_graph_with_nothing_for_bf16_to_hold_is_refused(tmp_path):
    text = (
        '<ir_version: 10, opset_import: ["" : 22]> g (int64[n] x) => (int64[n] y) { y = Neg (x) }'
    )
    graphs.write(model_of(text), tmp_path / "whole.onnx")
    path = tmp_path / "whole.onnx"
    axes = (Axis("n", min=1, opt=2, max=4),)
    source = graphs.describe(path, stage="clean", precision="fp32", axes=axes, parent_sha256=None)
    with pytest.raises(PrecisionError, match="No part of the graph can be converted to bf16"):
        convert(source, "bf16", out=tmp_path / "bf16.onnx")
    assert not (tmp_path / "bf16.onnx").exists()


@pytest.mark.parametrize("target", ["sm86", "sm89"])
def test_tensorrt_builds_an_engine_in_bf16(small, target, tmp_path):
    pytest.importorskip("tensorrt_rtx")
    made = small[3]
    engine = compile(made, target, out=tmp_path / "bf16.engine")
    assert (engine.precision, engine.arithmetic) == ("bf16", "bf16")


def test_on_a_cpu_bf16_is_judged_and_its_time_is_absent_with_the_reason(small):
    module, x, source, made, _ = small
    outputs = [o.name for o in source.outputs]
    with torch_runner(module, inputs=["x"], outputs=outputs) as reference:
        evidence, latency, _ = evaluate(reference, [source, made], [], {"x": x})
    found = {entry.variant: entry for entry in evidence}["onnxruntime-cpu/bf16"]
    assert found.measured
    assert found.cold_start is None
    assert found.loads is None
    assert "no bf16 kernels for the CPU" in found.untimed
    error = found.parity["profile"].max_abs_error
    assert 1e-4 < error < 0.1
    timed = {entry.name for report in latency.values() for entry in report.variants}
    assert "onnxruntime-cpu/bf16" not in timed
    assert "onnxruntime-cpu/fp32" in timed


CANCELLING = """<ir_version: 10, opset_import: ["" : 18]> g (float[n, 2] x) => (float[n, 2] y)
<float[1] large = {1000.0}, float[2, 2] w = {1.0, 0.5, 0.25, 1.0}> {
    h = MatMul (x, w)
    up = Add (h, large)
    same = Identity (up)
    down = Sub (same, large)
    y = MatMul (down, w)
}"""


def cancelling(tmp_path):
    path = tmp_path / "cancelling.onnx"
    graphs.write(model_of(CANCELLING), path)
    axes = (Axis("n", min=1, opt=2, max=4),)
    return graphs.describe(path, stage="clean", precision="fp32", axes=axes, parent_sha256=None)


def test_what_cancels_stays_in_fp32_with_what_feeds_it_and_the_graph_is_then_right(tmp_path):
    source = cancelling(tmp_path)
    x = np.random.default_rng(0).standard_normal((4, 2)).astype(np.float32)
    naive, _ = convert(source, "bf16", out=tmp_path / "naive.onnx")
    guarded, report = convert(source, "bf16", out=tmp_path / "guarded.onnx", samples=[{"x": x}])
    with isolated_onnxruntime(source.path) as right:
        wanted = right({"x": x})
        reports = []
        for made in (naive, guarded):
            with isolated_onnxruntime(made.path, rounded=True) as infer:
                reports.append(infer.compare(lambda _: wanted, [{"x": x}], precision="bf16"))
    assert not reports[0].passed
    assert reports[1].passed
    assert [one.operator for one in report.kept] == ["Add", "Identity", "Sub"]
    assert {one.reason for one in report.kept} == {"rounding"}
    assert all(one.loss > 0.02 for one in report.kept)
    assert report.samples == 1


def test_large_numbers_alone_keep_no_node_in_fp32(tmp_path):
    source = cancelling(tmp_path)
    text = CANCELLING.replace("Sub (same", "Add (same").replace("1000.0", "1.0")
    graphs.write(model_of(text), source.path)
    x = np.full((2, 2), 3e9, np.float32)
    _, report = convert(source, "bf16", out=tmp_path / "bf16.onnx", samples=[{"x": x}])
    assert report.kept == ()


def test_bisect_finds_what_must_stay_in_fp32(tmp_path):
    source = cancelling(tmp_path)
    x = np.random.default_rng(0).standard_normal((4, 2)).astype(np.float32)
    found = bisect(source, "bf16", samples=[{"x": x}])
    assert found.nodes
    made, _ = convert(source, "bf16", out=tmp_path / "kept.onnx", keep_fp32=found.nodes)
    with isolated_onnxruntime(source.path) as right:
        wanted = right({"x": x})
    with isolated_onnxruntime(made.path, rounded=True) as infer:
        assert infer.compare(lambda _: wanted, [{"x": x}], precision="bf16").passed


def test_a_bundle_with_bf16_is_loaded_with_what_runs_here_and_with_bf16_by_name_only(
    small, tmp_path
):
    _, x, *_ = small
    mlflow_e2eai.save_model(
        Small().eval(),
        tmp_path / "saved",
        input_example={"x": x},
        dynamic_axes={"x": {0: N}},
        precisions=("bf16",),
    )
    place = tmp_path / "saved"
    model = mlflow_e2eai.load_model(str(place))
    assert model.variant == "onnxruntime-cpu/fp32"
    assert [graph.precision for graph in model.manifest.graphs] == ["fp32", "bf16"]
    named = mlflow_e2eai.load_model(str(place), variant="onnxruntime-cpu/bf16")
    name = model.manifest.outputs[0].name
    np.testing.assert_allclose(named(x=x)[name], model(x=x)[name], atol=0.05)
