"""Engines that were built before, found by their key."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from mlflow_e2eai.artifacts import EngineArtifact
from mlflow_e2eai.engine import key_of
from mlflow_e2eai.errors import ArtifactError, TrackingError
from mlflow_e2eai.tracking.lineage import fetch_engine
from mlflow_e2eai.tracking.server import experiments

if TYPE_CHECKING:
    from mlflow.entities import LoggedModel

KEY = "e2eai.engine_key"
"""Tag of an engine's model: what it is known by before it is built; see `engine.key_for`."""

FOUND = "e2eai.engine_found"
"""Tag of a run that built no engine: id of the model that held it already."""


def find_engine(key: str, folder: Path) -> tuple[EngineArtifact, str] | None:
    """The newest finished engine with a key, in any experiment of the tracking server.

    One that cannot be had, or is not what its record says, is announced as a warning and passed
    over.

    Args:
        key: As `engine.key_for` gives it.
        folder: Where to put it; made if need be.

    Returns:
        The engine, verified, and the id of its LoggedModel; None if there is none.
    """
    for model in _models(key):
        place = folder / str(model.model_id)
        place.mkdir(parents=True)
        try:
            engine = _fetched(model, place, key)
        except (ArtifactError, TrackingError) as error:
            warnings.warn(
                f"The engine that was built before ({model.model_id}) cannot be taken: {error}",
                stacklevel=2,
            )
            continue
        return engine, str(model.model_id)
    return None


def _fetched(model: LoggedModel, folder: Path, key: str) -> EngineArtifact:
    engine = fetch_engine(model, folder)
    if (found := key_of(engine)) != key:
        msg = f"it is the engine of another key, {found[:12]}…"
        raise ArtifactError(msg)
    return engine


def _models(key: str) -> list[LoggedModel]:
    """The finished ones with a key, the newest first."""
    from mlflow import MlflowClient
    from mlflow.entities import LoggedModelStatus

    client = MlflowClient()
    found = client.search_logged_models(
        list(experiments()),
        f"tags.`{KEY}` = '{key}'",
        order_by=[{"field_name": "creation_timestamp", "ascending": False}],
    )
    # MLflow's filter knows `status`, but finds nothing by it.
    return [model for model in found if model.status == LoggedModelStatus.READY]
