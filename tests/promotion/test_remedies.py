"""Advice on each gate that did not pass: commands that do what is needed, and keep the call."""

from __future__ import annotations

import dataclasses
import re
import shlex
from datetime import datetime
from pathlib import Path
from typing import Any

import click
import pytest
from graded_bundles import (
    CPU16,
    CPU32,
    ENGINE,
    NOW,
    TORCH,
    engine,
    measured,
    timed,
    version,
    with_engine,
)

from mlflow_e2eai.artifacts.values import Axis, Target
from mlflow_e2eai.bundle.manifest import Manifest
from mlflow_e2eai.cli.main import command_line
from mlflow_e2eai.evaluation.gates import Decision, Gate, Verdict
from mlflow_e2eai.promotion.gates_file import read_policy
from mlflow_e2eai.promotion.incumbent import champion_values
from mlflow_e2eai.promotion.metrics import NOISY, values_of
from mlflow_e2eai.promotion.policy import (
    INCOMPARABLE,
    METRICS,
    SIZED,
    UNMEASURED,
    Policy,
    RequiredTarget,
    base_metric,
    decide_on,
    is_better_high,
)
from mlflow_e2eai.promotion.remedies import Call, with_remedies

THEN = datetime.fromisoformat(NOW)
CALL = Call(name="the team's digits", aliases=("champion", "edge"), gates="my gates.yaml")
THEN_PROMOTE = "; then promote the version that it makes"
BARE = version(evidence=(), latency={})
RATIO = "champion/latency_ratio"


def decided(
    found: Manifest, *gates: Gate, old: Manifest | None = None, **rules: object
) -> Decision:
    """The decision on version 7 with its advice."""
    policy = read_policy(Policy(gates=gates, **rules))  # type: ignore[arg-type]
    values = values_of(found, now=THEN)
    if old is not None:
        values += champion_values(found, old, policy.metrics)
    decision = decide_on(policy, found, values, has_champion=old is not None, now=THEN)
    return with_remedies(decision, policy, found, CALL, "7")


def strict(metric: str, **selection: object) -> Gate:
    """A gate that little passes."""
    high = is_better_high(metric)
    bound, limit = ("at_least", 1e12) if high else ("at_most", -1e12)
    return Gate(metric=metric, bound=bound, limit=limit, **selection)  # type: ignore[arg-type]


def with_batches(found: Manifest) -> Manifest:
    """The version with batches of up to 64."""
    axes = (Axis("N", min=1, opt=8, max=64),)
    graphs = tuple(dataclasses.replace(graph, axes=axes) for graph in found.graphs)
    return dataclasses.replace(found, graphs=graphs)


def advice_on(verdict: Verdict, found: Manifest, call: Call = CALL) -> str | None:
    decision = Decision(verdicts=(verdict,))
    return with_remedies(decision, Policy(gates=()), found, call, "7").verdicts[0].remedy


def given(text: str) -> list[tuple[str, dict[str, Any]]]:
    """Verb and arguments of each command in an advice, as the command line takes them."""
    context = click.Context(command_line)
    found = []
    for line in re.findall(r"mlflow_e2eai [^;]*", text):
        name, verb, rest = command_line.resolve_command(context, shlex.split(line)[1:])
        found.append((name, verb.make_context(name, list(rest), parent=context).params))
    return found


def pipeline(text: str | None) -> dict[str, Any]:
    """The arguments of the one pipeline that an advice has."""
    assert text is not None
    (arguments,) = (arguments for name, arguments in given(text) if name == "pipeline")
    assert THEN_PROMOTE in text
    return arguments


NAMES = [*METRICS, "task/f1"]
RELATIVE = [
    f"champion/{name}/{end}"
    for name in NAMES
    if name not in INCOMPARABLE
    for end in ("ratio", "difference")
]
EVERY = [*NAMES, *RELATIVE]


@pytest.mark.parametrize(
    ("metric", "at"),
    [
        *((name, None) for name in EVERY),
        *((name, 64) for name in EVERY if base_metric(name) in SIZED),
    ],
)
def test_every_gate_that_lacks_evidence_comes_with_advice(metric, at):
    (verdict,) = decided(BARE, strict(metric, at=at), old=with_engine(digest="o")).verdicts

    assert not verdict.passed
    assert verdict.remedy
    for name, arguments in given(verdict.remedy):
        if name == "promote":
            assert arguments["alias"] == ["champion", "edge"]
            assert arguments["gates"] == "my gates.yaml"
        else:
            assert name == "pipeline"
            assert verdict.remedy.endswith(THEN_PROMOTE)


