"""A bundle, the one that it would replace, and a policy -> a decision and its numbers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TypeAlias

from mlflow_e2eai import bundle
from mlflow_e2eai.bundle.manifest import Manifest
from mlflow_e2eai.bundle.side_by_side import SideBySide
from mlflow_e2eai.errors import InvalidInputError, shown
from mlflow_e2eai.evaluation.gates import Decision, Gate, MetricValue, nearest_task
from mlflow_e2eai.promotion.incumbent import LATENCY_RATIO, champion_values
from mlflow_e2eai.promotion.metrics import measured_evidence, read_bundle, values_of
from mlflow_e2eai.promotion.policy import Policy, base_metric, decide_on
from mlflow_e2eai.promotion.remeasurement import with_measured

Measure: TypeAlias = Callable[[Sequence[str]], Sequence[SideBySide]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Appraisal:
    """A decision, and what it was made of.

    Attributes:
        manifest: The challenger's manifest.
        values: The values of its metrics.
        measured: What was measured side by side for the decision.
        decision: The decision.
    """

    manifest: Manifest
    values: tuple[MetricValue, ...]
    measured: tuple[SideBySide, ...] = ()
    decision: Decision


def appraise(
    policy: Policy,
    challenger: Path,
    champion: Path | None = None,
    *,
    has_champion: bool | None = None,
    measure: Measure | None = None,
    now: datetime | None = None,
) -> Appraisal:
    """Decide on a bundle by a policy, from stored evidence; nothing is written.

    Args:
        policy: The rules.
        challenger: The bundle.
        champion: The bundle that it would replace; None where there is none, or no gate compares.
        has_champion: Whether another version holds the alias; by default whether there is
            `champion`.
        measure: Measures the latency of both in turns, on one machine or several, given the names
            of variants that are each to be measured against itself too; in place of what evidence
            says of these machines.
        now: The time that ages count to; by default this moment.

    Raises:
        InvalidInputError: A gate is on a task metric that the challenger does not have, and that is
            spelt as one that it has.
    """
    measured: Sequence[SideBySide] = ()
    manifest, located = bundle.read(challenger), read_bundle(challenger)
    values = values_of(located, now=now)
    _refuse_misspelt(policy.gates, values)
    if champion is not None:
        before = read_bundle(champion)
        values += champion_values(located, before, policy.metrics)
        if measure is not None and LATENCY_RATIO in policy.metrics:
            measured = measure(_compared_variants(policy.gates, values, manifest, before))
            for one in measured:
                values = with_measured(values, one)
    decision = decide_on(
        policy,
        manifest,
        values,
        has_champion=champion is not None if has_champion is None else has_champion,
        now=now,
    )
    return Appraisal(
        manifest=manifest, values=tuple(values), measured=tuple(measured), decision=decision
    )


def _refuse_misspelt(gates: Sequence[Gate], values: Sequence[MetricValue]) -> None:
    for gate in gates:
        near = None if gate.optional else nearest_task(base_metric(gate.metric), values)
        if near is not None:
            msg = (
                f"The version has no metric {shown(base_metric(gate.metric))}, which a gate is on; "
                f"did you mean {near}? Mark the gate as optional if it is about other versions."
            )
            raise InvalidInputError(msg)


def _compared_variants(
    gates: Sequence[Gate], values: Sequence[MetricValue], *manifests: Manifest
) -> list[str]:
    """Variants that both bundles have evidence of, and whose latency a gate compares alone."""
    shared = [{entry.variant for entry in measured_evidence(each)} for each in manifests]
    return sorted(
        {
            value.variant
            for gate in gates
            if gate.metric == LATENCY_RATIO and gate.selection
            for value in values
            if value.variant in set.intersection(*shared) and gate.selects(value)
        }
    )
