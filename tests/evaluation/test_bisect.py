"""The nodes that explain a failure: laws of the search, then planted faults in real graphs."""

from __future__ import annotations

import math
from contextlib import contextmanager

import numpy as np
import onnx
import pytest
import trained_models
from hypothesis import given
from hypothesis import strategies as st
from onnx import helper
from onnx.reference import ReferenceEvaluator
from planted_graph_faults import (
    HEADER,
    X,
    artifact,
    layers,
    places,
    plant,
    promised_for_one,
    wrong_kernels,
)

from mlflow_e2eai import clean, compare, convert, export
from mlflow_e2eai.artifacts import graphs
from mlflow_e2eai.artifacts.files import from_json, to_json
from mlflow_e2eai.errors import InvalidInputError, RunnerError, SurgeryError
from mlflow_e2eai.evaluation.bisection.engines import bisect_engine
from mlflow_e2eai.evaluation.bisection.nodes import _suspects, bisect
from mlflow_e2eai.evaluation.bisection.pieces import cut, pieces_of
from mlflow_e2eai.evaluation.bisection.plans import bisect_plan
from mlflow_e2eai.evaluation.bisection.search import Bisection, search
from mlflow_e2eai.runtime.ort import onnxruntime_runner
from mlflow_e2eai.surgery.plan import Step

pytestmark = pytest.mark.usefixtures("on_threads")


def names(count):
    return [f"node_{number}" for number in range(count)]


def most_for(culprits, nodes):
    """What `search` promises."""
    return culprits * (math.ceil(math.log2(nodes)) + 2) + 1


class Oracle:
    """Fails unless it is right about what is kept; counts how often it is asked."""

    def __init__(self, passes):
        self.passes = passes
        self.asked = []

    def __call__(self, keep):
        self.asked.append(keep)
        return not self.passes(keep)


# The search


@given(st.integers(1, 3000), st.data())
def test_one_planted_node_is_found_in_the_promised_number_of_evaluations(count, data):
    nodes = names(count)
    planted = data.draw(st.sampled_from(nodes))
    oracle = Oracle(lambda keep: planted in keep)

    found = search(nodes, oracle)

    assert found.nodes == (planted,)
    assert found.evaluations == len(oracle.asked) <= most_for(1, count) + 1
    assert found.evaluations <= promised_for_one(count)


@pytest.mark.parametrize("count", [1, 2, 3, 64, 65, 1000])
def test_the_promise_holds_for_every_place(count):
    nodes = names(count)
    for planted in nodes:
        oracle = Oracle(lambda keep, planted=planted: planted in keep)
        assert search(nodes, oracle).nodes == (planted,)
        assert len(oracle.asked) <= promised_for_one(count)


@given(st.integers(1, 500), st.data())
def test_independent_nodes_are_all_found_in_the_graphs_order(count, data):
    nodes = names(count)
    planted = data.draw(st.sets(st.sampled_from(nodes), min_size=1, max_size=8))
    oracle = Oracle(lambda keep: planted <= keep)

    found = search(nodes, oracle)

    assert found.nodes == tuple(name for name in nodes if name in planted)
    assert found.minimal
    assert len(oracle.asked) <= most_for(len(planted), count)


@given(st.sets(st.frozensets(st.sampled_from(names(12)), min_size=1), min_size=1))
def test_where_keeping_more_never_hurts_no_smaller_part_passes(enough):
    """Any monotone oracle is this: some sets are enough, and so is whatever holds one of them."""
    oracle = Oracle(lambda keep: any(group <= keep for group in enough))

    found = search(names(12), oracle)

    assert frozenset(found.nodes) in enough
    assert not any(group < frozenset(found.nodes) for group in enough)
    assert len(oracle.asked) <= most_for(len(found.nodes), 12)


@given(st.sets(st.frozensets(st.sampled_from(names(7))), min_size=1))
def test_where_keeping_more_may_hurt_the_result_still_passes_and_needs_each_node(right):
    nodes = names(7)
    oracle = Oracle(lambda keep: keep in right or len(keep) == len(nodes))

    found = search(nodes, oracle)

    kept = frozenset(found.nodes)
    assert oracle.passes(kept)
    assert found.minimal
    assert not any(oracle.passes(kept - {name}) for name in kept)
    assert len(oracle.asked) <= most_for(len(nodes), len(nodes)) + len(nodes) ** 2


