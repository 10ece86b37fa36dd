"""The moves of aliases, read from the runs that made them.

A run of a decision has what it is about as tags, and what it is to move before it moves it; after
the move it gets the time. Runs are added and never changed: a decision that turned out wrong is
followed by another.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from typing import TYPE_CHECKING, Literal, TypeAlias, get_args

from mlflow_e2eai.artifacts.files import Summary, Table
from mlflow_e2eai.errors import TrackingError, brief, shown, suggestion
from mlflow_e2eai.promotion.registry.tags import (
    ALIAS,
    BY,
    DECISION,
    DECISIONS_IN,
    KIND,
    MODEL,
    MOVED_AT,
    MOVES,
    PLANNED_AT,
    REASON,
    VERSION,
    WITHDRAWN,
)
from mlflow_e2eai.promotion.registry.times import end_of, moment_of
from mlflow_e2eai.report.formats import moment_text
from mlflow_e2eai.report.text import align
from mlflow_e2eai.tracking.console import quiet_mlflow
from mlflow_e2eai.tracking.server import check_server, failure_reason, is_missing
from mlflow_e2eai.tracking.versions import literal

if TYPE_CHECKING:
    from mlflow.entities import Run
    from mlflow.entities.model_registry import RegisteredModel

_ALL = 100_000  # MLflow's own default

MoveKind: TypeAlias = Literal["promotion", "rollback", "restoration"]
"""Why an alias was moved: its version passed; the one before is to serve again; or a move by hand
was undone."""


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Move(Summary):
    """An alias that was moved, or that a run was to move when it was cut off.

    Attributes:
        at: When, in UTC, as ISO 8601; where the run was cut off, when it was about to.
        alias: The alias.
        before: The version that it stood at; None where at none.
        after: The version that it stands at since; None where it was taken away.
        kind: Why.
        by: Who.
        reason: The reason of the decision.
        run_id: Its run.
        finished: Whether the run says that the move was done.
    """

    at: str
    alias: str
    before: str | None
    after: str | None
    kind: MoveKind
    by: str
    reason: str
    run_id: str
    finished: bool = True

    def __str__(self) -> str:
        if self.after is None:
            where = f"taken from version {self.before}"
        else:
            where = f"version {self.after}"
            where += "" if self.before is None else f", before version {self.before}"
        at = moment_text(self.at)
        return f"{at}  @{self.alias}  {where}  {self.kind} by {self.by}: {self.reason}"

    def _line(self) -> str:
        return str(self)

    def _table(self) -> Table:
        return Move, [self]


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class History(Summary):
    """The moves of a registered model's aliases by this package, the oldest first.

    Attributes:
        name: The registered model.
        moves: The moves; of `past_of` with the confirmations.
    """

    name: str
    moves: tuple[Move, ...]

    def holder(self, alias: str) -> Move | None:
        """The last move of an alias."""
        return next((move for move in reversed(self.moves) if move.alias == alias), None)

    def stood(self, alias: str) -> list[str]:
        """The versions that an alias ever pointed to, each once, the oldest first."""
        ends = (end for m in self.moves if m.alias == alias for end in (m.before, m.after))
        return list(dict.fromkeys(filter(None, ends)))

    def before(self, alias: str) -> str | None:
        """The version to go back to: what stood at an alias before the one that stands there now.

        A rollback takes what it left out of the order, so that the next one goes further back. A
        version that a hand set is in it where no decision was before.
        """
        moves = [move for move in self.moves if move.alias == alias]
        is_promotion = bool(moves) and moves[0].kind == "promotion"
        order = [moves[0].before] if is_promotion and moves[0].before is not None else []
        for after, kind in ((m.after, m.kind) for m in moves if m.after is not None):
            if after in order and kind == "rollback":
                while order[-1] != after:
                    order.pop()
            elif not order or order[-1] != after:
                order.append(after)
        return order[-2] if len(order) > 1 else None

    def target(self, alias: str, now: str | None) -> str | None:
        """The version of a rollback: where the last decision put an alias, else `before`.

        Args:
            alias: The alias.
            now: The version that it points to; None for none.
        """
        last = self.holder(alias)
        return self.before(alias) if last is None or last.after == now else last.after

    def way_back(self, alias: str, now: str | None) -> str:
        """The advice to take an alias from a version: the rollback, or a promotion where none is.

        Args:
            alias: The alias.
            now: The version that it points to; None for none.
        """
        if self.target(alias, now) is not None:
            return f"go back with `{alias_command('rollback', self.name, alias)}`"
        command = alias_command("promote", self.name, alias)
        return f"no version was there before; promote another with `{command}`"

    def text(self) -> str:
        """The moves as a table, for a terminal."""
        if not self.moves:
            return f"No move of an alias of {self.name} is on record."
        head = ("when", "alias", "version", "before", "kind", "by", "reason")
        return align([head, *map(_cells, self.moves)], numbers=(2, 3))

    def _line(self) -> str:
        count = len(self.moves)
        return f"{count} move{'' if count == 1 else 's'} of aliases of {self.name}"

    def _table(self) -> Table:
        return Move, self.moves


def alias_command(verb: Literal["promote", "rollback"], name: str, alias: str) -> str:
    """The command that moves an alias; to a version that is to be named, where it promotes."""
    version = ["VERSION"] if verb == "promote" else []
    return shlex.join(["mlflow_e2eai", verb, name, *version, "--alias", alias])


def _cells(move: Move) -> tuple[str, ...]:
    return (
        moment_text(move.at),
        f"@{move.alias}",
        move.after or "none",
        move.before or "none",
        move.kind,
        move.by,
        move.reason if move.finished else f"{move.reason} (its process ended before it was done)",
    )


def history(name: str, *, alias: str | None = None, on: str | date | None = None) -> History:
    """The moves of a registered model's aliases by this package.

    It takes one request for the model, one for each experiment with decisions about it, and one for
    each thousand of decisions. A move that its process did not live to confirm is in it where the
    next move, or the alias now, shows that it was done.

    Args:
        name: The registered model.
        alias: Only moves of this alias.
        on: Only the last move of each alias until the end of this day in UTC, or until this time:
            what stood there then. ``2026-11-30``, or with a time ``2026-11-30T12:00:00+01:00``.

    Raises:
        InvalidInputError: `on` is no date.
        TrackingError: There is no such model, or it never had such an alias.

    Examples:
        >>> moves = mlflow_e2eai.history("digits", alias="champion")
        >>> frame, text = moves.to_pandas(), moves.text()
    """
    until = None if on is None else end_of(on)
    check_server()
    with quiet_mlflow():
        registered = registered_model(name)
        moves = read_moves(registered)
    if alias is not None:
        check_alias_is_known(alias, registered, moves)
        moves = [move for move in moves if move.alias == alias]
    if until is not None:
        moves = [move for move in moves if datetime.fromisoformat(move.at) <= until]
        last = {move.alias: move for move in moves}
        moves = sorted(last.values(), key=lambda move: move.alias)
    return History(name=name, moves=tuple(moves))


def check_alias_is_known(alias: str, registered: RegisteredModel, moves: Sequence[Move]) -> None:
    """Check that a registered model has an alias, or that a decision ever moved it.

    Raises:
        TrackingError: Neither.
    """
    known = sorted({*registered.aliases, *(move.alias for move in moves)})
    if alias not in known:
        hint = suggestion(alias, known) if known else "it has no alias; promote a version first."
        msg = f"{registered.name!r} has no alias {alias!r}, and no decision ever moved one; {hint}"
        raise TrackingError(msg)


def registered_model(name: str) -> RegisteredModel:
    """A registered model with its aliases and tags.

    Raises:
        TrackingError: There is none.
    """
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    try:
        return MlflowClient().get_registered_model(name)
    except MlflowException as error:
        if is_missing(error):
            msg = f"There is no registered model {shown(name)}: {brief(error)}; see the registry."
        else:
            reason = failure_reason(error)
            msg = f"Registered model {name!r} cannot be read: {reason}; call this again later."
        raise TrackingError(msg) from error


def read_moves(registered: RegisteredModel) -> list[Move]:
    """All moves of a registered model's aliases, the oldest first; see `history`."""
    return done_moves(registered, decision_runs(registered))


