import ast
import inspect
import math
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlflow_e2eai.errors import InvalidInputError
from mlflow_e2eai.evaluation import gates as module
from mlflow_e2eai.evaluation.gates import Decision, Gate, MetricValue, decide, drop, find_value

NAMES = st.sampled_from(["parity/failed", "task/drop", "champion/task_drop", "champion/ratio"])
FINITE = st.floats(-1e300, 1e300)
POSITIVE = st.floats(0, 1e300)
GATES_ALONE = st.builds(
    Gate, metric=NAMES, bound=st.sampled_from(["at_most", "at_least"]), limit=FINITE
)
GATES = st.lists(GATES_ALONE)
METRICS = st.dictionaries(NAMES, st.floats())


def test_the_module_knows_the_standard_library_and_our_errors_only():
    tree = ast.parse(inspect.getsource(module))
    names = {alias.name for n in ast.walk(tree) if isinstance(n, ast.Import) for alias in n.names}
    names |= {n.module or "" for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)}

    assert "mlflow_e2eai.errors" in names
    strange = {name for name in names if name.partition(".")[0] not in sys.stdlib_module_names}
    # Of the latter, the float type of stored values; both import the standard library only.
    assert strange == {"mlflow_e2eai.errors", "mlflow_e2eai.artifacts.files"}


@pytest.mark.parametrize(
    ("bound", "found", "passed"),
    [
        ("at_most", 0.5, True),
        ("at_most", 1.0, True),
        ("at_most", 1.5, False),
        ("at_least", 0.5, False),
        ("at_least", 1.0, True),
        ("at_least", 1.5, True),
    ],
)
def test_the_limit_itself_passes_and_what_is_beyond_it_does_not(bound, found, passed):
    assert Gate(metric="m", bound=bound, limit=1.0).passes(found) is passed


@pytest.mark.parametrize("limit", [math.nan, math.inf, -math.inf])
def test_a_limit_is_a_finite_number(limit):
    with pytest.raises(InvalidInputError, match="'m' has the limit"):
        Gate(metric="m", bound="at_most", limit=limit)


@given(
    passing=st.lists(st.tuples(GATES_ALONE, POSITIVE), min_size=1, unique_by=lambda p: p[0].metric),
    has_champion=st.booleans(),
    number=st.integers(min_value=0),
    better=POSITIVE,
)
def test_improving_a_metric_never_loses_a_promotion(passing, has_champion, number, better):
    gates = [gate for gate, _ in passing]
    sign = {"at_most": -1, "at_least": 1}
    metrics = {gate.metric: gate.limit + sign[gate.bound] * slack for gate, slack in passing}
    promoted = decide(gates, metrics, has_champion=has_champion).promoted
    gate = gates[number % len(gates)]
    improved = {**metrics, gate.metric: metrics[gate.metric] + sign[gate.bound] * better}

    assert promoted or not has_champion
    assert decide(gates, improved, has_champion=has_champion).promoted is promoted


@given(
    gates=GATES,
    metrics=METRICS,
    has_champion=st.booleans(),
    bad=st.sampled_from([None, math.nan, math.inf, -math.inf]),
)
def test_a_missing_or_non_finite_metric_never_wins_a_promotion(gates, metrics, has_champion, bad):
    for verdict in decide(gates, metrics, has_champion=has_champion).verdicts:
        spoilt = {name: found for name, found in metrics.items() if name != verdict.metric}
        if bad is not None:
            spoilt[verdict.metric] = bad
        assert not decide(gates, spoilt, has_champion=has_champion).promoted


@given(metrics=METRICS, has_champion=st.booleans())
def test_without_gates_nothing_is_promoted(metrics, has_champion):
    decision = decide([], metrics, has_champion=has_champion)

    assert not decision.promoted
    assert decision.reasons


def test_gates_against_the_champion_apply_only_when_there_is_one():
    gates = [
        Gate(metric="parity/failed", bound="at_most", limit=0),
        Gate(metric="champion/task_drop", bound="at_most", limit=0.01),
    ]
    metrics = {"parity/failed": 0.0}

    assert decide(gates, metrics, has_champion=False).promoted
    assert not decide(gates, metrics, has_champion=True).promoted
    assert decide(gates, {**metrics, "champion/task_drop": 0.0}, has_champion=True).promoted


def test_a_metric_that_only_sounds_like_the_champion_is_always_needed():
    gates = [Gate(metric="championship", bound="at_least", limit=1)]

    assert not decide(gates, {}, has_champion=False).promoted


def test_gates_that_all_compare_with_a_champion_promote_nothing_without_one():
    gates = [Gate(metric="champion/task_drop", bound="at_most", limit=1)]

    assert not decide(gates, {"champion/task_drop": 0.0}, has_champion=False).promoted


def test_every_gate_must_pass_and_each_that_does_not_says_why():
    gates = [
        Gate(metric="a", bound="at_most", limit=1),
        Gate(metric="b", bound="at_least", limit=2),
        Gate(metric="c", bound="at_most", limit=3),
    ]
    decision = decide(gates, {"a": 0.5, "b": 1.5}, has_champion=True)

    assert [verdict.passed for verdict in decision.verdicts] == [True, False, False]
    assert decision.reasons == (
        "b = 1.5 (gate: at least 2)",
        "c: not measured (gate: at most 3)",
    )


