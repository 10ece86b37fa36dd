"""Rules that change the interface: the numbers stay, under the mapping that each declares."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from small_models import AXES, features, labelled, net

import mlflow_e2eai
from mlflow_e2eai import clean
from mlflow_e2eai.artifacts import graphs
from mlflow_e2eai.artifacts.values import Axis
from mlflow_e2eai.errors import SurgeryError
from mlflow_e2eai.runtime.ort import onnxruntime_runner
from mlflow_e2eai.surgery.mapping import map_inputs, wrap_reference
from mlflow_e2eai.surgery.plan import plan_from

pytestmark = pytest.mark.usefixtures("on_threads")

HEADER = '<ir_version: 8, opset_import: ["" : 18]>'
PIXELS = """
main (float[N, 2, H, 3] x) => (float[N, 2, H, 3] y) {
    a = Relu(x)
    y = Neg(a)
}"""
BATCH = Axis("N", min=1, opt=2, max=4)
HEIGHT = Axis("H", min=2, opt=3, max=5)
X = np.random.default_rng(0).standard_normal((2, 2, 3, 3)).astype(np.float32)
IMAGE = {
    "name": "x",
    "to": "image",
    "dtype": "uint8",
    "perm": [0, 3, 1, 2],
    "scale": [1 / 255, 2 / 255],
    "offset": -0.5,
}


@pytest.fixture
def pixels(tmp_path):
    path = tmp_path / "source.onnx"
    graphs.write(onnx.parser.parse_model(HEADER + PIXELS), path)
    axes = (BATCH, HEIGHT)
    return graphs.describe(path, stage="export", precision="fp32", axes=axes, parent_sha256=None)


def shapes(specs):
    return {spec.name: (spec.dtype, spec.shape) for spec in specs}


def cleaned(source, out, *plan):
    return clean(source, plan_from(plan), out=out, samples=[{"x": X}])


def test_an_image_is_converted_inside_the_graph(pixels, tmp_path):
    made, report = cleaned(pixels, tmp_path / "clean.onnx", {"convert_input": IMAGE})
    assert shapes(made.inputs) == {"image": ("uint8", ("N", "H", 3, 2))}
    assert made.outputs == pixels.outputs
    assert list(report.operators_after) == ["Add", "Cast", "Mul", "Neg", "Relu", "Transpose"]
    image = np.random.default_rng(1).integers(0, 256, (1, 4, 3, 2), np.uint8)
    with onnxruntime_runner(made.path) as infer:
        found = infer({"image": image})["y"]
    x = image.transpose(0, 3, 1, 2) * np.array([1, 2]).reshape(2, 1, 1) / 255 - 0.5
    np.testing.assert_allclose(found, -np.maximum(x, 0), atol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "left"),
    [
        ({"dtype": "int8"}, ["Cast", "Neg", "Relu"]),
        ({"perm": [0, 3, 1, 2]}, ["Neg", "Relu", "Transpose"]),
        ({"scale": 0.5}, ["Add", "Mul", "Neg", "Relu"]),
        ({"dtype": "float64"}, ["Cast", "Neg", "Relu"]),
        ({}, ["Identity", "Neg", "Relu"]),
    ],
    ids=str,
)
def test_a_conversion_has_the_nodes_that_it_needs(arguments, left, pixels, tmp_path):
    plan = {"convert_input": {"name": "x", "to": "z", **arguments}}
    made, report = cleaned(pixels, tmp_path / "clean.onnx", plan)
    assert list(report.operators_after) == left
    assert report.max_abs_error == 0
    assert [spec.name for spec in made.inputs] == ["z"]


def test_the_caller_of_the_graph_before_is_bridged_to_the_graph_after(pixels, tmp_path):
    made, _ = cleaned(pixels, tmp_path / "clean.onnx", {"convert_input": IMAGE})
    asked = []
    bridged = wrap_reference(lambda t: asked.append(t["x"]) or {"y": t["x"]}, made)
    # What was rounded to a byte on the way in comes out as that byte means it.
    image = map_inputs({"x": X}, made)["image"]
    answer = bridged({"image": image})["y"]
    low, high = np.array([[-0.5, -0.5], [0.5, 1.5]])
    right = np.clip(X, low.reshape(2, 1, 1), high.reshape(2, 1, 1))
    np.testing.assert_allclose(answer, right, atol=1 / 255)
    assert asked[0].dtype == np.float32


def test_a_fixed_axis_is_fixed_everywhere_and_gone_from_the_profile(pixels, tmp_path):
    plan = {"fix_axis": {"name": "H", "size": 4}}
    made, report = cleaned(pixels, tmp_path / "clean.onnx", plan)
    wanted = ("float32", ("N", 2, 4, 3))
    assert shapes((*made.inputs, *made.outputs)) == {"x": wanted, "y": wanted}
    assert made.axes == (BATCH,)
    assert (report.edits, report.max_abs_error) == ({"fix_axis": 1}, 0)
    assert map_inputs({"x": X}, made)["x"].shape == (2, 2, 4, 3)


def test_a_renamed_axis_is_renamed_everywhere(pixels, tmp_path):
    plan = {"rename": {"axes": {"N": "batch"}, "inputs": {"x": "z"}}}
    made, report = cleaned(pixels, tmp_path / "clean.onnx", plan)
    wanted = ("float32", ("batch", 2, "H", 3))
    assert shapes((*made.inputs, *made.outputs)) == {"z": wanted, "y": wanted}
    assert [axis.name for axis in made.axes] == ["batch", "H"]
    assert report.edits == {"rename": 2}


PLANS = {
    "rename": [{"rename": {"axes": {"N": "batch"}, "inputs": {"x": "z"}, "outputs": {"y": "w"}}}],
    "fix_axis": [{"fix_axis": {"name": "H", "size": 3}}],
    "convert_input": [{"convert_input": IMAGE}],
    "all": [
        {"rename": {"axes": {"N": "batch"}, "inputs": {"x": "z"}}},
        {"convert_input": {**IMAGE, "name": "z"}},
        {"fix_axis": {"name": "batch", "size": 2}},
    ],
}


@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
def test_what_was_done_to_the_interface_is_not_done_again(plan, pixels, tmp_path):
    steps = plan_from(plan) if plan is not PLANS["all"] else plan_from(plan)[1:]
    first = plan_from(plan)
    once, report = clean(pixels, first, out=tmp_path / "once.onnx", samples=[{"x": X}])
    assert all(report.edits.values())
    twice, report = clean(once, steps, out=tmp_path / "twice.onnx")
    assert not any(report.edits.values())
    assert twice.sha256 == once.sha256


@pytest.mark.parametrize(
    ("plan", "sentence"),
    [
        ({"fix_axis": {"name": "H", "size": 6}}, "'H' cannot be fixed at 6: its sizes are 2 to 5"),
        (
            {"fix_axis": {"name": "H", "size": 0}},
            "'H' cannot be fixed at 0; give a positive integer",
        ),
        ({"rename": {"axes": {"M": "batch"}}}, r"no axis 'M' to rename; the axes are \['H', 'N'\]"),
        ({"rename": {"axes": {"N": "H"}}}, "'N' cannot be named 'H': that name is taken"),
        ({"convert_input": {**IMAGE, "name": "z"}}, r"no input 'z' to convert; the inputs are"),
        ({"convert_input": {**IMAGE, "to": "a"}}, "cannot be converted to 'a': that name is taken"),
        ({"convert_input": {**IMAGE, "perm": [0, 1]}}, r"perm \[0, 1\] does not fit input 'x'"),
        ({"convert_input": {**IMAGE, "dtype": "pixel"}}, "'pixel' is not a numeric type"),
        ({"convert_input": {**IMAGE, "scale": [1, 2, 3]}}, "'x' has 2 channels; give one number"),
        ({"convert_input": {**IMAGE, "scale": 0}}, "and not by 0"),
    ],
    ids=str,
)
def test_a_change_of_the_interface_that_makes_no_sense_is_refused(plan, sentence, pixels, tmp_path):
    out = tmp_path / "clean.onnx"
    with pytest.raises(SurgeryError, match=sentence) as caught:
        cleaned(pixels, out, plan)
    assert caught.value.rule == next(iter(plan))
    assert not out.exists()


def test_an_input_is_converted_only_once(pixels, tmp_path):
    again = {"convert_input": {**IMAGE, "name": "image", "to": "other", "scale": 1, "offset": 0}}
    with pytest.raises(SurgeryError, match="is already converted"):
        cleaned(pixels, tmp_path / "clean.onnx", {"convert_input": IMAGE}, again)


def test_a_bundle_with_another_input_is_judged_against_the_module(tmp_path):
    module = net()
    inputs, labels = labelled(module)
    plan = [
        {"convert_input": {"name": "x", "to": "bytes", "dtype": "int8", "scale": 1 / 32}},
        {"rename": {"outputs": {"output": "logits"}}},
        {"fix_axis": {"name": "N", "size": 5}},
        "simplify",
    ]
    mlflow_e2eai.save_model(
        module,
        tmp_path / "bundle",
        input_example={"x": features()},
        dynamic_axes=AXES,
        surgery=plan,
        evaluation_data=(inputs, labels),
    )
    with mlflow_e2eai.load_model(tmp_path / "bundle") as model:
        (spec,) = model.manifest.inputs
        assert (spec.name, spec.dtype, spec.shape) == ("bytes", "int8", (5, 8))
        assert {e.variant for e in model.manifest.evidence if e.passed} >= {
            "torch/fp32",
            "onnxruntime-cpu/raw",
            "onnxruntime-cpu/fp32",
            "onnxruntime-cpu/fp16",
        }
        asked = np.arange(40, dtype=np.int8).reshape(5, 8)
        with torch.no_grad():
            right = module(torch.from_numpy(asked / 32).float())
        np.testing.assert_allclose(model(asked)["logits"], right, atol=1e-5)


TAKEN = """
main (float[N, 2, H, 3] x, bool c) => (float[N, 2, H, 3] y) {
    ["image/Cast"] a = Relu(x)
    z = If (c) <
        then_branch = one () => (float[N, 2, H, 3] p) { inner = Neg(a) p = Abs(inner) },
        else_branch = two () => (float[N, 2, H, 3] q) { q = Identity(a) }
    >
    "image/Mul" = Abs(z)
    "image/Mul/by" = Neg("image/Mul")
    "image/Transpose" = Exp("image/Mul/by")
    y = Neg("image/Transpose")
}"""


@pytest.fixture
def taken(tmp_path):
    graphs.write(onnx.parser.parse_model(HEADER + TAKEN), tmp_path / "taken.onnx")
    return graphs.describe(
        tmp_path / "taken.onnx",
        stage="export",
        precision="fp32",
        axes=(BATCH, HEIGHT),
        parent_sha256=None,
    )


def test_a_name_that_a_conversion_would_give_may_be_there_already(taken, tmp_path):
    plan = plan_from([{"convert_input": IMAGE}])
    sample = {"x": np.abs(X) % 1, "c": np.array(1, np.bool_)}
    made, report = clean(taken, plan, out=tmp_path / "clean.onnx", samples=[sample])
    assert report.edits == {"convert_input": 1}
    names = graphs.node_names(graphs.read(made.path))
    assert len(set(names)) == len(names)


@pytest.mark.parametrize(
    "plan", [{"rename": {"inputs": {"x": "inner"}}}, {"convert_input": {**IMAGE, "to": "inner"}}]
)
def test_a_name_inside_a_branch_is_taken_too(plan, taken, tmp_path):
    with pytest.raises(SurgeryError, match="that name is taken"):
        clean(taken, plan_from([plan]), out=tmp_path / "clean.onnx")
