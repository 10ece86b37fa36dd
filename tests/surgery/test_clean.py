"""Rules do their one thing each; a plan keeps interface and numbers, or is refused."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import onnx
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from random_graphs import AXES, HEADER, X, artifact_of, random_graphs

from mlflow_e2eai import clean, compare
from mlflow_e2eai.artifacts import graphs
from mlflow_e2eai.artifacts.files import sha256_of
from mlflow_e2eai.errors import ArtifactError, E2EAIError, InvalidInputError, SurgeryError
from mlflow_e2eai.pipeline.options import parse_plan
from mlflow_e2eai.runtime.ort import onnxruntime_runner
from mlflow_e2eai.surgery import rules as surgery
from mlflow_e2eai.surgery.interface import changes, loses_outputs
from mlflow_e2eai.surgery.plan import DEFAULT_PLAN, Step, plan_from, plan_text
from mlflow_e2eai.surgery.rules import RULES

pytestmark = pytest.mark.usefixtures("on_threads")

FOO = Step(rule="bypass", arguments={"op_type": "FooOp", "domain": "devtech"})

INNER = """
main (float[N, 3] x) => (float[N, 3] y) {
    a = Relu(x)
    b = devtech.FooOp(a)
    y = Neg(b)
}"""

FEEDS_AN_OUTPUT = """
main (float[N, 3] x) => (float[N, 3] y) {
    a = Neg(x)
    b = Relu(a)
    y = devtech.FooOp(b)
}"""

FED_BY_AN_INPUT = """
main (float[N, 3] x) => (float[N, 3] y) {
    a = devtech.FooOp(x)
    y = Relu(a)
}"""

NOTHING_ELSE = """
main (float[N, 3] x) => (float[N, 3] y) {
    y = devtech.FooOp(x)
}"""

PRODUCER_IS_READ_ELSEWHERE = """
main (float[N, 3] x) => (float[N, 3] y) {
    a = Relu(x)
    b = devtech.FooOp(a)
    y = Add(a, b)
}"""

PRODUCER_IS_READ_ELSEWHERE_AND_FOO_FEEDS_AN_OUTPUT = """
main (float[N, 3] x) => (float[N, 3] y, float[N, 3] z) {
    a = Relu(x)
    y = devtech.FooOp(a)
    z = Neg(a)
}"""

PRODUCER_FEEDS_AN_OUTPUT_TOO = """
main (float[N, 3] x) => (float[N, 3] y, float[N, 3] z) {
    y = Relu(x)
    z = devtech.FooOp(y)
}"""

PRODUCER_HAS_TWO_OUTPUTS = """
main (float[N, 4] x) => (float[N, 2] y, float[N, 2] z) {
    a, b = Split <axis = 1, num_outputs = 2> (x)
    y = devtech.FooOp(a)
    z = Relu(b)
}"""

TWO_IN_A_ROW = """
main (float[N, 3] x) => (float[N, 3] y) {
    a = devtech.FooOp(x)
    b = devtech.FooOp(a)
    y = Relu(b)
}"""

TWO_IN_A_ROW_AT_THE_END = """
main (float[N, 3] x) => (float[N, 3] y) {
    a = Relu(x)
    b = devtech.FooOp(a)
    y = devtech.FooOp(b)
}"""

OUTPUT_IS_READ_INSIDE = """
main (float[N, 3] x) => (float[N, 3] y, float[N, 3] z) {
    a = Relu(x)
    y = devtech.FooOp(a)
    z = Neg(y)
}"""

READ_IN_SUBGRAPHS = """
main (float[N, 3] x, bool flag) => (float[N, 3] y) {
    a = Relu(x)
    b = devtech.FooOp(a)
    y = If (flag) <
        then_branch = yes () => (float[N, 3] p) { p = Neg(b) },
        else_branch = no () => (float[N, 3] q) { q = Abs(b) }
    >
}"""

READ_TWICE_BY_ONE_NODE = """
main (float[N, 3] x) => (float[N, 3] y) {
    a = Relu(x)
    b = devtech.FooOp(a)
    y = Mul(b, b)
}"""

POSITIONS = {
    "inner": (INNER, ["Neg", "Relu"]),
    "feeds an output": (FEEDS_AN_OUTPUT, ["Neg", "Relu"]),
    "fed by an input": (FED_BY_AN_INPUT, ["Relu"]),
    "input to output": (NOTHING_ELSE, ["Identity"]),
    "producer is read elsewhere": (PRODUCER_IS_READ_ELSEWHERE, ["Add", "Relu"]),
    "producer is read elsewhere, feeds an output": (
        PRODUCER_IS_READ_ELSEWHERE_AND_FOO_FEEDS_AN_OUTPUT,
        ["Neg", "Relu"],
    ),
    "producer feeds an output too": (PRODUCER_FEEDS_AN_OUTPUT_TOO, ["Identity", "Relu"]),
    "producer has two outputs": (PRODUCER_HAS_TWO_OUTPUTS, ["Relu", "Split"]),
    "two in a row": (TWO_IN_A_ROW, ["Relu"]),
    "two in a row at the end": (TWO_IN_A_ROW_AT_THE_END, ["Relu"]),
    "its output is read inside": (OUTPUT_IS_READ_INSIDE, ["Neg", "Relu"]),
    "read in subgraphs": (READ_IN_SUBGRAPHS, ["If", "Relu"]),
    "read twice by one node": (READ_TWICE_BY_ONE_NODE, ["Mul", "Relu"]),
}


@pytest.fixture
def graph(tmp_path):
    """Writes ONNX text as a file, as an exporter would have."""

    def write(text, *, header=HEADER, name="source.onnx"):
        return artifact_of(text, tmp_path / name, header=header)

    return write


@pytest.fixture
def out(tmp_path):
    return tmp_path / "clean.onnx"


def operators(artifact):
    return operators_of(artifact.path)


def operators_of(path):
    return sorted(node.op_type for node in onnx.load(path).graph.node)


def run(artifact, **inputs):
    with onnxruntime_runner(artifact.path) as infer:
        return infer(inputs)


def nothing_but_foo(text):
    """The same graph with Identity for FooOp: what is right."""
    return text.replace("devtech.FooOp", "Identity")


def samples_for(artifact):
    values = {
        "float32": lambda shape: np.resize(X, [2 if size == "N" else size for size in shape]),
        "bool": lambda shape: np.ones(shape, dtype=bool),
    }
    sample = {spec.name: values[spec.dtype](spec.shape) for spec in artifact.inputs}
    return [
        sample,
        {
            name: np.asarray(~value if value.dtype == bool else -value)
            for name, value in sample.items()
        },
    ]


# bypass


@pytest.mark.parametrize(("text", "left"), POSITIONS.values(), ids=POSITIONS)
def test_bypass_takes_a_node_out_wherever_it_stands(text, left, graph, out):
    source = graph(text)
    right = graph(nothing_but_foo(text), name="right.onnx")
    with onnxruntime_runner(right.path) as reference:
        made, report = clean(
            source, [FOO], out=out, samples=samples_for(source), reference=reference
        )
    assert operators(made) == left
    assert (made.inputs, made.outputs) == (source.inputs, source.outputs)
    assert report.edits == {"bypass": text.count("FooOp")}
    assert report.max_abs_error == 0


@pytest.mark.parametrize("text", [text for text, _ in POSITIONS.values()], ids=POSITIONS)
def test_bypassing_twice_is_bypassing_once(text, graph, out, tmp_path):
    once, _ = clean(graph(text), [FOO], out=out)
    twice, report = clean(once, [FOO], out=tmp_path / "again.onnx")
    assert report.edits == {"bypass": 0}
    assert twice.sha256 == once.sha256


def test_bypass_leaves_the_same_operator_of_another_domain(graph, out):
    source = graph(INNER)
    made, report = clean(
        source, [Step(rule="bypass", arguments={"op_type": "FooOp", "domain": ""})], out=out
    )
    assert report.edits == {"bypass": 0}
    assert "FooOp" in operators(made)


def test_bypass_without_a_domain_takes_the_operator_of_any(graph, out):
    made, _ = clean(graph(INNER), [Step(rule="bypass", arguments={"op_type": "FooOp"})], out=out)
    assert "FooOp" not in operators(made)


@pytest.mark.parametrize("domain", ["", "ai.onnx"])
def test_the_default_domain_has_two_names(domain, graph, out):
    step = Step(rule="bypass", arguments={"op_type": "Relu", "domain": domain})
    made, _ = clean(graph(INNER), [step], out=out)
    assert operators(made) == ["FooOp", "Neg"]


def test_bypass_refuses_a_node_with_two_outputs(graph, out):
    step = Step(rule="bypass", arguments={"op_type": "Split"})
    with pytest.raises(SurgeryError, match="1 inputs and 2 outputs") as caught:
        clean(graph(PRODUCER_HAS_TWO_OUTPUTS), [step], out=out)
    assert caught.value.rule == "bypass"
    assert not out.exists()


def test_the_operator_set_of_a_node_that_is_gone_is_gone(graph, out):
    made, _ = clean(graph(INNER), [FOO], out=out)
    assert [(entry.domain, entry.version) for entry in onnx.load(made.path).opset_import] == [
        ("", 18)
    ]


def test_the_operator_set_of_a_node_that_stays_stays(graph, out):
    made, _ = clean(graph(INNER), out=out)
    assert {entry.domain for entry in onnx.load(made.path).opset_import} == {"", "devtech"}


# remove

ENDS_IN_ARGMAX = """
main (float[N, 3] x) => (float[N, 3] y, int64[N, 1] best) {
    y = Relu(x)
    a = Neg(y)
    best = ArgMax <axis = 1> (a)
}"""

ARGMAX_IS_READ = """
main (float[N, 3] x) => (float[N, 3] y, float[N, 1] z) {
    y = Relu(x)
    best = ArgMax <axis = 1> (y)
    z = Cast <to = 1> (best)
}"""

ONLY_ARGMAX = """
main (float[N, 3] x) => (int64[N, 1] best) {
    best = ArgMax <axis = 1> (x)
}"""

REMOVE = Step(rule="remove", arguments={"op_type": "ArgMax"})


def test_remove_drops_the_node_its_output_and_what_only_it_used(graph, out):
    source = graph(ENDS_IN_ARGMAX)
    made, report = clean(source, [REMOVE], out=out, samples=[{"x": X}])
    assert operators(made) == ["Relu"]
    assert [spec.name for spec in made.outputs] == ["y"]
    assert report.edits == {"remove": 1}
    np.testing.assert_array_equal(run(made, x=X)["y"], np.maximum(X, 0))


def test_removing_twice_is_removing_once(graph, out, tmp_path):
    once, _ = clean(graph(ENDS_IN_ARGMAX), [REMOVE], out=out)
    twice, report = clean(once, [REMOVE], out=tmp_path / "again.onnx")
    assert report.edits == {"remove": 0}
    assert twice.sha256 == once.sha256


def test_remove_refuses_a_node_that_another_reads(graph, out):
    with pytest.raises(SurgeryError, match="reads its output 'best'; bypass it instead") as caught:
        clean(graph(ARGMAX_IS_READ), [REMOVE], out=out)
    assert caught.value.rule == "remove"
    assert not out.exists()


def test_remove_refuses_to_leave_no_output(graph, out):
    with pytest.raises(SurgeryError, match="would leave no output"):
        clean(graph(ONLY_ARGMAX), [REMOVE], out=out)


def test_remove_keeps_inputs_that_nothing_reads_any_more(graph, out):
    text = """
    main (float[N, 3] x, float[N, 3] w) => (float[N, 3] y, int64[N, 1] best) {
        y = Relu(x)
        best = ArgMax <axis = 1> (w)
    }"""
    made, _ = clean(graph(text), [REMOVE], out=out)
    assert [spec.name for spec in made.inputs] == ["x", "w"]


# drop_identities

DROP = [Step(rule="drop_identities")]
DROPOUT = """
main (float[N, 3] x) => (float[N, 3] y) {
    a = Relu(x)
    b, mask = Dropout(a)
    y = Neg(b)
}"""
DROPOUT_WITH_MASK_READ = """
main (float[N, 3] x) => (float[N, 3] y, bool[N, 3] z) {
    a = Relu(x)
    b, mask = Dropout(a)
    y = Neg(b)
    z = Not(mask)
}"""
DROPOUT_WITH_MASK_OUTPUT = """
main (float[N, 3] x) => (float[N, 3] y, bool[N, 3] mask) {
    a = Relu(x)
    b, mask = Dropout(a)
    y = Neg(b)
}"""
DROPOUT_THAT_MAY_TRAIN = """
main (float[N, 3] x) => (float[N, 3] y)
<float ratio = {0.5}, bool training = {1}> {
    a = Relu(x)
    b = Dropout(a, ratio, training)
    y = Neg(b)
}"""
DROPOUT_THAT_DOES_NOT_TRAIN = DROPOUT_THAT_MAY_TRAIN.replace("training = {1}", "training = {0}")


@pytest.mark.parametrize("text", [text for text, _ in POSITIONS.values()], ids=POSITIONS)
def test_identities_go_wherever_they_can(text, graph, out):
    source = graph(nothing_but_foo(text))
    made, _ = clean(source, DROP, out=out, samples=samples_for(source))
    bound = {"input to output": 1, "producer feeds an output too": 1}
    name = next(name for name, (other, _) in POSITIONS.items() if other == text)
    assert operators(made).count("Identity") == bound.get(name, 0)
    assert (made.inputs, made.outputs) == (source.inputs, source.outputs)


@pytest.mark.parametrize(
    ("text", "left"),
    [
        (DROPOUT, ["Neg", "Relu"]),
        (DROPOUT_THAT_DOES_NOT_TRAIN, ["Neg", "Relu"]),
        (DROPOUT_WITH_MASK_READ, ["Dropout", "Neg", "Not", "Relu"]),
        (DROPOUT_WITH_MASK_OUTPUT, ["Dropout", "Neg", "Relu"]),
        (DROPOUT_THAT_MAY_TRAIN, ["Dropout", "Neg", "Relu"]),
    ],
    ids=["plain", "training_mode false", "mask read", "mask output", "training_mode true"],
)
def test_dropout_goes_where_inference_makes_it_an_identity(text, left, graph, out):
    made, _ = clean(graph(text), DROP, out=out)
    assert operators(made) == left


def test_an_identity_of_a_constant_keeps_the_outputs_name(graph, out):
    text = """
    main (float[N, 3] x) => (float[N, 3] y, float[2] z)
    <float[2] c = {1, 2}> {
        y = Relu(x)
        z = Identity(c)
    }"""
    source = graph(text)
    made, _ = clean(source, out=out, samples=[{"x": X}])
    np.testing.assert_array_equal(run(made, x=X)["z"], [1, 2])


# fold_constants, drop_unused

HALF_CONSTANT = """
main (float[N, 3] x) => (float[N, 3] y)
<float[3] a = {1, 2, 3}, float[3] b = {10, 20, 30}> {
    c = Add(a, b)
    d = Neg(c)
    y = Mul(x, d)
}"""

HALF_UNUSED = """
main (float[N, 3] x, float[N, 3] w) => (float[N, 3] y) {
    a = Neg(w)
    b = Exp(a)
    y = Relu(x)
}"""


def test_what_depends_on_constants_only_is_computed_once(graph, out):
    source = graph(HALF_CONSTANT)
    made, report = clean(source, [Step(rule="fold_constants")], out=out, samples=[{"x": X}])
    assert operators(made) == ["Mul"]
    assert report.edits == {"fold_constants": 2}
    np.testing.assert_array_equal(run(made, x=X)["y"], X * [-11, -22, -33])


MUCH = """
main (float[N, 3] x) => (float[N, 3] y) <int64[1] sizes = {5000000000}> {
    zeros = ConstantOfShape(sizes)
    most = ReduceMax <keepdims = 0> (zeros)
    y = Add(x, most)
}"""

LONG = """
main (float[N, 3] x) => (float[N, 3] y) <int64[2] sizes = {4000, 4000}> {
    a = ConstantOfShape(sizes)
    b = MatMul(a, a) c = MatMul(b, b) d = MatMul(c, c) e = MatMul(d, d) f = MatMul(e, e)
    most = ReduceMax <keepdims = 0> (f)
    y = Add(x, most)
}"""


@pytest.mark.usefixtures("in_processes")
@pytest.mark.parametrize(
    ("text", "seconds", "end"),
    [(MUCH, 120, r"took 1\.\d GB of memory"), (LONG, 0.5, "did not finish within 0.5 s")],
)
def test_constants_without_end_are_not_folded(text, seconds, end, graph, out, monkeypatch):
    monkeypatch.setattr("mlflow_e2eai.surgery.simplify._TIME_LIMIT_S", seconds)
    with pytest.raises(SurgeryError, match=f"The constants cannot be folded: Its process {end}"):
        clean(graph(text), [Step(rule="fold_constants")], out=out)
    assert not out.exists()


@pytest.mark.usefixtures("in_processes")
def test_simplify_leaves_constants_without_end_as_they_are(graph, out):
    made, report = clean(graph(MUCH), [Step(rule="simplify")], out=out)
    assert sorted(operators(made)) == ["Add", "ConstantOfShape", "ReduceMax"]
    assert "GB of memory" in report.notes[-1]


def test_what_no_output_depends_on_goes_but_inputs_stay(graph, out):
    made, report = clean(graph(HALF_UNUSED), [Step(rule="drop_unused")], out=out)
    assert operators(made) == ["Relu"]
    assert report.edits == {"drop_unused": 2}
    assert [spec.name for spec in made.inputs] == ["x", "w"]


def test_fold_constants_keeps_inputs_that_nothing_reads(graph, out):
    made, _ = clean(graph(HALF_UNUSED), [Step(rule="fold_constants")], out=out)
    assert [spec.name for spec in made.inputs] == ["x", "w"]


# rename


def rename(**arguments):
    return [Step(rule="rename", arguments=arguments)]


def test_inputs_and_outputs_can_be_renamed_and_keep_their_numbers(graph, out):
    source = graph(nothing_but_foo(INNER))
    plan = rename(inputs={"x": "image"}, outputs={"y": "answer"})
    made, report = clean(source, plan, out=out, samples=[{"x": X}])
    assert report.edits == {"rename": 2}
    assert report.max_abs_error == 0
    np.testing.assert_array_equal(run(made, image=X)["answer"], -np.maximum(X, 0))


def test_renaming_twice_is_renaming_once(graph, out, tmp_path):
    plan = rename(inputs={"x": "image"}, outputs={"y": "answer"})
    once, _ = clean(graph(INNER), plan, out=out)
    twice, report = clean(once, plan, out=tmp_path / "again.onnx")
    assert report.edits == {"rename": 0}
    assert twice.sha256 == once.sha256


def test_names_can_be_given_on_from_step_to_step(graph, out):
    source = graph(nothing_but_foo(INNER))
    plan = rename(inputs={"x": "a0"}) + rename(inputs={"a0": "a1"})
    made, report = clean(source, plan, out=out, samples=[{"x": X}])
    assert [spec.name for spec in made.inputs] == ["a1"]
    assert report.edits == {"rename": 1, "rename #2": 1}


def test_an_output_can_be_renamed_after_another_was_removed(graph, out):
    plan = [REMOVE, *rename(outputs={"y": "logits"})]
    made, _ = clean(graph(ENDS_IN_ARGMAX), plan, out=out, samples=[{"x": X}])
    assert [spec.name for spec in made.outputs] == ["logits"]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"inputs": {"z": "w"}}, r"no input 'z' to rename; the inputs are \['x'\]"),
        ({"outputs": {"x": "w"}}, r"no output 'x' to rename; the outputs are \['y'\]"),
        ({"inputs": {"x": "b"}}, "'b': that name is taken"),
        ({"outputs": {"y": "x"}}, "'x': that name is taken"),
    ],
)
def test_a_name_that_is_not_there_or_is_taken_is_refused(arguments, sentence, graph, out):
    with pytest.raises(SurgeryError, match=sentence) as caught:
        clean(graph(INNER), rename(**arguments), out=out)
    assert caught.value.rule == "rename"


def test_two_tensors_cannot_be_given_one_name(graph, out):
    source = graph(PRODUCER_FEEDS_AN_OUTPUT_TOO)
    with pytest.raises(SurgeryError, match="taken"):
        clean(source, rename(outputs={"y": "same", "z": "same"}), out=out)


# plans


def test_a_plan_is_read_as_yaml_gives_it():
    plan = plan_from([{"bypass": {"op_type": "FooOp"}}, "drop_unused", {"fold_constants": None}])
    assert plan == (
        Step(rule="bypass", arguments={"op_type": "FooOp"}),
        Step(rule="drop_unused"),
        Step(rule="fold_constants"),
    )


def test_steps_go_through_a_plan_as_they_are():
    assert plan_from(DEFAULT_PLAN) == DEFAULT_PLAN


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        ("drop_unused", "is a list of rules, not a str"),
        ({"bypass": {}}, "is a list of rules, not a dict"),
        (None, "is a list of rules, not a NoneType"),
        ([3], "'3' is not a step of a plan"),
        ([{"bypass": {}, "remove": {}}], "is not a step of a plan"),
        ([{"bypass": "FooOp"}], "has the arguments 'FooOp'"),
        (["polish"], f"no surgery rule 'polish'; the rules are {', '.join(RULES)}"),
        ([{"bypass": {"operator": "FooOp"}}], r"takes op_type, domain, but got \['operator'\]"),
        (["bypass"], "takes op_type, domain, but got"),
        (["drop_unuse"], "no surgery rule 'drop_unuse'; did you mean 'drop_unused'"),
        ([{"bypass": {"optype": "FooOp"}}], r"got \['optype'\]: did you mean 'op_type'"),
        ([{"drop_unused": {"required": "yes"}}], "required: 'yes'; write true or false"),
        ([{"drop_unused": {"op_type": "a"}}], "takes no arguments, but got"),
        (
            [{"bypass": {"op_type": 5}}],
            "'bypass' has op_type: '5', of the type int; input should be a valid string",
        ),
        ([{"bypass": {"op_type": "\ud800"}}], "of the type str; it is no text that UTF-8"),
        (
            [{"rename": {"inputs": {"x": 5}}}],
            "'rename' has inputs: .*, of the type dict; input should be a valid string",
        ),
        (
            [{"replace": {"pattern": "(x) => (y) {}", "op_type": "A", "attributes": {5: "x"}}}],
            "has attributes: .*, of the type dict; input should be a valid string",
        ),
        (
            [{"replace": {"pattern": "p", "op_type": "A", "function": 1}}],
            "of the type int; input should be a valid boolean",
        ),
        ([{"fix_axis": {"name": "N", "size": True}}], "type bool; input should be a valid integer"),
        (
            [{"convert_input": {"name": "x", "to": "z", "perm": [None]}}],
            "'convert_input' has perm: '\\[None\\]', of the type list; input should be",
        ),
        (
            [{"convert_input": {"name": "x", "to": "z", "scale": {"a": 1}}}],
            "; input should be a valid number, or input should be a valid",
        ),
        ([{"expose": {"tensors": "x"}}], "has tensors: 'x', of the type str; "),
    ],
)
def test_a_plan_that_makes_no_sense_is_refused_with_what_does(data, sentence):
    with pytest.raises(InvalidInputError, match=sentence):
        plan_from(data)


@given(
    st.lists(
        st.builds(
            Step,
            rule=st.just("bypass"),
            arguments=st.fixed_dictionaries({"op_type": st.text(), "domain": st.text()}),
            required=st.booleans(),
        )
        | st.builds(Step, rule=st.just("drop_unused"), required=st.booleans())
    )
)
def test_a_plan_written_as_yaml_reads_as_it_was(plan):
    assert plan_from(yaml.safe_load(plan_text(plan))) == tuple(plan)


def test_the_plan_in_a_report_does_to_another_graph_what_it_did_to_the_first(graph, out, tmp_path):
    _, report = clean(graph(INNER), [FOO, *DEFAULT_PLAN], out=out)
    other = graph(TWO_IN_A_ROW, name="other.onnx")
    made, _ = clean(other, plan_from(yaml.safe_load(report.plan)), out=tmp_path / "replayed.onnx")
    assert operators(made) == ["Relu"]


def test_a_plan_that_could_not_be_read_again_is_refused(graph, out):
    step = Step(rule="bypass", arguments={"op_type": np.array(["FooOp"])})
    with pytest.raises(InvalidInputError, match="cannot be written as YAML"):
        clean(graph(INNER), [step], out=out)
    assert not out.exists()


def swaps(graph, *, old, new):
    """A rule of a user's own."""
    nodes = [node for node in graph.nodes if node.op == old]
    for node in nodes:
        node.op = new
    return len(nodes)