def test_a_call_is_repeated_with_all_that_was_given():
    call = dataclasses.replace(
        CALL, gates=Path("g.yaml"), goal="latency/p50_ms", versions=("7", "8"), dry_run=True
    )
    command = call.measure_again("7")

    assert command == (
        "mlflow_e2eai promote 'the team'\"'\"'s digits' 7,8 --alias champion,edge --gates g.yaml "
        "--goal latency/p50_ms --remeasure --dry-run"
    )
    ((_, arguments),) = given(command)
    assert (arguments["remeasure"], arguments["dry_run"]) == (True, True)
    assert Call(name="net").measure_again("2") == "mlflow_e2eai promote net 2 --remeasure"


@pytest.mark.parametrize("call", [Call(name="n", gates=[]), Call(name="n", goal={"minimize": "x"})])
def test_a_call_with_rules_in_python_is_repeated_in_words(call):
    assert call.measure_again("2") == "call promote as before, with remeasure=True"


def test_a_call_that_measured_on_workers_does_so_again():
    (arguments,) = (a for _, a in given(Call(name="n", executor="ray").measure_again("2")))
    assert (arguments["executor"], arguments["remeasure"]) == ("ray", False)


@pytest.mark.parametrize("metric", RELATIVE[-2:])
def test_to_measure_both_again_is_advised_for_the_latency_ratio_only(metric):
    reason = "not comparable, as the champion was measured there, and this version was not"
    verdict = Verdict(metric=RATIO, found=float("nan"), wanted="", passed=False, reason=reason)
    text = advice_on(verdict, version())
    assert text is not None
    assert text.startswith("Measure both here, for this machine only: mlflow_e2eai promote ")
    other = advice_on(dataclasses.replace(verdict, metric=metric), version())
    assert other is not None
    assert other.startswith("Where the champion was measured: mlflow_e2eai pipeline ")
    assert "--remeasure" not in other


def test_a_target_that_a_gate_requires_is_built_and_measured_in_its_precision():
    required = RequiredTarget(target="trt11:sm89", precision="int8", max_age_days=3)
    text = decided(version(), required_targets=(required,)).verdicts[0].remedy
    arguments = pipeline(text)

    assert text is not None
    assert text.startswith("On a machine with a GPU of sm89, or with --executor ray: ")
    assert arguments["targets"] == ["tensorrt11-sm89"]
    assert arguments["precisions"] == ["fp32", "fp16", "int8"]
    assert arguments["evidence_days"] == 0


def test_an_engine_that_nobody_measured_is_built_for_its_own_target():
    target = Target(backend="tensorrt", compute_capability="sm89", version=11)
    found = version(engines=[dataclasses.replace(engine(), target=target)])
    (verdict,) = decided(found).verdicts

    assert verdict.metric == UNMEASURED
    assert pipeline(verdict.remedy)["targets"] == ["tensorrt11-sm89"]


def test_engines_for_several_gpus_are_measured_by_a_cluster():
    found = version(engines=[engine(), engine(capability="sm86")])
    text = decided(found).verdicts[0].remedy

    assert text is not None
    assert text.startswith("With a Ray cluster that has GPUs of sm89 and sm86: ")
    assert pipeline(text)["executor"] == "ray"


@pytest.mark.parametrize("metric", ["latency/p50_ms", "parity/failed", "parity/max_abs_error"])
def test_an_engine_for_every_gpu_is_measured_on_the_gpu_that_a_gate_names(metric):
    every = dataclasses.replace(
        engine(), target=Target(backend="tensorrt_rtx", compute_capability="")
    )
    gate = strict(metric, target="sm120")
    (verdict,) = decided(version(engines=[every]), gate, unmeasured="exclude").verdicts

    assert verdict.remedy is not None
    assert verdict.remedy.startswith("On a machine with a GPU of sm120, or with --executor ray: ")
    assert pipeline(verdict.remedy)["targets"] == [str(every.target)]


def test_variants_that_failed_are_named_with_where_the_reason_is_and_what_finds_the_cause():
    graphs = version().graphs
    evidence = (
        measured(TORCH, None),
        measured(CPU32, graphs[0].sha256),
        measured(CPU16, graphs[1].sha256, passed=False),
    )
    gate = Gate(metric="parity/failed", bound="at_most", limit=0)
    (verdict,) = decided(version(evidence=evidence), gate).verdicts

    assert str(verdict) == f"parity/failed = 1 ({CPU16}; gate: at most 0)"
    assert verdict.remedy is not None
    why, cause, _ = verdict.remedy.split("; ")
    assert shlex.split(why) == ["Read", "why:", "mlflow_e2eai", "report", f"models:/{CALL.name}/7"]
    assert cause.endswith("--precision fp16")


def test_an_output_that_no_version_has_is_a_gate_to_correct():
    gate = strict("parity/logits/max_abs_error")
    (verdict,) = decided(version(), gate).verdicts

    assert verdict.remedy is not None
    assert verdict.remedy.startswith("No output of this version has that")


def test_a_capability_that_tensorrt_rtx_lacks_is_a_target_of_tensorrt():
    text = decided(version(), required_targets=(RequiredTarget(target="sm90"),)).verdicts[0].remedy
    assert pipeline(text)["targets"] == ["trt:sm90"]


