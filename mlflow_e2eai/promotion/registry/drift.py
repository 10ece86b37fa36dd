"""Aliases that stand where no decision put them."""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias

from mlflow_e2eai.artifacts.files import Summary, Table
from mlflow_e2eai.errors import InvalidInputError, require_flags, require_kind
from mlflow_e2eai.promotion.registry.journal import journal
from mlflow_e2eai.promotion.registry.lease import lease
from mlflow_e2eai.promotion.registry.moves import move
from mlflow_e2eai.promotion.registry.timeline import (
    History,
    Move,
    read_moves,
    registered_model,
)
from mlflow_e2eai.report.formats import moment_text
from mlflow_e2eai.tracking.console import quiet_mlflow
from mlflow_e2eai.tracking.server import check_server, mlflow_errors

if TYPE_CHECKING:
    from mlflow.entities.model_registry import RegisteredModel

Standing: TypeAlias = Literal["as decided", "moved by hand", "deleted by hand", "never decided"]


@dataclass(frozen=True, slots=True, kw_only=True)
class GuardedAlias:
    """Where an alias stands, and where the last decision put it.

    Attributes:
        alias: The alias.
        standing: Whether it stands where it was put.
        version: The version that it stands at; None where at none.
        decided: The version where the last decision put it; None where there was none.
        at: When that was, in UTC.
        by: By whom.
        run_id: Its run.
        restored: Whether it was put back.
    """

    alias: str
    standing: Standing
    version: str | None
    decided: str | None = None
    at: str | None = None
    by: str | None = None
    run_id: str | None = None
    restored: bool = False

    @property
    def drifted(self) -> bool:
        """Whether somebody moved it since the last decision."""
        return self.standing in ("moved by hand", "deleted by hand")

    def __str__(self) -> str:
        where = (
            "points to no version" if self.version is None else f"points to version {self.version}"
        )
        if self.standing == "never decided":
            return f"@{self.alias} {where}, and no decision ever put it there"
        decided = "took it away" if self.decided is None else f"put it at version {self.decided}"
        line, at = f"@{self.alias} {where}", moment_text(self.at)
        if not self.drifted:
            return f"{line}, as decided by {self.by} at {at} (run {self.run_id})"
        line += (
            f", {self.standing}: the last decision, by {self.by} at {at} (run {self.run_id}), "
            f"{decided}"
        )
        return f"{line}; it was put back" if self.restored else line


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class GuardReport(Summary):
    """All aliases of a registered model, compared with the last decisions.

    Attributes:
        name: The registered model.
        aliases: The aliases.
    """

    name: str
    aliases: tuple[GuardedAlias, ...]

    @property
    def drifted(self) -> tuple[GuardedAlias, ...]:
        """The aliases that somebody moved since the last decision."""
        return tuple(each for each in self.aliases if each.drifted)

    def text(self) -> str:
        """A line for each alias, for a terminal."""
        return "\n".join(map(str, self.aliases)) or f"{self.name} has no alias."

    def _line(self) -> str:
        bad = len(self.drifted)
        return f"{self.name}: {bad} of {len(self.aliases)} aliases moved by hand"

    def _table(self) -> Table:
        return GuardedAlias, self.aliases


def guard(name: str, *, restore: bool = False) -> GuardReport:
    """Compare each alias of a registered model with the last decision about it.

    MLflow does not record who moved an alias.

    Args:
        name: The registered model.
        restore: Put those back that somebody moved or deleted since. An alias that no decision
            ever set is left alone.

    Raises:
        TrackingError: There is no such model, or the user may not move its aliases.

    Examples:
        >>> mlflow_e2eai.guard("digits").drifted
        ()
    """
    require_flags(restore=restore)
    check_server()
    with quiet_mlflow():
        return _guard(name, restore=restore)


def _guard(name: str, *, restore: bool) -> GuardReport:
    registered = registered_model(name)
    found = _compare(registered)
    if not restore or not any(each.drifted for each in found):
        return GuardReport(name=name, aliases=tuple(found))
    with mlflow_errors("call `guard` again"), lease(name) as right:
        registered = registered_model(name)
        found = _compare(registered)  # another guard may have been quicker
        drifted = [each for each in found if each.drifted]
        if drifted:
            reason = "; ".join(map(_drift, drifted))
            title = f"restore {', '.join('@' + each.alias for each in drifted)} of {name}"
            with journal(
                registered,
                title,
                stage="guard",
                version=", ".join(each.decided or "none" for each in drifted),
                aliases=[each.alias for each in drifted],
                reason=reason,
            ) as run_id:
                moves = {each.alias: (each.version, each.decided) for each in drifted}
                move(right, name, moves, run_id=run_id, kind="restoration")
    return GuardReport(
        name=name,
        aliases=tuple(
            dataclasses.replace(each, restored=True) if each.drifted else each for each in found
        ),
    )


def watch(name: str, *, every_s: float = 30.0, restore: bool = False) -> Iterator[GuardReport]:
    """Guard a registered model for ever, and yield each state that differs from the last.

    Args:
        name: The registered model.
        every_s: Seconds between two looks, each of which is one request for the model and one for
            each experiment with decisions about it.
        restore: See `guard`.

    Raises:
        InvalidInputError: See `check_pause`.
        TrackingError: See `guard`.

    Examples:
        >>> for report in mlflow_e2eai.watch("digits", every_s=60):
        ...     print(report.text())  # doctest: +SKIP
    """
    check_pause(every_s)
    last = None
    while True:
        report = guard(name, restore=restore)
        if report != last:
            yield report
        last = report
        time.sleep(every_s)


def check_pause(every_s: float) -> None:
    """Refuse a pause between two looks that is none.

    Raises:
        InvalidInputError: It is no number, is not above 0, or is longer than a process can wait.
    """
    require_kind("The pause between two looks", every_s, (int, float), "seconds")
    if not 0 < every_s <= threading.TIMEOUT_MAX:
        msg = f"{every_s} s between two looks is no pause; give seconds above 0, such as 30."
        raise InvalidInputError(msg)


def _drift(each: GuardedAlias) -> str:
    """The move by hand that is undone, for `history`."""
    if each.version is None:
        return f"@{each.alias} was deleted by hand"
    return f"@{each.alias} was moved to version {each.version} by hand"


def _compare(registered: RegisteredModel) -> list[GuardedAlias]:
    moves = History(name=registered.name, moves=tuple(read_moves(registered)))
    aliases = {alias: str(version) for alias, version in registered.aliases.items()}
    decided = {each.alias for each in moves.moves}
    return [
        _guarded_alias(alias, aliases.get(alias), moves.holder(alias))
        for alias in sorted({*aliases, *decided})
    ]


def _guarded_alias(alias: str, version: str | None, last: Move | None) -> GuardedAlias:
    if last is None:
        return GuardedAlias(alias=alias, standing="never decided", version=version)
    standing: Standing = "as decided"
    if version != last.after:
        standing = "deleted by hand" if version is None else "moved by hand"
    return GuardedAlias(
        alias=alias,
        standing=standing,
        version=version,
        decided=last.after,
        at=last.at,
        by=last.by,
        run_id=last.run_id,
    )
