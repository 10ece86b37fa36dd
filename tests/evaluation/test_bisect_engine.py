"""The nodes that make an engine wrong: laws of the narrowing, then faults planted in what runs."""

from __future__ import annotations

import math
from contextlib import contextmanager

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from planted_graph_faults import HEADER, X, artifact, layers, promised_for_one, wrong_kernels

from mlflow_e2eai.artifacts import graphs
from mlflow_e2eai.artifacts.files import sha256_of
from mlflow_e2eai.artifacts.machine import has_gpu
from mlflow_e2eai.engine.stage import compile
from mlflow_e2eai.errors import EngineBuildError, InvalidInputError, RunnerError
from mlflow_e2eai.evaluation.bisection.engines import bisect_engine
from mlflow_e2eai.evaluation.bisection.pieces import pieces_of
from mlflow_e2eai.evaluation.bisection.search import narrow
from mlflow_e2eai.evaluation.bisection.shapes import observe
from mlflow_e2eai.runtime.ort import onnxruntime_runner

pytestmark = pytest.mark.usefixtures("on_threads")


class Oracle:
    """Fails where its rule says so; counts how often it is asked."""

    def __init__(self, fails):
        self.fails = fails
        self.asked = []

    def __call__(self, first, end):
        self.asked.append((first, end))
        return self.fails(first, end)


def fused(low, high):
    """A fault that shows where all nodes from one to another are together."""
    return Oracle(lambda first, end: first <= low and high < end)


# The narrowing


@given(st.integers(1, 3000), st.data())
def test_one_planted_node_is_found_in_the_promised_number_of_evaluations(count, data):
    planted = data.draw(st.integers(0, count - 1))
    oracle = fused(planted, planted)

    found = narrow(count, oracle)

    assert (found.first, found.end) == (planted, planted + 1)
    assert found.minimal
    assert found.evaluations == len(oracle.asked) <= 2 * math.ceil(math.log2(count)) + 1
    assert found.evaluations <= promised_for_one(count)


@given(st.integers(2, 2000), st.data())
def test_nodes_that_fail_together_only_are_found_in_the_promised_number(count, data):
    low, high = sorted(data.draw(st.lists(st.integers(0, count - 1), min_size=2, max_size=2)))
    oracle = fused(low, high)

    found = narrow(count, oracle)

    assert (found.first, found.end) == (low, high + 1)
    assert len(oracle.asked) <= 2 * math.ceil(math.log2(count)) + 4
    assert len(oracle.asked) <= promised_for_one(count)


@given(st.integers(1, 12), st.data())
def test_whatever_the_oracle_says_the_result_fails_and_needs_its_first_and_its_last(count, data):
    runs = [(first, end) for end in range(1, count + 1) for first in range(end)]
    wrong = {*data.draw(st.sets(st.sampled_from(runs))), (0, count)}
    oracle = Oracle(lambda first, end: (first, end) in wrong)

    found = narrow(count, oracle)

    assert (found.first, found.end) in wrong
    assert found.minimal
    if found.end - found.first > 1:
        assert {(found.first + 1, found.end), (found.first, found.end - 1)}.isdisjoint(wrong)
    assert len(set(oracle.asked)) == len(oracle.asked)


@given(st.integers(1, 30), st.integers(0, 99))
def test_when_the_evaluations_run_out_the_result_still_fails(limit, planted):
    oracle = fused(planted, planted)

    found = narrow(100, oracle, max_evaluations=limit)

    assert found.first <= planted < found.end
    assert found.evaluations == len(oracle.asked) <= limit
    assert found.end - found.first == 1 or not found.minimal


def test_too_few_evaluations_are_refused():
    with pytest.raises(InvalidInputError, match="max_evaluations=0"):
        narrow(3, fused(1, 1), max_evaluations=0)


# Pieces of a graph