@pytest.mark.parametrize(
    "step", [(swaps, {"old": "Relu", "new": "LeakyRelu"}), (swaps, {"old": "Abs", "new": "Neg"})]
)
def test_a_callable_is_a_rule_that_is_judged_like_any_other(step, graph, out):
    source = graph(nothing_but_foo(INNER))
    plan = plan_from([step, "drop_identities"])
    if step[1]["old"] == "Relu":
        with pytest.raises(SurgeryError, match="Step 'test_clean:swaps' is to blame"):
            clean(source, plan, out=out, samples=[{"x": X}])
        return
    _, report = clean(source, plan, out=out, samples=[{"x": X}])
    assert report.edits == {"test_clean:swaps": 0, "drop_identities": 1}


def test_a_plan_with_a_callable_says_that_it_cannot_be_replayed(graph, out):
    plan = plan_from([(swaps, {"old": "Neg", "new": "Abs", "required": True})])
    assert plan[0].required
    _, report = clean(graph(nothing_but_foo(INNER)), plan, out=out)
    with pytest.raises(InvalidInputError, match="'test_clean:swaps' was a callable, and"):
        plan_from(yaml.safe_load(report.plan))


def test_a_callable_may_declare_what_it_makes_of_the_interface(graph, out):
    @changes(loses_outputs)
    def loses(graph):
        del graph.outputs[1:]
        graph.cleanup()
        return 1

    def loses_unsaid(graph):
        return loses(graph)

    source = graph(PRODUCER_FEEDS_AN_OUTPUT_TOO)
    with pytest.raises(SurgeryError, match="removed the output 'z'"):
        clean(source, plan_from([loses_unsaid]), out=out)
    made, _ = clean(source, plan_from([loses]), out=out)
    assert [spec.name for spec in made.outputs] == ["y"]


