"""Gates by variant and target, required targets, engines that nobody measured, and advice."""

from __future__ import annotations

import dataclasses
import math
from datetime import datetime

import pytest
from graded_bundles import (
    CPU16,
    CPU32,
    ENGINE,
    NOW,
    TORCH,
    engine,
    measured,
    on_l4,
    timed,
    version,
    with_engine,
)

from mlflow_e2eai.bundle.manifest import Manifest
from mlflow_e2eai.errors import InvalidInputError
from mlflow_e2eai.evaluation.evidence import Evidence
from mlflow_e2eai.evaluation.gates import Decision, Gate, Verdict
from mlflow_e2eai.latency.report import Load, Throughput
from mlflow_e2eai.promotion.gates_file import read_policy
from mlflow_e2eai.promotion.metrics import values_of
from mlflow_e2eai.promotion.policy import Policy, RequiredTarget, decide_on

THEN = datetime.fromisoformat(NOW)
ALWAYS = Gate(metric="parity/measured", bound="at_least", limit=1)


def decide(found: Manifest, *gates: Gate, **rules: object) -> Decision:
    policy = read_policy(Policy(gates=gates or (ALWAYS,), **rules))  # type: ignore[arg-type]
    return decide_on(policy, found, values_of(found, now=THEN), has_champion=False, now=THEN)


def at_most(metric: str, limit: float, **selection: object) -> Gate:
    return Gate(metric=metric, bound="at_most", limit=limit, **selection)  # type: ignore[arg-type]


def found_by(decision: Decision) -> float | None:
    return decision.verdicts[0].found


@pytest.mark.parametrize("passed", [True, False])
def test_a_verdict_that_is_given_decides_with_the_gates(passed):
    goal = Verdict(metric="goal", found=1.0, wanted="at most 1", passed=passed)
    decision = decide(with_engine(0.5), given=(goal,))

    assert goal in decision.verdicts
    assert decision.promoted is passed


# Gates by variant


def test_a_gate_that_selects_nothing_reads_the_worst_variant_of_every_machine():
    verdict = decide(with_engine(0.5), at_most("latency/p50_ms", 1.2)).verdicts[0]

    assert (verdict.found, verdict.source) == (1.5, f"{CPU16} at 8 on Xeon")
    assert not verdict.passed


@pytest.mark.parametrize(
    ("selection", "found"),
    [
        ({"target": "sm89"}, 0.5),
        ({"target": "L4"}, 0.5),
        ({"target": "rtx:sm89"}, 0.5),
        ({"variant": "onnxruntime-cpu/*"}, 1.5),
        ({"precision": "fp16"}, 1.5),
        ({"precision": "fp16", "target": "sm89"}, 0.5),
        ({"variant": CPU32}, 1.0),
        ({"at": 8, "variant": CPU32}, 1.0),
    ],
)
def test_a_gate_reads_the_variants_that_it_selects(selection, found):
    assert found_by(decide(with_engine(0.5), at_most("latency/p50_ms", 9, **selection))) == found


def test_a_gate_at_a_size_reads_that_size_and_without_one_that_which_engines_are_tuned_for():
    latency = {"min": timed({CPU32: 3.0}, 1), "opt": timed({CPU32: 5.0}, 8)}
    found = version(latency=latency)

    assert found_by(decide(found, at_most("latency/p50_ms", 9))) == 5.0
    assert found_by(decide(found, at_most("latency/p50_ms", 9, at=1))) == 3.0
    assert found_by(decide(found, at_most("latency/p50_ms", 9, at=64))) is None


@pytest.mark.parametrize(
    ("metric", "found"),
    [
        ("latency/p90_ms", 1.65),
        ("latency/p95_ms", 1.8),
        ("latency/p99_ms", 2.25),
        ("latency/throughput_items_per_s", 8000.0),
        ("cold_start/load_s", 0.5),
        ("cold_start/peak_memory_bytes", 2e8),
        ("evidence/age_days", 0.5),
        ("parity/max_abs_error", 1e-4),
        ("parity/y/max_rel_error", 1e-4),
        ("task/accuracy", 0.9),
    ],
)
def test_every_number_that_was_measured_can_be_bounded(metric, found):
    assert found_by(decide(version(), at_most(metric, 9))) == pytest.approx(found)


def test_the_size_of_a_file_can_be_bounded():
    verdict = decide(with_engine(), at_most("file/size_bytes", 1, target="sm89")).verdicts[0]

    assert (verdict.found, verdict.source) == (4e6, ENGINE)