SKIPS = """
main (float[N, 4] x) => (float[N, 4] y) <
    float[4, 4] w = {1, 2, 3, 4, 0, 1, -1, 2, 0.5, 0, 1, 0, 1, 1, -2, 1},
    float[4, 4] v = {0.5, 0, 1, 0, 1, -2, 3, 1, 0, 1, -1, 2, 1, 1, -2, 1}
> {
    [first] a = MatMul(x, w)
    [relu] b = Relu(a)
    [skip] c = Add(b, x)
    [second] d = MatMul(c, v)
    [far_skip] e = Add(d, a)
    [tanh] f = Tanh(e)
    [end] y = Mul(f, c)
}"""

COMPUTED_SHAPE = """
main (float[N, 6] x) => (float[N, 6] y) <int64[1] three = {3}, int64[1] zero = {0},
    int64[1] most = {-1}, float[3] w = {0.5, -1, 2}> {
    [start] a = Tanh(x)
    [size] s = Shape(a)
    [items] n = Gather(s, zero)
    [wanted] r = Concat <axis: int = 0> (most, three)
    [fold] b = Reshape(a, r)
    [scale] c = Mul(b, w)
    [floats] h = Cast <to: int = 1> (n)
    [heat] d = Div(c, h)
    [six] p = Concat <axis: int = 0> (n, most)
    [unfold] e = Reshape(d, p)
    [end] y = Sin(e)
}"""

UNKNOWN_TO_ONNX = """
main (float[N, 4] x) => (float[N, 4] y) {
    [start] a = Tanh(x)
    [strange] b = com.microsoft.QuickGelu(a)
    [neg] c = Neg(b)
    [end] y = Sin(c)
}"""
WITH_MICROSOFT = '<ir_version: 8, opset_import: ["" : 18, "com.microsoft" : 1]>'

BRANCHES = """
main (float[N, 4] x, bool flag) => (float[N, 4] y) <float[4] w = {0.5, -1, 2, 1}> {
    [start] a = Tanh(x)
    [scale] b = Mul(a, w)
    [branch] c = If (flag) <
        then_branch = yes () => (float[N, 4] p) { p = Mul(b, w) },
        else_branch = no () => (float[N, 4] q) { q = Neg(b) }
    >
    [end] y = Sin(c)
}"""

TWO_TYPES = """
main (float[N, 4] x) => (float[N, 4] y, int64[N] best) <float zero = {0}> {
    [start] a = Tanh(x)
    [best] best = ArgMax <axis: int = 1, keepdims: int = 0> (a)
    [positive] p = Greater(a, zero)
    [negative] n = Neg(a)
    [choose] b = Where(p, a, n)
    [end] y = Sin(b)
}"""

GRAPHS = {
    "skips": (HEADER, SKIPS),
    "computed shape": (HEADER, COMPUTED_SHAPE),
    "unknown to onnx": (WITH_MICROSOFT, UNKNOWN_TO_ONNX),
    "branches": (HEADER, BRANCHES),
    "two types": (HEADER, TWO_TYPES),
}


@pytest.fixture
def graph(tmp_path):
    def write(name):
        return artifact(onnx.parser.parse_model("".join(GRAPHS[name])), tmp_path / "source.onnx")

    return write


def samples_for(source, items=(2, 3)):
    width = {spec.name: spec.shape[1:] for spec in source.inputs}
    rng = np.random.default_rng(0)
    return [
        {
            name: np.array(True)  # noqa: FBT003
            if name == "flag"
            else rng.standard_normal((count, *shape)).astype(np.float32)
            for name, shape in width.items()
        }
        for count in items
    ]


@pytest.mark.parametrize("named", [True, False], ids=["named", "unnamed"])
@pytest.mark.parametrize("position", [0, 11, 23])
def test_a_planted_node_is_found_by_name(position, named, tmp_path):
    source = artifact(layers(24, named=named), tmp_path / "source.onnx")
    name = f"layer_{position}" if named else f"MatMul_{position}"

    found = bisect_engine(source, samples=[X], build=wrong_kernels(name))

    assert found.nodes == (name,)
    assert found.suspects == 24
    assert found.evaluations <= promised_for_one(24)
    assert found.sentence.startswith(f"Node '{name}', built by itself, gives wrong outputs.")


