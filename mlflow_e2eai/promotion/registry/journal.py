"""The run of a decision about a registered model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from mlflow_e2eai import tracking
from mlflow_e2eai.promotion.registry.actor import actor
from mlflow_e2eai.promotion.registry.tags import ALIAS, BY, DECISIONS_IN, MODEL, REASON, VERSION
from mlflow_e2eai.promotion.registry.timeline import registered_model
from mlflow_e2eai.promotion.registry.times import now_text

if TYPE_CHECKING:
    from mlflow.entities.model_registry import RegisteredModel


@contextmanager
def journal(
    registered: RegisteredModel,
    title: str,
    *,
    stage: str,
    version: str,
    aliases: Sequence[str],
    reason: str | None = None,
) -> Iterator[str]:
    """A run for a decision, which `history` finds by the registered model.

    It is in the active experiment, or in ``promotions of <name>`` where the user may not write
    there.

    Args:
        registered: The registered model.
        title: Name of the run.
        stage: ``promote``, ``rollback`` or ``guard``.
        version: The version that it is about.
        aliases: The aliases that it is about.
        reason: The reason of the decision, where it is known before.

    Yields:
        The run's id.
    """
    import mlflow

    tags = {
        tracking.STAGE: stage,
        MODEL: registered.name,
        VERSION: version,
        ALIAS: ", ".join(aliases),
        BY: actor(),
        **({} if reason is None else {REASON: reason}),
    }
    with tracking.run(
        title, nested=True, tags=tags, elsewhere=f"promotions of {registered.name}"
    ) as run_id:
        run = mlflow.active_run() or mlflow.MlflowClient().get_run(run_id)
        note_experiment(registered, run.info.experiment_id)
        yield run_id


def note_experiment(registered: RegisteredModel, experiment_id: str) -> None:
    """Record on a registered model that an experiment has a decision about it."""
    from mlflow.exceptions import MlflowException

    from mlflow_e2eai.tracking._mlflow import registry_client

    tag = f"{DECISIONS_IN}{experiment_id}"
    if tag in registered.tags:
        return
    try:
        registry_client().set_registered_model_tag(registered.name, tag, now_text())
    except MlflowException:
        # Two that insert one tag at once: PostgreSQL refuses the second.
        if tag not in registered_model(registered.name).tags:
            raise
