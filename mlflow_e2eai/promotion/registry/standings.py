"""Where an alias stands, against the decisions on record."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias

from mlflow_e2eai.promotion.registry.approvals import first_rejection
from mlflow_e2eai.promotion.registry.tags import ALIAS, DECIDED_BY, DECISION, MODEL, MOVED_AT
from mlflow_e2eai.promotion.registry.timeline import History, alias_command, decision_runs, past_of
from mlflow_e2eai.promotion.registry.times import moment_of
from mlflow_e2eai.report.formats import moment_text
from mlflow_e2eai.tracking.server import is_missing
from mlflow_e2eai.tracking.versions import existing_version

if TYPE_CHECKING:
    from mlflow.entities import Run
    from mlflow.entities.model_registry import ModelVersion, RegisteredModel

Standing: TypeAlias = Literal[
    "as decided", "moved by hand", "deleted by hand", "never decided", "decision gone", "rejected"
]

_GONE = (
    "but a later decision is known, whose run is gone, so that the alias stays there; promote that "
    "version again to have it on record"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class GuardedAlias:
    """Where an alias stands, and where the last decision put it.

    Attributes:
        alias: The alias.
        standing: Whether it stands where it was put. ``decision gone``: a later decision moved an
            alias, whose run is not there. ``rejected``: a person rejected the version since.
        version: The version that it stands at; None where at none.
        decided: The version where the last decision put it; None where there was none.
        at: When that was, in UTC.
        by: By whom.
        run_id: Its run.
        problem: Why it cannot be put back, or stay where it is, and what to do; None without one.
        restored: Whether it was put back.
    """

    alias: str
    standing: Standing
    version: str | None
    decided: str | None = None
    at: str | None = None
    by: str | None = None
    run_id: str | None = None
    problem: str | None = None
    restored: bool = False

    @property
    def drifted(self) -> bool:
        """Whether it stands where no decision that still holds put it."""
        return self.standing not in ("as decided", "never decided")

    @property
    def restorable(self) -> bool:
        """Whether somebody moved it by hand, and it can go back where the last decision put it."""
        return self.standing in ("moved by hand", "deleted by hand") and self.problem is None

    def __str__(self) -> str:
        where = (
            "points to no version" if self.version is None else f"points to version {self.version}"
        )
        line = f"@{self.alias} {where}"
        if self.run_id is None:
            line += ", and no decision on record put it there"
        elif self.standing in ("as decided", "rejected"):
            line += f", as decided by {self.by} at {moment_text(self.at)} (run {self.run_id})"
        else:
            put = "took it away" if self.decided is None else f"put it at version {self.decided}"
            last = "the last decision"
            last += " on record" if self.standing == "decision gone" else ""
            line += (
                f", {self.standing}: {last}, by {self.by} at {moment_text(self.at)} "
                f"(run {self.run_id}), {put}"
            )
        line += "" if self.problem is None else f"; {self.problem}"
        return f"{line}; it was put back" if self.restored else line


def compare(registered: RegisteredModel) -> list[GuardedAlias]:
    """Compare each alias of a registered model with the last decision about it."""
    runs = decision_runs(registered)
    past = past_of(registered, runs)
    aliases = {alias: str(version) for alias, version in registered.aliases.items()}
    return [
        _guarded_alias(alias, aliases.get(alias), registered, runs, past)
        for alias in sorted({*aliases, *(each.alias for each in past.moves)})
    ]


def _guarded_alias(
    alias: str,
    number: str | None,
    registered: RegisteredModel,
    runs: Sequence[Run],
    past: History,
) -> GuardedAlias:
    version = None if number is None else existing_version(registered.name, number)
    last = past.holder(alias)
    found = GuardedAlias(alias=alias, standing="never decided", version=number)
    if last is not None:
        found = dataclasses.replace(
            found, decided=last.after, at=last.at, by=last.by, run_id=last.run_id
        )
    rejection = None if version is None else first_rejection(version)
    if (last is None or last.after != number) and _lacks_later_decision(
        alias, version, registered, runs, past
    ):
        return dataclasses.replace(found, standing="decision gone", problem=_GONE)
    if last is not None and last.after != number:
        standing: Standing = "deleted by hand" if number is None else "moved by hand"
        problem = _why_not_restored(alias, number, last.after, past)
        return dataclasses.replace(found, standing=standing, problem=problem)
    if rejection is not None:
        problem = f"but {rejection}; {past.way_back(alias, number)}"
        return dataclasses.replace(found, standing="rejected", problem=problem)
    return found if last is None else dataclasses.replace(found, standing="as decided")


def _lacks_later_decision(
    alias: str,
    version: ModelVersion | None,
    registered: RegisteredModel,
    runs: Sequence[Run],
    past: History,
) -> bool:
    """Whether tags tell of a decision about an alias that is later than those on record."""
    known = [at for run in runs if (at := moment_of(run.data.tags.get(MOVED_AT))) is not None]
    latest = moment_of(registered.tags.get(MOVED_AT))
    if known and latest is not None and latest > max(known):
        return True
    if version is None or not _is_promoted_to(alias, version):
        return False
    number, run_id = str(version.version), version.tags.get(DECIDED_BY, "none")
    on_record = any(run.info.run_id == run_id for run in runs)
    has_left = any(
        each.alias == alias and each.before == number != each.after for each in past.moves
    )
    return not (on_record or has_left or _is_about_another(run_id, registered.name))


def _is_promoted_to(alias: str, version: ModelVersion) -> bool:
    """Whether the tags of a version say that a decision gave it an alias."""
    tags = version.tags
    return tags.get(DECISION) == "promoted" and alias in tags.get(ALIAS, "").split(", ")


def _is_about_another(run_id: str, name: str) -> bool:
    """Whether a decision is about a model of another name.

    A model may be renamed, and a version copied. Where the run is gone for good, that is not known.
    """
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    try:
        run = MlflowClient().get_run(run_id)
    except MlflowException as error:
        if is_missing(error):
            return False
        raise
    return bool(run.data.tags.get(MODEL, name) != name)


def _why_not_restored(
    alias: str, now: str | None, decided: str | None, past: History
) -> str | None:
    """Why an alias cannot go back to a version, and what to do; None where it can."""
    if decided is None:
        return None
    version = existing_version(past.name, decided)
    reason = "it was deleted" if version is None else first_rejection(version)
    if reason is None:
        return None
    if {*past.stood(alias)} - {decided, now}:
        advice = f"choose one with `{alias_command('rollback', past.name, alias)} --to VERSION`"
    else:
        advice = f"promote another with `{alias_command('promote', past.name, alias)}`"
    return f"it cannot be put back at version {decided}, because {reason}; {advice}"
