"""fp16 and bf16: which nodes are narrowed, in every operator of ONNX, and under which names."""

from __future__ import annotations

import functools
import itertools
import warnings

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx.backend.test.case.node import collect_testcases
from random_graphs import artifact_of, random_graphs

from mlflow_e2eai import clean, compare, convert
from mlflow_e2eai.artifacts import graphs
from mlflow_e2eai.artifacts.values import Axis
from mlflow_e2eai.errors import PrecisionError
from mlflow_e2eai.precision.bf16_losses import guard_losses
from mlflow_e2eai.precision.half import to_half
from mlflow_e2eai.runtime.emulation import emulate_rounding
from mlflow_e2eai.runtime.ort import onnxruntime_runner

pytestmark = pytest.mark.usefixtures("on_threads")

HALVES = ("fp16", "bf16")
AXES = (Axis("N", min=1, opt=2, max=4),)
X3 = np.array([[-1, 2, -3], [4, -5, 6]], np.float32) / 4
X = np.array([[1, -2, 3, 0.5], [-4, 5, -6, 0.25]], np.float32) / 8


@pytest.fixture
def graph(tmp_path):
    def write(text, opset=18):
        header = f'<ir_version: 8, opset_import: ["" : {opset}]> '
        path = tmp_path / "source.onnx"
        graphs.write(onnx.parser.parse_model(header + text), path)
        return graphs.describe(path, stage="clean", precision="fp32", axes=AXES, parent_sha256=None)

    return write


def assert_close(source, made, sample):
    with (
        onnxruntime_runner(source.path) as right,
        onnxruntime_runner(made.path, rounded=made.precision == "bf16") as infer,
    ):
        report = compare(right, infer, [sample], precision=made.precision, repeats=1)
    assert report.passed, report.findings


def types_read(path, operator):
    """The types of the weights that nodes of an operator read, in subgraphs too."""
    model = onnx.load(path)
    inner = [g for n in graphs.nodes(model) for g in graphs.subgraphs(n)]
    types = {w.name: w.data_type for g in (model.graph, *inner) for w in g.initializer}
    return {
        types[name]
        for node in graphs.nodes(model)
        for name in node.input
        if node.op_type == operator and name in types
    }


# Operators

TRAINING = ("adagrad", "adam", "momentum", "training")
LARGE = ("large_number", "test_tan", "qk_matmul_bias")  # beyond fp16, or close to a pole
OLD_SCAN = "test_scan_sum"


@functools.cache
def cases():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return collect_testcases(None)  # which can be called once only


def one_case_of_each_operator():
    seen = set()
    for case in cases():
        model = case.model
        values = (*model.graph.input, *model.graph.output)
        words = (*TRAINING, *LARGE, OLD_SCAN, "gru")
        if any(word in case.name for word in words) or not case.data_sets:
            continue
        if any(value.type.WhichOneof("value") != "tensor_type" for value in values):
            continue
        operators = tuple(node.op_type for node in model.graph.node)
        floats = any(value.type.tensor_type.elem_type == onnx.TensorProto.FLOAT for value in values)
        if floats and len(operators) == 1 and operators not in seen:
            seen.add(operators)
            yield case


def session(model):
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


@pytest.mark.parametrize("precision", HALVES)
def test_every_operator_of_onnx_is_narrowed_or_stays_and_gives_its_numbers(precision, tmp_path):
    tried, wrong = 0, []
    for case in one_case_of_each_operator():
        model = graphs.inline_functions(case.model)
        model.ir_version = min(model.ir_version, 10)
        inputs, _ = case.data_sets[0]
        sample = {value.name: x for value, x in zip(model.graph.input, inputs, strict=False)}
        try:
            right = session(model.SerializeToString()).run(None, sample)
        except Exception:  # noqa: BLE001, S112 - ONNX Runtime has no kernel in fp32 either
            continue
        converted = to_half(model, precision)
        path = tmp_path / "half.onnx"
        graphs.write(converted, path)
        content = emulate_rounding(path) if precision == "bf16" else path.read_bytes()
        given = session(content).run([value.name for value in model.graph.output], sample)
        tried += 1
        wrong += [
            case.name
            for one, other in zip(right, given, strict=True)
            if one.dtype != other.dtype
            or one.shape != other.shape
            or (
                one.dtype == np.float32
                and not np.allclose(
                    one, other, 0, 0.03 * (np.abs(one).max(initial=0) + 0.01), equal_nan=True
                )
            )
        ]
    assert (wrong, tried > 120) == ([], True)