def test_a_gate_for_a_target_of_which_there_is_no_engine_says_so_and_does_not_pass():
    decision = decide(with_engine(), at_most("latency/p50_ms", 9, target="sm90"))

    assert decision.reasons == (
        "latency/p50_ms (sm90): the version has no engine of sm90 (gate: at most 9)",
    )


@pytest.mark.parametrize("optional", [False, True])
def test_evidence_of_another_gpu_passes_no_gate(optional):
    found = with_engine()
    found = dataclasses.replace(found, engines=(*found.engines, engine("a", "sm86")))
    gate = at_most("latency/p50_ms", 9, target="sm86", optional=optional)
    decision = decide(found, gate, unmeasured="warn")

    assert not decision.promoted
    assert "not measured" in decision.reasons[0]


def test_a_time_of_a_busy_machine_passes_no_gate():
    found = version(latency={"opt": timed({CPU32: 1.0}, busy=True)})
    (reason,) = decide(found, at_most("latency/p50_ms", 9)).reasons

    assert reason == (
        f"latency/p50_ms, {CPU32} at 8 on Xeon: too noisy to tell, as the machine was busy (gate: "
        "at most 9)"
    )


def while_busy(entry: Evidence) -> Evidence:
    assert entry.cold_start is not None
    load = Load(threads=1, calls=9, seconds=1.0, items_per_s=500.0, cpu_share=0.3, busy=True)
    return dataclasses.replace(
        entry,
        cold_start=dataclasses.replace(entry.cold_start, cpu_share=0.3, busy=True),
        loads=Throughput(items=8, loads=(load,)),
    )


@pytest.mark.parametrize(
    "metric", ["cold_start/load_s", "cold_start/first_call_ms", "concurrency/items_per_s"]
)
def test_a_start_and_a_rate_of_a_busy_machine_pass_no_gate(metric):
    found = version()
    found = dataclasses.replace(found, evidence=tuple(map(while_busy, found.evidence)))
    at_least = Gate(metric=metric, bound="at_least", limit=0)

    assert "too noisy to tell" in decide(found, at_least).reasons[0]
    assert decide(found, at_most("cold_start/peak_memory_bytes", 1e9)).promoted


def test_a_gate_that_warns_is_shown_and_decides_nothing():
    decision = decide(version(), ALWAYS, at_most("latency/p50_ms", 0.1, severity="warn"))

    assert decision.promoted
    assert decision.reasons == ()
    assert decision.warnings[0].startswith("latency/p50_ms = 1.5")


def test_gates_that_all_warn_promote_nothing():
    decision = decide(version(), at_most("latency/p50_ms", 9, severity="warn"))

    assert not decision.promoted
    (reason,) = decision.reasons
    assert reason == "Every gate only warns, and nothing is promoted without one that blocks."


def test_a_task_metric_that_is_misspelt_is_missing_and_the_right_name_is_in_the_reason():
    names = {value.metric for value in values_of(version())}
    assert "task/accuracy" in names
    for metric, hint in (
        ("task/acuracy", "task/acuracy: not measured; did you mean task/accuracy? (gate: "),
        ("task/f1", "task/f1: not measured (gate: "),
    ):
        decision = decide(version(), at_most(metric, 1))
        assert not decision.promoted
        assert decision.reasons[0].startswith(hint)


# Age


def test_evidence_that_is_too_old_or_of_an_unknown_age_passes_no_gate():
    gate = at_most("evidence/age_days", 30)

    assert decide(version(measured_at="2026-11-01T12:00:00+00:00"), gate).promoted
    for stale in (
        "2026-10-30T12:00:00+00:00",
        "2026-12-24T12:00:00+00:00",
        "2026-11-29",
        "soon",
        None,
    ):
        assert not decide(version(measured_at=stale), gate).promoted


# Engines that nobody measured


def test_an_engine_that_nobody_measured_blocks_by_default():
    decision = decide(version(engines=[engine()]))

    assert not decision.promoted
    assert decision.reasons == (
        f"evidence/unmeasured: nobody measured {ENGINE} on a GPU of its target (gate: at most 0)",
    )
    assert decide(with_engine()).promoted


def test_an_engine_that_nobody_measured_can_be_shown_only():
    decision = decide(version(engines=[engine()]), unmeasured="warn")

    assert decision.promoted
    assert f"nobody measured {ENGINE}" in decision.warnings[0]


