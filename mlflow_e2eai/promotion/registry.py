"""Decision -> alias and tags in the registry."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mlflow_e2eai.errors import TrackingError
from mlflow_e2eai.evaluation.gates import Decision
from mlflow_e2eai.promotion.contenders import version_with_alias

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion

DECISION, ALIAS, REASON, DECIDED_BY, PREVIOUS = (
    "e2eai.decision",
    "e2eai.alias",
    "e2eai.reason",
    "e2eai.decision_run",
    "e2eai.previous",
)
"""Tags of a version: its last decision, the alias that this was about, the reason, the run, and the
version that had the alias before."""


def apply_decision(
    decision: Decision,
    challenger: ModelVersion,
    champion: ModelVersion | None,
    *,
    alias: str,
    run_id: str,
) -> None:
    """Write the decision as tags of version and run; set the alias if it was promoted."""
    from mlflow import MlflowClient

    client = MlflowClient()
    name, version = challenger.name, str(challenger.version)
    tags = {
        DECISION: "promoted" if decision.promoted else "rejected",
        ALIAS: alias,
        REASON: "; ".join(decision.reasons) or _all_passed(decision),
        DECIDED_BY: run_id,
    }
    if champion is not None:
        tags[PREVIOUS] = str(champion.version)
    if decision.promoted:
        # MLflow has no compare-and-set: the alias is read once more, right before it is set.
        now = version_with_alias(name, alias)
        before = version if champion is None else str(champion.version)
        if now is not None and str(now.version) not in (version, before):
            msg = (
                f"Alias {alias!r} of {name!r} moved to version {now.version} while version "
                f"{version} was being evaluated; promote it again."
            )
            raise TrackingError(msg)
        client.set_registered_model_alias(name, alias, version)
    for key, value in tags.items():
        client.set_model_version_tag(name, version, key, value)
    if champion is None and PREVIOUS in challenger.tags:  # of an earlier decision
        client.delete_model_version_tag(name, version, PREVIOUS)
    for key in (DECISION, ALIAS, REASON):
        client.set_tag(run_id, key, tags[key])


def _all_passed(decision: Decision) -> str:
    if not decision.inapplicable:
        return "every gate passed"
    return f"every gate that applies passed; {'; '.join(decision.inapplicable)}"
