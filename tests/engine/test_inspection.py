"""A built engine is held to what was asked for, where it can be loaded.

No engine loads without a GPU: what one says of itself is made up here, in the words of NVIDIA's
documentation, by TensorRT's own names (tests/engine/test_bindings.py). tests/gpu asks real ones.
"""

import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from mlflow_e2eai.artifacts.values import Axis, OnnxArtifact, Target, TensorSpec
from mlflow_e2eai.engine import backends
from mlflow_e2eai.engine.inspection import check_layers, inspect_plan
from mlflow_e2eai.errors import EngineBuildError

trt = pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed")

SM86 = Target(backend="tensorrt_rtx", compute_capability="sm86")
GRAPH = OnnxArtifact(
    path=Path("half.onnx"),
    sha256="a" * 64,
    parent_sha256=None,
    stage="convert",
    precision="fp16",
    opset=18,
    inputs=(TensorSpec(name="x", dtype="float32", shape=("N", 3)),),
    outputs=(TensorSpec(name="y", dtype="float32", shape=("N", 2)),),
    axes=(Axis("N", min=1, opt=4, max=8, buckets=(2,)),),
)
PROFILES = {("x", 0): [(2, 3), (2, 3), (2, 3)], ("x", 1): [(1, 3), (4, 3), (8, 3)]}


def said(*layers, kind="CaskConvolution"):
    """An engine's layers as the inspector says them at DETAILED."""
    made = [
        {"Name": f"layer {at}", "LayerType": kind, "Outputs": [{"Format/Datatype": text}]}
        for at, text in enumerate(layers)
    ]
    return json.dumps({"Layers": made, "Bindings": ["x", "y"]})


HALF = said("Half")


class Loaded:
    """An engine that says what it is told to."""

    num_io_tensors = 2

    def __init__(self, layers=HALF, names=("x", "y"), profiles=None, dtype=None):
        self._layers, self._names = layers, names
        self._profiles = PROFILES if profiles is None else profiles
        self._dtype = dtype or trt.DataType.FLOAT

    def get_tensor_name(self, at):
        return self._names[at]

    def get_tensor_dtype(self, name):
        return self._dtype

    def get_tensor_profile_shape(self, name, at):
        return self._profiles[name, at]

    def create_engine_inspector(self):
        return SimpleNamespace(get_engine_information=lambda _: self._layers)


@pytest.fixture
def an_a10(monkeypatch):
    monkeypatch.setattr(backends, "local_compute_capability", lambda: "sm86")


def hold(loaded, source=GRAPH, target=SM86):
    runtime = SimpleNamespace(deserialize_cuda_engine=lambda _: loaded)
    names = ("ComputeCapability", "DataType", "LayerInformationFormat")
    bindings = SimpleNamespace(
        Runtime=lambda _: runtime, **{name: getattr(trt, name) for name in names}
    )
    return inspect_plan(bindings, None, b"plan", source=source, target=target)


@pytest.mark.usefixtures("an_a10")
def test_an_engine_that_is_what_was_asked_for_is_checked_in_full():
    assert hold(Loaded()) == ("inputs and outputs", "profiles", "layers")


@pytest.mark.usefixtures("an_a10")
def test_layers_of_which_only_names_are_known_are_not_checked():
    names = json.dumps({"Layers": ["conv + relu", "gemm"], "Bindings": ["x", "y"]})
    assert hold(Loaded(names)) == ("inputs and outputs", "profiles")


@pytest.mark.usefixtures("an_a10")
def test_an_engine_for_another_gpu_is_not_loaded():
    other = dataclasses.replace(SM86, compute_capability="sm89")
    assert hold(Loaded(names=("nothing", "right")), target=other) == ()


def test_without_a_gpu_nothing_is_loaded(monkeypatch):
    monkeypatch.setattr(backends, "local_compute_capability", lambda: None)
    assert hold(Loaded(names=("nothing", "right"))) == ()


@pytest.mark.usefixtures("an_a10")
@pytest.mark.parametrize(
    ("loaded", "reason"),
    [
        (None, "TensorRT-RTX cannot load the engine that it built"),
        (Loaded(said("Float", "Float")), "none of the engine's layers computes in it, but in Flo"),
        (Loaded(names=("x", "z")), r"the engine has the inputs and outputs \['x', 'z'\]"),
        (Loaded(dtype=trt.DataType.HALF), "the engine has 'x' as DataType.HALF, not float32"),
        (
            Loaded(profiles={**PROFILES, ("x", 1): PROFILES["x", 0]}),
            r"profile 1 of the engine has 'x' from .*, not \[\(1, 3\), \(4, 3\), \(8, 3\)\]",
        ),
    ],
)
def test_an_engine_that_is_something_else_is_an_error_of_the_build(loaded, reason):
    with pytest.raises(EngineBuildError, match=rf"half.onnx in fp16 was built, but {reason}"):
        hold(loaded)


@pytest.mark.parametrize(
    ("precision", "text"),
    [
        ("fp16", "Half"),
        ("fp16", "Row major linear FP16 format"),
        ("fp16", "Channel major FP16 format where channel % 8 == 0"),
        ("bf16", "BFloat16"),
        ("int8", "Thirty-two wide channel vectorized row major Int8 format."),
        ("fp8", "FP8"),
    ],
)
def test_a_type_is_known_by_each_of_its_names_and_by_no_other(precision, text):
    source = dataclasses.replace(GRAPH, precision=precision)
    assert check_layers(said("Float", text), source)
    for other in ("Float", "Row major linear FP32 format", "Int32", "Int64"):
        with pytest.raises(EngineBuildError, match="computes in it"):
            check_layers(said(other), source)
    if precision != "fp16":
        with pytest.raises(EngineBuildError, match="computes in it, but in Half"):
            check_layers(said("Half"), source)


def test_what_only_moves_numbers_is_no_computation():
    assert not check_layers(said("Half", kind="Reformat"), GRAPH)
    mixed = json.loads(said("Half", kind="Reformat"))
    mixed["Layers"] += json.loads(said("Float"))["Layers"]
    with pytest.raises(EngineBuildError, match="but in Float"):
        check_layers(json.dumps(mixed), GRAPH)


def test_a_layer_that_takes_int8_computes_in_it_whatever_it_gives():
    engine = json.loads(said("Half"))
    engine["Layers"][0]["Inputs"] = [{"Name": "x", "Format/Datatype": "Int8"}]
    assert check_layers(json.dumps(engine), dataclasses.replace(GRAPH, precision="int8"))


def test_an_input_that_does_not_vary_needs_no_profile(an_a10):
    fixed = TensorSpec(name="z", dtype="float32", shape=(2, 3))
    source = dataclasses.replace(GRAPH, inputs=(*GRAPH.inputs, fixed))
    loaded = Loaded(names=("x", "y", "z"))
    loaded.num_io_tensors = 3
    assert "profiles" in hold(loaded, source)


def test_fp32_is_whatever_the_network_was_typed_as():
    assert check_layers(said("Float"), dataclasses.replace(GRAPH, precision="fp32"))
