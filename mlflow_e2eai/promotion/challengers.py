"""Several challengers and a goal -> the best of those that pass, and why not the others."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from mlflow_e2eai.artifacts.files import Summary, Table
from mlflow_e2eai.bundle.manifest import Manifest
from mlflow_e2eai.errors import E2EAIError, InvalidInputError, brief, nearest
from mlflow_e2eai.evaluation.gates import Decision, Gate, MetricValue, Verdict, find_value
from mlflow_e2eai.promotion.challenge import Challenge, Promotion
from mlflow_e2eai.promotion.incumbent import machine_to_compare
from mlflow_e2eai.promotion.metrics import measured_evidence
from mlflow_e2eai.promotion.policy import GOAL, Policy, check_gate, is_better_high
from mlflow_e2eai.promotion.registry.moves import holders
from mlflow_e2eai.promotion.registry.timeline import registered_model
from mlflow_e2eai.promotion.remeasurement import Remeasurement
from mlflow_e2eai.promotion.remedies import Call
from mlflow_e2eai.runtime.progress import timed_stage
from mlflow_e2eai.tracking.server import check_server
from mlflow_e2eai.tracking.versions import find_version

_COSTS = ("latency/", "concurrency/", "cold_start/", "file/")
"""Beginnings of metrics of which a version has that of its best variant, which `load_model` would
take; of others, such as errors, it has that of its worst."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Goal:
    """The criterion among challengers that pass: a metric to minimise or to maximise.

    Attributes:
        gate: The metric, with the variants and the size that it is about; its bound is the side
            that is better.
    """

    gate: Gate

    @classmethod
    def parse(cls, goal: str | Mapping[str, Any]) -> Goal:
        """Read a goal.

        Args:
            goal: A metric, such as ``latency/p50_ms``, whose better side is known; or a mapping
                with ``minimize`` or ``maximize``, and any of ``target``, ``precision``, ``variant``
                and ``at``; see `Gate`.

        Raises:
            InvalidInputError: It is neither, or there is no such metric.
        """
        entries = {"metric": goal} if isinstance(goal, str) else dict(goal)
        keys = [key for key in ("metric", "minimize", "maximize") if key in entries]
        selectors = ("target", "precision", "variant", "at")
        unknown = [key for key in entries if key not in (*keys, *selectors)]
        if unknown or len(keys) != 1 or not isinstance(entries[keys[0]], str):
            near = nearest(unknown[0], ("minimize", "maximize", *selectors)) if unknown else None
            hint = f" Did you mean {near}?" if near else ""
            msg = (
                f"The goal is {goal!r}; give a metric, or {{'minimize': metric}} or 'maximize', "
                f"with any of {', '.join(selectors)}.{hint}"
            )
            raise InvalidInputError(msg)
        metric = entries.pop(keys[0])
        is_high = keys == ["maximize"] or (keys == ["metric"] and is_better_high(metric))
        gate = Gate(metric=metric, bound="at_least" if is_high else "at_most", limit=0.0, **entries)
        if gate.compares:
            msg = (
                f"The goal is {metric!r}, which compares two versions; give the metric that it "
                f"compares."
            )
            raise InvalidInputError(msg)
        return cls(gate=check_gate(gate))

    @property
    def is_high(self) -> bool:
        """Whether more is better."""
        return self.gate.bound == "at_least"

    @property
    def metric(self) -> str:
        """Its metric."""
        return self.gate.metric

    def value_of(self, version: Decided) -> float:
        """The number of a version: of its worst machine; NaN where it was not measured."""
        values = version.values
        if not self.metric.startswith(_COSTS):
            found = find_value(self.gate, values)  # the worst on its bound's side
            return math.nan if found is None else found.value
        by_machine: dict[str | None, list[MetricValue]] = {}
        for value in values:
            fits = value.usual if self.gate.at is None else value.at == self.gate.at
            if value.metric == self.metric and self.gate.selects(value) and fits:
                by_machine.setdefault(value.machine, []).append(value)
        best = [self._best(machine) for machine in by_machine.values()]
        if not best or any(map(math.isnan, best)):
            return math.nan
        return min(best) if self.is_high else max(best)

    def _best(self, values: Sequence[MetricValue]) -> float:
        known = [value.value for value in values if not math.isnan(value.value)]
        return (max if self.is_high else min)(known, default=math.nan)

    def kinds_of(self, version: Decided) -> frozenset[frozenset[tuple[str, str | None]]]:
        """The kinds of machine that the number is of; none where it is of no machine."""
        if not self.metric.startswith(_COSTS) or self.metric.startswith("file/"):
            return frozenset()
        of = {
            value.variant
            for value in version.values
            if value.metric == self.metric and self.gate.selects(value)
        }
        return frozenset(
            frozenset(machine_to_compare(there, entry.variant).items())
            for there in version.manifest.by_machine
            for entry in measured_evidence(there)
            if entry.variant in of
        )


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Contest(Summary):
    """The decisions on several challengers, of which one at most is promoted.

    Attributes:
        goal: Metric of the goal.
        decisions: The decision on each version, in the order given.
    """

    goal: str
    decisions: Mapping[str, Promotion]

    @property
    def winner(self) -> str | None:
        """The version that was promoted; None where none was."""
        return next((name for name, each in self.decisions.items() if each.promoted), None)

    @property
    def promoted(self) -> bool:
        """Whether one was promoted."""
        return self.winner is not None

    @property
    def reasons(self) -> tuple[str, ...]:
        """Reasons against the other versions, a sentence each."""
        return tuple(
            f"version {name}: {'; '.join(decision.reasons)}"
            for name, decision in self.decisions.items()
            if not decision.promoted
        )

    def _line(self) -> str:
        winner = "none promoted" if self.winner is None else f"version {self.winner} promoted"
        return f"{winner} of {len(self.decisions)} by {self.goal}; {'; '.join(self.reasons)}"

    def _table(self) -> Table:
        return _Line, [
            _Line(name, each.promoted, "; ".join(each.reasons))
            for name, each in self.decisions.items()
        ]


