"""Values of metrics and gates -> Decision, by the standard library alone."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Literal, TypeAlias

from mlflow_e2eai.artifacts.files import Real, Summary, Table
from mlflow_e2eai.errors import InvalidInputError, nearest

Severity: TypeAlias = Literal["block", "warn"]

AGAINST_CHAMPION = "champion/"
"""Metrics of this prefix compare with the version that holds the alias; with none, there is nothing
to compare with, and their gates do not apply."""

MEASURED, FAILED = "parity/measured", "parity/failed"
COUNTS = (MEASURED, FAILED)
"""Metrics that are 0 or 1 of a variant on a GPU; a gate reads how many variants have a 1, and of
other metrics the worst. Every variant that a decision is about has a value of the first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricValue:
    """One number that a gate may read: of a version, or of one of its variants.

    Attributes:
        metric: Name of the metric.
        value: The number; NaN where it cannot be told.
        variant: The variant; None for a number of the whole version. Of a count of those that
            failed, each of them.
        precision: Precision of the variant.
        targets: What the variant's engine was measured on, in each way that a gate may name it:
            the target's text and the compute capability. Empty for what is no engine.
        at: Items in a call; None where that does not matter.
        usual: Whether a gate that names no number of items reads it.
        machine: The machine that measured it, for people.
        reason: Why it cannot be told, as the rest of a sentence; None where it can.
    """

    metric: str
    value: Real
    variant: str | None = None
    precision: str | None = None
    targets: tuple[str, ...] = ()
    at: int | None = None
    usual: bool = True
    machine: str | None = None
    reason: str | None = None

    @property
    def source(self) -> str | None:
        """The variant, number of items and machine, for people; None where none is known."""
        parts = (
            self.variant,
            None if self.at is None else f"at {self.at}",
            None if self.machine is None else f"on {self.machine}",
        )
        return " ".join(part for part in parts if part is not None) or None


