"""Rules that make inner tensors inputs or outputs: ONNX Runtime on the graph before is right."""

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
from mlflow_e2eai.errors import InvalidInputError, SurgeryError
from mlflow_e2eai.runtime.ort import onnxruntime_runner
from mlflow_e2eai.surgery.interface import adds_outputs, changes
from mlflow_e2eai.surgery.plan import Step, plan_from

pytestmark = pytest.mark.usefixtures("on_threads")

HEADER = '<ir_version: 8, opset_import: ["" : 18, "devtech" : 1]>'
CHAIN = """
main (float[N, 3] x) => (float[N, 3] y) {
    a = Relu(x)
    b = Exp(a)
    c = Neg(b)
    y = Abs(c)
}"""
BESIDE = """
main (float[N, 3] x, float[N, 3] z) => (float[N, 3] y, float[N, 3] w) {
    a = Relu(x)
    b = Neg(a)
    y = Add(b, z)
    w = devtech.FooOp(b)
}"""
X = np.array([[-1, 2, -3], [4, -5, 6]], dtype=np.float32)
BATCH = Axis("N", min=1, opt=2, max=4)


@pytest.fixture
def graph(tmp_path):
    def write(text):
        path = tmp_path / "source.onnx"
        graphs.write(onnx.parser.parse_model(HEADER + text), path)
        axes = (BATCH,)
        return graphs.describe(
            path, stage="export", precision="fp32", axes=axes, parent_sha256=None
        )

    return write


@pytest.fixture
def out(tmp_path):
    return tmp_path / "clean.onnx"


def names(specs):
    return [spec.name for spec in specs]


def operators(artifact):
    return sorted(node.op_type for node in onnx.load(artifact.path).graph.node)


def run(artifact, **inputs):
    with onnxruntime_runner(artifact.path) as infer:
        return infer(inputs)


PLANS = {
    "expose": ({"expose": {"tensors": ["b", "a"]}}, ["x"], ["y", "b", "a"], 2),
    "break_fusion": ({"break_fusion": {"first": "Relu", "then": "Exp"}}, ["x"], ["y", "a"], 1),
    "extract the beginning": ({"extract": {"outputs": ["b"]}}, ["x"], ["b"], 2),
    "extract the end": ({"extract": {"inputs": ["b"]}}, ["b"], ["y"], 2),
    "extract the middle": ({"extract": {"inputs": ["a"], "outputs": ["c"]}}, ["a"], ["c"], 2),
}


@pytest.mark.parametrize(("plan", "inputs", "outputs", "edits"), PLANS.values(), ids=PLANS)
def test_inner_tensors_become_inputs_and_outputs(
    plan, inputs, outputs, edits, graph, out, tmp_path
):
    source, steps = graph(CHAIN), plan_from([plan])
    once, report = clean(source, steps, out=out, samples=[{"x": X}])
    assert (names(once.inputs), names(once.outputs)) == (inputs, outputs)
    assert {spec.shape for spec in (*once.inputs, *once.outputs)} == {("N", 3)}
    assert (*report.edits.values(), report.max_abs_error) == (edits, 0)
    values = {"x": X, "a": np.maximum(X, 0)}
    values["b"] = np.exp(values["a"])
    values |= {"c": -values["b"], "y": values["b"]}
    answer = run(once, **{name: values[name] for name in inputs})
    for name in outputs:
        np.testing.assert_allclose(answer[name], values[name], rtol=1e-6)
    twice, report = clean(once, steps, out=tmp_path / "twice.onnx")
    assert not any(report.edits.values())
    assert twice.sha256 == once.sha256


def test_the_reference_tells_what_it_knows_and_the_raw_graph_the_rest(graph, out):
    asked = []

    def reference(tensors):
        asked.append(tensors)
        return {"y": np.exp(np.maximum(tensors["x"], 0))}

    plan = plan_from([{"expose": {"tensors": ["a"]}}, {"rename": {"inputs": {"x": "image"}}}])
    made, _ = clean(graph(CHAIN), plan, out=out, samples=[{"x": X}], reference=reference)
    assert names(made.outputs) == ["y", "a"]
    assert made.origins.outputs == ("y", "a")
    assert [list(tensors) for tensors in asked] == [["x"]]


