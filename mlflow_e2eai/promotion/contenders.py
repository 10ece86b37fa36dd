"""Registered versions -> their bundles, or a sentence that names the version and what to do."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from mlflow_e2eai import bundle, tracking
from mlflow_e2eai.errors import (
    ArtifactError,
    E2EAIError,
    TrackingError,
    brief,
)
from mlflow_e2eai.evaluation.gates import AGAINST_CHAMPION

if TYPE_CHECKING:
    from mlflow.entities import LoggedModel
    from mlflow.entities.model_registry import ModelVersion


def as_challenger(challenger: ModelVersion) -> tuple[str, str]:
    """The subject of a sentence about a version that is to be promoted, and what to do with it."""
    subject = f"Version {challenger.version} of {challenger.name!r}"
    return subject, "log the model again with mlflow_e2eai.log_model"


def as_champion(champion: ModelVersion, alias: str) -> tuple[str, str]:
    """The subject of a sentence about the version that holds the alias, and what to do with it."""
    name = champion.name
    advice = (
        f"take the alias from it with MlflowClient().delete_registered_model_alias({name!r}, "
        f"{alias!r}), or give gates without {AGAINST_CHAMPION} metrics"
    )
    return f"Alias {alias!r} is held by version {champion.version} of {name!r}, which", advice


def model_of(version: ModelVersion, subject: str, advice: str) -> LoggedModel:
    """The LoggedModel of a version that is to be read.

    Args:
        version: The version.
        subject: Begins the sentence of an error.
        advice: Ends it.

    Raises:
        ArtifactError: It is no bundle of this package.
        TrackingError: It is not there.
    """
    try:
        model = tracking.model_of_version(version)
    except E2EAIError as error:
        msg = f"{subject} cannot be read: {brief(error).rstrip('.')}; {advice}."
        raise TrackingError(msg) from error
    if model.tags.get(tracking.STAGE) != "package" or tracking.SHA256 not in model.tags:
        msg = f"{subject} is a plain MLflow model, not a bundle of this package; {advice}."
        raise ArtifactError(msg)
    return model


def fetch_bundle(model: LoggedModel, folder: Path, subject: str, advice: str) -> Path:
    """Download a version's bundle, and verify the digest of each of its files; see `model_of`."""
    folder.mkdir()
    try:
        path = tracking.fetch_verified(model, folder)
    except E2EAIError as error:
        msg = f"{subject} cannot be read: {brief(error).rstrip('.')}; {advice}."
        raise type(error)(msg) from error
    return path / bundle.FOLDER
