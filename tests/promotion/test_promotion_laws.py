"""Laws of promotion: of whatever values, gates and versions hypothesis thinks of."""

from __future__ import annotations

import dataclasses
import math
from datetime import datetime

from graded_bundles import (
    CPU16,
    CPU32,
    ENGINE,
    NOW,
    TORCH,
    engine,
    measured,
    on_l4,
    version,
    with_engine,
)
from hypothesis import assume, given
from hypothesis import strategies as st

from mlflow_e2eai.bundle.manifest import Manifest
from mlflow_e2eai.evaluation.gates import MEASURED, Decision, Gate, MetricValue, decide, find_value
from mlflow_e2eai.promotion.appraisal import Appraisal
from mlflow_e2eai.promotion.challengers import Goal, verdicts_on
from mlflow_e2eai.promotion.incumbent import champion_values
from mlflow_e2eai.promotion.metrics import values_of
from mlflow_e2eai.promotion.policy import Policy, RequiredTarget, decide_on

THEN = datetime.fromisoformat(NOW)
NAMES = st.sampled_from(["latency/p50_ms", "task/accuracy", "parity/cosine", "champion/task_drop"])
VARIANTS = {
    CPU32: ("fp32", ()),
    CPU16: ("fp16", ()),
    ENGINE: ("fp16", ("tensorrt_rtx-sm89", "sm89")),
}
FINITE = st.floats(-1e9, 1e9)


@st.composite
def metric_values(draw: st.DrawFn, number: st.SearchStrategy[float] = FINITE) -> MetricValue:
    variant = draw(st.sampled_from([None, *VARIANTS]))
    precision, targets = (None, ()) if variant is None else VARIANTS[variant]
    return MetricValue(
        metric=draw(NAMES),
        value=draw(number),
        variant=variant,
        precision=precision,
        targets=targets,
        at=draw(st.sampled_from([None, 1, 8])),
        usual=draw(st.booleans()),
    )


def counts(measured_ones: set[str]) -> list[MetricValue]:
    """Whether each variant was measured."""
    return [
        MetricValue(
            metric=MEASURED,
            value=float(name in measured_ones),
            variant=name,
            precision=precision,
            targets=targets,
        )
        for name, (precision, targets) in VARIANTS.items()
    ]


GATES = st.builds(
    Gate,
    metric=NAMES,
    bound=st.sampled_from(["at_most", "at_least"]),
    limit=FINITE,
    optional=st.booleans(),
    target=st.sampled_from([None, None, "sm89", "sm86"]),
    precision=st.sampled_from([None, None, "fp16", "fp32"]),
    variant=st.sampled_from([None, None, CPU32, "onnxruntime-cpu/*"]),
    at=st.sampled_from([None, None, 1, 8]),
    severity=st.sampled_from(["block", "block", "warn"]),
)
RULES = st.lists(GATES, min_size=1, max_size=4)
VALUES = st.lists(metric_values(), max_size=12)
DONE = st.sets(st.sampled_from(sorted(VARIANTS)))
CHAMPION = st.booleans()


@given(
    gate=GATES,
    values=st.lists(metric_values(), min_size=1),
    better=st.floats(0, 1e9),
    data=st.data(),
)
def test_a_better_number_never_loses_a_gate(gate, values, better, data):
    sign = -1 if gate.bound == "at_most" else 1
    # The limit is the worst of all numbers, so that every gate that reads one passes.
    limit = -sign * max(-sign * value.value for value in values)
    gate = dataclasses.replace(gate, limit=limit, severity="block")
    at = data.draw(st.integers(0, len(values) - 1))
    improved = dataclasses.replace(values[at], value=values[at].value + sign * better)
    done = counts(set(VARIANTS))

    before = decide([gate], [*values, *done], has_champion=True)
    after = decide([gate], [*values[:at], improved, *values[at + 1 :], *done], has_champion=True)
    assert after.promoted is before.promoted
    reads = find_value(gate, [*values, *done]) is not None
    assert before.promoted is reads


@given(
    gates=RULES,
    values=VALUES,
    champion=CHAMPION,
    bad=st.sampled_from([math.nan, math.inf, -math.inf]),
)
def test_a_number_that_is_not_finite_never_wins_a_promotion(gates, values, champion, bad):
    every = counts(set(VARIANTS))
    worse = [dataclasses.replace(value, value=bad) for value in values]
    for verdict in decide(gates, [*worse, *every], has_champion=champion).verdicts:
        assert not verdict.passed


