"""An alias goes back to a version that had it, if that still loads, verifies and passes."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias, overload

from mlflow_e2eai import bundle
from mlflow_e2eai.artifacts.files import to_json
from mlflow_e2eai.bundle.load import load
from mlflow_e2eai.errors import (
    E2EAIError,
    InvalidInputError,
    TrackingError,
    brief,
    require_several,
)
from mlflow_e2eai.evaluation.gates import Gate
from mlflow_e2eai.promotion.challenge import Challenge, Outcome
from mlflow_e2eai.promotion.contenders import fetch_bundle, model_of
from mlflow_e2eai.promotion.gates_file import read_policy
from mlflow_e2eai.promotion.policy import Policy
from mlflow_e2eai.promotion.registry.approvals import rejections_of
from mlflow_e2eai.promotion.registry.journal import journal
from mlflow_e2eai.promotion.registry.lease import lease
from mlflow_e2eai.promotion.registry.moves import holders, move
from mlflow_e2eai.promotion.registry.record import FILE, Contender, DecisionRecord, read_record
from mlflow_e2eai.promotion.registry.timeline import (
    History,
    Move,
    check_alias_is_known,
    past_of,
    read_moves,
    registered_model,
)
from mlflow_e2eai.promotion.remedies import Call
from mlflow_e2eai.report.formats import aliases_text
from mlflow_e2eai.runtime.progress import reported_on_stderr, timed_stage
from mlflow_e2eai.tracking.console import quiet_mlflow
from mlflow_e2eai.tracking.server import check_server, mlflow_errors
from mlflow_e2eai.tracking.versions import existing_version

Gates: TypeAlias = Policy | Sequence[Gate] | Mapping[str, Any] | str | Path | None

_ADVICE = "name another with to= (`--to`), or promote one"

_OTHER_GATES = f"give other gates= (`--gates`), {_ADVICE}"


@overload
def rollback(
    name: str,
    *,
    alias: str = "champion",
    to: int | str | None = None,
    gates: Gates = None,
    allow_native: Sequence[str] = (),
) -> Move: ...


@overload
def rollback(
    name: str,
    *,
    alias: list[str] | tuple[str, ...],
    to: int | str | None = None,
    gates: Gates = None,
    allow_native: Sequence[str] = (),
) -> tuple[Move, ...]: ...


def rollback(
    name: str,
    *,
    alias: str | Sequence[str] = "champion",
    to: int | str | None = None,
    gates: Gates = None,
    allow_native: Sequence[str] = (),
) -> Move | tuple[Move, ...]:
    """Put an alias back to the version before, or to another that had it.

    The version must have all its files as they were logged, load here and run its input example,
    and pass its gates on its own evidence as it is today. Gates that compare with the version that
    has the alias do not apply: it is the one to leave. The run of the rollback has the gates and
    their verdicts in its ``decision.json``, as that of a promotion.

    Args:
        name: The registered model.
        alias: The alias; or several, which move together or not at all, to one version. One that
            points to it already stays.
        to: The version; by default the one that stood there before, by `history`.
        gates: The gates; by default those by which the version was promoted. A version that a hand
            set, and nobody promoted, has none.
        allow_native: Libraries in the version that may be loaded; see `mlflow_e2eai.load_model`.

    Returns:
        The move; of several aliases, one for each that moved. Its reason names aliases that came
        with it and stay.

    Raises:
        TrackingError: There is no version to go back to, or another for each alias; it does not
            pass, or an alias was moved meanwhile.
        ArtifactError: A file of it has changed.
        InvalidInputError: The gates are wrong.

    Examples:
        >>> move = mlflow_e2eai.rollback("digits")
        >>> move.before, move.after
        ('2', '1')
    """
    from mlflow import MlflowClient

    several = [alias] if isinstance(alias, str) else alias
    named = tuple(dict.fromkeys(require_several("alias", several, str, "names of aliases")))
    if not named:
        msg = "The list of aliases is empty; give one such as 'champion'."
        raise InvalidInputError(msg)
    with (
        reported_on_stderr(),
        quiet_mlflow(),
        mlflow_errors("see `history` for where the alias stands, and roll back again"),
        timed_stage("rollback") as line,
        tempfile.TemporaryDirectory() as folder,
    ):
        check_server()
        registered = registered_model(name)
        past = past_of(registered)
        for each in named:
            check_alias_is_known(each, registered, past.moves)
        places = holders(registered, named)
        target = _target_of_all(past, places, None if to is None else str(to))
        stands = {each: now for each, now in places.items() if now != target}
        aliases = tuple(stands)
        outcome = _outcome(past, target, aliases, gates, Path(folder))
        subject = _subject(name, target, aliases)
        if reasons := _reasons_against(outcome):
            why = "; ".join(reasons).rstrip(".")
            advice = _ADVICE if rejections_of(outcome.challenge.version) else _OTHER_GATES
            msg = f"{subject} does not pass its gates today: {why}; {advice}."
            raise TrackingError(msg)
        _check_runs(outcome.challenge.path, allow_native, subject)
        replaced = " and ".join(
            dict.fromkeys(f"version {now}" if now else "no version" for now in stands.values())
        )
        passes = (
            "runs and passes its gates today"
            if outcome.decision.verdicts
            else "runs today, and no gate applies to it alone"
        )
        rest = _rest_text(past, stands, named)
        with (
            lease(name) as right,
            journal(
                registered,
                f"rollback {aliases_text(aliases)} of {name} to {target}",
                stage="rollback",
                version=target,
                aliases=aliases,
                reason=f"version {target} {passes}; it replaces {replaced}{rest}",
            ) as run_id,
        ):
            MlflowClient().log_text(run_id, to_json(_record(outcome, stands)), FILE)
            moves = {each: (now, target) for each, now in stands.items()}
            move(right, name, moves, run_id=run_id, kind="rollback")
        line.append(
            f"{aliases_text(aliases)} of {name} at version {target} again, was {replaced}{rest}"
        )
        done = [each for each in read_moves(registered_model(name)) if each.run_id == run_id]
    return done[0] if isinstance(alias, str) else tuple(done)


def _subject(name: str, target: str, aliases: Sequence[str]) -> str:
    return f"Version {target} of {name!r}, which had {aliases_text(aliases)} before,"


def _outcome(
    past: History, target: str, aliases: tuple[str, ...], gates: Gates, folder: Path
) -> Outcome:
    """The decision about a version on its own, by its gates as it is today.

    Raises:
        TrackingError: The version or its gates are not there.
        ArtifactError: A file of it has changed.
    """
    subject = _subject(past.name, target, aliases)
    if (found := existing_version(past.name, target)) is None:
        msg = f"{subject} was deleted; {_ADVICE}."
        raise TrackingError(msg)
    model = model_of(found, subject, _ADVICE)
    path = fetch_bundle(model, folder / "bundle", subject, _ADVICE)
    policy = _gates_of_all(past, aliases, target) if gates is None else read_policy(gates)
    call = Call(name=past.name, aliases=aliases)
    challenge = Challenge(
        version=found, model=model, path=path, call=call, policy=policy, folder=folder
    )
    return challenge.decide(dict.fromkeys(aliases))


def _reasons_against(outcome: Outcome) -> tuple[str, ...]:
    """Reasons why a version does not pass its gates, all of which may be such as compare.

    Those do not apply: it passed them against the version that had the alias then.
    """
    decision, gates = outcome.decision, outcome.challenge.policy.gates
    compares = any(each.compares and each.severity == "block" for each in gates)
    blocks = any(each.severity == "block" for each in decision.verdicts)
    return () if compares and not blocks else decision.reasons


def _record(outcome: Outcome, stands: Mapping[str, str | None]) -> DecisionRecord:
    """The decision as it is stored, with the versions that are left, which nothing was read of."""
    left = [
        Contender(
            version=version,
            model_id=None,
            sha256=None,
            evidence_sha256=None,
            aliases=tuple(alias for alias, now in stands.items() if now == version),
            environments={},
        )
        for version in dict.fromkeys(filter(None, stands.values()))
    ]
    return dataclasses.replace(outcome.record(), incumbents=tuple(left))


def _rest_text(past: History, stands: Mapping[str, str | None], named: Sequence[str]) -> str:
    """The end of a sentence about aliases that came with others, and stay where they are."""
    last = {each.alias: each for each in past.moves}
    runs = {last[alias].run_id for alias, now in stands.items() if _stays(last.get(alias), now)}
    rest = [a for a, each in sorted(last.items()) if each.run_id in runs and a not in named]
    if not rest:
        return ""
    where = f"at version {last[rest[0]].after}"
    return f"; {aliases_text(rest)} came with it and stay{'s' * (len(rest) == 1)} {where}"


def _stays(last: Move | None, now: str | None) -> bool:
    return last is not None and last.after == now


def _target_of_all(past: History, stands: Mapping[str, str | None], to: str | None) -> str:
    """The version that several aliases go back to, and some of which may point to it already.

    Raises:
        TrackingError: There is none, or another for each.
    """
    targets = {alias: _target(past, alias, now, to) for alias, now in stands.items()}
    target = next(filter(None, targets.values()), None)
    for alias, its in targets.items():
        if its is None and stands[alias] != target:
            msg = f"@{alias} of {past.name!r} pointed to no version before; promote one."
            raise TrackingError(msg)
    if target is None or {*targets.values()} - {target, None}:
        places = ", ".join(f"@{alias} to version {its}" for alias, its in targets.items() if its)
        msg = (
            f"The aliases of {past.name!r} do not go back to one version: {places}; roll them back "
            f"one by one, or name a version with to= (`--to`)."
        )
        raise TrackingError(msg)
    if all(now == target for now in stands.values()):
        verb = "points" if len(stands) == 1 else "point"
        where = f"{aliases_text(tuple(stands))} of {past.name!r}"
        msg = f"{where} {verb} to version {target} already."
        raise TrackingError(msg)
    return target


def _target(past: History, alias: str, now: str | None, to: str | None) -> str | None:
    """The version that an alias is to go back to; None where there is none.

    Raises:
        TrackingError: The alias never pointed to the version that is named.
    """
    if to is None:
        return past.target(alias, now)
    stood = past.stood(alias)
    if to not in (now, *stood):
        known = f"it pointed to {', '.join(stood)}" if stood else "no decision ever moved it"
        msg = (
            f"@{alias} of {past.name!r} never pointed to version {to} ({known}); promote that "
            f"version."
        )
        raise TrackingError(msg)
    return to


def _gates_of_all(past: History, aliases: Sequence[str], version: str) -> Policy:
    """The rules by which a version got several aliases last.

    Raises:
        TrackingError: They are not the same, or not there.
    """
    policies = [_gates_of(past, alias, version) for alias in aliases]
    if any(policy != policies[0] for policy in policies):
        msg = (
            f"Version {version} of {past.name!r} got {aliases_text(aliases)} by other gates each; "
            f"roll them back one by one, or give gates= (`--gates`)."
        )
        raise TrackingError(msg)
    return policies[0]


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
            f"record; give gates= (`--gates`)."
        )
        raise TrackingError(msg)
    try:
        return read_record(promotions[-1].run_id).policy
    except E2EAIError as error:
        msg = (
            f"The gates by which version {version} of {past.name!r} got @{alias} cannot be read: "
            f"{brief(error).rstrip('.')}; give gates= (`--gates`)."
        )
        raise TrackingError(msg) from error


def _check_runs(path: Path, allow_native: Sequence[str], subject: str) -> None:
    """Load a bundle and run its input example."""
    try:
        with load(path, allow_native=allow_native) as model:
            model(bundle.read_example(path))
    except E2EAIError as error:
        msg = f"{subject} does not run here: {brief(error).rstrip('.')}; {_ADVICE}."
        raise TrackingError(msg) from error