def test_a_callable_with_other_arguments_is_refused():
    with pytest.raises(InvalidInputError, match="did you mean 'old'"):
        plan_from([(swaps, {"old_": "Relu", "new": "Abs"})])


def test_a_built_in_rule_that_is_passed_as_a_callable_keeps_its_name():
    assert plan_from([(RULES["bypass"], {"op_type": "FooOp"})])[0].rule == "bypass"


@pytest.fixture
def package(tmp_path, monkeypatch):
    """Installs a package that offers a rule, and one that cannot be imported."""
    info = tmp_path / "site" / "offers-1.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: offers\nVersion: 1\n")
    offered = "[mlflow_e2eai.surgery_rules]\nswap_all = test_clean:swaps\nbroken = offers:no\n"
    (info / "entry_points.txt").write_text(offered)
    monkeypatch.syspath_prepend(info.parent)


def test_a_package_offers_rules_by_entry_points(package, graph, out):
    plan = plan_from([{"swap_all": {"old": "Neg", "new": "Abs"}}])
    _, report = clean(graph(nothing_but_foo(INNER)), plan, out=out)
    assert report.edits == {"swap_all": 1}
    assert plan_from(yaml.safe_load(report.plan)) == plan


@pytest.mark.parametrize(
    ("rule", "sentence"),
    [("broken", r"'broken' \(offers:no\) cannot be loaded"), ("swap_al", "mean 'swap_all'")],
)
def test_a_rule_that_a_package_does_not_bring_is_refused(rule, sentence, package):
    with pytest.raises(InvalidInputError, match=sentence):
        plan_from([rule])