@given(st.sets(st.frozensets(st.sampled_from(names(7)))))
def test_no_set_is_asked_twice(right):
    oracle = Oracle(lambda keep: keep in right or len(keep) == 7)

    search(names(7), oracle)

    assert len(set(oracle.asked)) == len(oracle.asked)


@given(st.integers(2, 40), st.sets(st.sampled_from(names(50)), min_size=1))
def test_when_the_evaluations_run_out_the_result_still_passes(limit, planted):
    oracle = Oracle(lambda keep: planted <= keep)

    found = search(names(50), oracle, max_evaluations=limit)

    assert oracle.passes(frozenset(found.nodes))
    assert found.evaluations == len(oracle.asked) <= limit
    assert set(found.nodes) == planted or not found.minimal


def test_a_result_that_is_not_minimal_says_so():
    found = search(names(50), lambda keep: "node_7" not in keep, max_evaluations=3)

    assert not found.minimal
    assert "limit of evaluations" in found.sentence
    assert "node_7" in found.nodes


def test_what_passes_as_it_is_needs_no_explanation():
    found = search(names(9), lambda _: False)

    assert (found.nodes, found.minimal, found.evaluations) == ((), True, 1)
    assert "nothing to bisect" in found.sentence


@pytest.mark.parametrize("count", [0, 1, 9])
def test_what_fails_with_everything_kept_is_an_error(count):
    with pytest.raises(InvalidInputError, match=f"even with all {count} nodes kept"):
        search(names(count), lambda _: True)


def test_a_name_that_is_there_twice_is_refused():
    with pytest.raises(InvalidInputError, match="have one name"):
        search(["a", "b", "a"], lambda _: True)


@pytest.mark.parametrize("limit", [1, 0, -1])
def test_too_few_evaluations_are_refused(limit):
    with pytest.raises(InvalidInputError, match=f"max_evaluations={limit}"):
        search(names(3), lambda _: True, max_evaluations=limit)


@given(st.sets(st.sampled_from(names(20)), min_size=1))
def test_a_result_survives_json(planted):
    found = search(names(20), lambda keep: not planted <= keep)

    assert from_json(Bisection, to_json(found)) == found


# fp32 against fp16, on graphs


@pytest.mark.parametrize("named", [True, False], ids=["named", "unnamed"])
@pytest.mark.parametrize("position", [0, 11, 23])
def test_a_planted_node_is_found_by_name(position, named, tmp_path):
    model = plant(layers(24, named=named), position)
    source = artifact(model, tmp_path / "source.onnx")

    found = bisect(source, samples=[X])

    assert found.nodes == ((f"layer_{position}" if named else f"MatMul_{position}"),)
    assert found.evaluations <= promised_for_one(found.suspects)
    assert found.suspects == 26


def assert_passes_where_it_failed(source, keep, samples):
    for kept, right in (((), False), (keep, True)):
        made, _ = convert(source, "fp16", out=source.path.with_name("half.onnx"), keep_fp32=kept)
        with onnxruntime_runner(source.path) as before, onnxruntime_runner(made.path) as after:
            report = compare(before, after, samples, precision="fp16", repeats=1)
        assert report.passed is right


def test_convert_takes_what_is_found_and_the_failure_is_gone(tmp_path):
    source = artifact(plant(plant(layers(24), 17), 4), tmp_path / "source.onnx")

    found = bisect(source, samples=[X])

    assert found.nodes == ("layer_4", "layer_17")
    assert found.evaluations <= most_for(2, found.suspects)
    assert_passes_where_it_failed(source, found.nodes, [X])


def test_a_graph_that_passes_has_nothing_to_explain(tmp_path):
    found = bisect(artifact(layers(5), tmp_path / "source.onnx"), samples=[X])

    assert (found.nodes, found.evaluations) == ((), 1)


def test_a_fault_that_is_not_of_the_precision_is_an_error(tmp_path):
    source = artifact(layers(5), tmp_path / "source.onnx")

    def other(tensors):
        return {"v5": tensors["v0"] * 3}

    with pytest.raises(InvalidInputError, match="even with all 5 nodes kept"):
        bisect(source, samples=[X], reference=other)


def test_a_runner_of_ones_own_is_asked_with_files_only(tmp_path):
    """As one that compiles each file for a GPU; one that cannot run a file is no answer."""
    source = artifact(plant(layers(8), 5), tmp_path / "source.onnx")
    seen = []

    def run(path):
        seen.append(path)
        if len(seen) == 1:
            message = "no such kernel"
            raise RunnerError(message)
        return onnxruntime_runner(path)

    found = bisect(source, samples=[X], run=run)

    assert found.nodes == ("layer_5",)
    assert len(seen) == found.evaluations
    assert not any(path.exists() for path in seen)


