"""A decision as a run, its page, and tags of the version."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

from mlflow_e2eai import bundle, tracking
from mlflow_e2eai.artifacts.files import to_json
from mlflow_e2eai.evaluation.gates import Decision
from mlflow_e2eai.pipeline.publish import describe_version, log_report
from mlflow_e2eai.promotion.challenge import Outcome
from mlflow_e2eai.promotion.metrics import totals
from mlflow_e2eai.promotion.registry.actor import actor
from mlflow_e2eai.promotion.registry.approvals import statements_of
from mlflow_e2eai.promotion.registry.journal import journal
from mlflow_e2eai.promotion.registry.record import FILE
from mlflow_e2eai.promotion.registry.tags import ALIAS, DECIDED_BY, DECISION, REASON, WITHDRAWN
from mlflow_e2eai.promotion.registry.timeline import Move, last_moves
from mlflow_e2eai.promotion.registry.times import now_text
from mlflow_e2eai.report.background import AliasMove, Background, Before
from mlflow_e2eai.report.formats import moment_text
from mlflow_e2eai.tracking.server import responds

if TYPE_CHECKING:
    from mlflow.entities.model_registry import RegisteredModel

PREVIOUS = "e2eai.previous"
"""Tag of a version: the versions that had the aliases before."""

_MOST_MOVES = 20
"""Moves of aliases that a page shows."""


class DecisionRun(NamedTuple):
    """A run with a decision: its id, and its page as HTML."""

    run_id: str
    page: str


@contextmanager
def decision_run(outcome: Outcome, registered: RegisteredModel) -> Iterator[DecisionRun]:
    """A run with a decision, its numbers and its page."""
    from mlflow import MlflowClient

    decision, challenge = outcome.decision, outcome.challenge
    version, model = challenge.version, challenge.model
    with journal(
        registered,
        _title(outcome),
        stage="promote",
        version=str(version.version),
        aliases=challenge.aliases,
        reason=reason_of(decision),
    ) as run_id:
        client = MlflowClient()
        ids = [each.model_id for each in outcome.models]
        tracking.link_permitted_inputs(run_id, ids)
        numbers = {
            tracking.metric_name(key): value for key, value in totals(outcome.values).items()
        }
        # Not on the model too, which has them since it was logged: each decision would add to what
        # every look at it reads.
        tracking.log_metrics(numbers, run_id=run_id)
        client.log_text(run_id, to_json(outcome.record()), FILE)
        client.set_tag(run_id, DECISION, decision.outcome)
        page = log_report(
            outcome.manifest,
            decision,
            run_id=run_id,
            name=version.name,
            version=version.version,
            model_id=model.model_id,
            background=background_of(
                outcome, last_moves(registered, challenge.aliases, _MOST_MOVES)
            ),
        )
        yield DecisionRun(run_id, page)


def end_rejected(outcome: Outcome, run_id: str) -> None:
    """End the run of a no as FAILED, with REJECTED in its name."""
    title = _title(outcome)
    tracking.fail_run(run_id, title, f"REJECTED: {title}")


def background_of(outcome: Outcome, moves: Sequence[Move] = ()) -> Background:
    """The registry's part of a decision of this moment, for people.

    Args:
        outcome: The decision.
        moves: The last moves of its aliases, the oldest first.
    """
    aliases = outcome.challenge.aliases
    return Background(
        by=actor(),
        at=moment_text(now_text()),
        aliases=aliases,
        approvals=tuple(map(str, statements_of(outcome.challenge.version))),
        before=tuple(
            Before(
                version=str(each.version.version),
                aliases=each.aliases,
                manifest=None if each.path is None else bundle.read(each.path),
            )
            for each in outcome.incumbents
        ),
        moves=tuple(
            AliasMove(
                at=moment_text(move.at),
                alias=move.alias,
                version=move.after,
                kind=move.kind,
                by=move.by,
                reason=move.reason,
            )
            for move in reversed(moves)
        ),
    )


def supersede(outcome: Outcome, stands: Mapping[str, str | None], run_id: str) -> None:
    """Write on a run that the aliases moved before its decision could be carried out."""
    from mlflow import MlflowClient

    moved = [
        f"@{alias} moved to {'no version' if now is None else f'version {now}'}"
        for alias, now in stands.items()
        if now != outcome.stands[alias]
    ]
    MlflowClient().set_tag(run_id, DECISION, "superseded")
    MlflowClient().set_tag(run_id, REASON, f"{'; '.join(moved)} meanwhile: decided again")


def withdraw(outcome: Outcome, run_id: str, reason: str) -> None:
    """Write on a run and on its version that the aliases could not be moved on a yes.

    Where the registry does not take that either, the run alone shows it, as it failed.
    """
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    from mlflow_e2eai.tracking._mlflow import registry_client

    if not responds():
        return
    version = outcome.challenge.version
    with contextlib.suppress(MlflowException):
        for key, value in {DECISION: WITHDRAWN, REASON: reason}.items():
            MlflowClient().set_tag(run_id, key, value)
            number = str(version.version)
            registry_client().set_model_version_tag(version.name, number, key, value)
        describe_version(outcome.manifest, name=version.name, version=version.version)


def tag_version(outcome: Outcome, run_id: str) -> None:
    """Write a decision as tags of the version."""
    from mlflow_e2eai.tracking._mlflow import registry_client

    client, version = registry_client(), outcome.challenge.version
    tags = {
        DECISION: outcome.decision.outcome,
        ALIAS: ", ".join(outcome.challenge.aliases),
        REASON: reason_of(outcome.decision),
        DECIDED_BY: run_id,
    }
    if outcome.incumbents:
        tags[PREVIOUS] = ", ".join(str(each.version.version) for each in outcome.incumbents)
    number = str(version.version)
    for key, value in tags.items():
        client.set_model_version_tag(version.name, number, key, value)
    describe_version(
        outcome.manifest,
        outcome.decision,
        name=version.name,
        version=version.version,
        alias=tags[ALIAS],
        background=background_of(outcome),
    )
    if not outcome.incumbents and PREVIOUS in version.tags:  # of an earlier decision
        client.delete_model_version_tag(version.name, number, PREVIOUS)


def reason_of(decision: Decision) -> str:
    """The reason of a decision in one text."""
    if decision.reasons:
        return "; ".join(decision.reasons)
    if not decision.inapplicable:
        return "every gate passed"
    return f"every gate that applies passed; {'; '.join(decision.inapplicable)}"


def _title(outcome: Outcome) -> str:
    version = outcome.challenge.version
    return f"promote {version.name} {version.version}"