@pytest.mark.parametrize("required", [True, False])
def test_a_required_rule_that_finds_nothing_is_an_error(required, graph, out):
    source = graph(INNER)
    plan = plan_from([{"bypass": {"op_type": "Foo", "required": required}}])
    if not required:
        assert clean(source, plan, out=out)[1].edits == {"bypass": 0}
        return
    with pytest.raises(SurgeryError, match=r"'bypass' \(op_type='Foo'\) found nothing") as caught:
        clean(source, plan, out=out)
    assert caught.value.rule == "bypass"
    assert not out.exists()


def test_a_required_rule_that_finds_something_is_fine(graph, out):
    plan = plan_from([{"bypass": {"op_type": "FooOp", "required": True}}])
    assert operators(clean(graph(INNER), plan, out=out)[0]) == ["Neg", "Relu"]


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"- bypass: {op_type: FooOp", "is not YAML"),
        (b"\xff\xfe\x00", "is not UTF-8 text"),
        (b"", "is empty; give a file with a list of rules"),
        (b"- bypas: {op_type: FooOp}", "did you mean 'bypass'"),
    ],
)
def test_a_plan_file_that_is_broken_is_one_sentence(content, sentence, tmp_path):
    path = tmp_path / "plan.yaml"
    path.write_bytes(content)
    with pytest.raises(E2EAIError, match=sentence) as caught:
        parse_plan(str(path))
    assert "\n" not in str(caught.value)