LARGE_BETWEEN = """
main (float[N, 4] x) => (float[N, 4] y) <float big = {10000.0}> {
    [rest] a = Relu(x)
    [up_1] b = Mul(a, big)
    [up_2] c = Mul(b, big)
    [down_1] d = Div(c, big)
    [down_2] e = Div(d, big)
    [again] y = Relu(e)
}"""


def test_an_overflow_between_nodes_is_found_where_the_runner_shows_it(tmp_path):
    """ONNX Runtime on the CPU computes these in fp32; onnx's reference keeps to fp16."""
    model = onnx.parser.parse_model(HEADER + LARGE_BETWEEN)
    source = artifact(model, tmp_path / "source.onnx")

    @contextmanager
    def in_true_fp16(path):
        evaluator = ReferenceEvaluator(str(path))

        def infer(tensors):
            with np.errstate(over="ignore", invalid="ignore"):
                return dict(zip(["y"], evaluator.run(None, dict(tensors)), strict=True))

        yield infer

    assert bisect(source, samples=[SAMPLE]).nodes == ()
    assert bisect(source, samples=[SAMPLE], run=in_true_fp16).nodes == ("up_2", "down_1")


def test_a_reference_that_cannot_answer_is_an_error_and_not_a_verdict(tmp_path):
    def broken(_):
        message = "out of order"
        raise RunnerError(message)

    with pytest.raises(RunnerError, match="out of order"):
        bisect(artifact(layers(3), tmp_path / "source.onnx"), samples=[X], reference=broken)


def test_no_samples_are_refused(tmp_path):
    with pytest.raises(InvalidInputError, match="no samples"):
        bisect(artifact(layers(3), tmp_path / "source.onnx"), samples=[])


@pytest.mark.parametrize("precision", ["fp32", "int7"])
def test_a_precision_in_which_nothing_can_be_kept_is_refused(precision, tmp_path):
    with pytest.raises(InvalidInputError, match=precision):
        bisect(artifact(layers(3), tmp_path / "source.onnx"), precision, samples=[X])


BRANCHES = """
main (float[N, 4] x, bool flag) => (float[N, 4] y) {
    [huge] c = Constant <value = float {1000000.0}> ()
    [up] a = Mul(x, c)
    [down] b = Div(a, c)
    [branch] y = If (flag) <
        then_branch = yes () => (float[N, 4] p) { p = Relu(b) },
        else_branch = no () => (float[N, 4] q) { q = Neg(b) }
    >
}"""


def test_constants_and_nodes_with_subgraphs_are_no_suspects(tmp_path):
    model = onnx.parser.parse_model(HEADER + BRANCHES)

    assert _suspects(model) == ["up", "down"]


# Pieces of a graph


@pytest.mark.parametrize("place", [1, 4, 7])
def test_two_pieces_one_after_the_other_are_the_whole(place, tmp_path):
    source = artifact(layers(8), tmp_path / "source.onnx")
    middle, end = f"v{place}", "v8"
    first = cut(source, inputs=["v0"], outputs=[middle], out=tmp_path / "first.onnx")
    second = cut(source, inputs=[middle], outputs=[end], out=tmp_path / "second.onnx")

    with (
        onnxruntime_runner(source.path) as whole,
        onnxruntime_runner(first.path) as before,
        onnxruntime_runner(second.path) as after,
    ):
        np.testing.assert_array_equal(after(before(X))[end], whole(X)[end])
    assert len(onnx.load(first.path).graph.node) == place
    assert (second.axes, second.parent_sha256) == (source.axes, source.sha256)


def test_a_value_that_there_is_not_is_no_place_to_cut(tmp_path):
    source = artifact(layers(3), tmp_path / "source.onnx")

    with pytest.raises(InvalidInputError, match="no value 'nothing'"):
        cut(source, inputs=["v0"], outputs=["nothing"], out=tmp_path / "piece.onnx")


def test_a_piece_that_needs_more_inputs_is_refused(tmp_path):
    source = artifact(onnx.parser.parse_model(HEADER + SIGNED), tmp_path / "source.onnx")

    with pytest.raises(InvalidInputError, match="cannot be computed"):
        cut(source, inputs=["g"], outputs=["y"], out=tmp_path / "piece.onnx")
    assert not (tmp_path / "piece.onnx").exists()