@pytest.mark.parametrize("precision", HALVES)
def test_an_operator_without_a_half_form_stays_in_fp32(precision, graph, tmp_path):
    source = graph(
        "g (float[N, 4] x) => (float[N, 4] y) <float[4, 4] w = {1,2,3,4,5,6,7,8,9,8,7,6,5,4,3,2}> "
        "{ h = MatMul(x, w) c = Celu(h) i = IsInf(c) f = Cast<to: int = 1>(i) s = Add(c, f) "
        "y = MatMul(s, w) }"
    )
    made, _ = convert(source, precision, out=tmp_path / "half.onnx", samples=[{"x": X}])
    assert types_read(made.path, "MatMul") == {
        getattr(onnx.TensorProto, {"fp16": "FLOAT16", "bf16": "BFLOAT16"}[precision])
    }
    assert_close(source, made, {"x": X})


@pytest.mark.parametrize("precision", HALVES)
@pytest.mark.parametrize(
    "constant", ["value_float: float = 2.0", "value_floats: floats = [2.0, 1.0, 0.5, 3.0]"]
)
def test_a_constant_that_is_given_as_floats_comes_along(precision, constant, graph, tmp_path):
    text = f"{{ k = Constant<{constant}>() h = Relu(x) y = Mul(h, k) }}"
    source = graph(f"g (float[N, 4] x) => (float[N, 4] y) {text}")
    made, report = convert(source, precision, out=tmp_path / "half.onnx", samples=[{"x": X}])
    assert report.casts == 2
    assert_close(source, made, {"x": X})


@pytest.mark.parametrize("precision", HALVES)
def test_a_weight_that_is_an_output_stays_what_it_is(precision, graph, tmp_path):
    source = graph(
        "g (float[N, 4] x) => (float[N, 4] y, float[4] k) <float[4] k = {1.0001, 2, 3, 4}> "
        "{ y = Mul(x, k) }"
    )
    made, _ = convert(source, precision, out=tmp_path / "half.onnx")
    with onnxruntime_runner(made.path, rounded=precision == "bf16") as infer:
        np.testing.assert_array_equal(infer({"x": X})["k"], np.array([1.0001, 2, 3, 4], "f"))


BRANCHES = """g (float[N, 4] x, bool c) => (float[N, 4] y)
<float[4, 4] w = {1,2,3,4,5,6,7,8,9,8,7,6,5,4,3,2}> {
    y = If (c) <
        then_branch = then () => (float[N, 4] a) { h = MatMul(x, w) a = Relu(h) },
        else_branch = other () => (float[N, 4] b) <float[4] w2 = {1, 2, 3, 4}>
            { h = MatMul(x, w) b = Sub(h, w2) }>
}"""


@pytest.mark.parametrize("precision", HALVES)
def test_branches_are_converted_inside_and_share_their_weights(precision, graph, tmp_path):
    source = graph(BRANCHES)
    cleaned, _ = clean(source, out=tmp_path / "clean.onnx")
    model = onnx.load(cleaned.path)
    inner = [each for node in model.graph.node for each in graphs.subgraphs(node)]
    assert [w.name for each in (model.graph, *inner) for w in each.initializer] == ["w", "w2"]
    made, _ = convert(cleaned, precision, out=tmp_path / "half.onnx", samples=sample_branches()[:1])
    assert onnx.TensorProto.FLOAT not in types_read(made.path, "MatMul")
    for sample in sample_branches():
        assert_close(source, made, sample)


def sample_branches():
    return [{"x": X, "c": np.array(value)} for value in (True, False)]


@pytest.mark.parametrize("precision", HALVES)
def test_weights_of_one_name_in_two_branches_are_two_weights(precision, graph, tmp_path):
    branch = "() => (float[N, 4] o) <float[4] v = {%s}> { o = Mul(x, v) }"
    source = graph(
        "g (float[N, 4] x, bool c) => (float[N, 4] y) { y = If (c) <"
        f"then_branch = one {branch % '1, 2, 3, 4'}, else_branch = two {branch % '4, 3, 2, 1'}> }}"
    )
    made, _ = convert(source, precision, out=tmp_path / "half.onnx", samples=sample_branches()[:1])
    for sample in sample_branches():
        assert_close(source, made, sample)