def test_an_unknown_rule_is_refused_before_anything_is_read(out, graph):
    source = graph(INNER)
    source.path.unlink()
    with pytest.raises(InvalidInputError, match="no surgery rule"):
        clean(source, [Step(rule="polish")], out=out)


def test_a_report_says_what_was_before_and_after(graph, out):
    source = graph(INNER)
    made, report = clean(source, [FOO, *DEFAULT_PLAN], out=out)
    assert report.operators_before == {"Neg": 1, "Relu": 1, "devtech::FooOp": 1}
    assert report.operators_after == {"Neg": 1, "Relu": 1}
    assert (report.nodes_before, report.nodes_after) == (3, 2)
    assert report.size_before_bytes == source.path.stat().st_size
    assert report.size_after_bytes == made.path.stat().st_size
    assert list(report.edits) == ["bypass", "drop_identities", "simplify", "drop_unused"]
    assert list(report.seconds) == list(report.edits)
    assert all(seconds > 0 for seconds in report.seconds.values())
    assert report.max_abs_error is None  # there were no samples to see one on


def test_the_source_is_left_alone_and_named_as_parent(graph, out):
    source = graph(INNER)
    made, _ = clean(source, [FOO], out=out)
    assert sha256_of(source.path) == source.sha256 == made.parent_sha256
    assert (made.stage, made.precision, made.axes) == ("clean", "fp32", AXES)