def test_an_engine_that_nobody_measured_can_be_excluded_so_that_no_gate_is_about_it():
    gates = (ALWAYS, at_most("parity/max_abs_error", 1, precision="fp16"))
    decision = decide(version(engines=[engine()]), *gates, unmeasured="exclude")

    assert decision.promoted
    assert decision.excluded == (ENGINE,)
    assert not decide(version(engines=[engine()]), *gates, unmeasured="warn").promoted


def test_excluding_an_engine_that_was_measured_to_fail_does_not_pass_it():
    found = version(engines=[engine()], elsewhere=[on_l4(passed=False)])
    decision = decide(found, at_most("parity/failed", 0), unmeasured="exclude")

    assert not decision.promoted
    assert decision.excluded == ()


# Required targets


@pytest.mark.parametrize(
    "required",
    [
        RequiredTarget(target="sm89"),
        RequiredTarget(target="L4", precision="half", tensorrt="1.6*", max_age_days=30),
    ],
)
def test_a_target_with_an_engine_that_passed_there_is_met(required):
    assert decide(with_engine(), required_targets=(required,)).promoted


@pytest.mark.parametrize(
    ("required", "reason"),
    [
        (RequiredTarget(target="sm86"), "the version has no engine for sm86"),
        (RequiredTarget(target="sm89", precision="fp32"), f"{ENGINE} is in fp16"),
        (RequiredTarget(target="sm89", tensorrt="1.7*"), "was built by TensorRT 1.6.1"),
        (RequiredTarget(target="sm89", max_age_days=0.25), f"{ENGINE} was measured 0.5 days ago"),
    ],
)
def test_a_target_that_is_not_met_says_what_is_missing(required, reason):
    decision = decide(with_engine(), required_targets=(required,))

    assert not decision.promoted
    assert reason in decision.reasons[0]


@pytest.mark.parametrize(
    ("found", "reason"),
    [
        (version(engines=[engine()]), "nobody measured"),
        (with_engine(passed=False), "failed its comparison"),
        (with_engine(measured_at=None), "the time of the measurement was not recorded"),
        (version(), "the version has no engine"),
    ],
)
def test_a_target_without_good_evidence_is_not_met(found, reason):
    required = RequiredTarget(target="sm89", max_age_days=30)
    decision = decide(found, required_targets=(required,), unmeasured="exclude")

    assert not decision.promoted
    assert reason in decision.reasons[0]
    assert "(gate: an engine for sm89 that passed there at most 30 days ago" in decision.reasons[0]


@pytest.mark.parametrize("old_first", [True, False])
def test_of_several_measurements_the_newest_counts(old_first):
    there = [on_l4(measured_at="2020-01-01T00:00:00+00:00", host="old"), on_l4(host="new")]
    found = version(engines=[engine()], elsewhere=there if old_first else there[::-1])
    required = RequiredTarget(target="sm89", max_age_days=30)

    assert decide(found, required_targets=(required,)).promoted


def test_an_engine_for_every_gpu_meets_the_target_that_it_was_measured_on():
    portable = engine()
    target = dataclasses.replace(portable.target, compute_capability="")
    portable = dataclasses.replace(portable, target=target)
    there = on_l4()
    own = measured(f"{target}/fp16", portable.sha256)
    found = version(
        engines=[portable],
        elsewhere=[dataclasses.replace(there, evidence=(there.evidence[0], own), latency={})],
    )

    assert decide(found, required_targets=(RequiredTarget(target="sm89"),)).promoted
    assert not decide(found, required_targets=(RequiredTarget(target="sm86"),)).promoted
    assert decide(found, at_most("file/size_bytes", 4e6, target="sm89")).promoted
    assert not decide(found, at_most("file/size_bytes", 4e6, target="sm86")).promoted


def test_nothing_that_was_measured_is_no_proof_that_nothing_failed():
    found = version(evidence=(measured(TORCH, None),))

    assert not decide(found, at_most("parity/failed", 0)).promoted


# Engines for several GPUs


def for_two_gpus() -> Manifest:
    """A version whose engine for sm86 and sm89 was measured on an A10 alone."""
    both = engine(capability="sm86+sm89")
    there = on_l4(gpu="NVIDIA A10", compute_capability="sm86")
    name = f"{both.target}/fp16"
    own = dataclasses.replace(
        there,
        evidence=(there.evidence[0], measured(name, both.sha256)),
        latency={"opt": timed({TORCH: 2.0, name: 0.5})},
    )
    return version(engines=[both], elsewhere=[own])


