"""Versions against the one that holds the alias, by stored evidence of like machines."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
from graded_bundles import (
    CPU16,
    CPU32,
    TORCH,
    XEON,
    measured,
    on_l4,
    timed,
    version,
    with_engine,
)

from mlflow_e2eai.bundle.manifest import Manifest
from mlflow_e2eai.evaluation.gates import Decision, Gate
from mlflow_e2eai.latency.ratios import separate_bound
from mlflow_e2eai.latency.report import Load, Throughput
from mlflow_e2eai.promotion.gates_file import read_policy
from mlflow_e2eai.promotion.incumbent import champion_values
from mlflow_e2eai.promotion.metrics import values_of
from mlflow_e2eai.promotion.policy import decide_on

RATIO = "champion/latency_ratio"


def against(new: Manifest, old: Manifest, metric: str = RATIO, **selection: object) -> Decision:
    gate = Gate(metric=metric, bound="at_most", limit=1.25, **selection)  # type: ignore[arg-type]
    policy = read_policy([gate])
    values = [*values_of(new), *champion_values(new, old, policy.metrics)]
    return decide_on(policy, new, values, has_champion=True)


def times(ms: float, half: float | None = None) -> dict[str, float]:
    return {TORCH: 2.0, CPU32: ms, CPU16: 1.5 * ms if half is None else half}


# Latency


def test_the_fastest_variants_are_compared_by_evidence_of_both():
    old = version(times(1.0), digest="o")

    assert against(version(times(1.1), digest="n"), old).promoted
    slower = against(version(times(1.4), digest="n"), old)
    assert not slower.promoted
    assert slower.verdicts[0].found == pytest.approx(1.415, abs=0.02)
    # It lost one variant's speed, and is as fast by the other, which load_model takes.
    assert against(version(times(2.0, half=1.0), digest="n"), old).promoted


def test_an_engine_that_got_slower_on_its_gpu_blocks_though_the_processor_runs_both_alike():
    old = with_engine(0.5, 1.0, digest="o")

    assert against(with_engine(0.5, 1.0, digest="n"), old).promoted
    decision = against(with_engine(1.0, 1.0, digest="n"), old)
    assert not decision.promoted
    assert decision.verdicts[0].source == "at 8 on NVIDIA L4"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (
            {"driver": "580.1"},
            "the champion was measured with driver 580.1, and this version with 570.1",
        ),
        (
            {"tensorrt-rtx-cu13": "1.7"},
            "the champion was measured with tensorrt-rtx 1.7, and this version with 1.6.1",
        ),
        ({"gpu": "NVIDIA L40S"}, "the champion was measured there, and this version was not"),
    ],
)
def test_another_gpu_driver_or_runtime_is_not_comparable_and_blocks(change, reason):
    old = with_engine(digest="o", **change)
    decision = against(with_engine(digest="n"), old)

    assert not decision.promoted
    assert f"not comparable, as {reason}" in decision.reasons[0]


def test_a_variant_that_failed_on_such_a_machine_is_not_comparable_wherever_else_it_passed():
    failed, elsewhere = on_l4(digest="n", passed=False), on_l4(digest="n", driver="580.0")
    new = dataclasses.replace(with_engine(digest="n"), elsewhere=(failed, elsewhere))
    decision = against(new, with_engine(digest="o"))

    assert not decision.promoted
    assert "not comparable, as this version did not pass there" in decision.reasons[0]
    assert not against(new, with_engine(digest="o"), target="sm89").promoted


@pytest.mark.parametrize("key", ["processor", "onnxruntime"])
def test_a_machine_that_is_not_known_is_like_no_other(key):
    unknown = {name: value for name, value in XEON.items() if name != key}
    new, old = (version(digest=digest, environment=unknown) for digest in "no")
    decision = against(new, old)

    assert not decision.promoted
    assert "the champion's evidence does not name its" in decision.reasons[0]


@pytest.mark.parametrize(
    ("of_new", "of_old", "reason"),
    [
        (None, None, "the champion's evidence does not name its processors"),
        (4, 2, "the champion was measured with processors 2, and this version with 4"),
    ],
)
def test_the_number_of_processors_is_known_and_the_same_of_both(of_new, of_old, reason):
    new, old = (
        version(digest=digest, latency={"opt": timed(times(1.0), cpus=cpus)})
        for digest, cpus in (("n", of_new), ("o", of_old))
    )
    decision = against(new, old)

    assert not decision.promoted
    assert f"not comparable, as {reason}" in decision.reasons[0]


def test_without_latency_the_machines_processors_are_those_of_its_environment():
    def of(digest: str, cores: int) -> Manifest:
        return version(digest=digest, latency={}, environment={**XEON, "cores": str(cores)})

    metric = "champion/task/accuracy/difference"
    assert against(of("n", 4), of("o", 4), metric).promoted
    decision = against(of("n", 2), of("o", 4), metric)
    assert "the champion was measured with processors 4, and this version with 2" in str(decision)


def test_pytorchs_own_version_does_not_matter_to_what_runs():
    old = version(digest="o", environment={**XEON, "torch": "2.0.0"})

    assert against(version(digest="n"), old).promoted


def test_a_gpu_that_the_champion_never_met_has_nothing_to_be_compared_with():
    assert against(with_engine(digest="n"), version(digest="o")).promoted


def test_a_gpu_that_this_version_never_met_blocks():
    decision = against(version(digest="n"), with_engine(digest="o"))

    assert not decision.promoted
    assert f"{RATIO}, on NVIDIA L4: not comparable" in decision.reasons[0]


def test_files_of_one_digest_are_equal_by_construction_on_whatever_machine():
    new = version(times(9.0), environment={**XEON, "processor": "EPYC"})
    decision = against(new, version(times(1.0)))

    assert decision.promoted
    assert decision.verdicts[0].found == 1.0


def test_a_variant_of_one_digest_is_equal_though_other_files_differ():
    new = with_engine(0.5, 9.0, digest="n")
    same = version(times(1.0), digest="n")
    old = dataclasses.replace(same, graphs=same.graphs[:1], evidence=same.evidence[:2])

    assert against(new, old, variant=CPU32).verdicts[0].found == 1.0


def test_a_busy_machine_and_too_few_calls_and_other_sizes_are_not_comparable():
    old = version(times(1.0), digest="o")
    busy = version(latency={"opt": timed(times(1.0), busy=True)}, digest="n")
    few = version(latency={"opt": timed(times(1.0), rounds=7)}, digest="n")
    other = version(latency={"opt": timed(times(1.0), 16)}, digest="n")
    none = version(latency={}, digest="p")

    assert "too noisy to tell" in against(busy, old).reasons[0]
    assert "too few calls were measured" in against(few, old).reasons[0]
    assert (
        "this version was not measured at 8 items in a call there" in against(other, old).reasons[0]
    )
    assert "no latency of the champion" in against(old, none).reasons[0]


def test_a_selected_variant_is_compared_with_itself():
    new = version(times(1.0, half=3.0), digest="n")
    old = version(times(1.0, half=1.0), digest="o")

    assert against(new, old).promoted
    assert not against(new, old, precision="fp16").promoted
    assert against(new, old, variant=CPU32).promoted
    assert against(with_engine(digest="n"), with_engine(digest="o"), target="sm89").promoted


def test_a_selected_engine_on_another_driver_is_not_comparable():
    old = with_engine(digest="o", driver="580.1")
    decision = against(with_engine(digest="n"), old, target="sm89")

    assert not decision.promoted
    assert "not comparable" in decision.reasons[0]


def test_the_worst_size_that_both_were_measured_at_counts():
    def at_sizes(small: float, large: float, digest: str) -> Manifest:
        latency = {"min": timed(times(small), 1), "opt": timed(times(large), 8)}
        return version(latency=latency, digest=digest)

    decision = against(at_sizes(1.0, 2.0, "n"), at_sizes(1.0, 1.0, "o"))
    assert decision.verdicts[0].source == "at 8 on Xeon"
    assert not decision.promoted
    assert against(at_sizes(1.0, 2.0, "n"), at_sizes(1.0, 1.0, "o"), at=1).promoted


def test_a_size_that_the_champion_was_measured_at_is_not_left_out():
    old = version(
        latency={"opt": timed(times(1.0)), "max": timed(times(1.0), 64)},
        digest="o",
    )
    decision = against(version(times(1.0), digest="n"), old)

    assert "was not measured at 64 items in a call" in decision.reasons[0]
    assert not against(version(digest="n"), old, precision="fp16").promoted
    assert against(version(times(1.0), digest="n"), old, at=8).promoted
    p99 = against(version(digest="n"), old, "champion/latency/p99_ms/ratio", at=64)
    assert "was not measured at 64 items in a call" in p99.reasons[0]


@pytest.mark.parametrize("half", [2.0, 1.01, 0.99, 0.5])
def test_a_second_variant_that_is_noisy_never_makes_a_version_slower(half):
    noisy = timed(times(1.0))
    rng = np.random.default_rng(0)
    noisy = dataclasses.replace(
        noisy,
        variants=tuple(
            dataclasses.replace(
                each, p50_ms=half, rounds_ms=tuple(half * rng.lognormal(0, 0.5, size=40))
            )
            if each.name == CPU16
            else each
            for each in noisy.variants
        ),
    )
    assert against(version(latency={"opt": noisy}, digest="n"), version(digest="o")).promoted


def test_files_of_one_digest_are_equal_for_each_gate_that_selects_among_them():
    new, old = with_engine(0.9), with_engine(0.5)

    for selection in ({"at": 8}, {"target": "sm89"}, {"variant": CPU32}, {"precision": "fp16"}):
        assert against(new, old, **selection).verdicts[0].found == 1.0


# The bound


@pytest.mark.parametrize("rounds", [8, 20, 60, 200])
def test_the_bound_of_two_measurements_is_above_the_truth_in_99_of_100(rounds):
    random = np.random.default_rng(0)
    missed = sum(
        separate_bound(random.lognormal(0.2, 0.2, rounds), random.lognormal(0, 0.2, rounds))
        < math.exp(0.2)
        for _ in range(1000)
    )

    assert missed <= 10


def test_more_rounds_make_the_bound_tighter_and_too_few_make_none():
    random = np.random.default_rng(0)
    bounds = [
        float(
            np.median(
                [
                    separate_bound(random.lognormal(0, 0.1, n), random.lognormal(0, 0.1, n))
                    for _ in range(100)
                ]
            )
        )
        for n in (8, 60, 200)
    ]

    assert bounds == sorted(bounds, reverse=True)
    assert bounds[-1] < 1.1
    assert separate_bound([1.0] * 7, [1.0] * 200) == math.inf
    assert separate_bound([1.0] * 8, [0.0] * 8) == math.inf


# Other metrics


def test_any_metric_of_a_variant_can_be_compared():
    old, new = with_engine(0.5, digest="o"), with_engine(0.6, digest="n")

    ratio = against(new, old, "champion/latency/p99_ms/ratio", target="sm89")
    assert ratio.verdicts[0].found == pytest.approx(1.2)
    size = against(new, old, "champion/file/size_bytes/ratio", target="sm89")
    assert size.verdicts[0].found == pytest.approx(1.0)
    difference = against(new, old, "champion/task/accuracy/difference")
    assert difference.verdicts[0].found == 0.0
    memory = against(new, old, "champion/cold_start/peak_memory_bytes/ratio")
    assert memory.verdicts[0].found == 1.0


@pytest.mark.parametrize("optional", [False, True])
def test_a_gate_reads_the_size_that_was_usual_for_the_champion(optional):
    old = version(latency={"opt": timed(times(1.0), 8)}, digest="o")
    new = version(latency={"min": timed(times(3.0), 8), "opt": timed(times(1.0), 64)}, digest="n")
    decision = against(new, old, "champion/latency/p99_ms/ratio", optional=optional)

    assert not decision.promoted
    assert "champion/latency/p99_ms/ratio = 3" in decision.reasons[0]


def test_a_size_that_is_missing_is_counted_in_its_own_words():
    def of(digest: str, threads: int) -> Manifest:
        load = Load(threads=threads, calls=9, seconds=1.0, items_per_s=9.0)
        base = version(latency={"opt": timed(times(1.0), threads)}, digest=digest)
        loaded = tuple(
            dataclasses.replace(entry, loads=Throughput(items=1, loads=(load,)))
            for entry in base.evidence
        )
        return dataclasses.replace(base, evidence=loaded)

    for metric, size in (
        ("champion/concurrency/items_per_s/ratio", "at 1 caller there"),
        ("champion/latency/p99_ms/ratio", "at 1 item in a call there"),
        (RATIO, "at 1 item in a call there"),
    ):
        decision = against(of("n", 4), of("o", 1), metric)
        assert f"this version was not measured {size}" in decision.reasons[0]


def test_a_metric_of_another_kind_of_machine_is_not_compared():
    old = version(digest="o", environment={**XEON, "processor": "EPYC"})
    decision = against(version(digest="n"), old, "champion/latency/p99_ms/ratio")

    assert not decision.promoted
    assert "on EPYC: not comparable" in decision.reasons[0]


def test_a_gpu_that_only_the_champion_was_measured_on_blocks_every_comparison():
    new, old = version(digest="n"), with_engine(digest="o")
    decision = against(new, old, "champion/latency/p50_ms/ratio")

    assert "on NVIDIA L4: not comparable" in decision.reasons[0]


@pytest.mark.parametrize("metric", [RATIO, "champion/latency/p50_ms/ratio"])
@pytest.mark.parametrize("optional", [True, False])
def test_an_engine_that_the_champion_lacks_is_not_comparable(metric, optional):
    new, old = with_engine(digest="n"), version(digest="o")
    decision = against(new, old, metric, target="sm89", optional=optional)

    assert not decision.promoted
    assert "not comparable, as the champion has no evidence of sm89" in decision.reasons[0]


def test_a_precision_that_was_dropped_has_nothing_to_be_compared_with():
    graphs = version(digest="n").graphs
    new = version(evidence=(measured(TORCH, None), measured(CPU32, graphs[0].sha256)), digest="n")

    for metric in (RATIO, "champion/latency/p50_ms/ratio"):
        assert against(new, version(digest="o"), metric).promoted


def test_the_age_and_a_missing_task_metric_of_one_file_are_not_equal_by_construction():
    old, new = version(), version(measured_at="2020-01-01T00:00:00+00:00")
    assert against(new, old, "champion/evidence/age_days/difference").verdicts[0].found > 1000

    unknown = tuple(
        dataclasses.replace(entry, task={"accuracy": math.nan}) for entry in new.evidence
    )
    new = dataclasses.replace(new, evidence=unknown)
    decision = against(new, old, "champion/task/accuracy/difference")
    assert not decision.promoted


def test_versions_without_a_variant_in_common_are_not_compared():
    old = version(digest="o", evidence=())
    decision = against(version(digest="n"), old, "champion/file/size_bytes/ratio")

    assert (
        "the two have no variant in common with a value of file/size_bytes" in decision.reasons[0]
    )


def test_a_loss_of_a_task_metric_is_compared_whatever_the_machine():
    old = version(digest="o", environment={**XEON, "processor": "EPYC"})
    decision = against(version(digest="n"), old, "champion/task_drop")

    assert decision.verdicts[0].found == 0.0


def test_two_l4_of_one_driver_are_one_kind_of_machine():
    assert on_l4().environment == on_l4(0.9).environment
    assert against(with_engine(0.55, digest="n"), with_engine(0.5, digest="o")).promoted