# Surgery

SIGNED = """
main (float[N, 4] x) => (float[N, 4] y) {
    [abs_0] a = Abs(x)
    [relu_0] b = Relu(a)
    [copy] c = Identity(b)
    [neg] d = Neg(c)
    [relu_1] e = Relu(d)
    [abs_1] f = Abs(e)
    [relu_2] g = Relu(f)
    y = Add(g, x)
}"""

FOO = """
main (float[N, 4] x) => (float[N, 4] y) {
    [foo] a = devtech.FooOp(x)
    [neg] b = Neg(a)
    [relu] c = Relu(b)
    y = Add(c, x)
}"""

SAMPLE = {"x": np.array([[1, -2, 3, -4]], dtype=np.float32)}
BYPASS = Step(rule="bypass", arguments={"op_type": "Relu"})
UNUSED = Step(rule="drop_unused")
IDENTITIES = Step(rule="drop_identities")
RENAME = Step(rule="rename", arguments={"inputs": {"x": "z"}})


@pytest.fixture
def graph(tmp_path):
    def write(text, header=HEADER):
        return artifact(onnx.parser.parse_model(header + text), tmp_path / "source.onnx")

    return write


def test_the_step_and_the_node_that_broke_a_graph_are_named(graph):
    found = bisect_plan(graph(SIGNED), [IDENTITIES, BYPASS, UNUSED, RENAME], samples=[SAMPLE])

    assert (found.rule, found.nodes) == ("bypass", ("relu_1",))
    assert found.minimal
    assert found.suspects == 3
    assert "'bypass' broke the graph; it should leave out relu_1" in found.sentence


def test_a_step_that_is_there_twice_is_named_with_its_number(graph):
    fine = Step(rule="bypass", arguments={"op_type": "Identity"})

    assert bisect_plan(graph(SIGNED), [fine, BYPASS], samples=[SAMPLE]).rule == "bypass #2"


def test_a_plan_that_is_right_has_nothing_to_explain(graph):
    found = bisect_plan(graph(SIGNED), [IDENTITIES, RENAME], samples=[SAMPLE])

    assert (found.rule, found.nodes, found.evaluations) == (None, (), 1)


def test_a_step_that_raises_is_to_blame_with_the_node_that_it_stumbled_over(graph):
    remove = Step(rule="remove", arguments={"op_type": "Neg"})

    found = bisect_plan(graph(SIGNED), [IDENTITIES, remove], samples=[SAMPLE])

    assert (found.rule, found.nodes) == ("remove", ("neg",))


def test_a_step_without_nodes_of_its_own_is_to_blame_as_a_whole(graph):
    rename = Step(rule="rename", arguments={"outputs": {"nothing": "z"}})

    found = bisect_plan(graph(SIGNED), [IDENTITIES, rename], samples=[SAMPLE])

    assert (found.rule, found.nodes) == ("rename", ())
    assert "as a whole" in found.sentence


FOO_HEADER = '<ir_version: 8, opset_import: ["" : 18, "devtech" : 1]>'
FOO_STEP = Step(rule="bypass", arguments={"op_type": "FooOp"})


def answer_of_foo(tensors):
    return {"y": np.maximum(-tensors["x"], 0) + tensors["x"]}


def test_a_graph_that_does_not_run_before_a_step_is_no_verdict(graph):
    source = graph(FOO, FOO_HEADER)

    found = bisect_plan(
        source, [UNUSED, FOO_STEP, BYPASS], samples=[SAMPLE], reference=answer_of_foo
    )

    assert (found.rule, found.nodes) == ("bypass #2", ("relu",))


def test_the_first_wrong_step_is_to_blame_where_nothing_was_ever_right(graph):
    source = graph(FOO, FOO_HEADER)

    def other(tensors):
        return {"y": tensors["x"] * 7}

    found = bisect_plan(source, [UNUSED, FOO_STEP, UNUSED], samples=[SAMPLE], reference=other)

    assert (found.rule, found.nodes) == ("bypass", ())


def test_a_plan_that_could_never_be_judged_is_an_error(graph):
    with pytest.raises(SurgeryError, match="Give a reference"):
        bisect_plan(graph(FOO, FOO_HEADER), [UNUSED, FOO_STEP, BYPASS], samples=[SAMPLE])


# Real graphs with real weights