@dataclass(frozen=True, slots=True, kw_only=True)
class Gate:
    """A bound on one metric, of the whole version or of the variants that it selects.

    Attributes:
        metric: Its name.
        bound: Which side of the limit is right.
        limit: The limit itself passes.
        optional: Whether it does not apply where its metric was not measured for want of data,
            such as labels. A value that is NaN fails all the same.
        target: Selects engines that are for this target or compute capability.
        precision: Selects variants in this precision.
        variant: Selects variants by name, or by a pattern such as ``onnxruntime-cpu/*``.
        at: Number of items in a call, for metrics that depend on it.
        severity: ``block``: it must pass. ``warn``: it is shown, and decides nothing.
    """

    metric: str
    bound: Literal["at_most", "at_least"]
    limit: Real
    optional: bool = False
    target: str | None = None
    precision: str | None = None
    variant: str | None = None
    at: int | None = None
    severity: Severity = "block"

    def __post_init__(self) -> None:
        if not math.isfinite(self.limit):
            msg = f"The gate on {self.metric!r} has the limit {self.limit}; give a finite number."
            raise InvalidInputError(msg)

    def __str__(self) -> str:
        """The metric, what it is about, and the bound."""
        scope = f" ({self.scope})" if self.scope else ""
        return f"{self.metric}{scope}: {self.limits}"

    @property
    def limits(self) -> str:
        """The bound, for people: ``at most 0.01``."""
        return f"{self.bound.replace('_', ' ')} {self.limit:g}"

    @property
    def compares(self) -> bool:
        """Whether its metric compares with the version that holds the alias."""
        return self.metric.startswith(AGAINST_CHAMPION)

    @property
    def selection(self) -> str:
        """The variants that it is about, for people; empty where it is about all."""
        return " ".join(filter(None, (self.variant, self.target, self.precision)))

    @property
    def scope(self) -> str:
        """The variants and the number of items in a call, for people."""
        return " ".join(filter(None, (self.selection, "" if self.at is None else f"at {self.at}")))

    def selects(self, value: MetricValue) -> bool:
        """Whether a value is of a variant that it is about, whatever the metric."""
        return (
            (self.target is None or self.target in value.targets)
            and (self.precision is None or self.precision == value.precision)
            and (
                self.variant is None
                or (value.variant is not None and fnmatchcase(value.variant, self.variant))
            )
        )

    def passes(self, value: float | None) -> bool:
        """Whether a value is within the bound; a missing, NaN or infinite one never is."""
        if value is None or not math.isfinite(value):
            return False
        return value <= self.limit if self.bound == "at_most" else value >= self.limit


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """Result of one gate.

    Attributes:
        metric: The gate's metric.
        found: Its value; None when it was not measured or is no number, NaN when it cannot be told.
        wanted: The bound, for people.
        passed: Whether the value is within it.
        severity: Whether it decides; see `Gate`.
        scope: The variants and the size that it is about, for people; empty where about all.
        source: The variant, size and machine that the value is of, where it is of one; who gave
            an approval, and when; or what a number that is too large stands for.
        reason: Why it was not measured, or cannot be told; None where it can.
        remedy: What to do so that it can pass, as commands where there are any.
    """

    metric: str
    found: Real | None
    wanted: str
    passed: bool
    severity: Severity = "block"
    scope: str = ""
    source: str | None = None
    reason: str | None = None
    remedy: str | None = None

    def __str__(self) -> str:
        name = f"{self.metric} ({self.scope})" if self.scope else self.metric
        if self.reason is not None:
            where = f", {self.source}" if self.source else ""
            return f"{name}{where}: {self.reason} (gate: {self.wanted})"
        if self.found is None:
            return f"{name}: {self.source or 'not measured'} (gate: {self.wanted})"
        source = f"{self.source}; " if self.source else ""
        return f"{name} = {self.found:g} ({source}gate: {self.wanted})"


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Decision(Summary):
    """Whether to promote, and the verdict of each gate.

    Attributes:
        verdicts: One for each gate that applied, in order.
        inapplicable: The gates that did not apply, each with the reason.
        excluded: Variants that nobody measured, and that the gates exclude; see
            `promotion.policy.Policy`.
    """

    verdicts: tuple[Verdict, ...]
    inapplicable: tuple[str, ...] = ()
    excluded: tuple[str, ...] = ()

    @property
    def promoted(self) -> bool:
        """Whether every gate that blocks passed; without any such gate, nothing is promoted."""
        deciding = [verdict.passed for verdict in self.verdicts if verdict.severity == "block"]
        return bool(deciding) and all(deciding)

    @property
    def outcome(self) -> str:
        """``promoted`` or ``rejected``."""
        return "promoted" if self.promoted else "rejected"

    @property
    def reasons(self) -> tuple[str, ...]:
        """Reasons against promotion, a sentence a gate; empty when promoted."""
        deciding = [verdict for verdict in self.verdicts if verdict.severity == "block"]
        if not self.verdicts and self.inapplicable:
            return ("No gate applies to this version, and nothing is promoted without one.",)
        if not self.verdicts:
            return ("There are no gates, and nothing is promoted without any.",)
        if not deciding:
            return ("Every gate only warns, and nothing is promoted without one that blocks.",)
        return tuple(str(verdict) for verdict in deciding if not verdict.passed)

    @property
    def warnings(self) -> tuple[str, ...]:
        """The gates that did not pass and decide nothing, a sentence each."""
        return tuple(
            str(verdict)
            for verdict in self.verdicts
            if verdict.severity == "warn" and not verdict.passed
        )

    @property
    def remedies(self) -> tuple[str, ...]:
        """Advice on how the gates that did not pass can, each once."""
        found = (v.remedy for v in self.verdicts if not v.passed and v.remedy is not None)
        return tuple(dict.fromkeys(found))

    def _line(self) -> str:
        passed = sum(verdict.passed for verdict in self.verdicts)
        count = f"{passed} of {len(self.verdicts)} gates passed"
        return (
            f"promoted, {count}" if self.promoted else f"not promoted, {count}; {self.reasons[0]}"
        )

    def _table(self) -> Table:
        return Verdict, self.verdicts


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantizationVerdict:
    """Whether a quantised variant is retained.

    Attributes:
        metrics: Measured metrics, by name; see `quantized_gates.decide_quantized`.
        decision: The decision of the gates.
    """

    metrics: Mapping[str, Real]
    decision: Decision

    @property
    def retained(self) -> bool:
        """Whether the variant goes into the bundle."""
        return self.decision.promoted


def drop(before: Mapping[str, float], now: Mapping[str, float]) -> float | None:
    """Largest drop of any metric; NaN when one is missing or NaN now, None without metrics.

    Nor can it be told, so that it is NaN, where there are metrics now and were none before.
    """
    if not before:
        return math.nan if now else None
    drops = [value - now.get(name, math.nan) for name, value in before.items()]
    return math.nan if any(map(math.isnan, drops)) else max(drops)


