"""Registered version + gates -> decision, and the aliases on a yes."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, overload

from mlflow_e2eai.errors import (
    E2EAIError,
    InvalidInputError,
    TrackingError,
    brief,
    require_several,
    shown,
)
from mlflow_e2eai.evaluation.gates import Gate
from mlflow_e2eai.fleet.job import Executor
from mlflow_e2eai.pipeline.publish import replace_report
from mlflow_e2eai.promotion.challenge import Challenge, Outcome, Promotion
from mlflow_e2eai.promotion.challengers import Contest, promote_best
from mlflow_e2eai.promotion.decision_run import (
    DecisionRun,
    decision_run,
    end_rejected,
    supersede,
    tag_version,
    withdraw,
)
from mlflow_e2eai.promotion.gates_file import read_policy
from mlflow_e2eai.promotion.policy import Policy
from mlflow_e2eai.promotion.registry.lease import Lease, lease
from mlflow_e2eai.promotion.registry.moves import finish, holders, move
from mlflow_e2eai.promotion.registry.record import last_record
from mlflow_e2eai.promotion.registry.tags import DECISION, MOVED_AT, WITHDRAWN
from mlflow_e2eai.promotion.registry.timeline import last_moves, registered_model
from mlflow_e2eai.promotion.remeasurement import Remeasurement
from mlflow_e2eai.promotion.remedies import Call
from mlflow_e2eai.runtime.progress import reported_on_stderr, timed_stage
from mlflow_e2eai.tracking.console import quiet_mlflow
from mlflow_e2eai.tracking.server import check_server, mlflow_errors

if TYPE_CHECKING:
    from mlflow.entities.model_registry import RegisteredModel


Gates: TypeAlias = Policy | Sequence[Gate] | Mapping[str, Any] | str | Path | None


@overload
def promote(
    name: str,
    version: int | str,
    *,
    alias: str | Sequence[str] = "champion",
    gates: Gates = None,
    remeasure: bool = False,
    executor: Executor | None = None,
    workers: int | None = None,
    dry_run: bool = False,
    allow_native: Sequence[str] = (),
) -> Promotion: ...


@overload
def promote(
    name: str,
    version: Sequence[int | str],
    *,
    alias: str | Sequence[str] = "champion",
    gates: Gates = None,
    goal: str | Mapping[str, Any],
    remeasure: bool = False,
    executor: Executor | None = None,
    workers: int | None = None,
    dry_run: bool = False,
    allow_native: Sequence[str] = (),
) -> Contest: ...


def promote(
    name: str,
    version: int | str | Sequence[int | str],
    *,
    alias: str | Sequence[str] = "champion",
    gates: Gates = None,
    goal: str | Mapping[str, Any] | None = None,
    remeasure: bool = False,
    executor: Executor | None = None,
    workers: int | None = None,
    dry_run: bool = False,
    allow_native: Sequence[str] = (),
) -> Promotion | Contest:
    """Decide whether a version of a registered model gets an alias, and set it if so.

    First every file of the version is compared with the digest that it was logged with. The gates
    read the version's own evidence, from its bundle: MLflow's metrics are for people. Where another
    version has the alias, and a gate compares with it, the evidence of both counts that is of one
    kind of machine.

    The decision is a run with both as inputs, whose ``decision.json`` holds all that it was made
    of, FAILED where the version was rejected; the version's tags have its last decision, the alias
    that this was about, and the reason. These are written before the alias moves. If another
    promotion moves the alias while this one decides, it decides again, against the version that has
    the alias then.

    A user who may change the registered model but not the experiment of its models gets the run in
    one of their own, ``promotions of <name>`` where the active one is not theirs; models that
    cannot be linked are in its tag ``e2eai.not_linked``.

    Args:
        name: Name of the registered model.
        version: Its version, the challenger; or several, of which the best that passes gets it.
        alias: The alias that it is to get, or several that move together or not at all. The
            version is compared with each that has one of them.
        gates: Gates, or the path of a YAML file, or its parsed content; by default those of
            ``gates.yaml`` in this package.
        goal: What the best of several is best at: a metric, such as ``latency/p50_ms``; see
            `challengers.Goal.parse`.
        remeasure: Measure the latency of both versions here, in turns, in place of what evidence
            says of machines like this one.
        executor: Measure the latency of both on a machine of each target of the challenger's
            engines: ``ray`` on those of a Ray cluster, ``local`` in processes here.
        workers: Number of processes; see `fleet.run`.
        dry_run: Decide, and write nothing: no run, no tags, no alias. The remedies of the decision
            say what is missing.
        allow_native: Libraries in either version that may be loaded to measure it; see
            `mlflow_e2eai.load_model`.

    Returns:
        The decision, with the version, the aliases, what had them before, and its run. Promoting a
        version again that has the alias and passed by the same rules changes nothing. Of several
        versions, the decision on each.

    Raises:
        InvalidInputError: The gates, the goal or the alias are wrong.
        ArtifactError: The version, or the one that a gate compares it with, is no bundle of this
            package, or has changed since it was logged.
        TrackingError: There is no such version, the server cannot be reached, the user may not
            write there, or the alias was moved by hand meanwhile.

    Examples:
        >>> decision = mlflow_e2eai.promote("digits", 2, gates="gates.yaml")
        >>> decision.promoted, decision.reasons
        (True, ())
    """
    policy, aliases = read_policy(gates), _aliases_of(alias)
    several = version if isinstance(version, Sequence) and not isinstance(version, str) else None
    if goal is not None and several is None:
        msg = f"The goal {goal!r} is to choose among several versions; give a list of them."
        raise InvalidInputError(msg)
    remeasurement = Remeasurement.of_arguments(
        remeasure=remeasure,
        executor=executor,
        workers=workers,
        dry_run=dry_run,
        allow_native=allow_native,
    )
    call = Call(
        name=name,
        aliases=aliases,
        gates=gates,
        goal=goal,
        dry_run=dry_run,
        executor=executor,
        allow_native=allow_native,
    )
    with (
        reported_on_stderr(),
        quiet_mlflow(),
        mlflow_errors("promote it again: what is on record is kept, and what is open is finished"),
    ):
        if not isinstance(version, int | str):
            return promote_best(_settle, call, version, policy, remeasurement)
        with timed_stage("promote") as line, tempfile.TemporaryDirectory() as folder:
            check_server()
            place = Path(folder)
            challenge = Challenge.open(call, version, policy, place, remeasurement=remeasurement)
            return _settle(challenge, line)


def _settle(challenge: Challenge, line: list[str]) -> Promotion:
    """Decide on a version, and put that on record where it is not, unless nothing is written.

    Args:
        challenge: The version.
        line: The parts of the line about it, to be added to.
    """
    name, number, aliases = challenge.call.name, challenge.version.version, challenge.aliases
    registered = registered_model(name)
    outcome = challenge.decide(holders(registered, aliases))
    if challenge.call.dry_run:
        line.append(f"{name} {number} would be {outcome.decision.outcome}")
        return outcome.promotion()
    if (run_id := _run_on_record(outcome, registered)) is not None:
        decision = outcome.promotion(run_id)
        state = f"has {', '.join(aliases)}" if decision.promoted else "was rejected"
        line.append(f"{name} {number} {state} already")
    else:
        decision = _carry_out(outcome, registered)
        line.append(f"{name} {number} {decision.outcome}")
    passed = sum(verdict.passed for verdict in decision.verdicts)
    line.append(f"{passed} of {len(decision.verdicts)} gates passed")
    if decision.inapplicable:
        line.append(f"{len(decision.inapplicable)} did not apply")
    return decision


def _carry_out(outcome: Outcome, registered: RegisteredModel) -> Promotion:
    """Put a decision on record, and move the aliases on a yes.

    Returns:
        The decision that counts: another promotion may have moved an alias since the first one.
    """
    name, challenge = registered.name, outcome.challenge
    with ExitStack() as turn:  # nobody else moves them from the first look to the last word
        with decision_run(outcome, registered) as run:
            right = turn.enter_context(lease(name))
            stands = holders(registered_model(name), challenge.aliases)
            if stands == outcome.stands:
                _write(outcome, right, run)
                return outcome.promotion(run.run_id)
            supersede(outcome, stands, run.run_id)
        registered = registered_model(name)
        outcome = challenge.decide(holders(registered, challenge.aliases))
        with decision_run(outcome, registered) as run:
            _write(outcome, right, run)
    return outcome.promotion(run.run_id)


def _write(outcome: Outcome, right: Lease, run: DecisionRun) -> None:
    """Write the reason on the version, move the aliases on a yes, and show the page of it."""
    tag_version(outcome, run.run_id)
    if outcome.decision.promoted:
        _move(outcome, right, run.run_id)
    else:
        end_rejected(outcome, run.run_id)
    replace_report(outcome.challenge.model, run.page)


def _move(outcome: Outcome, right: Lease, run_id: str) -> None:
    name = outcome.challenge.version.name
    try:
        move(right, name, outcome.moves, run_id=run_id, kind="promotion")
    except TrackingError as error:
        withdraw(outcome, run_id, str(error))
        raise


def _run_on_record(outcome: Outcome, registered: RegisteredModel) -> str | None:
    """The run of the same outcome, of the same files by the same rules; None without.

    That of a yes has moved the aliases, and one that was cut off between the move and its end is
    finished; where a later decision moved one elsewhere, a hand moved it back. A no counts among
    several challengers, whose goal is no rule of a single version, unless a version that is none of
    them has the alias since.
    """
    decision, challenge = outcome.decision, outcome.challenge
    if outcome.moves if decision.promoted else challenge.call.goal is None:
        return None
    version = challenge.version
    if version.tags.get(DECISION) == WITHDRAWN:
        return None
    try:
        record, run_id = last_record(version.name, version.version)
    except E2EAIError:
        return None
    mine = outcome.record()
    same = (
        record.decision.promoted is decision.promoted
        and set(mine.aliases) <= set(record.aliases)
        and record.challenger.sha256 == mine.challenger.sha256
        and replace(record.policy, given=()) == replace(mine.policy, given=())
    )
    if same and decision.promoted:
        finish(run_id)
        if _moved_since(run_id, registered, challenge):
            return None
    others = {each.version for each in mine.incumbents} - {*challenge.call.versions}
    is_new = bool(others) and mine.incumbents != record.incumbents
    return run_id if same and not is_new else None


def _moved_since(run_id: str, registered: RegisteredModel, challenge: Challenge) -> bool:
    """Whether a decision after that of a run moved an alias to another version."""
    from mlflow import MlflowClient

    at = MlflowClient().get_run(run_id).data.tags.get(MOVED_AT, "")
    last = [each for alias in challenge.aliases for each in last_moves(registered, [alias], 1)]
    return any(each.at > at and each.after != str(challenge.version.version) for each in last)


def _aliases_of(alias: str | Sequence[str]) -> tuple[str, ...]:
    """The aliases, each once.

    Raises:
        InvalidInputError: There is none, or one cannot be an alias.
    """
    several = [alias] if isinstance(alias, str) else alias
    aliases = tuple(dict.fromkeys(require_several("alias", several, str, "names of aliases")))
    if not aliases:
        msg = "The list of aliases is empty; give one such as 'champion'."
        raise InvalidInputError(msg)
    for each in aliases:
        _check_alias(each)
    return aliases


def _check_alias(alias: str) -> None:
    from mlflow.exceptions import MlflowException

    from mlflow_e2eai.tracking import _mlflow

    # MLflow admits a line break at the end, and fails on what is no text.
    if not isinstance(alias, str) or alias != alias.strip():
        msg = f"The alias {alias!r} is not a plain word; give one such as 'champion'."
        raise InvalidInputError(msg)
    try:
        _mlflow.validate_alias(alias)
        _mlflow.validate_alias_is_free(alias)
    except MlflowException as error:
        msg = f"MLflow does not take the alias {shown(alias)}: {brief(error)}"
        raise InvalidInputError(msg) from error