@pytest.mark.parametrize(
    "gate",
    [
        Gate(metric="parity/measured", bound="at_least", limit=1, target="sm89"),
        at_most("parity/failed", 0, target="sm89"),
        at_most("latency/p99_ms", 10, target="sm89"),
        at_most("parity/max_abs_error", 1, target="rtx:sm86+sm89"),
    ],
    ids=str,
)
def test_an_engine_for_two_gpus_has_evidence_of_the_one_that_measured_it(gate):
    decision = decide(for_two_gpus(), gate, unmeasured="warn")
    there = dataclasses.replace(gate, target="sm86")

    assert not decision.promoted
    assert decide(for_two_gpus(), there, unmeasured="warn").promoted


@pytest.mark.parametrize("target", ["sm89", "rtx:sm86+sm89"])
def test_a_target_is_not_met_by_an_engine_that_passed_on_its_other_gpu(target):
    required = (RequiredTarget(target=target),)
    decision = decide(for_two_gpus(), required_targets=required, unmeasured="warn")

    assert not decision.promoted
    assert "nobody measured tensorrt_rtx-sm86+sm89/fp16 on" in decision.reasons[0]
    met = (RequiredTarget(target="sm86"),)
    assert decide(for_two_gpus(), required_targets=met, unmeasured="warn").promoted


def test_an_engine_that_was_measured_on_one_of_its_gpus_blocks_for_the_other():
    decision = decide(for_two_gpus())

    (reason,) = decision.reasons
    assert "nobody measured tensorrt_rtx-sm86+sm89/fp16 (sm89) on a GPU of its target" in reason


def test_an_engine_that_fails_on_one_gpu_and_was_not_measured_on_the_other_is_not_excluded():
    found = for_two_gpus()
    (there,) = found.elsewhere
    reference, own = there.evidence
    failed = dataclasses.replace(
        there, evidence=(reference, measured(own.variant, own.sha256, passed=False))
    )
    found = dataclasses.replace(found, elsewhere=(failed,))
    decision = decide(found, at_most("parity/failed", 0), unmeasured="exclude")

    assert not decision.promoted
    assert decision.excluded == ("tensorrt_rtx-sm86+sm89/fp16 (sm89)",)


def test_evidence_of_another_file_under_the_name_of_a_variant_counts_for_nothing():
    found = version(engines=[engine("b")], elsewhere=[on_l4(digest="a")])
    decision = decide(found, required_targets=(RequiredTarget(target="sm89"),))

    assert [verdict.metric for verdict in decision.verdicts if not verdict.passed] == [
        "required/sm89",
        "evidence/unmeasured",
    ]


def test_gates_that_all_compare_with_a_champion_promote_no_first_version():
    decision = decide(version(), at_most("champion/latency_ratio", 1.25))

    assert decision.reasons == (
        "No gate applies to this version, and nothing is promoted without one.",
    )


# Names


@pytest.mark.parametrize(
    ("gate", "message"),
    [
        (at_most("latency/p98_ms", 1), "did you mean latency/p99_ms"),
        (at_most("champion/latency/p98_ms/ratio", 1), "champion/latency/p99_ms/ratio"),
        (at_most("champion/parity/measured/ratio", 1), "Write a gate on parity/measured itself"),
        (at_most("champion/evidence/quick/difference", 1), "a gate on evidence/quick itself"),
        (at_most("champion/champion/latency_ratio/ratio", 1), "champion/latency_ratio itself"),
        (at_most("file/size_bytes", 1, at=8), "leave 'at' out"),
        (at_most("evidence/quick", 1, target="sm89"), "of all variants"),
        (at_most("latency/p50_ms", 1, target="sm999"), "No engine is for sm999"),
        (at_most("latency/p50_ms", 1, precision="fp61"), "precision is 'fp61'"),
    ],
)
def test_a_gate_in_python_is_checked_as_one_in_a_file(gate, message):
    with pytest.raises(InvalidInputError, match=message):
        read_policy([gate])


@pytest.mark.parametrize("days", [0.0, -1.0, math.nan, math.inf])
def test_an_age_that_is_no_number_of_days_is_refused(days):
    required = RequiredTarget(target="sm89", max_age_days=days)
    with pytest.raises(InvalidInputError, match="give a number of days above 0"):
        read_policy(Policy(gates=(), required_targets=(required,)))
