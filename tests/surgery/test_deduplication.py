"""Rules that make one node of several: what they merge, and what they must not."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlflow_e2eai import clean, compare
from mlflow_e2eai.artifacts import graphs
from mlflow_e2eai.runtime.ort import onnxruntime_runner
from mlflow_e2eai.surgery.plan import Step

pytestmark = pytest.mark.usefixtures("on_threads")

X = np.array([[-1, 2, -3], [4, -5, 6]], dtype=np.float32)
HEADER = '<ir_version: 8, opset_import: ["" : 18, "devtech" : 1]>'
RULES = ("drop_identities", "merge_duplicates", "merge_transposes", "merge_reshapes")


def cleaned(text, rule, tmp_path, *, samples=({"x": X},)):
    """The operators that a rule leaves, its number of edits, and that a second time is none."""
    path = tmp_path / "source.onnx"
    graphs.write(onnx.parser.parse_model(HEADER + text), path)
    source = graphs.describe(path, stage="export", precision="fp32", axes=(), parent_sha256=None)
    plan = [Step(rule=rule)]
    once, report = clean(source, plan, out=tmp_path / "once.onnx", samples=samples)
    twice, again = clean(once, plan, out=tmp_path / "twice.onnx")
    assert again.edits == {rule: 0}
    assert twice.sha256 == once.sha256
    assert once.inputs == source.inputs
    assert [s.name for s in once.outputs] == [s.name for s in source.outputs]
    return sorted(node.op_type for node in onnx.load(once.path).graph.node), report.edits[rule]


def body(lines, *, outputs="float[a, b] y", weights=""):
    return f"main (float[N, 3] x) => ({outputs})\n{weights}{{\n{lines}\n}}"


CASES = {
    "equal nodes, and then their equal readers": (
        "merge_duplicates",
        body("a = Relu(x) b = Relu(x) c = Neg(a) d = Neg(b) y = Add(c, d)"),
        ["Add", "Neg", "Relu"],
        2,
    ),
    "other attributes": (
        "merge_duplicates",
        body("a = Elu <alpha = 1.0> (x) b = Elu <alpha = 2.0> (x) y = Add(a, b)"),
        ["Add", "Elu", "Elu"],
        0,
    ),
    "other order of inputs": (
        "merge_duplicates",
        body("a = Relu(x) b = Sub(a, x) c = Sub(x, a) y = Add(b, c)"),
        ["Add", "Relu", "Sub", "Sub"],
        0,
    ),
    "the later feeds an output": (
        "merge_duplicates",
        body(
            "a = Relu(x) b = Neg(a) y = Relu(x) z = Neg(y) w = Add(b, z)",
            outputs="float[a, b] y, float[c, d] w",
        ),
        ["Add", "Neg", "Relu"],
        2,
    ),
    "both feed outputs": (
        "merge_duplicates",
        body("y = Relu(x) z = Relu(x)", outputs="float[a, b] y, float[c, d] z"),
        ["Relu", "Relu"],
        0,
    ),
    "random numbers": (
        "merge_duplicates",
        body(
            "a = RandomUniformLike <seed = 1.0> (x) b = RandomUniformLike <seed = 1.0> (x)"
            " y = Sub(a, b)"
        ),
        ["RandomUniformLike", "RandomUniformLike", "Sub"],
        0,
    ),
    "equal constants make equal nodes": (
        "merge_duplicates",
        body(
            "a = Mul(x, p) b = Mul(x, q) y = Add(a, b)",
            weights="<float[1] p = {2}, float[1] q = {2}>",
        ),
        ["Add", "Mul"],
        2,
    ),
    "constants of other shapes": (
        "merge_duplicates",
        body(
            "a = Mul(x, p) b = Mul(x, q) y = Add(a, b)",
            weights="<float[1] p = {2}, float[1, 1] q = {2}>",
        ),
        ["Add", "Mul", "Mul"],
        0,
    ),
    "transposes that cancel": (
        "merge_transposes",
        body("a = Transpose <perm = [1, 0]> (x) b = Transpose <perm = [1, 0]> (a) y = Relu(b)"),
        ["Relu"],
        2,
    ),
    "transposes that cancel, the first read elsewhere": (
        "merge_transposes",
        body(
            "a = Transpose <perm = [1, 0]> (x) b = Transpose <perm = [1, 0]> (a) y = Relu(b)"
            " z = Neg(a)",
            outputs="float[a, b] y, float[c, d] z",
        ),
        ["Neg", "Relu", "Transpose"],
        2,
    ),
    "reshapes in a row": (
        "merge_reshapes",
        body(
            "a = Reshape(x, flat) b = Reshape(a, flat) y = Reshape(b, back)",
            weights="<int64[1] flat = {-1}, int64[2] back = {3, -1}>",
        ),
        ["Reshape"],
        2,
    ),
    "a reshape that copies a size": (
        "merge_reshapes",
        body(
            "a = Reshape(x, wide) y = Reshape(a, same)",
            weights="<int64[2] wide = {3, -1}, int64[2] same = {0, -1}>",
        ),
        ["Reshape", "Reshape"],
        0,
    ),
    "casts to the same type": (
        "drop_identities",
        body("a = Cast <to = 1> (x) y = Relu(a)"),
        ["Relu"],
        1,
    ),
    "casts to another type": (
        "drop_identities",
        body("a = Cast <to = 11> (x) b = Relu(a) y = Cast <to = 1> (b)"),
        ["Cast", "Cast", "Relu"],
        0,
    ),
}


@pytest.mark.parametrize(("rule", "text", "left", "edits"), CASES.values(), ids=CASES)
def test_a_rule_merges_what_it_may(rule, text, left, edits, tmp_path):
    samples = () if "Random" in text else ({"x": X}, {"x": -X})
    assert cleaned(text, rule, tmp_path, samples=samples) == (left, edits)


def test_transposes_that_do_not_cancel_become_one_with_the_same_numbers(tmp_path):
    text = """
    main (float[N, 3] x) => (float[a, b, c] y)
    <int64[1] first = {0}> {
        p = Unsqueeze(x, first)
        q = Transpose <perm = [1, 2, 0]> (p)
        r = Transpose <perm = [0, 2, 1]> (q)
        y = Relu(r)
    }"""
    assert cleaned(text, "merge_transposes", tmp_path) == (["Relu", "Transpose", "Unsqueeze"], 1)


def test_bits_that_differ_are_not_merged(tmp_path):
    weights = "<float[1] p = {0.0}, float[1] q = {-0.0}>"
    text = body("a = Mul(x, p) b = Div(x, q) y = Add(a, b)", weights=weights)
    _, edits = cleaned(text, "merge_duplicates", tmp_path, samples=())
    assert edits == 0


UNARY = (
    "Relu({})",
    "Cast <to = 1> ({})",
    "Identity({})",
    "Transpose <perm = [1, 0]> ({})",
    "Transpose <perm = [0, 1]> ({})",
    "Reshape({}, wide)",
    "Reshape({}, flat)",
)


@st.composite
def random_graphs(draw):
    """ONNX text: nodes that read whatever was there before, many of them equal."""
    known, lines = ["x"], []
    for number in range(draw(st.integers(1, 9))):
        form = draw(st.sampled_from(UNARY))
        read = draw(st.sampled_from(known))
        lines.append(f"t{number} = {form.format(read)}")
        known.append(f"t{number}")
    chosen = draw(st.lists(st.sampled_from(known[1:]), min_size=1, max_size=3, unique=True))
    outputs = ", ".join(f"float[a{i}, b{i}] {name}" for i, name in enumerate(chosen))
    weights = "<int64[2] wide = {3, -1}, int64[2] flat = {1, -1}>"
    return body("\n".join(lines), outputs=outputs, weights=weights)


@settings(max_examples=60, deadline=None)
@given(random_graphs(), st.sampled_from(RULES))
def test_each_rule_twice_is_once_and_keeps_the_numbers(text, rule):
    with tempfile.TemporaryDirectory() as folder:
        cleaned(text, rule, Path(folder), samples=())
        source, once = Path(folder, "source.onnx"), Path(folder, "once.onnx")
        with onnxruntime_runner(source) as before, onnxruntime_runner(once) as after:
            assert compare(before, after, [{"x": X}, {"x": -X}]).passed
