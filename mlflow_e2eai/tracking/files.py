"""Files of a model, downloaded one by one as they are needed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mlflow_e2eai.errors import ArtifactError
from mlflow_e2eai.tracking.lineage import resolve


class ModelFiles:
    """A model's directory here, into which its files come when they are asked for.

    MLflow downloads whole models, but its artifact repositories give single files too, through a
    tracking server's proxy as from a store of one's own.

    Attributes:
        directory: The model itself where it lies on this machine, else where its files come. It
            holds MLmodel from the start.
    """

    def __init__(self, uri: str, directory: str | Path | None = None) -> None:
        """Find a model.

        Args:
            uri: A local path or any URI of a model that MLflow knows.
            directory: An existing directory for its files; by default the model itself where it is
                on this machine, and else a new temporary one.

        Raises:
            mlflow.exceptions.MlflowException: There is no such model.
            TrackingError: There is no such model of a run.
            OSError: There is none at that path.
        """
        from mlflow.exceptions import MlflowException
        from mlflow.protos.databricks_pb2 import ErrorCode
        from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

        if str(uri).startswith("runs:/"):
            # A run's repository puts each file into a folder of the model's name.
            uri = resolve(uri).model_uri
        self._uri, self._is_copied = uri, directory is not None
        self._repository = get_artifact_repository(str(uri))
        target = None if directory is None else str(directory)
        try:
            self.directory = Path(self._repository.download_artifacts("MLmodel", target)).parent
        except MlflowException as error:
            msg = f"There is no MLflow model at {uri}: {error.message}"
            raise MlflowException(msg, error_code=ErrorCode.Value(error.error_code)) from error

    def configuration(self, flavor: str) -> dict[str, Any]:
        """What MLmodel says of a flavor; code that comes with it can be imported from then on.

        Raises:
            mlflow.exceptions.MlflowException: The model is not of that flavor.
        """
        from mlflow_e2eai import _compat

        found: dict[str, Any] = _compat.get_flavor_configuration(self.directory, flavor)
        if (code := found.get("code")) is not None:
            self.fetch(code)
        _compat.add_code_to_system_path(self.directory, found)
        return found

    def names(self) -> list[str]:
        """The files and folders that are at the top of the model."""
        return [str(found.path) for found in self._repository.list_artifacts("")]

    def fetch(self, path: str) -> None:
        """Bring a file or folder, named relative to the model, into the directory.

        Raises:
            ArtifactError: It cannot be had.
        """
        from mlflow.exceptions import MlflowException

        if not self._is_copied and (self.directory / path).exists():
            return
        try:
            self._repository.download_artifacts(path, str(self.directory))
        except (MlflowException, OSError) as error:
            reason = str(error).strip().splitlines()[-1]  # before it MLflow counts its failures
            msg = f"{path} of {self._uri} cannot be had: {reason}; log the model again."
            raise ArtifactError(msg) from error