def test_what_is_promoted_has_no_reasons_against_it():
    decision = decide([Gate(metric="a", bound="at_most", limit=1)], {"a": 1.0}, has_champion=False)

    assert isinstance(decision, Decision)
    assert decision.promoted
    assert decision.reasons == ()


# The number that a gate reads


def value(variant, number, metric="latency/p50_ms", **more):
    return MetricValue(metric=metric, value=number, variant=variant, **more)


def read(gate, *values):
    found = find_value(gate, values)
    return None if found is None else (found.variant, found.value)


def most(metric="latency/p50_ms", limit=1.0, **selection):
    return Gate(metric=metric, bound="at_most", limit=limit, **selection)


def test_of_several_variants_the_worst_is_read():
    values = [value("a", 1.0), value("b", 3.0), value("c", 2.0)]

    assert read(most(), *values) == ("b", 3.0)
    assert read(Gate(metric="latency/p50_ms", bound="at_least", limit=0), *values) == ("a", 1.0)


def test_a_number_that_cannot_be_told_is_the_worst():
    variant, number = read(most(), value("a", 1.0), value("b", math.nan), value("c", 2.0))

    assert variant == "b"
    assert math.isnan(number)


def test_the_number_of_the_whole_version_comes_before_those_of_variants():
    values = [value(None, 0.5), value("a", 3.0)]

    assert read(most(), *values) == (None, 0.5)
    assert read(most(variant="a"), *values) == ("a", 3.0)


def test_counts_are_added_up():
    values = [value(name, 1.0, "parity/failed") for name in "abc"]

    assert read(most("parity/failed"), *values) == ("a, b, c", 3.0)
    assert read(most("parity/failed", variant="[ab]"), *values) == ("a, b", 2.0)


@pytest.mark.parametrize(
    ("selection", "variant"),
    [
        ({}, "d"),
        ({"precision": "fp16"}, "b"),
        ({"target": "sm89"}, "c"),
        ({"variant": "?"}, "d"),
        ({"variant": "a"}, "a"),
        ({"precision": "fp32", "target": "sm89"}, "c"),
    ],
)
def test_a_gate_reads_only_the_variants_that_it_selects(selection, variant):
    values = [
        value("a", 1.0, precision="fp32"),
        value("b", 2.0, precision="fp16"),
        value("c", 3.0, precision="fp32", targets=("sm89", "rtx:sm89")),
        value("d", 4.0, precision="int8", targets=("sm120",)),
    ]

    assert read(most(**selection), *values)[0] == variant


def test_a_gate_reads_the_size_that_it_names_or_the_usual_one():
    values = [value("a", 1.0, at=1), value("a", 8.0, at=8, usual=False)]

    assert read(most(), *values) == ("a", 1.0)
    assert read(most(at=8), *values) == ("a", 8.0)
    assert read(most(at=4), *values) is None


def test_a_selected_variant_that_nobody_measured_fails_the_gate():
    values = [
        value("a", 1.0),
        value("a", 1.0, "parity/measured"),
        value("b", 0.0, "parity/measured"),
    ]

    assert decide([most(variant="a")], values, has_champion=False).promoted
    (verdict,) = decide([most(variant="?")], values, has_champion=False).verdicts
    assert not verdict.passed
    assert str(verdict) == "latency/p50_ms (?), b: not measured (gate: at most 1)"
    assert decide([most()], values, has_champion=False).promoted


def test_an_optional_gate_does_not_apply_without_data_and_does_with_it():
    gates = [most("task/drop", optional=True), most("other")]

    decision = decide(gates, {"other": 0.0}, has_champion=False)
    assert decision.promoted
    assert decision.inapplicable == ("task/drop: not measured, there is no data for it",)
    assert not decide(gates, {"other": 0.0, "task/drop": 2.0}, has_champion=False).promoted


def test_a_gate_that_warns_decides_nothing_and_is_shown():
    gates = [most("a"), most("b", severity="warn")]
    decision = decide(gates, {"a": 0.0, "b": 2.0}, has_champion=False)

    assert decision.promoted
    assert decision.warnings == ("b = 2 (gate: at most 1)",)
    assert not decide([gates[1]], {"b": 0.0}, has_champion=False).promoted


# Task drop


@pytest.mark.parametrize(
    ("before", "now", "expected"),
    [
        ({"accuracy": 0.9}, {"accuracy": 0.8}, 0.1),
        ({"accuracy": 0.8}, {"accuracy": 0.9}, -0.1),
        ({"accuracy": 0.9, "f1": 0.5}, {"accuracy": 0.8, "f1": 0.49}, 0.1),
        ({"accuracy": 0.9, "f1": 0.5}, {"accuracy": 0.9, "f1": 0.2}, 0.3),
        ({"accuracy": 0.9}, {"accuracy": 0.9, "f1": 0.2}, 0.0),
    ],
)
def test_a_drop_is_the_largest_loss_of_any_metric(before, now, expected):
    assert drop(before, now) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("before", "now"),
    [
        ({"accuracy": 0.9}, {}),
        ({"accuracy": 0.9, "f1": 0.5}, {"accuracy": 0.9}),
        ({"accuracy": 0.9}, {"accuracy": math.nan}),
        ({"accuracy": math.nan}, {"accuracy": 0.9}),
        ({}, {"accuracy": 0.9}),
    ],
)
def test_a_drop_that_cannot_be_told_is_no_number(before, now):
    assert math.isnan(drop(before, now))


def test_without_metrics_there_is_no_drop():
    assert drop({}, {}) is None
