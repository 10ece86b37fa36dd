"""Latency measured again for a decision: side by side, here or on a machine of each target."""

from __future__ import annotations

import math
from pathlib import Path

import mlflow
import pytest
from graded_bundles import CPU32, ENGINE, engine, with_engine
from registered_bundles import holder, register

import mlflow_e2eai
from mlflow_e2eai import bundle, fleet
from mlflow_e2eai.bundle.side_by_side import Ratios, SideBySide, SizeRatio
from mlflow_e2eai.errors import InvalidInputError
from mlflow_e2eai.evaluation.gates import Decision, Gate
from mlflow_e2eai.promotion import appraisal, remeasurement
from mlflow_e2eai.promotion.gates_file import read_policy
from mlflow_e2eai.promotion.incumbent import champion_values
from mlflow_e2eai.promotion.metrics import values_of
from mlflow_e2eai.promotion.policy import decide_on
from mlflow_e2eai.promotion.remeasurement import Remeasurement, with_measured

RATIO = "champion/latency_ratio"
WHOLE = (Gate(metric=RATIO, bound="at_most", limit=1.25),)
OLD, NEW = with_engine(0.5, 1.0, digest="o"), with_engine(0.5, 1.0, digest="n")


def decided(*measured: SideBySide, gates: tuple[Gate, ...] = WHOLE) -> Decision:
    """The decision on a version that stored evidence finds as fast as the champion."""
    policy = read_policy(gates)
    values = [*values_of(NEW), *champion_values(NEW, OLD, policy.metrics)]
    for one in measured:
        values = with_measured(values, one)
    return decide_on(policy, NEW, values, has_champion=True)


def seen(machine: str, high: float, **by_variant: float) -> SideBySide:
    sizes = (SizeRatio(items=8, high=high),)
    return SideBySide(
        machine=machine,
        environment={"gpu": machine},
        overall=Ratios(sizes=sizes),
        by_variant={
            name: Ratios(sizes=(SizeRatio(items=8, high=one),)) for name, one in by_variant.items()
        },
    )


def test_what_one_machine_measured_takes_the_place_of_its_evidence_only():
    assert decided().promoted
    assert decided(seen("NVIDIA L4", 1.2)).promoted
    slower = decided(seen("NVIDIA L4", 1.3))
    assert slower.verdicts[0].found == 1.3
    assert slower.verdicts[0].source == "at 8 on NVIDIA L4"
    assert not decided(seen("A machine with no evidence", 1.3)).promoted


def test_each_target_must_agree():
    assert decided(seen("NVIDIA L4", 1.2), seen("NVIDIA A10", 1.2)).promoted
    assert not decided(seen("NVIDIA L4", 1.2), seen("NVIDIA A10", 1.3)).promoted


def test_a_variant_is_compared_with_itself():
    gates = (Gate(metric=RATIO, bound="at_most", limit=1.25, variant=ENGINE),)
    assert decided(gates=gates).promoted
    decision = decided(seen("NVIDIA L4", 1.0, **{ENGINE: 1.4}), gates=gates)
    assert decision.verdicts[0].found == 1.4
    assert decided(seen("NVIDIA L4", 1.4, **{ENGINE: 1.0}), gates=gates).promoted


def test_a_busy_machine_and_one_that_could_not_measure_block():
    noisy = decided(seen("NVIDIA L4", math.nan))
    assert not noisy.promoted
    lost = SideBySide(machine="a machine of sm90", overall=Ratios(reason="it was lost"))
    decision = decided(lost)
    assert "on a machine of sm90: it was lost" in decision.reasons[0]


def test_a_fleet_measures_on_a_machine_of_each_target():
    targets = {name: engine(name, name).target for name in ("sm86", "sm89")}
    jobs = fleet.remeasurements("m-2", targets, executor="ray", champion="m-1", variants=[CPU32])
    assert [(job.name, job.gpu) for job in jobs] == [
        ("remeasure sm86", "sm86"),
        ("remeasure sm89", "sm89"),
    ]
    assert jobs[0].arguments == {"champion": "m-1", "variants": [CPU32]}
    (here,) = fleet.remeasurements("m-2", targets, executor="local", champion="m-1", variants=[])
    assert here.gpu is None


def test_a_target_that_no_node_has_is_in_the_result_with_the_reason(store, good, monkeypatch):
    def without_nodes(jobs, **_):
        return [fleet.Outcome(job=job, error="No node has sm89.") for job in jobs]

    monkeypatch.setattr(remeasurement.fleet, "run", without_nodes)
    place = Path(good, bundle.FOLDER)
    (found,) = Remeasurement(executor="ray").measure("measure", (place, place), ("m-2", "m-1"), ())
    assert found.machine == "a machine of the fleet"
    assert found.overall.reason == "the two were not measured there: No node has sm89"


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"executor": "slurm"}, "There is no executor 'slurm'"),
        ({"executor": "local", "workers": 0}, "workers is 0"),
        ({"executor": "local", "dry_run": True}, "dry_run writes nothing, but jobs"),
    ],
)
def test_an_executor_that_cannot_measure_is_refused_before_anything_is_read(options, sentence):
    with pytest.raises(InvalidInputError, match=sentence):
        mlflow_e2eai.promote("net", 1, **options)


@pytest.mark.system
def test_a_worker_measures_both_versions_and_the_decision_has_it_on_record(store, good):
    first, second = register(good), register(good)
    mlflow_e2eai.promote("net", first)
    gates = {"gates": [{"metric": RATIO, "at_most": 1e9}]}
    decision = mlflow_e2eai.promote("net", second, gates=gates, executor="local")

    assert decision.promoted
    assert holder(store) == second
    (one,) = mlflow_e2eai.explain("net", second).measured
    assert one.environment
    assert {entry.high for entry in one.overall.sizes} == {1.0}  # one and the same file
    (job,) = mlflow.search_runs(
        filter_string="tags.`e2eai.stage` = 'remeasure'", output_format="list"
    )
    parent = mlflow.get_run(job.data.tags["mlflow.parentRunId"])
    assert parent.info.run_name == "measure net 2 against 1"
    assert f"measured side by side on {one.machine}" in mlflow_e2eai.explain("net", second).text()


def test_without_a_gate_on_latency_nothing_is_measured(good):
    place = Path(good, bundle.FOLDER)

    def measure(names):
        pytest.fail(f"{names} were measured")

    policy = read_policy((Gate(metric="parity/failed", bound="at_most", limit=0),))
    assert appraisal.appraise(policy, place, place, measure=measure).decision.promoted