def test_what_people_wrote_on_a_model_stays(graph, out, tmp_path):
    model = onnx.load(graph(nothing_but_foo(INNER)).path)
    first, gone, last = model.graph.node
    first.name, gone.name, last.name = "relu", "gone", "neg"
    for number, each in enumerate((model, model.graph, first, gone, last)):
        each.doc_string = f"written {number}"
        onnx.helper.set_model_props(
            each, {"key": str(number), "pkg.torch.onnx.stack_trace": "/home/ann/net.py"}
        )
    model.domain, model.model_version = "org.example", 7
    graphs.write(model, tmp_path / "written.onnx")
    source = graphs.describe(
        tmp_path / "written.onnx", stage="export", precision="fp32", axes=AXES, parent_sha256=None
    )
    made = onnx.load(clean(source, DROP, out=out, samples=[{"x": X}])[0].path)
    assert (made.domain, made.model_version) == ("org.example", 7)
    left = [made, made.graph, *made.graph.node]
    assert [each.doc_string for each in left] == [f"written {n}" for n in (0, 1, 2, 4)]
    props = [{prop.key: prop.value for prop in each.metadata_props} for each in left]
    assert props == [{"key": n} for n in "0124"]


@pytest.mark.parametrize("ir_version", [7, 8, 10])
def test_the_ir_version_stays(ir_version, graph, out):
    header = HEADER.replace("ir_version: 8", f"ir_version: {ir_version}")
    made, _ = clean(graph(INNER, header=header), [FOO], out=out)
    assert onnx.load(made.path).ir_version == ir_version


