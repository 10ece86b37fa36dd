"""Registered versions -> their bundles, or a sentence that names the version and what to do."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from mlflow_e2eai import bundle, tracking
from mlflow_e2eai.artifacts.files import verify
from mlflow_e2eai.bundle.digests import verify_digests
from mlflow_e2eai.errors import ArtifactError, E2EAIError, TrackingError, brief
from mlflow_e2eai.evaluation.gates import AGAINST_CHAMPION
from mlflow_e2eai.tracking.runs import is_missing
from mlflow_e2eai.tracking.server import failure_reason

if TYPE_CHECKING:
    from mlflow.entities import LoggedModel
    from mlflow.entities.model_registry import ModelVersion

_MLMODEL = "MLmodel"


def find_version(name: str, version: int | str) -> ModelVersion:
    """Find a version of a registered model.

    Raises:
        TrackingError: There is none.
    """
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    try:
        return MlflowClient().get_model_version(name, str(version))
    except MlflowException as error:
        if is_missing(error):
            msg = f"There is no version {version} of {name!r}: {error.message}; see the registry."
        else:
            reason = failure_reason(error)
            msg = f"Version {version} of {name!r} cannot be read: {reason}; call this again later."
        raise TrackingError(msg) from error


def version_with_alias(name: str, alias: str) -> ModelVersion | None:
    """The version that holds an alias; None if there is none.

    Raises:
        TrackingError: The registry does not say.
    """
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    try:
        return MlflowClient().get_model_version_by_alias(name, alias)
    except MlflowException as error:
        if "not found" in str(error.message).lower():
            return None
        msg = f"Alias {alias!r} of {name!r} cannot be read: {error.message}"
        raise TrackingError(msg) from error


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
        msg = f"{subject} is no bundle of this package, but a plain MLflow model; {advice}."
        raise ArtifactError(msg)
    return model


def fetch_bundle(model: LoggedModel, folder: Path, subject: str, advice: str) -> Path:
    """Download a version's bundle, and verify the digest of each of its files; see `model_of`."""
    folder.mkdir()
    try:
        path = tracking.fetch(model, folder)
        verify_model(path, model)
    except E2EAIError as error:
        msg = f"{subject} cannot be read: {brief(error).rstrip('.')}; {advice}."
        raise type(error)(msg) from error
    return path / bundle.FOLDER


def verify_model(path: Path, model: LoggedModel) -> None:
    """Check that a downloaded bundle is, file by file, the one that was logged.

    The tracking server has the digest of MLmodel, and MLmodel that of the list of all other files.

    Raises:
        ArtifactError: A file is missing, has changed, or was not in the model; or it was logged by
            a version of this package that listed no digests.
    """
    from mlflow_e2eai.tracking import _mlflow

    recorded = model.tags.get(tracking.MLMODEL_SHA256)
    if recorded is None:
        msg = "It has no digests of its files, as it was logged by an older mlflow_e2eai."
        raise ArtifactError(msg)
    verify(path / _MLMODEL, recorded)
    digests = _mlflow.get_flavor_configuration(path, "mlflow_e2eai").get("digests", "")
    verify_digests(path, digests, unlisted=(_MLMODEL, "registered_model_meta"))
    verify(path / bundle.FOLDER / bundle.MANIFEST, model.tags[tracking.SHA256])
