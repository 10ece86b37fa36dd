"""Aliases that stand where no decision put them."""

from __future__ import annotations

import dataclasses
import logging
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mlflow_e2eai.artifacts.files import Summary, Table
from mlflow_e2eai.errors import (
    InvalidInputError,
    TrackingError,
    brief,
    require_flags,
    require_kind,
)
from mlflow_e2eai.promotion.registry.journal import journal
from mlflow_e2eai.promotion.registry.lease import Lease, lease
from mlflow_e2eai.promotion.registry.moves import move
from mlflow_e2eai.promotion.registry.standings import GuardedAlias, compare
from mlflow_e2eai.promotion.registry.timeline import registered_model
from mlflow_e2eai.tracking.console import quiet_mlflow
from mlflow_e2eai.tracking.server import check_server, mlflow_errors

if TYPE_CHECKING:
    from mlflow.entities.model_registry import RegisteredModel

_log = logging.getLogger(__name__)

MOST_FAILED_LOOKS = 10
"""Looks in a row that fail before `watch` ends: at its 30 s, five minutes without a server."""


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
        """The aliases that stand where no decision that still holds put them."""
        return tuple(each for each in self.aliases if each.drifted)

    def text(self) -> str:
        """A line for each alias, for a terminal."""
        return "\n".join(map(str, self.aliases)) or f"{self.name} has no alias."

    def _line(self) -> str:
        bad = len(self.drifted)
        return f"{self.name}: {bad} of {len(self.aliases)} aliases not as decided"

    def _table(self) -> Table:
        return GuardedAlias, self.aliases


def guard(name: str, *, restore: bool = False) -> GuardReport:
    """Compare each alias of a registered model with the last decision about it.

    MLflow does not record who moved an alias. Each look is one request for the model, one for each
    experiment with decisions about it, and one for each version that has an alias.

    Args:
        name: The registered model.
        restore: Put those back that somebody moved or deleted since. An alias that no decision
            ever set is left alone, and so is one whose decision is gone, or whose version was
            rejected or deleted: the report says why.

    Raises:
        TrackingError: There is no such model, or the user may not move its aliases.

    Examples:
        >>> mlflow_e2eai.guard("digits").drifted
        ()
    """
    require_flags(restore=restore)
    check_server()
    with quiet_mlflow(), mlflow_errors("call `guard` again"):
        return _guard(name, restore=restore)


def _guard(name: str, *, restore: bool) -> GuardReport:
    found = _look(name)
    if restore and any(each.restorable for each in found):
        with lease(name) as right:
            registered = registered_model(name)
            found = compare(registered)  # another guard may have been quicker
            _restore(right, registered, [each for each in found if each.restorable])
        found = [
            dataclasses.replace(each, restored=True) if each.restorable else each for each in found
        ]
    return GuardReport(name=name, aliases=tuple(found))


def _look(name: str) -> list[GuardedAlias]:
    """Compare the aliases, and again where one moved between two requests: that is no drift."""
    registered = registered_model(name)
    while True:
        found = compare(registered)
        if not any(each.drifted for each in found):
            return found
        before, registered = registered, registered_model(name)
        if before.aliases == registered.aliases:
            return found


def _restore(right: Lease, registered: RegisteredModel, drifted: Sequence[GuardedAlias]) -> None:
    if not drifted:
        return
    title = f"restore {', '.join('@' + each.alias for each in drifted)} of {registered.name}"
    with journal(
        registered,
        title,
        stage="guard",
        version=", ".join(each.decided or "none" for each in drifted),
        aliases=[each.alias for each in drifted],
        reason="; ".join(map(_drift, drifted)),
    ) as run_id:
        moves = {each.alias: (each.version, each.decided) for each in drifted}
        move(right, registered.name, moves, run_id=run_id, kind="restoration")


def watch(name: str, *, every_s: float = 30.0, restore: bool = False) -> Iterator[GuardReport]:
    """Guard a registered model for ever, and yield each state that differs from the last.

    Args:
        name: The registered model.
        every_s: Seconds between two looks; see `guard` for the requests of each.
        restore: See `guard`.

    Raises:
        InvalidInputError: See `check_pause`.
        TrackingError: The first look failed, or `MOST_FAILED_LOOKS` in a row; one that fails in
            between is a warning. See `guard`.

    Examples:
        >>> for report in mlflow_e2eai.watch("digits", every_s=60):
        ...     print(report.text())  # doctest: +SKIP
    """
    check_pause(every_s)
    last, failed = None, 0
    while True:
        try:
            report = guard(name, restore=restore)
        except TrackingError as error:
            failed += 1
            if last is None or failed == MOST_FAILED_LOOKS:
                raise
            _log.warning(
                "The aliases of %s could not be compared (%s); looking again in %g s.",
                name,
                brief(error).rstrip("."),
                every_s,
            )
        else:
            failed = 0
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