@pytest.mark.parametrize("precision", HALVES)
@pytest.mark.parametrize("opset", [8, 11, 12])
def test_a_graph_of_an_early_operator_set_is_raised_with_the_names_of_its_nodes(
    precision, opset, graph, tmp_path
):
    source = graph(
        "g (float[N, 4] x) => (float[N, 4] y) <float[4, 4] w = {1,2,3,4,5,6,7,8,9,8,7,6,5,4,3,2}> "
        "{ [first] h = MatMul(x, w) [flat] f = Squeeze<axes: ints = [0]>(u) "
        "[up] u = Unsqueeze<axes: ints = [0]>(h) [last] y = Softmax<axis: int = 1>(f) }".replace(
            "[flat] f = Squeeze<axes: ints = [0]>(u) [up] u = Unsqueeze<axes: ints = [0]>(h)",
            "[up] u = Unsqueeze<axes: ints = [0]>(h) [flat] f = Squeeze<axes: ints = [0]>(u)",
        ),
        opset,
    )
    made, report = convert(
        source, precision, out=tmp_path / "half.onnx", samples=[{"x": X}], keep_fp32=["last"]
    )
    assert made.opset == {"fp16": 13, "bf16": 22}[precision]
    assert [one.node for one in report.kept] == ["last"]
    assert_close(source, made, {"x": X})


def test_bf16_stops_where_onnx_runtime_has_no_later_kernel(graph, tmp_path):
    source = graph(
        "g (float[N, 4] x) => (float[N, 4] y) "
        "{ r = RandomNormalLike<seed: float = 1.0>(x) z = Sub(r, r) y = Add(x, z) }"
    )
    made, _ = convert(source, "bf16", out=tmp_path / "half.onnx", samples=[{"x": X}])
    assert made.opset == 21


INSIDE_OUT = {
    "a sequence": "s = SequenceConstruct(h, h) e = SequenceAt(s, z)",
    "a type that follows another": "e = EyeLike(h)",
    "an optional value": "o = Optional(h) e = OptionalGetElement(o)",
}


@pytest.mark.parametrize("precision", HALVES)
@pytest.mark.parametrize("case", INSIDE_OUT)
def test_a_type_that_an_operator_hands_on_in_another_form_stays_fp32(
    case, precision, graph, tmp_path
):
    text = "g (float[N, 4] x) => (float[N, 4] y) <int64 z = {0}>"
    source = graph(f"{text} {{ h = Relu(x) {INSIDE_OUT[case]} y = Add(e, h) }}")
    made, _ = convert(source, precision, out=tmp_path / "half.onnx", samples=[{"x": X}])
    assert_close(source, made, {"x": X})


def test_a_type_that_only_a_weight_tells_is_found_behind_an_unknown_operator():
    model = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 18, "devtech" : 1]> '
        "g (float[N, 4] x) => (float[N, 4] y) <float[4] w = {1, 2, 3, 4}> "
        "{ a = devtech.Foo(x) b = Neg(a) c = Mul(b, w) y = devtech.Foo(c) }"
    )
    converted = to_half(model, "fp16")
    assert [(node.op_type, *node.input) for node in converted.graph.node] == [
        ("Foo", "x"),
        ("Cast", "a"),
        ("Neg", "a_in_fp16"),
        ("Mul", "b", "w_in_fp16"),
        ("Cast", "c"),
        ("Foo", "c_in_fp32"),
    ]


NOTHING = {
    "whole numbers": ("g (int64[N] x) => (int64[N] y) { y = Mul(x, x) }", "none of its nodes"),
    "Einsum": (
        'g (float[N, 4] x) => (float[N, N] y) { y = Einsum<equation: string = "bi,oi->bo">(x, x) }',
        "Einsum cannot be in bf16 at opset 22",
    ),
}


@pytest.mark.parametrize("case", NOTHING)
def test_a_graph_with_nothing_to_narrow_is_refused_with_the_reason(case, graph, tmp_path):
    text, reason = NOTHING[case]
    source = graph(text)
    sample = {"x": np.array([1, 2]) if case == "whole numbers" else X}
    with pytest.raises(PrecisionError, match=reason) as refused:
        convert(source, "bf16", out=tmp_path / "half.onnx", samples=[sample])
    assert "0 of its" not in str(refused.value)


def test_a_product_that_would_overflow_inside_a_branch_stays_in_fp32(graph, tmp_path):
    source = graph(
        "g (float[N, 4] x, bool c) => (float[N, 4] y) { h = Relu(x) [branch] y = If (c) <"
        "then_branch = one () => (float[N, 4] o) <float v = {100000}> { o = Mul(h, v) },"
        "else_branch = two () => (float[N, 4] p) { p = Neg(h) }> }"
    )
    made, report = convert(
        source, "fp16", out=tmp_path / "half.onnx", samples=sample_branches()[1:]
    )
    assert [(one.node, one.value) for one in report.kept] == [("branch", "v")]
    assert_close(source, made, sample_branches()[0])


