"""Aliases that move together or not at all, under a lease, with their run as the journal."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from mlflow_e2eai.errors import E2EAIError, TrackingError
from mlflow_e2eai.pipeline.publish import describe_moves
from mlflow_e2eai.promotion.registry.actor import actor
from mlflow_e2eai.promotion.registry.lease import Lease, lease
from mlflow_e2eai.promotion.registry.tags import (
    DECISION,
    KIND,
    MOVED_AT,
    MOVES,
    PLANNED_AT,
    WITHDRAWN,
)
from mlflow_e2eai.promotion.registry.timeline import (
    MoveKind,
    moves_text,
    read_moves,
    registered_model,
)
from mlflow_e2eai.promotion.registry.times import now_text, time_after
from mlflow_e2eai.report.formats import moment_text
from mlflow_e2eai.tracking.server import check_server, failure_reason, responds

if TYPE_CHECKING:
    from mlflow.entities.model_registry import RegisteredModel

_AGAIN: Mapping[MoveKind, str] = {
    "promotion": "promote it again",
    "rollback": "roll back again",
    "restoration": "call `guard` again",
}
"""Next steps after a move that could not be made, by its kind."""

_UNDONE = "they stand where they stood"


def holders(registered: RegisteredModel, aliases: Sequence[str]) -> dict[str, str | None]:
    """The version that each alias stands at; None where at none."""
    found = registered.aliases
    return {alias: None if alias not in found else str(found[alias]) for alias in aliases}


def move(
    right: Lease,
    name: str,
    moves: Mapping[str, tuple[str | None, str | None]],
    *,
    run_id: str,
    kind: MoveKind,
) -> None:
    """Move aliases, all or none, and write on the run when that was done.

    What is to be moved is on the run before the first alias moves: whatever kills this process, the
    run says what it was about, and `history` sees which alias moved.

    Args:
        right: The right to move them.
        name: The registered model.
        moves: By alias, the version that it stands at and the one that it is to stand at.
        run_id: The run of the decision.
        kind: Why.

    Raises:
        TrackingError: An alias stands elsewhere now, the lease was lost, or the registry refuses;
            then all aliases stand where they stood.
    """
    from mlflow import MlflowClient
    from mlflow.entities import RunTag
    from mlflow.exceptions import MlflowException

    from mlflow_e2eai.tracking._mlflow import registry_client

    client = MlflowClient()
    advice = _AGAIN[kind]
    befores = {alias: before for alias, (before, _) in moves.items()}
    registered = check_holders(name, befores, advice)
    planned_at = time_after(registered.tags.get(MOVED_AT))
    plan = {KIND: kind, MOVES: moves_text(moves), PLANNED_AT: planned_at}
    client.log_batch(run_id, tags=[RunTag(key, value) for key, value in plan.items()])
    right.check()
    done: list[str] = []
    try:
        for alias, (_, after) in moves.items():
            _set_alias(name, alias, after)
            done.append(alias)
        right.check()
        check_holders(name, {alias: after for alias, (_, after) in moves.items()}, advice)
    except (MlflowException, E2EAIError) as error:
        undone = _undo(right, name, moves, done, since=planned_at)
        if undone == _UNDONE and responds():
            with contextlib.suppress(MlflowException):
                client.set_tag(run_id, DECISION, WITHDRAWN)
        msg = (
            f"The aliases of {name!r} could not be moved: {failure_reason(error)}; {undone}. "
            f"{advice.capitalize()}."
        )
        raise TrackingError(msg) from error
    at = time_after(planned_at)
    client.set_tag(run_id, MOVED_AT, at)
    registry_client().set_registered_model_tag(name, MOVED_AT, at)
    _describe(name, moves, f"({kind} by {actor()})", moment_text(at))


def _describe(
    name: str, moves: Mapping[str, tuple[str | None, str | None]], why: str, at: str
) -> None:
    """Write the moves into the descriptions of the versions that they left and reached."""
    phrases: dict[str, dict[str, str]] = {}
    for alias, (before, after) in moves.items():
        if before is not None:
            to = "no version" if after is None else f"version {after}"
            phrases.setdefault(before, {})[alias] = f"until {at}, then {to} {why}"
        if after is not None:
            phrases.setdefault(after, {})[alias] = f"since {at} {why}"
    for version, of_version in phrases.items():
        describe_moves(name, version, of_version)


def finish(run_id: str) -> None:
    """Write the time on the run of a move that its process did not live to confirm, and end it.

    It is the time when the run was about to move, which no later move came before.
    """
    from mlflow import MlflowClient

    client = MlflowClient()
    run = client.get_run(run_id)
    tags = run.data.tags
    if MOVES in tags and MOVED_AT not in tags:
        client.set_tag(run_id, MOVED_AT, tags.get(PLANNED_AT, now_text()))
    if run.info.status != "FINISHED":
        client.set_terminated(run_id, "FINISHED")


def check_holders(name: str, expected: Mapping[str, str | None], advice: str) -> RegisteredModel:
    """Check that aliases stand where they stood when it was decided about them, or were put.

    Args:
        name: The registered model.
        expected: The version of each alias.
        advice: What to do next where one stands elsewhere.

    Returns:
        The registered model.

    Raises:
        TrackingError: One was moved meanwhile.
    """
    registered = registered_model(name)
    for alias, now in holders(registered, list(expected)).items():
        if now != expected[alias]:
            where = "was deleted" if now is None else f"moved to version {now}"
            msg = f"Alias {alias!r} of {name!r} {where} meanwhile; {advice}."
            raise TrackingError(msg)
    return registered


def _undo(
    right: Lease,
    name: str,
    moves: Mapping[str, tuple[str | None, str | None]],
    done: Sequence[str],
    *,
    since: str,
) -> str:
    """Put aliases back that were moved, or where another has moved them since; what was done.

    That takes a turn of its own, so that nobody else is in the middle of a move. A process loses
    its lease by standing still for longer than clocks of machines differ, so that times of runs
    tell who came later.
    """
    from mlflow.exceptions import MlflowException

    if not done:
        return _UNDONE
    kept = []
    try:
        check_server()
        right.leave()
        with lease(name):
            for alias in done:
                before, after = moves[alias]
                registered = registered_model(name)
                if holders(registered, [alias])[alias] != after:
                    continue
                others = [
                    each.after
                    for each in read_moves(registered)
                    if each.alias == alias and each.finished and each.at > since
                ]
                _set_alias(name, alias, others[-1] if others else before)
    except (MlflowException, E2EAIError):
        kept = [f"{alias!r} may still stand at version {moves[alias][1]}" for alias in done]
    return ", ".join(kept) or _UNDONE


def _set_alias(name: str, alias: str, version: str | None) -> None:
    from mlflow_e2eai.tracking._mlflow import registry_client

    if version is None:
        registry_client().delete_registered_model_alias(name, alias)
    else:
        registry_client().set_registered_model_alias(name, alias, version)