@given(gates=RULES, values=VALUES, champion=CHAMPION)
def test_without_values_no_gate_passes(gates, values, champion):
    names = {value.metric for value in values}
    for verdict in decide(gates, [*values, *counts(set(VARIANTS))], has_champion=champion).verdicts:
        assert verdict.metric in names or not verdict.passed


@given(gates=RULES, values=VALUES, done=DONE, champion=CHAMPION)
def test_a_gate_that_selects_a_variant_without_evidence_never_passes(gates, values, done, champion):
    lacking = set(VARIANTS) - done
    for gate in gates:
        chosen = {each.variant for each in counts(done) if gate.selects(each)}
        if gate.selection and chosen & lacking:
            decision = decide([gate], [*values, *counts(done)], has_champion=champion)
            assert not any(verdict.passed for verdict in decision.verdicts)


@given(gates=RULES, values=VALUES, champion=CHAMPION)
def test_evidence_of_another_gpu_never_passes_a_gate(gates, values, champion):
    elsewhere = [dataclasses.replace(gate, target="sm86") for gate in gates]
    decision = decide(elsewhere, [*values, *counts(set(VARIANTS))], has_champion=champion)

    assert not any(verdict.passed for verdict in decision.verdicts)


@given(gates=RULES, values=VALUES, done=DONE, champion=CHAMPION, seed=st.randoms())
def test_the_order_of_gates_and_of_values_does_not_matter(gates, values, done, champion, seed):
    every, others, rules = [*values, *counts(done)], [*values, *counts(done)], list(gates)
    seed.shuffle(others)
    seed.shuffle(rules)
    one = decide(gates, every, has_champion=champion)
    other = decide(rules, others, has_champion=champion)

    assert one.promoted is other.promoted
    assert sorted((v.metric, v.passed) for v in one.verdicts) == sorted(
        (v.metric, v.passed) for v in other.verdicts
    )


def was_refused(decision: Decision) -> bool:
    """Whether a gate that blocks said no; without any there was nothing to say it."""
    return any(v.severity == "block" and not v.passed for v in decision.verdicts)


@given(gates=RULES, more=RULES, values=VALUES, done=DONE, champion=CHAMPION)
def test_adding_a_gate_never_turns_a_no_into_a_yes(gates, more, values, done, champion):
    every = [*values, *counts(done)]
    assume(was_refused(decide(gates, every, has_champion=champion)))

    assert not decide([*gates, *more], every, has_champion=champion).promoted


@given(gates=RULES, values=VALUES, done=DONE, champion=CHAMPION)
def test_deciding_twice_is_deciding_once(gates, values, done, champion):
    every = [*values, *counts(done)]
    first = decide(gates, every, has_champion=champion)

    assert repr(decide(gates, every, has_champion=champion).verdicts) == repr(first.verdicts)


# Whole versions


MS = st.floats(0.01, 100)
REQUIRED = RequiredTarget(target="sm89", max_age_days=30)
RATIO = Gate(metric="champion/latency_ratio", bound="at_most", limit=1.25)
LIMIT = Gate(metric="latency/p99_ms", bound="at_most", limit=50.0)
POLICY = Policy(gates=(RATIO, LIMIT), required_targets=(REQUIRED,))


def decision_on(new, old, policy=POLICY):
    values = [*values_of(new, now=THEN), *champion_values(new, old, policy.metrics)]
    return decide_on(policy, new, values, has_champion=True, now=THEN)


@given(
    old_ms=st.floats(0.01, 15),
    old_cpu_ms=st.floats(0.01, 15),
    share=st.floats(0.01, 1.2),
    faster=st.floats(0.01, 1),
)
def test_a_faster_version_never_loses(old_ms, old_cpu_ms, share, faster):
    old = with_engine(old_ms, old_cpu_ms, digest="o")
    for each in (share, faster * share):
        assert decision_on(with_engine(each * old_ms, each * old_cpu_ms, digest="n"), old).promoted


@given(ms=MS, cpu_ms=MS, old_ms=MS, days=st.floats(31, 1e4))
def test_stale_evidence_never_meets_a_requirement(ms, cpu_ms, old_ms, days):
    then = datetime.fromtimestamp(THEN.timestamp() - days * 86400, tz=THEN.tzinfo).isoformat()
    old = with_engine(old_ms, digest="o")

    assert not decision_on(with_engine(ms, cpu_ms, digest="n", measured_at=then), old).promoted


