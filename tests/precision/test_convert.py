"""fp32 -> fp16: smaller inside, the same outside, and never a file that does not load."""

from __future__ import annotations

import itertools

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from trained_models import minilm

from mlflow_e2eai import clean, compare, convert, export
from mlflow_e2eai.artifacts import graphs
from mlflow_e2eai.artifacts.files import sha256_of
from mlflow_e2eai.artifacts.values import PRECISIONS, Axis
from mlflow_e2eai.errors import ArtifactError, InvalidInputError, PrecisionError, RunnerError
from mlflow_e2eai.precision.half import to_fp16
from mlflow_e2eai.precision.ranges import Guarded, guard
from mlflow_e2eai.precision.stage import CONVERTERS
from mlflow_e2eai.runtime.isolation import isolated_onnxruntime
from mlflow_e2eai.runtime.ort import onnxruntime_runner

pytestmark = pytest.mark.usefixtures("on_threads")

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

SHARED_WEIGHT = """
main (float[N, 3] x) => (float[N, 3] y)
<float[3, 3] w = {0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 1, 2}> {
    [first] a = MatMul(x, w)
    [second] b = MatMul(a, w)
    [third] y = MatMul(b, w)
}"""

CONSTANT_NODE = """
main (float[N, 3] x) => (float[N, 3] y) {
    [big] c = Constant <value_float: float = 100000.0> ()
    [more] d = Constant <value = float {100000.0}> ()
    [up] a = Mul(x, d)
    [down] y = Div(a, d)
}"""

READ_TWICE = """
main (float[N, 3] x) => (float[N, 3] y) {
    [start] a = Sqrt(x)
    [square] b = Mul(a, a)
    [twice] c = Add(a, a)
    y = Sub(b, c)
}"""

LARGE_BETWEEN = """
main (float[N, 3] x) => (float[N, 3] y) <float big = {60000.0}> {
    [start] a = Mul(x, big)
    [up] b = Mul(a, big)
    [down] c = Div(b, big)
    [end] y = Div(c, big)
}"""

NO_NAMES = """
main (float[N, 3] x) => (float[N, 3] y)
<float[3, 3] w = {0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 1, 2}> {
    a = MatMul(x, w)
    [MatMul_0] b = Relu(a)
    y = Neg(b)
}"""

NAME_INSIDE = """
main (float[N, 3] x, bool flag) => (float[N, 3] y) {
    [same] a = Exp(x)
    y = If (flag) <
        then_branch = yes () => (float[N, 3] p) { [same] p = Relu(a) },
        else_branch = no () => (float[N, 3] q) { q = Neg(a) }
    >
}"""