# Names

DERIVED = [
    f"{stem}{ending}"
    for stem, ending in itertools.product(
        ("x", "w", "h"),
        *[
            (
                *("_in_fp16", "_in_bf16", "_in_fp32", "_cast", "_in_fp16_cast", "_scale", "_zero"),
                *("_quantized", "_dequantized", "_quantize", "_1_quantized", "_1_scale", "_twin"),
                *("_observed", "_Cast", "_Abs", "_abs", "_finite", "_infinity", "_exact"),
                *("_rounded", "_size", "_magnitude", "_1_zero", "_1_dequantized", "_in_fp32_cast"),
            )
        ],
    )
]
MEETING = """g (float[N, 4] x, float[N, 4] A) => (float[N, 4] B, float[N, 4] C)
<float[4, 4] w = {1,2,3,4,5,6,7,8,9,8,7,6,5,4,3,2}, float[4] D = {1, 2, 3, 4}> {
    [E] h = MatMul(x, w)
    [F] F = Exp(A)
    [G] G = Mul(F, D)
    B = Add(h, G)
    C = MatMul(B, w)
}"""


def renamed(model, names):
    """The graph with the letters of its values and nodes replaced by names."""
    new = dict(zip("ABCDEFG", names, strict=True))
    for value in (*model.graph.input, *model.graph.output, *model.graph.initializer):
        value.name = new.get(value.name, value.name)
    for node in model.graph.node:
        node.name = new.get(node.name, node.name)
        node.input[:] = [new.get(name, name) for name in node.input]
        node.output[:] = [new.get(name, name) for name in node.output]
    return model


@settings(max_examples=8)
@given(names=st.lists(st.sampled_from(DERIVED), min_size=7, max_size=7, unique=True))
@pytest.mark.parametrize("precision", [*HALVES, "int8"])
def test_a_name_that_a_conversion_would_give_may_be_there_already(
    precision, names, tmp_path_factory
):
    folder = tmp_path_factory.mktemp("names")
    model = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : 18]> {MEETING}')
    graphs.write(renamed(model, names), folder / "source.onnx")
    source = graphs.describe(
        folder / "source.onnx", stage="clean", precision="fp32", axes=AXES, parent_sha256=None
    )
    sample = {"x": X, names[0]: -X}
    made, _ = convert(source, precision, out=folder / "made.onnx", samples=[sample])
    assert (made.inputs, made.outputs) == (source.inputs, source.outputs)
    assert_close(source, made, sample)


# Random graphs


@settings(max_examples=15)
@given(text=random_graphs(), data=st.data())
@pytest.mark.parametrize("precision", HALVES)
def test_a_random_graph_keeps_its_interface_and_numbers_with_any_nodes_in_fp32(
    precision, text, data, tmp_path_factory
):
    folder = tmp_path_factory.mktemp("random")
    source = artifact_of(text, folder / "source.onnx")
    names = graphs.node_names(graphs.read(source.path))
    keep = data.draw(st.sets(st.sampled_from(names)))
    converted = to_half(graphs.read(source.path), precision, keep_fp32=keep)
    assert graphs.interface(converted)[0] == source.inputs
    graphs.check(converted)
    graphs.write(converted, folder / "half.onnx")
    with (
        onnxruntime_runner(source.path) as right,
        onnxruntime_runner(folder / "half.onnx", rounded=precision == "bf16") as infer,
    ):
        wanted, given = right({"x": X3}), infer({"x": X3})
    for name, array in wanted.items():
        np.testing.assert_allclose(given[name], array, rtol=0.03, atol=0.03 * np.abs(array).max())


# The guard of bf16 on long and branching graphs


def kept_by_losses(body):
    text = "g (float[N, 4] x) => (float[N, 4] y) <float[1] large = {1000.0}> "
    model = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : 18]> {text} {{ {body} }}')
    return len(guard_losses(model, [{"x": X}]).kept)


def test_the_guard_of_bf16_walks_back_over_a_thousand_copies():
    copies = " ".join(f"c{at + 1} = Identity(c{at})" for at in range(1100))
    assert kept_by_losses(f"c0 = Add(x, large) {copies} y = Sub(c1100, large)") == 1102


def test_the_guard_of_bf16_visits_what_many_ways_lead_to_once():
    twice = " ".join(f"c{at + 1} = Max(c{at}, c{at})" for at in range(60))
    assert kept_by_losses(f"c0 = Add(x, large) {twice} y = Sub(c60, large)") == 62
