"""Applying a plan twice is applying it once, and the numbers stay: for every rule."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from random_graphs import X, artifact_of, random_graphs

from mlflow_e2eai import clean, compare
from mlflow_e2eai.runtime.ort import onnxruntime_runner
from mlflow_e2eai.surgery.mapping import full_reference, map_inputs
from mlflow_e2eai.surgery.plan import plan_from
from mlflow_e2eai.surgery.rules import RULES

pytestmark = pytest.mark.usefixtures("on_threads")

SWISH = "(x) => (y) { a = Neg(x) y = Abs(a) }"
ALWAYS_THERE = {
    "drop_identities": {},
    "drop_unused": {},
    "drop_zipmaps": {},
    "fold_constants": {},
    "merge_duplicates": {},
    "merge_reshapes": {},
    "merge_transposes": {},
    "simplify": {},
    "bypass": {"op_type": "Identity"},
    "rename": {"inputs": {"x": "z"}, "axes": {"N": "batch"}},
    "fix_axis": {"name": "N", "size": 2},
    "convert_input": {"name": "x", "to": "z", "dtype": "float64", "perm": [1, 0]},
    "expose": {"tensors": ["t0"]},
    "break_fusion": {"first": "Relu", "then": "Neg"},
    "extract": {"outputs": ["t0"]},
    "replace": {"pattern": SWISH, "op_type": "Both", "domain": "devtech", "function": True},
}


@settings(max_examples=12, deadline=None)
@given(text=random_graphs())
@pytest.mark.parametrize("rule", sorted(ALWAYS_THERE))
def test_a_rule_applied_twice_is_applied_once_and_keeps_the_numbers(rule, text):
    arguments = ALWAYS_THERE[rule]
    plan = plan_from([{rule: arguments}])
    with tempfile.TemporaryDirectory() as folder:
        source = artifact_of(text, Path(folder, "source.onnx"))
        once, _ = clean(source, plan, out=Path(folder, "once.onnx"))
        twice, report = clean(once, plan, out=Path(folder, "twice.onnx"))
        assert set(report.edits.values()) == {0}
        assert twice.sha256 == once.sha256
        with (
            onnxruntime_runner(source.path) as raw,
            full_reference(raw, source, once, run=onnxruntime_runner) as before,
            onnxruntime_runner(once.path) as after,
        ):
            assert compare(before, after, [map_inputs({"x": X}, once)]).passed


def test_every_rule_is_held_to_the_law():
    # Removing a node removes outputs, of which a random graph may have no other.
    assert RULES.keys() - ALWAYS_THERE.keys() == {"remove"}