OUTSIDE_IN_FP16 = """
main (float[N, 3] x) => (float[N, 3] y, float[N, 3] z) {
    [other] z = Exp(x)
    [cast] a = Cast <to: int = 10> (x)
    [back] b = Cast <to: int = 1> (a)
    [last] y = Neg(b)
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
    made, _ = convert(source, "fp16", out=out)
    assert (made.inputs, made.outputs) == (source.inputs, source.outputs)
    assert {spec.dtype for spec in made.inputs + made.outputs} == {"float32"}
    assert (made.stage, made.precision, made.opset) == ("convert", "fp16", source.opset)
    assert made.axes == source.axes
    assert made.parent_sha256 == source.sha256


SIZE_THAT_ONLY_HAS_A_NAME = """
main (float[N, 3] x) => (float[N, Divoutput_dim_1] y)
<float[3, 2] w = {0.5, -0.25, 0.125, 0.3, 0.7, -0.9}> {
    a = MatMul(x, w)
    y = Tanh(a)
}"""


def test_a_size_of_an_output_keeps_the_name_that_the_exporter_made_up(graph, out):
    """As tracing F.normalize gives; the converter infers that it is 2."""
    source = graph(SIZE_THAT_ONLY_HAS_A_NAME)
    made, _ = convert(source, "fp16", out=out)
    assert made.outputs == source.outputs
    assert made.outputs[0].shape == ("N", "Divoutput_dim_1")


def _other_rank(value):
    value.type.tensor_type.shape.dim.add().dim_value = 1


def _other_size(value):
    value.type.tensor_type.shape.dim[1].dim_value = 5


def _other_type(value):
    value.type.tensor_type.elem_type = onnx.TensorProto.FLOAT16


def _other_name(value):
    value.name = "a"


@pytest.mark.parametrize("change", [_other_rank, _other_size, _other_type, _other_name])
def test_an_output_that_is_another_one_is_refused(change, graph, out, monkeypatch):
    def changing(model, **rest):
        made = to_fp16(model, **rest)
        change(made.graph.output[0])
        return made

    monkeypatch.setitem(CONVERTERS, "fp16", changing)
    with pytest.raises(PrecisionError, match="other inputs or outputs"):
        convert(graph(TWO_LAYERS), "fp16", out=out)
    assert not out.exists()


def test_fp16_weights_are_in_fp16(graph, out):
    convert(graph(TWO_LAYERS), "fp16", out=out)
    weights = onnx.load(out).graph.initializer
    assert [weight.data_type for weight in weights] == [onnx.TensorProto.FLOAT16] * 2


@pytest.mark.parametrize("text", [TWO_LAYERS, INTEGER_INPUT], ids=["matmul", "gather"])
def test_fp16_has_the_numbers_of_fp16_and_not_of_fp32(text, graph, out):
    source = graph(text)
    made, _ = convert(source, "fp16", out=out)
    assert report_on(source, made, precision="fp16").passed
    assert report_on(source, made, precision="fp16").max_abs_error > 0


def test_the_source_is_left_alone(graph, out):
    source = graph(TWO_LAYERS)
    convert(source, "fp16", out=out)
    assert sha256_of(source.path) == source.sha256


def test_converting_twice_gives_the_same_bytes(graph, tmp_path):
    source = graph(TWO_LAYERS)
    first, second = (convert(source, "fp16", out=tmp_path / name)[0] for name in "ab")
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
    assert convert(source, "fp32", out=out)[0] is source
    assert not out.exists()


@pytest.mark.parametrize("precision", ["fp12", "FP12", ""])
def test_an_unknown_precision_is_refused_with_the_choices(precision, graph, out):
    with pytest.raises(InvalidInputError, match=", ".join(PRECISIONS)):
        convert(graph(TWO_LAYERS), precision, out=out)
    assert not out.exists()


@pytest.mark.parametrize("precision", sorted({*PRECISIONS} - {"tf32"}))
def test_a_graph_in_fp16_is_no_source(precision, graph, out, tmp_path):
    made, _ = convert(graph(TWO_LAYERS), "fp16", out=out)
    with pytest.raises(InvalidInputError, match="is in fp16, but one in fp32 is expected"):
        convert(made, precision, out=tmp_path / "again.onnx")


def test_no_graph_is_in_tf32(graph, out):
    with pytest.raises(InvalidInputError, match="Only engines compute in tf32"):
        convert(graph(TWO_LAYERS), "tf32", out=out)
    assert not out.exists()


def test_a_graph_with_nothing_for_fp16_to_hold_is_refused(graph, out):
    with pytest.raises(PrecisionError, match="No part of the graph can be converted to fp16"):
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
        made, _ = convert(source, "fp16", out=out)
    except PrecisionError:
        assert list(out.parent.iterdir()) == [source.path]
    else:
        assert (made.inputs, made.outputs) == (source.inputs, source.outputs)
        assert report_on(source, made, precision="fp16").passed


def test_a_weight_beyond_fp16_is_refused_or_seen_by_the_comparison(graph, out):
    source = graph(OVERFLOWS)
    try:
        made, _ = convert(source, "fp16", out=out)
    except PrecisionError:
        assert list(out.parent.iterdir()) == [source.path]
    else:
        assert not report_on(source, made, precision="fp16").passed


@pytest.mark.parametrize("fault", ["does not load", "other interface"])
def test_a_converter_that_fails_leaves_no_file(fault, graph, out, monkeypatch):
    def converter(model, **_):
        if fault == "other interface":
            model.graph.output[0].type.tensor_type.elem_type = onnx.TensorProto.FLOAT16
        weight = model.graph.initializer[0]
        half = onnx.numpy_helper.to_array(weight).astype(np.float16)
        weight.CopyFrom(onnx.numpy_helper.from_array(half, weight.name))
        return model

    monkeypatch.setitem(CONVERTERS, "fp16", converter)
    source = graph(TWO_LAYERS)
    sentences = {
        "other interface": "other inputs or outputs",
        "does not load": "does not load",
    }
    with pytest.raises(PrecisionError, match=sentences[fault]):
        convert(source, "fp16", out=out)
    assert list(out.parent.iterdir()) == [source.path]


# Ranges seen on samples

HIDDEN_OVERFLOW = """
main (float[N, 3] x) => (float[N, 3] y)
<float[3, 3] w = {1, 0.5, 0, 0, 1, 0, 0, 0, 1}, float up = {2000}, float down = {0.0005}> {
    [first] a = MatMul(x, w)
    [up] b = Mul(a, up)
    [relu] c = Relu(b)
    [down] d = Mul(c, down)
    [last] y = MatMul(d, w)
}"""
LARGE_SAMPLE = {"x": np.array([[97.059, -3, 0.5], [1, 2, 3]], np.float32)}


def test_activations_that_reach_194118_are_refused_unguarded_and_accepted_guarded(graph, tmp_path):
    """ONNX Runtime alone lets the unguarded graph pass on the CPU: it rounds behind neighbours."""
    source = graph(HIDDEN_OVERFLOW)
    naive, _ = convert(source, "fp16", out=tmp_path / "naive.onnx")
    samples = [LARGE_SAMPLE]
    guarded, report = convert(source, "fp16", out=tmp_path / "guarded.onnx", samples=samples)

    def passes(made):
        with (
            onnxruntime_runner(source.path) as reference,
            onnxruntime_runner(made.path, rounded=True) as candidate,
        ):
            return compare(reference, candidate, samples, precision="fp16").passed

    assert not passes(naive)
    assert passes(guarded)
    assert [kept.node for kept in report.kept] == ["up", "relu", "down"]
    assert [kept.value for kept in report.kept] == ["b", "b", "c"]
    assert report.kept[0].magnitude == pytest.approx(194118, rel=1e-5)
    assert {kept.reason for kept in report.kept} == {"overflow"}
    assert (report.samples, report.nodes) == (1, 5)
    assert report.casts == graphs.operators(onnx.load(guarded.path))["Cast"]


REASONS = {
    "a weight": ("y = Mul(x, large)", 1, "overflow", "large"),
    "a weight that is lost": ("y = Mul(x, tiny)", 1, "underflow", "tiny"),
    "an input": ("y = Tanh(x)", 20000, "overflow", "x"),
    "headroom": ("y = Tanh(x)", 17000, "overflow", "x"),
    "squares inside": ("y = LpNormalization(x)", 200, "overflow", "x"),
    "squares in fp16": (
        "y = LayerNormalization <stash_type: int = 10> (x, one)",
        200,
        "overflow",
        "x",
    ),
    "a sum inside": ("y = ReduceMean <keepdims: int = 1> (x, rows)", 6000, "overflow", "y"),
}


@pytest.mark.parametrize("case", REASONS)
def test_a_node_is_kept_for_what_it_computes_with(case, graph):
    step, magnitude, reason, value = REASONS[case]
    source = graph(f"""
        main (float[N, 3] x) => (float[N, M] y)
        <float large = {{20000}}, float[3] one = {{1, 1, 1}}, float tiny = {{1e-12}},
         int64[1] rows = {{1}}> {{
            [step] {step}
        }}""")
    samples = [{"x": np.full((2, 3), magnitude, np.float32)}]
    (found,) = guard(graphs.read(source.path), samples).kept
    assert (found.reason, found.value) == (reason, value)


def test_a_normalisation_that_squares_in_fp32_is_not_kept(graph):
    source = graph("""
        main (float[N, 3] x) => (float[N, 3] y) <float[3] one = {1, 1, 1}> {
            y = LayerNormalization (x, one)
        }""")
    samples = [{"x": np.full((2, 3), 200, np.float32)}]
    assert guard(graphs.read(source.path), samples).kept == ()


MASKED = {
    "Where": "m = Where(keep, zero, lowest)",
    "Mul": "i = Cast <to: int = 1> (keep) j = Sub(one, i) m = Mul(lowest, j)",
}
LOWEST = float(np.finfo(np.float32).min)


def masked(graph, made, more=""):
    text = f"""
        main (float[N, 3] x, bool[N, 3] keep) => (float[N, 3] y)
        <float zero = {{0}}, float one = {{1}}, float lowest = {{0}}, float up = {{20000}}> {{
            {made}
            [sum] a = Add(x, m)
            {more}
            [rows] y = Softmax(a)
        }}"""
    model = graphs.read(graph(text).path)
    (lowest,) = (one for one in model.graph.initializer if one.name == "lowest")
    lowest.CopyFrom(onnx.numpy_helper.from_array(np.array(LOWEST, np.float32), "lowest"))
    return model


SOME = {"x": X[:2], "keep": np.array([[True, False, True], [False, False, True]])}


@pytest.mark.parametrize("made", MASKED)
def test_a_mask_may_saturate_before_a_softmax(made, graph, tmp_path):
    model = masked(graph, MASKED[made])
    found = guard(model, [SOME])
    assert (found.kept, set(found.saturated)) == ((), {"lowest", "m", "a"})
    answers = []
    for name, one in (("before", model), ("after", to_fp16(model))):
        graphs.write(one, tmp_path / name)
        with onnxruntime_runner(tmp_path / name, rounded=name == "after") as infer:
            answers.append(infer(SOME)["y"])
    np.testing.assert_allclose(*answers, atol=1e-3)
    assert np.array_equal(answers[1] == 0, ~SOME["keep"])


@pytest.mark.exporters
def test_minilm_stays_in_fp16_whole_with_a_padded_sample(tmp_path):
    """Its mask is -3.4e38: 13 of its nodes would be kept for that alone."""
    model = minilm()
    raw, _ = export(
        model.module, model.example, out=tmp_path / "raw.onnx", dynamic_axes=model.dynamic_axes
    )
    cleaned, _ = clean(raw, out=tmp_path / "clean.onnx")
    padded = {name: value.copy() for name, value in model.sample.items()}
    padded["attention_mask"][:, 5:] = 0
    samples = [model.sample, padded]
    made, report = convert(cleaned, "fp16", out=tmp_path / "half.onnx", samples=samples)
    assert report.kept == ()
    assert report.saturated
    with (
        onnxruntime_runner(cleaned.path) as reference,
        onnxruntime_runner(made.path, rounded=True) as candidate,
    ):
        assert compare(reference, candidate, samples, precision="fp16", repeats=1).passed


def test_a_row_that_is_masked_whole_keeps_its_mask_in_fp32(graph):
    """In fp32 its numbers are all the same; fp16 tells them apart."""
    sample = {**SOME, "keep": np.array([[True, False, True], [False, False, False]])}
    found = guard(masked(graph, MASKED["Where"]), [SOME, sample])
    assert [kept.node for kept in found.kept] == ["Where_0", "sum", "rows"]
    assert found.saturated == ()


def test_a_mask_that_a_factor_brings_back_into_range_is_kept(graph):
    """Saturated first, it would come out at nearly nothing."""
    made = "i = Cast <to: int = 1> (keep) j = Sub(one, i) k = Div(j, up) l = Div(k, up) "
    sample = {**SOME, "x": X[:2]}
    made += "n = Div(l, up) p = Div(n, up) q = Div(p, up) [mask] m = Mul(lowest, q)"
    found = guard(masked(graph, made), [sample])
    assert ("mask", "lowest") in {(kept.node, kept.value) for kept in found.kept}


def test_a_mask_that_something_else_reads_is_kept(graph):
    found = guard(masked(graph, MASKED["Where"], more="b = Tanh(m)"), [SOME])
    assert "Where_0" in {kept.node for kept in found.kept}


def test_large_numbers_that_are_not_below_are_kept(graph):
    found = guard(masked(graph, "m = Where(keep, up, zero)"), [SOME])
    assert [kept.node for kept in found.kept] == ["Where_0", "sum", "rows"]


@pytest.mark.parametrize("operator", ["If", "custom"])
def test_a_value_of_no_element_or_no_number_has_no_range(operator, graph):
    text = {
        "If": """
            main (float[N, 3] x, bool some) => (float[N, 3] y) {
                y = If(some) <
                    then_branch = one () => (float[N, 3] t) { t = Relu(x) },
                    else_branch = two () => (float[N, 3] e) { e = Neg(x) }>
            }""",
        "custom": """
            main (float[N, 3] x, bool some) => (float[N, 3] y) {
                i = Cast <to: int = 7> (some)
                [sum] z = SequenceConstruct(x, x)
                y = SequenceAt(z, i)
            }""",
    }[operator]
    model = graphs.read(graph(text).path)
    empty = {"x": np.zeros((0, 3), np.float32), "some": np.ones((), bool)}
    infinite = {"x": np.full((1, 3), np.inf, np.float32), "some": np.ones((), bool)}
    assert guard(model, [empty, infinite]) == Guarded(samples=2)


def test_what_fp16_holds_is_not_kept(graph):
    model = graphs.read(graph(TWO_LAYERS).path)
    samples = [
        {"x": X},
        {"x": np.zeros((1, 3), np.float32)},
        {"x": np.full((1, 3), -np.inf, np.float32)},
    ]
    assert guard(model, samples) == Guarded(samples=3)


def test_every_sample_is_seen_and_one_is_enough_to_keep_a_node(graph):
    model = graphs.read(graph(HIDDEN_OVERFLOW).path)
    assert guard(model, [{"x": X}]).kept == ()
    assert [one.node for one in guard(model, iter([{"x": X}, LARGE_SAMPLE, {"x": X}])).kept] == [
        "up",
        "relu",
        "down",
    ]


def test_names_add_to_what_the_ranges_keep(graph, out):
    _, report = convert(
        graph(HIDDEN_OVERFLOW), "fp16", out=out, samples=[LARGE_SAMPLE], keep_fp32=["last", "up"]
    )
    assert [(kept.node, kept.reason) for kept in report.kept] == [
        *((name, "overflow") for name in ("up", "relu", "down")),
        ("last", "asked for"),
    ]


def test_a_sample_that_does_not_fit_is_one_sentence_and_leaves_no_file(graph, out):
    source = graph(TWO_LAYERS)
    with pytest.raises(PrecisionError, match="value ranges of the fp32 graph cannot be measured"):
        convert(source, "fp16", out=out, samples=[{"x": np.zeros((2, 4), np.float32)}])
    assert list(out.parent.iterdir()) == [source.path]


# Nodes that stay in fp32


def arrays(model, sample):
    with onnxruntime_runner(model) as infer:
        return infer(sample)


def assert_same_numbers(source, made, sample):
    before, after = arrays(source.path, sample), arrays(made, sample)
    for name, value in before.items():
        np.testing.assert_array_equal(value, after[name])


WITH_FLOATS = [
    *(TWO_LAYERS, OUTPUT_IS_READ_INSIDE, INPUT_IS_AN_OUTPUT, INTEGER_INPUT, OVERFLOWS),
    *(SHARED_WEIGHT, CONSTANT_NODE, READ_TWICE, LARGE_BETWEEN, NO_NAMES, OUTSIDE_IN_FP16),
]


@pytest.mark.parametrize("text", WITH_FLOATS)
def test_with_every_node_kept_the_numbers_are_those_of_fp32(text, graph, out):
    source = graph(text)
    model = graphs.read(source.path)
    graphs.write(to_fp16(model, keep_fp32=graphs.node_names(model)), out)
    assert_same_numbers(source, out, sample_for(source))


@pytest.mark.parametrize("text", WITH_FLOATS)
def test_with_any_nodes_kept_the_graph_loads_and_keeps_its_interface(text, graph, out):
    source = graph(text)
    known = graphs.node_names(graphs.read(source.path))
    for count in range(len(known) + 1):
        for keep in itertools.combinations(known, count):
            model = to_fp16(graphs.read(source.path), keep_fp32=keep)
            graphs.write(model, out)
            assert graphs.interface(model) == (source.inputs, source.outputs)
            assert set(arrays(out, sample_for(source))) == {spec.name for spec in source.outputs}


def test_a_kept_node_has_its_weight_in_fp32_though_others_share_it(graph, out):
    convert(graph(SHARED_WEIGHT), "fp16", out=out, keep_fp32=["second"])
    model = onnx.load(out)
    types = {weight.name: weight.data_type for weight in model.graph.initializer}
    reads = [types[node.input[1]] for node in model.graph.node if node.op_type == "MatMul"]
    half, single = onnx.TensorProto.FLOAT16, onnx.TensorProto.FLOAT
    assert reads == [half, single, half]


def test_a_weight_that_only_kept_nodes_read_is_there_once(graph, out):
    convert(graph(TWO_LAYERS), "fp16", out=out, keep_fp32=["MatMul_0"])
    weights = onnx.load(out).graph.initializer
    half, single = onnx.TensorProto.FLOAT16, onnx.TensorProto.FLOAT
    assert sorted(weight.data_type for weight in weights) == sorted([half, single])


def test_a_kept_node_has_its_constant_in_fp32(graph, out):
    source = graph(CONSTANT_NODE)
    made, _ = convert(source, "fp16", out=out, keep_fp32=["up"])
    numbers = arrays(out, {"x": X})["y"]
    np.testing.assert_allclose(numbers, X * 100000 / 65504, rtol=1e-2)  # `down` has fp16's largest
    assert made.precision == "fp16"


def test_a_value_between_kept_nodes_is_never_in_fp16(graph, out):
    source = graph(LARGE_BETWEEN)
    made, _ = convert(source, "fp16", out=out, keep_fp32=["up", "down"])
    assert report_on(source, made, precision="fp16").passed
    model = onnx.load(out)
    (up,) = (node for node in model.graph.node if node.name == "up")
    (down,) = (node for node in model.graph.node if node.name == "down")
    assert down.input[0] == up.output[0]


def test_casts_of_the_graphs_own_are_left_alone(graph, out):
    """A graph that rounds on purpose goes on rounding."""
    source = graph(OUTSIDE_IN_FP16)
    sample = {"x": np.full((1, 3), 1 / 3, dtype=np.float32)}
    convert(source, "fp16", out=out, keep_fp32=["cast", "back", "last"])
    expected = -sample["x"].astype(np.float16).astype(np.float32)
    np.testing.assert_array_equal(arrays(out, sample)["y"], expected)


def test_nodes_without_names_are_kept_by_the_names_that_they_get(graph, out):
    source = graph(NO_NAMES)
    known = graphs.node_names(graphs.read(source.path))
    assert known == ["MatMul_0_0", "MatMul_0", "Neg_2"]
    convert(source, "fp16", out=out, keep_fp32=[known[0]])
    (weight,) = onnx.load(out).graph.initializer
    assert weight.data_type == onnx.TensorProto.FLOAT


def test_a_node_inside_a_subgraph_is_not_taken_for_its_namesake(graph, out):
    source = graph(NAME_INSIDE)
    convert(source, "fp16", out=out, keep_fp32=["same"])
    assert set(arrays(out, sample_for(source))) == {"y"}


def test_keeping_everything_is_refused_as_it_would_say_fp16_and_not_be_it(graph, out):
    source = graph(TWO_LAYERS)
    with pytest.raises(PrecisionError, match="No part of the graph can be converted to fp16"):
        convert(source, "fp16", out=out, keep_fp32=graphs.node_names(graphs.read(source.path)))
    assert not out.exists()


def test_a_node_that_there_is_not_cannot_be_kept(graph, out):
    with pytest.raises(InvalidInputError, match="no node 'nothing' to keep"):
        convert(graph(TWO_LAYERS), "fp16", out=out, keep_fp32=["MatMul_0", "nothing"])
    assert not out.exists()


def test_the_order_of_the_kept_nodes_does_not_matter(graph, tmp_path):
    source = graph(TWO_LAYERS)
    keep = ["MatMul_0", "Relu_1"]
    one, _ = convert(source, "fp16", out=tmp_path / "a", keep_fp32=keep)
    other, _ = convert(source, "fp16", out=tmp_path / "b", keep_fp32=keep[::-1])
    assert one.sha256 == other.sha256


@given(st.lists(st.tuples(st.sampled_from(["", "a", "a_1", "Relu_0", "Relu_1"]), st.just("Relu"))))
def test_every_node_gets_a_name_of_its_own_and_the_first_owner_keeps_its_name(nodes):
    given_names = graphs.unique_names(nodes)
    assert len(set(given_names)) == len(nodes) == len(given_names)
    assert graphs.unique_names([(name, "Relu") for name in given_names]) == given_names
    for own in {name for name, _ in nodes if name}:
        first = next(place for place, (name, _) in enumerate(nodes) if name == own)
        assert given_names[first] == own


class Recurrent(torch.nn.Module):
    """A GRU with a layer behind it."""

    def __init__(self):
        super().__init__()
        self.recurrent = torch.nn.GRU(4, 8, batch_first=True)
        self.head = torch.nn.Linear(8, 2)

    def forward(self, x):
        return self.head(self.recurrent(x)[0])


@pytest.mark.usefixtures("in_processes")
def test_a_graph_that_brings_onnx_runtime_down_goes_in_fp16_as_its_precision_is_known(tmp_path):
    raw, _ = export(
        Recurrent().eval(),
        {"x": np.zeros((2, 3, 4), np.float32)},
        out=tmp_path / "raw.onnx",
        dynamic_axes={"x": {0: Axis("N", min=1, opt=2, max=4)}},
    )
    half, _ = convert(raw, "fp16", out=tmp_path / "half.onnx")
    # ONNX Runtime 1.31 follows a pointer to nowhere when it loads this as it would one in fp32.
    with (
        pytest.raises(RunnerError, match=r"Its process crashed .* while it was opened"),
        isolated_onnxruntime(half.path),
    ):
        pass