def past_of(registered: RegisteredModel, runs: Sequence[Run] | None = None) -> History:
    """All moves, and the confirmations: each yes to a version that had the alias already.

    A confirmation is a promotion from a version to itself, which `history` leaves out.

    Args:
        registered: The registered model.
        runs: Its `decision_runs`, where they were read.
    """
    runs = decision_runs(registered) if runs is None else runs
    steps = [*done_moves(registered, runs), *(step for run in runs for step in _confirmations(run))]
    return History(name=registered.name, moves=tuple(sorted(steps, key=lambda step: step.at)))


def last_moves(registered: RegisteredModel, aliases: Sequence[str], count: int) -> list[Move]:
    """The last moves of some aliases, the oldest first, in one request for each alias.

    Of all decisions about a model that is promoted daily, `read_moves` reads thousands.

    Args:
        registered: The registered model.
        aliases: The aliases.
        count: The most moves.
    """
    # A run that waited for its turn began before others that moved earlier.
    runs = {
        run.info.run_id: run
        for alias in aliases
        for run in decision_runs(registered, moving=alias, most=2 * count)
    }
    moves = done_moves(registered, sorted(runs.values(), key=lambda run: int(run.info.start_time)))
    return [move for move in moves if move.alias in aliases][-count:]


def done_moves(registered: RegisteredModel, runs: Sequence[Run]) -> list[Move]:
    """The moves of runs that were done, the oldest first; runs come in the order of their start."""
    moves = sorted((move for run in runs for move in _moves_of(run)), key=lambda move: move.at)
    return [move for at, move in enumerate(moves) if _was_done(at, moves, registered.aliases)]


