"""An alias goes back to a version that had it, if that still loads, verifies and passes."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mlflow_e2eai import bundle
from mlflow_e2eai.bundle.load import load
from mlflow_e2eai.errors import E2EAIError, TrackingError, brief
from mlflow_e2eai.evaluation.gates import Gate
from mlflow_e2eai.promotion.challenge import why_not_promoted
from mlflow_e2eai.promotion.contenders import fetch_bundle, model_of
from mlflow_e2eai.promotion.gates_file import read_policy
from mlflow_e2eai.promotion.policy import Policy
from mlflow_e2eai.promotion.registry.journal import journal
from mlflow_e2eai.promotion.registry.lease import lease
from mlflow_e2eai.promotion.registry.moves import holders, move
from mlflow_e2eai.promotion.registry.record import read_record
from mlflow_e2eai.promotion.registry.timeline import (
    History,
    Move,
    check_alias_is_known,
    read_moves,
    registered_model,
)
from mlflow_e2eai.runtime.progress import reported_on_stderr, timed_stage
from mlflow_e2eai.tracking.console import quiet_mlflow
from mlflow_e2eai.tracking.server import check_server, mlflow_errors
from mlflow_e2eai.tracking.versions import find_version


def rollback(
    name: str,
    *,
    alias: str = "champion",
    to: int | str | None = None,
    gates: Policy | Sequence[Gate] | Mapping[str, Any] | str | Path | None = None,
    allow_native: Sequence[str] = (),
) -> Move:
    """Put an alias back to the version before, or to another that had it.

    The version must have all its files as they were logged, load here and run its input example,
    and pass its gates on its own evidence as it is today. Gates that compare with the version that
    has the alias do not apply: it is the one to leave.

    Args:
        name: The registered model.
        alias: The alias.
        to: The version; by default the one that stood there before, by `history`.
        gates: The gates; by default those by which the version was promoted.
        allow_native: Libraries in the version that may be loaded; see `mlflow_e2eai.load_model`.

    Returns:
        The move.

    Raises:
        TrackingError: There is no version to go back to, it does not pass, or the alias was moved
            meanwhile.
        ArtifactError: A file of it has changed.
        InvalidInputError: The gates are wrong.

    Examples:
        >>> move = mlflow_e2eai.rollback("digits")
        >>> move.before, move.after
        ('2', '1')
    """
    with (
        reported_on_stderr(),
        quiet_mlflow(),
        mlflow_errors("see `history` for where the alias stands, and roll back again"),
        timed_stage("rollback") as line,
        tempfile.TemporaryDirectory() as folder,
    ):
        check_server()
        registered = registered_model(name)
        past = History(name=name, moves=tuple(read_moves(registered)))
        check_alias_is_known(alias, registered, past.moves)
        now = holders(registered, [alias])[alias]
        target = _target(past, alias, now, None if to is None else str(to))
        found = find_version(name, target)
        subject = f"Version {target} of {name!r}, which had @{alias} before,"
        advice = "name another with to=, or promote one"
        model = model_of(found, subject, advice)
        path = fetch_bundle(model, Path(folder, "bundle"), subject, advice)
        policy = _gates_of(past, alias, target) if gates is None else read_policy(gates)
        reasons = why_not_promoted(policy, path, found, model)
        if reasons:
            msg = f"{subject} does not pass its gates today: {'; '.join(reasons)}; {advice}."
            raise TrackingError(msg)
        _check_runs(path, allow_native, subject, advice)
        reason = f"version {target} runs and passes its gates today; it replaces version {now}"
        title = f"rollback @{alias} of {name} to {target}"
        with (
            lease(name) as right,
            journal(
                registered, title, stage="rollback", version=target, aliases=[alias], reason=reason
            ) as run_id,
        ):
            move(right, name, {alias: (now, target)}, run_id=run_id, kind="rollback")
        line.append(f"@{alias} of {name} is at version {target} again, was {now}")
        done = History(name=name, moves=tuple(read_moves(registered_model(name)))).holder(alias)
    assert done is not None  # noqa: S101 - it was just made
    return done


def _target(past: History, alias: str, now: str | None, to: str | None) -> str:
    """The version to go back to."""
    name = past.name
    stood = list(dict.fromkeys(m.after for m in past.moves if m.alias == alias and m.after))
    if to is not None:
        if to not in stood:
            known = f"it pointed to {', '.join(stood)}" if stood else "no decision ever moved it"
            msg = (
                f"@{alias} of {name!r} never pointed to version {to} ({known}); promote that "
                f"version."
            )
            raise TrackingError(msg)
        target: str | None = to
    else:
        last = past.holder(alias)
        was_moved_by_hand = last is not None and last.after != now
        target = last.after if last and was_moved_by_hand else past.before(alias)
    if target is None:
        msg = f"@{alias} of {name!r} pointed to no version before; promote one."
        raise TrackingError(msg)
    if target == now:
        msg = f"@{alias} of {name!r} points to version {target} already."
        raise TrackingError(msg)
    return target


def _gates_of(past: History, alias: str, version: str) -> Policy:
    """The rules by which a version got an alias last."""
    promotions = [
        each
        for each in past.moves
        if each.alias == alias and each.after == version and each.kind == "promotion"
    ]
    if not promotions:
        msg = (
            f"The gates by which version {version} of {past.name!r} got @{alias} are not on "
            f"record; give gates=."
        )
        raise TrackingError(msg)
    return read_record(promotions[-1].run_id).policy


def _check_runs(path: Path, allow_native: Sequence[str], subject: str, advice: str) -> None:
    """Load a bundle and run its input example."""
    try:
        with load(path, allow_native=allow_native) as model:
            model(bundle.read_example(path))
    except E2EAIError as error:
        msg = f"{subject} does not run here: {brief(error).rstrip('.')}; {advice}."
        raise TrackingError(msg) from error