def decide(
    gates: Sequence[Gate],
    metrics: Sequence[MetricValue] | Mapping[str, float],
    *,
    has_champion: bool,
) -> Decision:
    """Check metrics against gates.

    A gate reads the number of the whole version, where there is one and it selects no variants;
    else the worst number of the variants that it selects, over all machines that measured them. A
    gate that selects variants wants a number of each: one that nobody measured fails it.

    Args:
        gates: The gates; all of those that apply and block must pass.
        metrics: Values, or numbers of the whole version by name.
        has_champion: Whether a version holds the alias now. If none does, gates on metrics that
            compare with it do not apply.
    """
    values = (
        [MetricValue(metric=name, value=value) for name, value in metrics.items()]
        if isinstance(metrics, Mapping)
        else metrics
    )
    verdicts, inapplicable = [], []
    for gate in gates:
        found = find_value(gate, values)
        if gate.compares and not has_champion:
            inapplicable.append(f"{gate.metric}: no other version holds the alias")
        elif gate.optional and found is None and _lacks_data(gate, values):
            inapplicable.append(f"{gate.metric}: not measured, there is no data for it")
        else:
            verdicts.append(_verdict(gate, found, values))
    return Decision(verdicts=tuple(verdicts), inapplicable=tuple(inapplicable))


def find_value(gate: Gate, values: Sequence[MetricValue]) -> MetricValue | None:
    """The value that a gate reads; see `decide`. None where its metric was not measured."""
    selected = [value for value in values if gate.selects(value)]
    fitting = [
        value
        for value in selected
        if value.metric == gate.metric and (value.usual if gate.at is None else value.at == gate.at)
    ]
    whole = [value for value in fitting if value.variant is None]
    fitting = whole if whole and not gate.selection else fitting
    lacking = [value for value in selected if value.metric == MEASURED and value.value == 0]
    if gate.selection and lacking and gate.metric != MEASURED:
        variant, reason = lacking[0].variant, "not measured"
        return MetricValue(metric=gate.metric, value=math.nan, variant=variant, reason=reason)
    if gate.metric in COUNTS and fitting and fitting != whole:
        counted = {value.variant for value in fitting if value.value}
        named = ", ".join(sorted(filter(None, counted))) if gate.metric == FAILED else None
        return MetricValue(metric=gate.metric, value=float(len(counted)), variant=named or None)
    choose = max if gate.bound == "at_most" else min
    unclear = [value for value in fitting if math.isnan(value.value)]
    return next(iter(unclear), choose(fitting, key=lambda value: value.value, default=None))


_MEANINGS = {
    "evidence/quick": "1 for evidence of the level quick",
    "evidence/unverified": "1 for an export that was not compared with a PyTorch model",
    "evidence/assumptions": "the number of assumptions about the inputs",
    "evidence/refused_sizes": "sizes within the dynamic axes that PyTorch itself refuses",
    "evidence/frozen": "1 where the exporter took values of the input example for constants",
    "evidence/zero_scores": "task metrics by which the PyTorch model itself scores 0",
}
"""What numbers of a whole version stand for, where their names do not tell."""


def _verdict(gate: Gate, found: MetricValue | None, values: Sequence[MetricValue]) -> Verdict:
    number = None if found is None else found.value
    passed = gate.passes(number)
    meaning = None if passed else _MEANINGS.get(gate.metric)
    return Verdict(
        metric=gate.metric,
        found=number,
        wanted=gate.limits,
        passed=passed,
        severity=gate.severity,
        scope=gate.scope,
        source=None if found is None else found.source or meaning,
        reason=_why_missing(gate, values) if found is None else found.reason,
    )


def _has_variants(gate: Gate, values: Sequence[MetricValue]) -> bool:
    """Whether the version has any of the variants that a gate selects."""
    return not gate.selection or any(
        value.variant is not None and gate.selects(value) for value in values
    )


def _lacks_data(gate: Gate, values: Sequence[MetricValue]) -> bool:
    """Whether a metric may have no value for want of data, such as labels.

    That the champion was never measured on a target is no such want.
    """
    return _has_variants(gate, values) and not (gate.compares and gate.selection)


def nearest_task(metric: str, values: Sequence[MetricValue]) -> str | None:
    """The task metric that a misspelt one is most like; None where it is there, or like none."""
    known = {value.metric for value in values if value.metric.startswith("task/")} - {"task/drop"}
    if metric in known or metric == "task/drop" or not metric.startswith("task/"):
        return None
    near = nearest(metric.removeprefix("task/"), sorted(each[len("task/") :] for each in known))
    return None if near is None else f"task/{near}"


def _why_missing(gate: Gate, values: Sequence[MetricValue]) -> str | None:
    """Why a gate has no number: there is no variant that it selects, or its name is misspelt."""
    if _has_variants(gate, values):
        if gate.compares and gate.selection:
            return f"not comparable, as the champion has no evidence of {gate.selection}"
        near = nearest_task(gate.metric, values)
        return None if near is None else f"not measured; did you mean {near}?"
    kind = "engine" if gate.target is not None and gate.variant is None else "variant"
    return f"the version has no {kind} of {gate.selection}"
