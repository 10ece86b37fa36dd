"""Files that are sent to the store of artifacts, which is then asked for their sizes.

A proxy, a full disk or a lost connection can leave half a file behind a response that says OK. The
listing of the store shows that at one request for each folder; that the bytes are the same, the
digests show wherever a model is read.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from mlflow_e2eai.errors import TrackingError

if TYPE_CHECKING:
    from mlflow.entities import LoggedModel
    from mlflow.models import Model
    from mlflow.models.model import ModelInfo


def upload(model: LoggedModel, folder: Path) -> None:
    """Put files into a LoggedModel; MlflowClient would request their location.

    Raises:
        TrackingError: A file is not stored whole.
    """
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    get_artifact_repository(model.artifact_location).log_artifacts(str(folder))
    check_stored(model.artifact_location, _sizes_in(folder))


def log_files(run_id: str, folder: Path, path: str | None) -> None:
    """Log the files of a folder as artifacts of a run.

    Args:
        run_id: The run.
        folder: The folder.
        path: Where in the run; None for the top.

    Raises:
        TrackingError: A file is not stored whole.
    """
    from mlflow import MlflowClient

    client = MlflowClient()
    client.log_artifacts(run_id, str(folder), path)
    place = client.get_run(run_id).info.artifact_uri.rstrip("/")
    check_stored(place if path is None else f"{place}/{path}", _sizes_in(folder))


def log_with_flavor(flavor: Any, **arguments: Any) -> ModelInfo:
    """Log a model as MLflow's `Model.log`; what registers it does so once its files are stored.

    Raises:
        TrackingError: A file is not stored whole; the model is FAILED.
    """
    from mlflow import MlflowClient
    from mlflow.models import Model

    measured = _Measured(flavor)
    info: ModelInfo = Model.log(artifact_path=None, flavor=measured, **arguments)
    try:
        check_stored(info.artifact_path, measured.sizes)
    except TrackingError:
        MlflowClient().finalize_logged_model(info.model_id, "FAILED")
        raise
    return info


class _Measured:
    """A flavor for `Model.log` that measures the files that another one has written."""

    def __init__(self, flavor: Any) -> None:
        self.__name__ = flavor.__name__
        self.sizes: dict[str, int] = {}
        self._flavor = flavor

    def save_model(self, *, path: str, mlflow_model: Model, **arguments: Any) -> None:
        """Save the model as the flavor does."""
        self._flavor.save_model(path=path, mlflow_model=mlflow_model, **arguments)
        self.sizes = _sizes_in(Path(path))


def _sizes_in(folder: Path) -> dict[str, int]:
    """Bytes of all files of a folder by their paths; without the caches of Python."""
    return {
        path.relative_to(folder).as_posix(): path.stat().st_size
        for path in folder.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


def check_stored(place: str, sizes: Mapping[str, int]) -> None:
    """Check that a place of artifacts has files as long as those that were sent there.

    Args:
        place: URI of the place.
        sizes: Bytes by path.

    Raises:
        TrackingError: A file is missing, or has another size; where the store tells no sizes, only
            the first is found.
    """
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    repository = get_artifact_repository(place)
    folders = {PurePosixPath(path).parent.as_posix().removeprefix(".") for path in sizes}
    stored = {
        str(item.path): item.file_size
        for folder in sorted(folders)
        for item in repository.list_artifacts(folder or None)
        if not item.is_dir
    }
    for path, size in sizes.items():
        if path not in stored:
            found = "no such file"
        elif stored[path] in (None, size):
            continue
        else:
            found = f"{stored[path]} bytes of it"
        msg = (
            f"{path} has {size} bytes, but after its upload {place} has {found}: the upload was "
            f"cut; repeat the call: what is logged is not done again."
        )
        raise TrackingError(msg, resumable=True)