@given(ms=MS, cpu_ms=MS, old_ms=MS, unmeasured=st.sampled_from(["block", "warn", "exclude"]))
def test_an_engine_without_evidence_never_meets_a_requirement(ms, cpu_ms, old_ms, unmeasured):
    new = version({TORCH: 2.0, CPU32: cpu_ms, CPU16: ms}, digest="n", engines=[engine("n")])
    policy = dataclasses.replace(POLICY, unmeasured=unmeasured)

    assert not decision_on(new, with_engine(old_ms, digest="o"), policy).promoted


@given(ms=MS, old_ms=MS, key=st.sampled_from(["gpu", "driver", "tensorrt-rtx-cu13"]))
def test_evidence_of_another_kind_of_machine_never_passes_a_comparison(ms, old_ms, key):
    old = with_engine(old_ms, digest="o", **{key: "another"})

    assert not decision_on(with_engine(ms, digest="n"), old).promoted


@given(cpu_ms=MS, old_ms=MS, accuracy=st.floats(0.9, 1), more=st.floats(0, 0.1))
def test_a_more_accurate_version_never_loses(cpu_ms, old_ms, accuracy, more):
    gates = (
        Gate(metric="champion/task_drop", bound="at_most", limit=0.01),
        Gate(metric="task/drop", bound="at_most", limit=0.5),
    )

    def grown(value):
        evidence = (
            measured(TORCH, None, accuracy=1.0),
            measured(CPU32, "n-fp32", accuracy=value),
            measured(CPU16, "n-fp16", accuracy=value),
        )
        times = {TORCH: 2.0, CPU32: cpu_ms, CPU16: old_ms}
        return version(times, digest="n", evidence=evidence)

    old = version(digest="o")
    for each in (accuracy, min(accuracy + more, 1.0)):
        assert decision_on(grown(each), old, Policy(gates=gates)).promoted


# Several challengers

ON_SM89 = Goal.parse({"minimize": "latency/p50_ms", "target": "sm89"})


def appraisal(found: Manifest) -> Appraisal:
    values = values_of(found)
    gates = (Gate(metric="parity/failed", bound="at_most", limit=0),)
    decision = decide_on(Policy(gates=gates), found, values, has_champion=False)
    return Appraisal(manifest=found, values=tuple(values), decision=decision)


def on_engine(driver: str | None) -> Appraisal:
    """A version with an engine that an L4 with this driver measured."""
    there = on_l4()
    environment = {**there.environment, "driver": driver}
    known = {key: value for key, value in environment.items() if value is not None}
    return appraisal(
        version(engines=[engine()], elsewhere=[dataclasses.replace(there, environment=known)])
    )


@given(speeds=st.dictionaries(st.integers(1, 99).map(str), MS, min_size=1, max_size=5))
def test_of_several_that_pass_the_best_alone_meets_the_goal(speeds):
    goal = Goal.parse("latency/p50_ms")
    appraisals = {
        name: appraisal(version({TORCH: 2.0, CPU32: ms, CPU16: 1000.0}, digest=chr(64 + int(name))))
        for name, ms in speeds.items()
    }
    verdicts = verdicts_on(goal, appraisals)
    winners = [name for name, verdict in verdicts.items() if verdict.passed]

    fastest = min(speeds.values())
    assert winners == [max((n for n, ms in speeds.items() if ms == fastest), key=int)]


def test_a_goal_is_not_decided_between_machines_of_different_kinds():
    appraisals = {name: on_engine(driver) for name, driver in (("1", "570.1"), ("2", "580.1"))}
    verdicts = verdicts_on(ON_SM89, appraisals)

    assert not any(verdict.passed for verdict in verdicts.values())
    reason = "not comparable, as versions 1, 2 were measured on machines of different kinds"
    assert all(reason in str(verdict) for verdict in verdicts.values())


def test_a_goal_is_not_decided_on_machines_of_which_too_little_is_known():
    appraisals = {name: on_engine(driver=None) for name in ("1", "2")}
    verdicts = verdicts_on(ON_SM89, appraisals)

    assert not any(verdict.passed for verdict in verdicts.values())
    reason = "not comparable, as the evidence of versions 1, 2 does not name the driver"
    assert all(reason in str(verdict) for verdict in verdicts.values())
    assert verdicts_on(ON_SM89, {"1": appraisals["1"]})["1"].passed