def _was_done(at: int, moves: Sequence[Move], aliases: Mapping[str, object]) -> bool:
    """Whether a move was done: its run says so, or what came after shows it."""
    move = moves[at]
    if move.finished:
        return True
    following = next((later for later in moves[at + 1 :] if later.alias == move.alias), None)
    if following is not None:
        return following.before == move.after
    now = aliases.get(move.alias)
    return (None if now is None else str(now)) == move.after


def decision_runs(
    registered: RegisteredModel, *, moving: str | None = None, most: int = _ALL
) -> list[Run]:
    """The runs of decisions about a registered model, the oldest first.

    Those that somebody deleted count too: a decision is added, and never taken away.

    Args:
        registered: The registered model.
        moving: Only those that were to move this alias.
        most: Only so many, the newest.
    """
    import mlflow
    from mlflow.entities import ViewType

    experiments = [
        tag.removeprefix(DECISIONS_IN) for tag in registered.tags if tag.startswith(DECISIONS_IN)
    ]
    if not experiments:
        return []
    of_alias = "" if moving is None else f""" AND tags.`{MOVES}` LIKE '%"{moving}"%'"""
    runs: list[Run] = mlflow.search_runs(
        experiments,
        filter_string=f"tags.`{MODEL}` = {literal(registered.name)}{of_alias}",
        run_view_type=ViewType.ALL,
        order_by=["attributes.start_time DESC"],
        output_format="list",
        max_results=most,
    )
    return runs[::-1]


def moves_text(moves: Mapping[str, tuple[str | None, str | None]]) -> str:
    """The tag `MOVES` of a run."""
    return json.dumps({alias: list(versions) for alias, versions in sorted(moves.items())})


def _moves_of(run: Run) -> list[Move]:
    """The moves of a run; none of one that moved nothing, or whose aliases were put back."""
    tags = run.data.tags
    if tags.get(DECISION) == WITHDRAWN:
        return []
    try:
        plan = json.loads(tags.get(MOVES, "{}"))
        planned = {alias: (before, after) for alias, (before, after) in plan.items()}
    except (ValueError, TypeError, AttributeError):
        return []  # a hand wrote the tag
    return [_move(run, alias, before, after) for alias, (before, after) in planned.items()]


def _confirmations(run: Run) -> list[Move]:
    """The promotions of a run from its version to itself."""
    tags = run.data.tags
    if tags.get(DECISION) != "promoted" or MOVED_AT not in tags:
        return []
    moved, version = {move.alias for move in _moves_of(run)}, tags.get(VERSION)
    aliases = [alias for alias in tags.get(ALIAS, "").split(", ") if alias not in moved]
    return [_move(run, alias, version, version) for alias in aliases]


def _move(run: Run, alias: str, before: str | None, after: str | None) -> Move:
    tags = run.data.tags
    return Move(
        at=_time_of(run),
        alias=alias,
        before=before,
        after=after,
        kind=_kind_of(tags),
        by=tags.get(BY) or tags.get("mlflow.user", "unknown"),
        reason=tags.get(REASON, ""),
        run_id=run.info.run_id,
        finished=MOVED_AT in tags,
    )


def _time_of(run: Run) -> str:
    """When a run moved an alias; where no tag says so that can be read, when it began."""
    # A run may wait for its turn: what moves before it begins to move came earlier.
    for text in (run.data.tags.get(MOVED_AT), run.data.tags.get(PLANNED_AT)):
        if text is not None and moment_of(text) is not None:
            return text
    return datetime.fromtimestamp(run.info.start_time / 1e3, UTC).isoformat(timespec="milliseconds")


def _kind_of(tags: Mapping[str, str]) -> MoveKind:
    kinds: tuple[MoveKind, ...] = get_args(MoveKind)
    return next((kind for kind in kinds if kind == tags.get(KIND)), "promotion")