@pytest.mark.parametrize(
    ("name", "planted"),
    [
        *(("skips", node) for node in ("first", "relu", "skip", "second", "far_skip", "tanh")),
        *(("computed shape", node) for node in ("start", "fold", "scale", "heat", "unfold")),
        *(("unknown to onnx", node) for node in ("start", "strange", "neg", "end")),
        *(("branches", node) for node in ("start", "scale", "branch", "end")),
        *(("two types", node) for node in ("start", "negative", "choose", "end")),
    ],
)
def test_each_planted_node_of_a_graph_that_is_no_chain_is_found(name, planted, graph):
    source = graph(name)

    found = bisect_engine(source, samples=samples_for(source), build=wrong_kernels(planted))

    assert found.nodes == (planted,)
    assert found.minimal
    assert found.evaluations <= promised_for_one(found.suspects)


def test_a_fault_of_nodes_that_are_fused_is_the_run_of_them(tmp_path):
    source = artifact(layers(24), tmp_path / "source.onnx")
    together = ("layer_10", "layer_11", "layer_12")

    found = bisect_engine(source, samples=[X], build=wrong_kernels(*together))

    assert found.nodes == together
    assert found.minimal
    assert found.evaluations <= promised_for_one(24)
    assert "No node alone explains it" in found.sentence
    assert "the 3 of 24 nodes from 'layer_10' to 'layer_12'" in found.sentence


def test_the_first_of_two_wrong_nodes_is_found(tmp_path):
    source = artifact(layers(24), tmp_path / "source.onnx")

    @contextmanager
    def build(piece):
        with wrong_kernels("layer_20")(piece) as one, wrong_kernels("layer_3")(piece) as other:
            names = {node.name for node in onnx.load(piece.path).graph.node}
            yield other if "layer_3" in names else one

    assert bisect_engine(source, samples=[X], build=build).nodes == ("layer_3",)


def test_an_engine_that_is_right_has_nothing_to_explain(tmp_path):
    source = artifact(layers(5), tmp_path / "source.onnx")

    found = bisect_engine(source, samples=[X], build=wrong_kernels("nothing"))

    assert (found.nodes, found.evaluations, found.minimal) == ((), 1, True)
    assert "nothing to bisect" in found.sentence


def test_the_suspect_graph_is_built_as_it_is_and_a_piece_ends_only_where_it_is_cut(graph):
    source = graph("skips")
    digest = sha256_of(source.path)
    seen = []

    def build(piece):
        seen.append((piece.path, {spec.name for spec in piece.outputs}, piece.axes))
        return wrong_kernels("second")(piece)

    found = bisect_engine(source, samples=samples_for(source), build=build)

    assert len(seen) == found.evaluations
    assert seen[0][:2] == (source.path, {"y"})
    assert sha256_of(source.path) == digest
    assert [axes for _, _, axes in seen] == [source.axes] * len(seen)
    ends = {"a", "b", "c", "d", "e", "f", "y"}
    assert all(outputs < ends for _, outputs, _ in seen)
    assert not any(path.exists() for path, _, _ in seen[1:])


def test_an_engine_that_is_refused_is_explained_by_the_smallest_piece_that_is_refused(graph):
    source = graph("skips")

    def build(piece):
        if {"relu", "skip"} <= {node.name for node in onnx.load(piece.path).graph.node}:
            message = "no such kernel"
            raise EngineBuildError(message, reason=message)
        return onnxruntime_runner(piece.path)

    found = bisect_engine(source, samples=samples_for(source), build=build)

    assert found.nodes == ("relu", "skip")
    assert "cannot be built or run" in found.sentence


def test_a_piece_that_is_refused_says_nothing_about_an_engine_that_is_wrong(tmp_path):
    source = artifact(layers(8), tmp_path / "source.onnx")

    def build(piece):
        if len(onnx.load(piece.path).graph.node) < 3:
            message = "too small"
            raise RunnerError(message)
        return wrong_kernels("layer_5")(piece)

    found = bisect_engine(source, samples=[X], build=build)

    assert "layer_5" in found.nodes
    assert len(found.nodes) == 3


