"""fp32 -> fp16: smaller inside, the same outside, and never a file that does not load."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from mlflow_e2eai import compare, convert, graphs
from mlflow_e2eai.artifacts import PRECISIONS, Axis
from mlflow_e2eai.errors import ArtifactError, InvalidInputError, PrecisionError
from mlflow_e2eai.files import sha256_of
from mlflow_e2eai.runners import onnxruntime_runner

AXES = (Axis("N", min=1, opt=2, max=4),)
X = np.array([[1, -2, 3], [-4, 5, -6]], dtype=np.float32) / 8
HEADER = '<ir_version: 8, opset_import: ["" : 18]>'

TWO_LAYERS = """
main (float[N, 3] x) => (float[N, 2] y)
<float[3, 2] w = {0.5, -0.25, 0.125, 0.3, 0.7, -0.9}, float[2, 2] v = {0.1, 0.2, 0.3, 0.4}> {
    a = MatMul(x, w)
    b = Relu(a)
    y = MatMul(b, v)
}"""

OUTPUT_IS_READ_INSIDE = """
main (float[N, 3] x) => (float[N, 2] y, float[N, 2] z)
<float[3, 2] w = {0.5, -0.25, 0.125, 0.3, 0.7, -0.9}> {
    y = MatMul(x, w)
    z = Relu(y)
}"""

INPUT_IS_AN_OUTPUT = """
main (float[N, 3] x) => (float[N, 2] y, float[N, 3] z)
<float[3, 2] w = {0.5, -0.25, 0.125, 0.3, 0.7, -0.9}> {
    y = MatMul(x, w)
    z = Identity(x)
}"""

INTEGER_INPUT = """
main (int64[N] ids) => (float[N, 2] y)
<float[3, 2] w = {0.5, -0.25, 0.125, 0.3, 0.7, -0.9}> {
    y = Gather(w, ids)
}"""

SUBGRAPHS = """
main (float[N, 3] x, bool flag) => (float[N, 2] y)
<float[3, 2] w = {0.5, -0.25, 0.125, 0.3, 0.7, -0.9}> {
    a = MatMul(x, w)
    y = If (flag) <
        then_branch = yes () => (float[N, 2] p) { p = Relu(a) },
        else_branch = no () => (float[N, 2] q) { q = Neg(a) }
    >
}"""

OVERFLOWS = """
main (float[N, 3] x) => (float[N, 3] y)
<float big = {1000000.0}> {
    y = Mul(x, big)
}"""

ONLY_INTEGERS = """
main (int64[N, 3] x) => (int64[N, 3] y) {
    y = Add(x, x)
}"""


@pytest.fixture
def graph(tmp_path):
    def write(text):
        path = tmp_path / "source.onnx"
        graphs.write(onnx.parser.parse_model(HEADER + text), path)
        return graphs.describe(path, stage="clean", precision="fp32", axes=AXES, parent_sha256=None)

    return write


@pytest.fixture
def out(tmp_path):
    return tmp_path / "half.onnx"


def sample_for(artifact):
    values = {"x": X, "ids": np.array([2, 0, 1]), "flag": np.array(True)}  # noqa: FBT003
    return {spec.name: values[spec.name] for spec in artifact.inputs}


def report_on(source, made, *, precision):
    with onnxruntime_runner(source.path) as before, onnxruntime_runner(made.path) as after:
        return compare(before, after, [sample_for(source)], precision=precision, repeats=2)


def test_fp16_keeps_the_interface_in_fp32(graph, out):
    source = graph(TWO_LAYERS)
    made = convert(source, "fp16", out=out)
    assert (made.inputs, made.outputs) == (source.inputs, source.outputs)
    assert {spec.dtype for spec in made.inputs + made.outputs} == {"float32"}
    assert (made.stage, made.precision, made.opset) == ("convert", "fp16", source.opset)
    assert made.axes == source.axes
    assert made.parent_sha256 == source.sha256


def test_fp16_weights_are_in_fp16(graph, out):
    convert(graph(TWO_LAYERS), "fp16", out=out)
    weights = onnx.load(out).graph.initializer
    assert [weight.data_type for weight in weights] == [onnx.TensorProto.FLOAT16] * 2


@pytest.mark.parametrize("text", [TWO_LAYERS, INTEGER_INPUT], ids=["matmul", "gather"])
def test_fp16_has_the_numbers_of_fp16_and_not_of_fp32(text, graph, out):
    source = graph(text)
    made = convert(source, "fp16", out=out)
    assert report_on(source, made, precision="fp16").passed
    assert report_on(source, made, precision="fp16").max_abs_error > 0


def test_the_source_is_left_alone(graph, out):
    source = graph(TWO_LAYERS)
    convert(source, "fp16", out=out)
    assert sha256_of(source.path) == source.sha256


def test_converting_twice_gives_the_same_bytes(graph, tmp_path):
    source = graph(TWO_LAYERS)
    first, second = (convert(source, "fp16", out=tmp_path / name) for name in "ab")
    assert first.sha256 == second.sha256


def test_nodes_stand_in_the_order_of_their_use(graph, out):
    convert(graph(TWO_LAYERS), "fp16", out=out)
    model = onnx.load(out)
    known = {value.name for value in [*model.graph.input, *model.graph.initializer]}
    for node in model.graph.node:
        assert set(node.input) <= known
        known |= set(node.output)


def test_fp32_is_the_graph_itself_and_writes_nothing(graph, out):
    source = graph(TWO_LAYERS)
    assert convert(source, "fp32", out=out) is source
    assert not out.exists()


@pytest.mark.parametrize("precision", ["bf16", "FP16", "", "int8"])
def test_an_unknown_precision_is_refused_with_the_choices(precision, graph, out):
    with pytest.raises(InvalidInputError, match=", ".join(PRECISIONS)):
        convert(graph(TWO_LAYERS), precision, out=out)
    assert not out.exists()


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_graph_in_fp16_is_no_source(precision, graph, out, tmp_path):
    made = convert(graph(TWO_LAYERS), "fp16", out=out)
    with pytest.raises(InvalidInputError, match="is in fp16, but one in fp32 is wanted"):
        convert(made, precision, out=tmp_path / "again.onnx")


def test_a_graph_with_nothing_for_fp16_to_hold_is_refused(graph, out):
    with pytest.raises(PrecisionError, match="nothing that fp16 could hold"):
        convert(graph(ONLY_INTEGERS), "fp16", out=out)
    assert not out.exists()


def test_a_file_that_is_no_graph_is_refused(graph, out):
    source = graph(TWO_LAYERS)
    source.path.write_bytes(b"no graph")
    with pytest.raises(ArtifactError, match="not a valid ONNX file"):
        convert(source, "fp16", out=out)


@pytest.mark.parametrize(
    "text",
    [OUTPUT_IS_READ_INSIDE, INPUT_IS_AN_OUTPUT, SUBGRAPHS],
    ids=["output read inside", "input is an output", "subgraphs"],
)
def test_what_converters_are_known_to_break_is_right_or_refused(text, graph, out):
    """Converters of this kind write graphs that do not load; such a file must never be left."""
    source = graph(text)
    try:
        made = convert(source, "fp16", out=out)
    except PrecisionError:
        assert list(out.parent.iterdir()) == [source.path]
    else:
        assert (made.inputs, made.outputs) == (source.inputs, source.outputs)
        assert report_on(source, made, precision="fp16").passed


def test_a_weight_beyond_fp16_is_refused_or_seen_by_the_comparison(graph, out):
    source = graph(OVERFLOWS)
    try:
        made = convert(source, "fp16", out=out)
    except PrecisionError:
        assert list(out.parent.iterdir()) == [source.path]
    else:
        assert not report_on(source, made, precision="fp16").passed


@pytest.mark.parametrize("fault", ["does not load", "other interface", "raises"])
def test_a_converter_that_fails_leaves_no_file(fault, graph, out, monkeypatch):
    def converter(model, **_):
        if fault == "raises":
            message = "it rained"
            raise ZeroDivisionError(message)
        if fault == "other interface":
            model.graph.output[0].type.tensor_type.elem_type = onnx.TensorProto.FLOAT16
        weight = model.graph.initializer[0]
        half = onnx.numpy_helper.to_array(weight).astype(np.float16)
        weight.CopyFrom(onnx.numpy_helper.from_array(half, weight.name))
        return model

    monkeypatch.setattr("onnxruntime.transformers.float16.convert_float_to_float16", converter)
    source = graph(TWO_LAYERS)
    sentences = {
        "raises": "converter failed: ZeroDivisionError: it rained",
        "other interface": "other inputs or outputs",
        "does not load": "does not load",
    }
    with pytest.raises(PrecisionError, match=sentences[fault]):
        convert(source, "fp16", out=out)
    assert list(out.parent.iterdir()) == [source.path]