@dataclass(frozen=True, slots=True)
class _Line:
    """A row about one challenger."""

    version: str
    promoted: bool
    reasons: str


def promote_best(
    settle: Callable[[Challenge, list[str]], Promotion],
    call: Call,
    versions: Sequence[int | str],
    policy: Policy,
    remeasurement: Remeasurement | None,
) -> Contest:
    """Promote the best of several versions by a goal, among those that pass the gates.

    Each is decided on against the version that holds the alias now; the decisions on the others are
    recorded before the best is promoted. Numbers count as they are stored, however close; of equal
    ones the newest version is the best. A version whose files are not those of a bundle, or are not
    as they were logged, is rejected without a run.

    Args:
        settle: `stage._settle`, which decides on one.
        call: The promotion as it was called, with the goal; see `Goal.parse`.
        versions: The challengers.
        policy: The rules.
        remeasurement: See `Challenge`; each version is measured once.

    Raises:
        InvalidInputError: There is no goal, or no version, or one is given twice.
        TrackingError: There is no such version, or the server cannot be reached.
    """
    if call.goal is None:
        msg = "Several versions are given and no goal; give one, such as goal='latency/p50_ms'."
        raise InvalidInputError(msg)
    goal, names = Goal.parse(call.goal), [str(version) for version in versions]
    check_server()
    numbers = {each: str(find_version(call.name, each).version) for each in names}
    if not names or len({*numbers.values()}) < len(names):
        msg = f"The versions are {names}; give each once, and at least one."
        raise InvalidInputError(msg)
    call = replace(call, versions=tuple(numbers.values()))
    stands = holders(registered_model(call.name), call.aliases)
    challenges: dict[str, Challenge] = {}
    decisions: dict[str, Promotion] = {}
    with tempfile.TemporaryDirectory() as folder:
        for each, number in numbers.items():
            place = Path(folder, number)
            place.mkdir()
            try:
                challenges[each] = Challenge.open(
                    call, number, policy, place, remeasurement=remeasurement
                )
            except E2EAIError as error:
                decisions[each] = _rejection(call, number, stands, error)
        outcomes = {each: one.decide(stands) for each, one in challenges.items()}
        verdicts = verdicts_on(goal, outcomes)
        # The others before the best.
        for each in sorted(challenges, key=lambda e: e in verdicts and verdicts[e].passed):
            given = (*policy.given, verdicts[each]) if each in verdicts else policy.given
            challenge = replace(challenges[each], policy=replace(policy, given=given))
            with timed_stage("promote") as line:
                decisions[each] = settle(challenge, line)
    return Contest(goal=goal.metric, decisions={each: decisions[each] for each in names})