def test_a_new_version_keeps_the_precisions_targets_sizes_and_level_of_the_old_one():
    latency = {"opt": timed({TORCH: 2.0, CPU32: 1.0}), "N=3": timed({TORCH: 2.0, CPU32: 1.0}, 3)}
    fp8 = dataclasses.replace(engine(), precision="fp8")
    found = dataclasses.replace(
        with_batches(version(engines=[fp8], latency=latency)),
        level="thorough",
        measured_at="2020-01-01T00:00:00+00:00",
    )
    (verdict, _) = decided(
        found, Gate(metric="evidence/age_days", bound="at_most", limit=3)
    ).verdicts
    arguments = pipeline(verdict.remedy)

    assert arguments["precisions"] == ["fp32", "fp16", "fp8"]
    assert arguments["targets"] == ["tensorrt_rtx-sm89"]
    assert arguments["batch_sizes"] == [3]
    assert arguments["evidence"] == "thorough"


def test_a_size_that_was_not_measured_is_measured_where_the_axis_admits_it():
    gates = [strict("latency/p50_ms", at=at) for at in (5, 4096)]
    five, many = decided(with_batches(version()), *gates).verdicts

    assert pipeline(five.remedy)["batch_sizes"] == [5]
    assert many.remedy == "Log the model with dynamic_axes= whose first axis admits 4096 items."


def test_a_number_of_callers_is_no_batch_size():
    gates = [strict("concurrency/items_per_s", at=at) for at in (2, 64)]
    two, many = decided(version(), *gates).verdicts

    assert pipeline(two.remedy)["batch_sizes"] == []
    assert many.remedy == "Give the gate another at: 1, 2, 4 are measured."


@pytest.mark.parametrize(
    "selection", [{"target": "sm89"}, {"variant": ENGINE}, {"variant": "tensorrt_rtx-sm89/*"}]
)
def test_variants_that_a_gate_selects_and_the_version_lacks_are_made(selection):
    (verdict,) = decided(version(), strict("latency/p50_ms", **selection)).verdicts
    (target,) = pipeline(verdict.remedy)["targets"]

    assert target in ("sm89", "tensorrt_rtx-sm89")


@pytest.mark.parametrize("metric", ["latency/device_p50_ms", "cold_start/device_memory_bytes"])
def test_what_a_gpu_alone_has_is_measured_on_one(metric):
    (verdict,) = decided(version(), strict(metric)).verdicts

    assert verdict.remedy is not None
    assert verdict.remedy.startswith("On a machine with a GPU, or with --executor ray: ")
    assert pipeline(verdict.remedy)["targets"] == ["rtx"]


@pytest.mark.parametrize("metric", ["task/f1", "task/drop", "champion/task_drop"])
def test_labels_are_advised_for_a_task_metric(metric):
    verdict = Verdict(metric=metric, found=float("nan"), wanted="", passed=False)
    text = advice_on(verdict, version())

    assert text is not None
    assert "evaluation_data=" in text


def test_a_noisy_number_is_measured_again_when_the_machine_is_quiet():
    verdict = Verdict(metric="latency/p50_ms", found=None, wanted="", passed=False, reason=NOISY)
    text = advice_on(verdict, version())

    assert text is not None
    assert text.startswith("Measure when the machine is quiet: ")
    assert pipeline(text)["evidence_days"] == 0
    ratio = advice_on(dataclasses.replace(verdict, metric=RATIO, found=float("nan")), version())
    assert ratio is not None
    assert "for this machine only, when it is quiet: mlflow_e2eai promote " in ratio


@pytest.mark.parametrize("reason", ["not measured", "not comparable, as versions 1, 2 ..."])
def test_versions_that_cannot_be_ranked_come_with_a_command_and_a_slower_one_with_none(reason):
    slower = Verdict(metric="goal/latency/p50_ms", found=2.0, wanted="the lowest", passed=False)
    text = advice_on(dataclasses.replace(slower, reason=reason), version())

    assert text is not None
    assert text.startswith("Measure all of them on one machine: mlflow_e2eai pipeline ")
    assert advice_on(slower, version()) is None


def test_evidence_of_the_level_quick_is_measured_at_the_standard_one():
    found = dataclasses.replace(version(), level="quick")
    (verdict,) = decided(found, Gate(metric="evidence/quick", bound="at_most", limit=0)).verdicts

    assert pipeline(verdict.remedy)["evidence"] == "standard"


def test_numbers_that_are_bad_come_with_no_advice():
    (verdict,) = decided(version(), strict("parity/max_abs_error")).verdicts
    assert verdict.remedy is None


def test_a_decision_that_passed_needs_no_advice():
    gate = Gate(metric="parity/measured", bound="at_least", limit=1)
    assert decided(version(), gate).remedies == ()
