"""The rule `replace`: what a pattern matches, what takes its place, and what it means."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from mlflow_e2eai import clean
from mlflow_e2eai.artifacts import graphs
from mlflow_e2eai.artifacts.values import Axis
from mlflow_e2eai.errors import SurgeryError
from mlflow_e2eai.surgery.plan import plan_from

pytestmark = pytest.mark.usefixtures("on_threads")

X = np.array([[-1, 2, -3], [4, -5, 6]], dtype=np.float32)
HEADER = '<ir_version: 8, opset_import: ["" : 18, "devtech" : 1]>'
SWISH = "(x) => (y) { s = Sigmoid(x) y = Mul(x, s) }"
TWO = """
main (float[N, 3] x) => (float[N, 3] y) {
    s = Sigmoid(x)
    a = Mul(s, x)
    t = Sigmoid(a)
    y = Mul(a, t)
}"""
INSIDE = """
main (float[N, 3] x, bool flag) => (float[N, 3] y) {
    y = If (flag) <
        then_branch = yes () => (float[N, 3] p) { s = Sigmoid(x) p = Mul(x, s) },
        else_branch = no () => (float[N, 3] q) { q = Abs(x) }
    >
}"""


def cleaned(text, tmp_path, *, samples=({"x": X},), **arguments):
    """What the rule leaves, and that a second time is none."""
    path = tmp_path / "source.onnx"
    graphs.write(onnx.parser.parse_model(HEADER + text), path)
    axes = (Axis("N", min=1, opt=2, max=4),)
    source = graphs.describe(path, stage="export", precision="fp32", axes=axes, parent_sha256=None)
    given = {"pattern": SWISH, "op_type": "Swish", "domain": "devtech", **arguments}
    plan = plan_from([{"replace": given}])
    once, report = clean(source, plan, out=tmp_path / "once.onnx", samples=samples)
    twice, again = clean(once, plan, out=tmp_path / "twice.onnx")
    assert again.edits == {"replace": 0}
    assert twice.sha256 == once.sha256
    return onnx.load(once.path), report


def operators(model):
    return sorted(graphs.operator_name(n.domain, n.op_type) for n in graphs.nodes(model))


def test_a_pattern_becomes_a_function_that_means_it(tmp_path):
    model, report = cleaned(TWO, tmp_path, function=True)
    assert list(report.operators_after.items()) == [("devtech::Swish", 2)]
    assert report.edits == {"replace": 2}
    assert report.max_abs_error < 1e-6
    (function,) = model.functions
    assert [node.op_type for node in function.node] == ["Sigmoid", "Mul"]


def test_a_pattern_becomes_a_node_of_onnx(tmp_path):
    text = """
    main (float[N, 3] x) => (float[N, 3] y)
    <float zero = {0}> {
        a = Max(zero, x)
        y = Neg(a)
    }"""
    pattern = "(x) => (y) { z = Constant <value = float {0}> () y = Max(x, z) }"
    model, report = cleaned(text, tmp_path, pattern=pattern, op_type="Relu", domain="")
    assert operators(model) == ["Neg", "Relu"]
    assert report.max_abs_error == 0


def test_a_node_may_have_attributes(tmp_path):
    text = "main (float[N, 3] x) => (float[N, 3] y) { a = Neg(x) b = Relu(a) y = Neg(b) }"
    pattern = "(x) => (y) { a = Relu(x) y = Neg(a) }"
    arguments = {"op_type": "Clip", "domain": "devtech", "attributes": {"max": 2.5}}
    model, _ = cleaned(text, tmp_path, samples=(), pattern=pattern, **arguments)
    (node,) = [node for node in model.graph.node if node.op_type == "Clip"]
    assert onnx.helper.get_attribute_value(node.attribute[0]) == 2.5


def test_subgraphs_are_searched(tmp_path):
    sample = {"x": X, "flag": np.array(True)}  # noqa: FBT003 - an array of ONNX
    model, report = cleaned(INSIDE, tmp_path, samples=[sample], function=True)
    assert report.edits == {"replace": 1}
    assert operators(model) == ["Abs", "If", "Mul", "Sigmoid", "devtech::Swish"]


@pytest.mark.parametrize(
    "text",
    [
        TWO.replace("a = Mul(s, x)", "b = Mul(s, x) a = Add(b, s)").replace(
            "y = Mul(a", "y = Sub(a"
        ),
        "main (float[N, 3] x) => (float[N, 3] y, float[N, 3] s) { s = Sigmoid(x) y = Mul(x, s) }",
        "main (float[N, 3] x, float[N, 3] z) => (float[N, 3] y) { s = Sigmoid(z) y = Mul(x, s) }",
        "main (float[N, 3] x) => (float[N, 3] y) { s = Elu(x) y = Mul(x, s) }",
    ],
    ids=["read elsewhere", "an output", "another input", "another operator"],
)
def test_what_only_looks_alike_stays(text, tmp_path):
    _, report = cleaned(text, tmp_path, samples=())
    assert report.edits == {"replace": 0}


@pytest.mark.parametrize(
    ("attribute", "edits"), [("<alpha = 1.0>", 1), ("", 1), ("<alpha = 0.5>", 0)], ids=str
)
def test_attributes_are_compared_with_their_defaults(attribute, edits, tmp_path):
    text = f"main (float[N, 3] x) => (float[N, 3] y) {{ a = Elu {attribute} (x) y = Neg(a) }}"
    pattern = "(x) => (y) { a = Elu <alpha = 1.0> (x) y = Neg(a) }"
    _, report = cleaned(text, tmp_path, pattern=pattern, function=True)
    assert report.edits == {"replace": edits}


def test_a_node_that_gives_other_numbers_is_refused(tmp_path):
    with pytest.raises(SurgeryError, match="changed the numbers") as caught:
        cleaned(TWO, tmp_path, op_type="Relu", domain="")
    assert caught.value.rule == "replace"


@pytest.mark.parametrize(
    ("pattern", "sentence"),
    [
        ("(x) => (y) { y = ", "is not ONNX's text of a function"),
        ("(x) => (z) { y = Relu(x) }", "makes its output 'z'"),
        ("(x) => (y) { y = Relu(x) z = Neg(x) }", "'z' of the pattern does not lead"),
        ("(x) => (y) { a = Neg(x) y = devtech.Swish(a) }", "replacing would never end"),
    ],
)
def test_a_pattern_that_makes_no_sense_is_refused(pattern, sentence, tmp_path):
    with pytest.raises(SurgeryError, match=sentence):
        cleaned(TWO, tmp_path, pattern=pattern)
