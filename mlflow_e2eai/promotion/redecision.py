"""A stored decision, computed again from stored evidence."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mlflow_e2eai import tracking
from mlflow_e2eai.artifacts.files import Summary, Table
from mlflow_e2eai.bundle.side_by_side import SideBySide
from mlflow_e2eai.evaluation.gates import Decision, Verdict
from mlflow_e2eai.promotion.challenge import Challenge
from mlflow_e2eai.promotion.registry.record import DecisionRecord, last_record
from mlflow_e2eai.promotion.remedies import Call
from mlflow_e2eai.runtime.progress import reported_on_stderr
from mlflow_e2eai.tracking.console import quiet_mlflow
from mlflow_e2eai.tracking.server import check_server


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Redecision(Summary):
    """A decision, and what it would be today.

    Attributes:
        record: The decision that is stored.
        now: The same rules, on the same versions, today.
    """

    record: DecisionRecord
    now: Decision

    @property
    def differs(self) -> bool:
        """Whether the outcome would be another."""
        return self.now.promoted != self.record.decision.promoted

    @property
    def differences(self) -> tuple[str, ...]:
        """The verdicts that are not what they were, each then and now."""
        then, now = _by_gate(self.record.decision), _by_gate(self.now)
        return tuple(
            f"then {_word(then.get(key))}; now {_word(now.get(key))}"
            for key in dict.fromkeys([*then, *now])
            if _word(then.get(key)) != _word(now.get(key))
        )

    def text(self) -> str:
        """The difference in lines, for a terminal."""
        record = self.record
        outcome = "would be another today" if self.differs else "would be the same today"
        now = self.now.outcome
        title = f"Version {record.challenger.version} of {record.name}: the decision {outcome}"
        return "\n".join([f"{title} ({now})", *(f"  {line}" for line in self.differences)])

    def _line(self) -> str:
        return self.text().splitlines()[0]

    def _table(self) -> Table:
        return Verdict, self.now.verdicts


def redecide(name: str, version: int | str) -> Redecision:
    """Compute the last decision about a version again, from the evidence that is stored.

    The files are compared with their digests once more, and ages count to today. Nothing is
    measured, and nothing written: what was measured side by side for it counts as it is on record.

    Args:
        name: The registered model.
        version: The version.

    Raises:
        TrackingError: There is no decision about it, or a version that it was compared with is
            not there any more.
        ArtifactError: A file has changed since.

    Examples:
        >>> mlflow_e2eai.redecide("digits", 2).differs
        False
    """
    with reported_on_stderr(), quiet_mlflow(), tempfile.TemporaryDirectory() as folder:
        check_server()
        record, _ = last_record(name, version)
        call = Call(name=name, aliases=record.aliases, gates=record.policy)
        challenge = Challenge.open(call, version, record.policy, Path(folder))
        if challenge.model.tags.get(tracking.MLMODEL_SHA256) == record.challenger.sha256:
            challenge.measured.update(_measured_of(record))
        contenders = (record.challenger, *record.incumbents)
        stood = {alias: each.version for each in contenders for alias in each.aliases}
        stands = {alias: stood.get(alias) for alias in record.aliases}
        return Redecision(record=record, now=challenge.decide(stands).decision)


def _measured_of(record: DecisionRecord) -> dict[tuple[str, str | None], Sequence[SideBySide]]:
    """Measurements next to each incumbent, of which each has as many, one after the other."""
    each = len(record.measured) // max(len(record.incumbents), 1)
    return {
        (incumbent.version, incumbent.sha256): record.measured[at * each : (at + 1) * each]
        for at, incumbent in enumerate(record.incumbents if each else ())
    }


def _by_gate(decision: Decision) -> dict[tuple[str, str, int], Verdict]:
    """The verdicts, of which several on one metric and scope are numbered in their order."""
    found: dict[tuple[str, str, int], Verdict] = {}
    for verdict in decision.verdicts:
        gate = verdict.metric, verdict.scope
        found[(*gate, sum(key[:2] == gate for key in found))] = verdict
    return found


def _word(verdict: Verdict | None) -> str:
    if verdict is None:
        return "no verdict"
    return f"{'passed' if verdict.passed else 'failed'}  {verdict}"