def cleaned(real, folder):
    """The cleaned graph of a real model, and what goes in."""
    raw, _ = export(
        real.module, real.example, out=folder / "raw.onnx", dynamic_axes=real.dynamic_axes
    )
    made, _ = clean(raw, out=folder / "clean.onnx", samples=[real.sample])
    return graphs.read(made.path), real.sample


@pytest.fixture(scope="module", params=trained_models.FACE_NETS)
def face_net(request, tmp_path_factory):
    return cleaned(trained_models.face_net(request.param), tmp_path_factory.mktemp(request.param))


def test_each_node_of_mtcnn_that_is_planted_is_found(face_net, tmp_path):
    model, sample = face_net
    assert len(places(model)) >= 5
    for position in places(model):
        source = artifact(plant(model, position), tmp_path / "source.onnx")

        found = bisect(source, samples=[sample], run=onnxruntime_runner)

        assert found.nodes == (graphs.node_names(model)[position],)
        assert found.minimal
        assert found.evaluations <= promised_for_one(found.suspects)
        assert_passes_where_it_failed(source, found.nodes, [sample])


def test_two_planted_nodes_of_mtcnn_are_found(face_net, tmp_path):
    model, sample = face_net
    first, last = places(model)[0], places(model)[-1]
    source = artifact(plant(plant(model, last), first), tmp_path / "source.onnx")

    found = bisect(source, samples=[sample], run=onnxruntime_runner)

    known = graphs.node_names(model)
    assert found.nodes == (known[first], known[last])
    assert found.evaluations <= most_for(2, found.suspects)


def test_each_planted_node_of_an_engine_of_mtcnn_is_found(face_net, tmp_path):
    model, sample = face_net
    source = artifact(model, tmp_path / "source.onnx")
    for name in pieces_of(model).nodes:
        found = bisect_engine(source, samples=[sample], build=wrong_kernels(name), repeats=1)

        assert found.nodes == (name,)
        assert found.evaluations <= promised_for_one(found.suspects)


def test_the_node_of_mtcnn_that_surgery_must_spare_is_found(face_net, tmp_path):
    """A Relu behind a Softmax does nothing; one behind a convolution does."""
    model, sample = face_net
    with_relu = onnx.ModelProto()
    with_relu.CopyFrom(model)
    known = graphs.node_names(model)
    behind = [i for i, node in enumerate(model.graph.node) if node.op_type in ("Conv", "Softmax")]
    for position in [behind[-1], behind[0]]:
        node = with_relu.graph.node[position]
        result, node.output[0] = node.output[0], f"{known[position]}_before"
        relu = helper.make_node("Relu", [node.output[0]], [result], name=f"{known[position]}_relu")
        with_relu.graph.node.insert(position + 1, relu)
    source = artifact(with_relu, tmp_path / "source.onnx")

    found = bisect_plan(source, [IDENTITIES, BYPASS, UNUSED], samples=[sample])

    assert (found.rule, found.nodes) == ("bypass", (f"{known[behind[0]]}_relu",))


@pytest.fixture(scope="module")
def minilm(tmp_path_factory):
    return cleaned(trained_models.minilm(), tmp_path_factory.mktemp("minilm"))


@pytest.mark.slow
@pytest.mark.parametrize("share", [0.0, 0.3, 0.99])
def test_a_planted_node_of_minilm_is_found(share, minilm, tmp_path):
    model, sample = minilm
    position = places(model)[int(share * len(places(model)))]
    source = artifact(plant(model, position), tmp_path / "source.onnx")

    found = bisect(source, samples=[sample])

    assert found.nodes == (graphs.node_names(model)[position],)
    assert found.suspects > 250
    assert found.evaluations <= promised_for_one(found.suspects)
    assert_passes_where_it_failed(source, found.nodes, [sample])


@pytest.mark.slow
@pytest.mark.parametrize("share", [0.0, 0.1, 0.25, 0.5, 0.77, 0.99])
def test_a_planted_node_of_an_engine_of_minilm_is_found(share, minilm, tmp_path):
    model, sample = minilm
    nodes = pieces_of(model).nodes
    name = nodes[int(share * len(nodes))]
    source = artifact(model, tmp_path / "source.onnx")

    found = bisect_engine(source, samples=[sample], build=wrong_kernels(name), repeats=1)

    assert found.nodes == (name,)
    assert found.suspects > 200
    assert found.evaluations <= promised_for_one(found.suspects)