def _rejection(
    call: Call, version: str, stands: Mapping[str, str | None], error: E2EAIError
) -> Promotion:
    """The decision on a version that cannot be read; raises what is no fault of the version."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, E2EAIError) and cause.resumable:
            raise error
        cause = cause.__cause__
    verdict = Verdict(
        metric="files",
        found=None,
        wanted="a bundle, as it was logged",
        passed=False,
        reason=brief(error).rstrip("."),
        remedy="Log the model again with mlflow_e2eai.log_model.",
    )
    return Promotion(
        verdicts=(verdict,), name=call.name, version=version, aliases=call.aliases, before=stands
    )


class Decided(Protocol):
    """A version with the values of its metrics, and the decision by its gates alone."""

    @property
    def manifest(self) -> Manifest:
        """Its manifest."""

    @property
    def values(self) -> tuple[MetricValue, ...]:
        """The values of its metrics."""

    @property
    def decision(self) -> Decision:
        """The decision."""


def verdicts_on(goal: Goal, versions: Mapping[str, Decided]) -> dict[str, Verdict]:
    """The verdict of a goal on each version that passes its gates.

    Args:
        goal: The goal.
        versions: The versions.
    """
    passing = {name: each for name, each in versions.items() if each.decision.promoted}
    values = {name: goal.value_of(each) for name, each in passing.items()}
    known = {name: value for name, value in values.items() if not math.isnan(value)}
    incomparable = _why_not_comparable(goal, {name: passing[name] for name in known})
    sign = -1 if goal.is_high else 1
    best = min(known, key=lambda each: (sign * known[each], -_number(each)), default=None)
    side = "highest" if goal.is_high else "lowest"
    verdicts = {}
    for name, value in values.items():
        reason = incomparable if name in known else "not measured"
        wanted = f"the {side} of {len(passing)} versions" if len(passing) > 1 else "the only one"
        if best is not None and incomparable is None:
            wanted += f", {known[best]:g} of version {best}"
        verdicts[name] = Verdict(
            metric=f"{GOAL}{goal.metric}",
            found=value,
            wanted=wanted,
            passed=name == best and reason is None,
            scope=goal.gate.scope,
            reason=reason,
        )
    return verdicts


def _why_not_comparable(goal: Goal, versions: Mapping[str, Decided]) -> str | None:
    """Why the numbers of versions do not compare like with like; None where they do."""
    kinds = [goal.kinds_of(version) for version in versions.values()]
    unnamed = sorted(key for each in kinds for kind in each for key, value in kind if value is None)
    if all(each == kinds[0] for each in kinds) and not (unnamed and kinds[1:]):
        return None
    names = ", ".join(sorted(versions, key=_number))
    if unnamed:
        return f"not comparable, as the evidence of versions {names} does not name the {unnamed[0]}"
    return f"not comparable, as versions {names} were measured on machines of different kinds"


def _number(version: str) -> int:
    return int(version) if version.isdigit() else 0