def test_a_file_that_is_no_graph_is_refused(graph, out):
    source = graph(INNER)
    source.path.write_bytes(b"no graph")
    with pytest.raises(ArtifactError, match="not a valid ONNX file"):
        clean(source, out=out)


# what a plan may not do


def lies(graph):
    """A rule that changes the numbers."""
    for node in graph.nodes:
        if node.op == "Neg":
            node.op = "Abs"
    return 1


def lies_a_little(graph):
    """A rule that changes one operator into one that agrees on positive numbers."""
    for node in graph.nodes:
        if node.op == "Relu":
            node.op = "Abs"
    return 1


def loses_an_output(graph):
    del graph.outputs[-1]
    return 1


def makes_an_output(graph):
    tensor = graph.nodes[0].outputs[0]
    tensor.dtype, tensor.shape = np.float32, ["N", 3]
    graph.outputs.append(tensor)
    return 1


def loses_an_input(graph):
    graph.inputs.clear()
    return 1


def changes_a_type(graph):
    graph.outputs[0].dtype = np.float64
    return 1


def changes_a_rank(graph):
    graph.outputs[0].shape = ["N"]
    return 1


def changes_a_size(graph):
    graph.inputs[0].shape = [2, 3]
    return 1


def breaks_an_edge(graph):
    import onnx_graphsurgeon as gs

    graph.nodes[-1].inputs[0] = gs.Variable("nowhere")
    return 1


def fails(_):
    message = "it rained"
    raise ZeroDivisionError(message)


BAD_RULES = [
    (lies, "changed the numbers"),
    (lies_a_little, "changed the numbers"),
    (loses_an_output, "removed the output 'y'"),
    (makes_an_output, r"\['a'\] that the graph did not have"),
    (loses_an_input, "input 'x'"),
    (changes_a_type, "changed output 'y' from float32"),
    (changes_a_rank, "changed output 'y' from"),
    (changes_a_size, "input 'x'"),
    (breaks_an_edge, "nowhere"),
    (fails, "'bad' failed: ZeroDivisionError: it rained"),
]


@pytest.mark.parametrize(("rule", "sentence"), BAD_RULES, ids=[r.__name__ for r, _ in BAD_RULES])
def test_a_rule_that_does_harm_is_refused_and_leaves_no_file(
    rule, sentence, graph, out, tmp_path, monkeypatch
):
    monkeypatch.setitem(surgery.RULES, "bad", rule)
    source = graph(nothing_but_foo(INNER))
    with pytest.raises(SurgeryError, match=sentence):
        clean(source, [Step(rule="bad")], out=out, samples=[{"x": X}])
    assert list(tmp_path.iterdir()) == [source.path]


def test_an_operator_that_nothing_implements_needs_a_reference(graph, out):
    with pytest.raises(SurgeryError, match="Give a reference"):
        clean(graph(INNER), [FOO], out=out, samples=[{"x": X}])
    assert not out.exists()


def test_a_bypass_that_changes_the_numbers_is_seen_with_a_reference(graph, out):
    source = graph(INNER)
    with pytest.raises(SurgeryError, match="changed the numbers"):
        clean(source, [FOO], out=out, samples=[{"x": X}], reference=lambda t: {"y": t["x"] + 1})
    assert not out.exists()


def test_an_export_that_was_wrong_already_is_not_the_plans_fault(graph, out):
    source = graph(nothing_but_foo(INNER))
    with pytest.raises(SurgeryError, match="before any surgery, so the export is wrong"):
        clean(source, [], out=out, samples=[{"x": X}], reference=lambda t: {"y": t["x"] + 1})
    assert not out.exists()