def test_when_the_evaluations_run_out_the_piece_is_said_to_be_too_large(tmp_path):
    source = artifact(layers(24), tmp_path / "source.onnx")

    found = bisect_engine(source, samples=[X], build=wrong_kernels("layer_3"), max_evaluations=2)

    assert found.nodes == tuple(f"layer_{number}" for number in range(12))
    assert not found.minimal
    assert "the limit of evaluations" in found.sentence


def test_no_samples_are_refused(tmp_path):
    with pytest.raises(InvalidInputError, match="no samples"):
        bisect_engine(artifact(layers(3), tmp_path / "source.onnx"), samples=[])


def test_a_graph_with_nothing_to_cut_out_is_refused(tmp_path):
    model = onnx.parser.parse_model(HEADER + "main (float[N] x) => (int64[1] y) { y = Shape(x) }")
    source = artifact(model, tmp_path / "source.onnx")

    with pytest.raises(InvalidInputError, match="no node that depends on its inputs"):
        bisect_engine(source, samples=[{"x": np.zeros(2, np.float32)}])


def test_what_the_reference_cannot_run_is_an_error_and_not_a_verdict(tmp_path):
    source = artifact(layers(3), tmp_path / "source.onnx")

    with pytest.raises(RunnerError, match="cannot run"):
        bisect_engine(source, samples=[{"v0": np.zeros((2, 5), np.float32)}])


@pytest.mark.skipif(has_gpu(), reason="is about a machine with no GPU")
def test_by_default_the_engine_of_this_machines_gpu_is_searched(tmp_path):
    source = artifact(layers(3), tmp_path / "source.onnx")

    with pytest.raises(InvalidInputError, match="'local' needs a GPU"):
        bisect_engine(source, samples=[X])


def test_sizes_and_constants_go_with_the_nodes_that_read_them(graph):
    pieces = pieces_of(graphs.read(graph("computed shape").path))

    assert pieces.nodes == ("start", "fold", "scale", "heat", "unfold", "end")
    assert pieces.edges(3, 5) == (["a", "c"], ["e"])


def test_a_value_that_is_only_read_inside_a_branch_is_an_edge(graph):
    pieces = pieces_of(graphs.read(graph("branches").path))

    assert pieces.edges(2, 3) == (["b", "flag"], ["c"])


def test_a_size_inside_keeps_its_axis_or_gets_one_of_its_own(graph):
    source = graph("computed shape")

    seen = observe(source, samples_for(source))

    shapes = {
        name: [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]
        for name, value in seen.values.items()
    }
    assert shapes["a"] == ["N", 6]
    folded, width = shapes["b"]
    assert width == 3
    (axis,) = (axis for axis in seen.axes if axis.name == folded)
    assert (axis.min, axis.opt, axis.max) == (2, 4, 8)


def test_a_type_that_onnx_cannot_infer_is_seen(graph):
    source = graph("unknown to onnx")

    value = observe(source, samples_for(source)).values["b"]

    assert value.type.tensor_type.elem_type == onnx.TensorProto.FLOAT
    assert len(value.type.tensor_type.shape.dim) == 2


@pytest.mark.parametrize("name", ["skips", "computed shape", "two types"])
def test_tensorrt_builds_every_piece(name, graph, tmp_path):
    """Engines need no GPU to be built; ONNX Runtime answers for them here."""
    pytest.importorskip("tensorrt_rtx")
    source = graph(name)
    pieces = pieces_of(graphs.read(source.path))
    built = []

    @contextmanager
    def build(piece):
        built.append(compile(piece, "sm120", out=tmp_path / "piece.engine"))
        with wrong_kernels(*pieces.nodes[-2:])(piece) as infer:
            yield infer

    found = bisect_engine(source, samples=samples_for(source), build=build)

    assert found.nodes == pieces.nodes[-2:]
    assert len(built) == found.evaluations > 4
    assert all(engine.size_bytes > 0 for engine in built)