def test_a_wrong_exposed_tensor_is_seen(graph, out):
    @changes(adds_outputs)
    def lies(graph):
        graph.outputs.append(next(n for n in graph.nodes if n.op == "Neg").outputs[0])
        graph.outputs[-1].dtype, graph.outputs[-1].shape = np.float32, ["N", 3]
        next(n for n in graph.nodes if n.op == "Neg").op = "Identity"
        return 1

    with pytest.raises(SurgeryError, match=r"'c'.*Step 'test_extraction:.*lies' is to blame"):
        clean(graph(CHAIN), plan_from([lies]), out=out, samples=[{"x": X}])
    assert not out.exists()


def test_a_part_is_judged_though_nothing_implements_the_rest(graph, out):
    plan = plan_from([{"extract": {"inputs": ["x", "z"], "outputs": ["y", "a"]}}])
    sample = {"x": X, "z": X}
    reference = {"y": X - np.maximum(X, 0), "w": X}
    made, report = clean(
        graph(BESIDE), plan, out=out, samples=[sample], reference=lambda _: reference
    )
    assert operators(made) == ["Add", "Neg", "Relu"]
    assert report.max_abs_error == 0


@pytest.mark.parametrize(
    ("plan", "sentence"),
    [
        ({"expose": {"tensors": ["bb"]}}, "No node makes a tensor 'bb' to expose; did you mean"),
        ({"extract": {"inputs": ["q"]}}, "No node makes a tensor 'q' to begin at"),
        ({"extract": {"inputs": ["b"], "outputs": ["a"]}}, "'x' is needed too; add it"),
    ],
    ids=str,
)
def test_a_cut_that_makes_no_sense_is_refused(plan, sentence, graph, out):
    with pytest.raises(SurgeryError, match=sentence) as caught:
        clean(graph(CHAIN), plan_from([plan]), out=out, samples=[{"x": X}])
    assert caught.value.rule == next(iter(plan))
    assert not out.exists()


def test_a_tensor_of_no_known_type_is_no_output(graph, out):
    text = BESIDE.replace("w = devtech.FooOp(b)", "v = devtech.FooOp(b) w = Relu(v)")
    with pytest.raises(SurgeryError, match="The type of 'v' is unknown"):
        clean(graph(text), [Step(rule="expose", arguments={"tensors": ["v"]})], out=out)


def test_a_tensor_that_the_plan_made_has_no_one_to_tell_what_is_right(graph, out):
    def renames_inside(graph):
        graph.nodes[0].outputs[0].name = "new"
        return 1

    plan = plan_from([renames_inside, {"expose": {"tensors": ["new"]}}])
    with pytest.raises(SurgeryError, match=r"gives no reference for \['new'\]"):
        clean(graph(CHAIN), plan, out=out, samples=[{"x": X}])


def test_a_bundle_with_an_exposed_tensor_is_judged_whole(tmp_path):
    module = net()
    raw = _raw(module, tmp_path)
    (inner,) = {name for node in raw.graph.node for name in node.output if "relu" in name.lower()}
    mlflow_e2eai.save_model(
        module,
        tmp_path / "bundle",
        input_example={"x": features()},
        dynamic_axes=AXES,
        surgery=[{"expose": {"tensors": [inner]}}, {"rename": {"outputs": {"output": "logits"}}}],
        evaluation_data=labelled(module),
        precisions=("fp32",),
    )
    with mlflow_e2eai.load_model(tmp_path / "bundle") as model:
        assert names(model.manifest.outputs) == ["logits", inner]
        passed = {entry.variant for entry in model.manifest.evidence if entry.passed}
        assert passed >= {"torch/fp32", "onnxruntime-cpu/raw", "onnxruntime-cpu/fp32"}
        answer = model(features())
        assert set(answer) == {"logits", inner}
        with torch.no_grad():
            right = module(torch.from_numpy(features()))
        np.testing.assert_allclose(model.structured(answer), right, atol=1e-5)


@pytest.mark.exporters
def test_a_bundle_does_not_begin_inside_its_model(tmp_path):
    module = net()
    raw = _raw(module, tmp_path)
    begin = raw.graph.node[0].output[0]
    with pytest.raises(InvalidInputError, match=f"begin at .'{begin}'., but the model takes .'x'."):
        mlflow_e2eai.save_model(
            module,
            tmp_path / "bundle",
            input_example={"x": features()},
            dynamic_axes=AXES,
            surgery=[{"extract": {"inputs": [begin]}}],
        )
    assert not (tmp_path / "bundle").exists()


def _raw(module, folder):
    path = folder / "raw.onnx"
    mlflow_e2eai.export(module, {"x": features()}, out=path, dynamic_axes=AXES)
    return onnx.load(path)
