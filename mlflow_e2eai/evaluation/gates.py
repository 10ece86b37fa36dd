"""Metrics and gates -> Decision, by the standard library alone."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from mlflow_e2eai.artifacts.files import Real, Summary, Table
from mlflow_e2eai.errors import InvalidInputError

AGAINST_CHAMPION = "champion/"
"""Metrics of this prefix compare with the version that holds the alias; with none, there is nothing
to compare with, and their gates do not apply."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Gate:
    """A bound on one metric.

    Attributes:
        metric: Its name.
        bound: Which side of the limit is right.
        limit: The limit itself passes.
        optional: Whether it does not apply where its metric was not measured for want of data,
            such as labels. A value that is NaN fails all the same.
    """

    metric: str
    bound: Literal["at_most", "at_least"]
    limit: Real
    optional: bool = False

    def __post_init__(self) -> None:
        if not math.isfinite(self.limit):
            msg = f"The gate on {self.metric!r} has the limit {self.limit}; give a finite number."
            raise InvalidInputError(msg)

    @property
    def compares(self) -> bool:
        """Whether its metric compares with the version that holds the alias."""
        return self.metric.startswith(AGAINST_CHAMPION)

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
        found: Its value; None when it was not measured, NaN when it cannot be told.
        wanted: The bound, for people.
        passed: Whether the value is within it.
    """

    metric: str
    found: Real | None
    wanted: str
    passed: bool

    def __str__(self) -> str:
        if self.found is None:
            return f"{self.metric}: not measured, wanted {self.wanted}"
        return f"{self.metric}: found {self.found:g}, wanted {self.wanted}"


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Decision(Summary):
    """Whether to promote, and the verdict of each gate.

    Attributes:
        verdicts: One for each gate that applied, in order.
        inapplicable: The gates that did not apply, each with the reason.
    """

    verdicts: tuple[Verdict, ...]
    inapplicable: tuple[str, ...] = ()

    @property
    def promoted(self) -> bool:
        """Whether every gate passed; without any gate, nothing is promoted."""
        return bool(self.verdicts) and all(verdict.passed for verdict in self.verdicts)

    @property
    def reasons(self) -> tuple[str, ...]:
        """Reasons against promotion, a sentence a gate; empty when promoted."""
        if not self.verdicts:
            return ("There are no gates, and without any nothing is promoted.",)
        return tuple(str(verdict) for verdict in self.verdicts if not verdict.passed)

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


def decide(gates: Sequence[Gate], metrics: Mapping[str, float], *, has_champion: bool) -> Decision:
    """Check metrics against gates.

    Args:
        gates: The gates; all of those that apply must pass.
        metrics: Measured metrics, by name.
        has_champion: Whether a version holds the alias now. If none does, gates on metrics that
            compare with it do not apply.
    """
    verdicts, inapplicable = [], []
    for gate in gates:
        found = metrics.get(gate.metric)
        if gate.compares and not has_champion:
            inapplicable.append(f"{gate.metric}: no other version holds the alias")
        elif gate.optional and found is None:
            inapplicable.append(f"{gate.metric}: not measured, there is no data for it")
        else:
            wanted = f"{gate.bound.replace('_', ' ')} {gate.limit:g}"
            passed = gate.passes(found)
            verdicts.append(Verdict(metric=gate.metric, found=found, wanted=wanted, passed=passed))
    return Decision(verdicts=tuple(verdicts), inapplicable=tuple(inapplicable))


def gates_from(data: Any, key: str = "gates") -> tuple[Gate, ...]:
    """Read gates from parsed YAML: ``{"gates": [{"metric": name, "at_most": limit}, ...]}``.

    A gate may have ``"optional": True`` too; see `Gate`.

    Args:
        data: Content of the file. Next to ``gates`` there may be ``quantized``, the gates that a
            quantised variant must pass to be retained.
        key: Which of the two to read.

    Raises:
        InvalidInputError: It is something else.
    """
    known = isinstance(data, Mapping) and {"gates"} <= set(data) <= {"gates", "quantized"}
    entries = data.get(key, ()) if known else None
    if not isinstance(entries, Iterable) or isinstance(entries, str | Mapping):
        msg = "Gates are a mapping with the one key 'gates', which holds a list; see gates.yaml."
        raise InvalidInputError(msg)
    return tuple(_gate(entry) for entry in entries)


def _gate(entry: Any) -> Gate:
    match entry:
        # In Python a bool is an int, but `at_most: true` is a slip.
        case {"at_most": bool()} | {"at_least": bool()}:
            pass
        case {"metric": str(metric), "at_most": int() | float() as limit, **rest}:
            if (optional := _optional(rest)) is not None:
                return Gate(metric=metric, bound="at_most", limit=_float(limit), optional=optional)
        case {"metric": str(metric), "at_least": int() | float() as limit, **rest}:
            if (optional := _optional(rest)) is not None:
                return Gate(metric=metric, bound="at_least", limit=_float(limit), optional=optional)
    msg = f"{entry!r} is no gate; write {{metric: name, at_most: number}}, or at_least."
    raise InvalidInputError(msg)


def _optional(rest: Mapping[Any, Any]) -> bool | None:
    """Whether a gate with these further keys is optional; None where they are no gate's."""
    match rest:
        case {"optional": bool(optional)} if len(rest) == 1:
            return optional
    return None if rest else False


def _float(number: float) -> float:
    """The number, or an infinity, which `Gate` refuses, where a float cannot hold it."""
    try:
        return float(number)
    except OverflowError:
        return math.inf