def test_the_plan_is_to_blame_where_the_export_was_right(graph, out, monkeypatch):
    monkeypatch.setitem(surgery.RULES, "bad", lies)
    source = graph(nothing_but_foo(INNER))
    with onnxruntime_runner(source.path) as right, pytest.raises(SurgeryError, match="The plan"):
        clean(source, [Step(rule="bad")], out=out, samples=[{"x": X}], reference=right)


@pytest.mark.parametrize(
    "rule", [lies, loses_an_output, makes_an_output, loses_an_input, changes_a_type, breaks_an_edge]
)
def test_the_step_that_did_harm_is_named_among_others(rule, graph, out, monkeypatch):
    monkeypatch.setitem(surgery.RULES, "bad", rule)
    plan = [*DROP, Step(rule="bad"), Step(rule="merge_duplicates")]
    with pytest.raises(SurgeryError, match="Step 'bad' is to blame") as caught:
        clean(graph(nothing_but_foo(INNER)), plan, out=out, samples=[{"x": X}])
    assert caught.value.rule == "bad"
    assert not out.exists()


def test_the_second_step_of_a_rule_is_told_from_the_first(graph, out):
    plan = [
        Step(rule="bypass", arguments={"op_type": "Nothing"}),
        Step(rule="bypass", arguments={"op_type": "Neg"}),
    ]
    source = graph(nothing_but_foo(INNER))
    with pytest.raises(SurgeryError, match="Step 'bypass #2' is to blame"):
        clean(source, plan, out=out, samples=[{"x": X}])


def kept(folder):
    return {path.name: operators_of(path) for path in folder.iterdir()} if folder.exists() else {}


@pytest.mark.parametrize(
    ("rule", "left"),
    [
        (lies, {"before.onnx": ["Neg", "Relu"], "after.onnx": ["Abs", "Relu"]}),
        (breaks_an_edge, {"before.onnx": ["Neg", "Relu"], "after.onnx": ["Neg", "Relu"]}),
        (fails, {"before.onnx": ["Neg", "Relu"]}),
    ],
)
def test_the_graphs_around_the_step_to_blame_are_kept(
    rule, left, graph, out, tmp_path, monkeypatch
):
    monkeypatch.setitem(surgery.RULES, "bad", rule)
    plan = [*DROP, Step(rule="bad"), Step(rule="bypass", arguments={"op_type": "Relu"})]
    keep = tmp_path / "refused"
    with pytest.raises(SurgeryError) as caught:
        clean(graph(nothing_but_foo(INNER)), plan, out=out, samples=[{"x": X}], keep=keep)
    assert kept(keep) == left
    assert [path.name for path in caught.value.graphs] == list(left)
    assert caught.value.rule == "bad"
    assert not out.exists()


def test_nothing_is_kept_of_a_plan_that_is_right(graph, out, tmp_path):
    clean(graph(nothing_but_foo(INNER)), DROP, out=out, keep=tmp_path / "refused")
    assert kept(tmp_path / "refused") == {}


def test_no_step_is_to_blame_for_what_was_wrong_before_the_first(graph, out):
    source = graph(nothing_but_foo(INNER))
    with pytest.raises(SurgeryError, match="the export is wrong") as caught:
        clean(source, DROP, out=out, samples=[{"x": X}], reference=lambda t: {"y": t["x"] + 1})
    assert caught.value.rule is None
    assert "to blame" not in str(caught.value)


def test_a_graph_that_still_cannot_run_is_refused(graph, out):
    reference = {"y": -np.maximum(X, 0)}
    with pytest.raises(SurgeryError, match="does not run after surgery"):
        clean(graph(INNER), out=out, samples=[{"x": X}], reference=lambda _: reference)
    assert not out.exists()


# cleaning twice is cleaning once


def test_nodes_without_names_that_do_the_same_are_told_apart(graph, out):
    text = """
    main (float[N, 3] x) => (float[N, 3] y)
    <float[1, 3] c = {1, -2, 3}> {
        a = Identity(c)
        y = Relu(x)
        p = Relu(a)
        q = Relu(c)
    }"""
    made, report = clean(graph(text), out=out, samples=[{"x": X}])
    assert operators(made) == ["Relu"]
    assert report.nodes_after == 1


@given(random_graphs())
def test_cleaning_twice_is_cleaning_once_and_keeps_the_numbers(text):
    with tempfile.TemporaryDirectory() as folder:
        source = artifact_of(text, Path(folder, "source.onnx"))
        once, _ = clean(source, out=Path(folder, "once.onnx"))
        twice, report = clean(once, out=Path(folder, "twice.onnx"))
        with onnxruntime_runner(source.path) as before, onnxruntime_runner(once.path) as after:
            assert compare(before, after, [{"x": X}]).passed
        assert set(report.edits.values()) == {0}
        assert twice.sha256 == once.sha256
        assert once.inputs == source.inputs
        assert [s.name for s in once.outputs] == [s.name for s in source.outputs]


def test_arguments_that_hold_themselves_or_have_no_names_are_one_sentence():
    cyclic: list = []
    cyclic.append(cyclic)
    with pytest.raises(InvalidInputError, match="hold themselves, or are nested too deeply"):
        plan_from([{"bypass": {"op_type": cyclic}}])
    with pytest.raises(InvalidInputError, match="Rule 'bypass' takes op_type"):
        plan_from([{"bypass": {5: "Relu", "op_type": "Relu"}}])
