"""PyTorch models of MLflow 2, which are files of a run -> LoggedModels, made once."""

from __future__ import annotations

import logging
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from mlflow_e2eai.errors import TrackingError
from mlflow_e2eai.tracking.lineage import STAGE, resolve
from mlflow_e2eai.tracking.mlflow_names import model_name
from mlflow_e2eai.tracking.runs import run
from mlflow_e2eai.tracking.server import check_server, complete_download, failure_logged
from mlflow_e2eai.tracking.store.artifact_store import finished_models
from mlflow_e2eai.tracking.store.uploads import upload
from mlflow_e2eai.tracking.versions import uri_of

if TYPE_CHECKING:
    from mlflow.entities import LoggedModel

_log = logging.getLogger(__name__)

COPY_OF = "e2eai.copy_of"
"""Tag of a source: the URI of the MLflow 2 model whose files it has."""


def resolve_source(uri: str) -> LoggedModel:
    """The LoggedModel that a URI names; of a PyTorch model of MLflow 2, one with its files.

    Stages need a LoggedModel to be linked to. The first call makes it, in the active experiment.

    Args:
        uri: See `resolve`.

    Raises:
        InvalidInputError: It names no model.
        TrackingError: There is no such model, or it is of MLflow 2 and no PyTorch model.
    """
    import mlflow
    from mlflow.exceptions import MlflowException
    from mlflow.models import Model

    text, uri = uri, uri_of(uri)
    try:
        return resolve(text)
    except TrackingError:
        check_server()  # MLflow would request the model of a lost one for minutes
        try:
            meta = Model.load(uri)
        except (MlflowException, OSError):
            meta = None
        if meta is None or meta.model_id is not None:
            raise
        uri = _without_alias(uri)
        if "pytorch" not in meta.flavors:
            msg = (
                f"{uri} was logged by MLflow 2 and has the flavors {', '.join(meta.flavors)}; give "
                f"a model that mlflow.pytorch logged."
            )
            raise TrackingError(msg) from None
    from mlflow_e2eai.tracking import _mlflow

    known = finished_models(COPY_OF, uri, [str(_mlflow.active_experiment_id())])
    if known:
        return known[0]
    with tempfile.TemporaryDirectory() as folder:
        try:
            path = Path(
                complete_download(lambda: mlflow.artifacts.download_artifacts(uri, dst_path=folder))
            )
        except (MlflowException, OSError) as error:
            msg = f"The files of {uri}, a model of MLflow 2, cannot be downloaded: {error}"
            raise TrackingError(msg) from error
        return _log_copy(uri, path)


def _log_copy(uri: str, path: Path) -> LoggedModel:
    import mlflow
    from mlflow import MlflowClient
    from mlflow.entities import LoggedModelStatus

    name = model_name(uri.partition(":/")[2].strip("/").partition("/")[0])
    with run(f"copy {name}", nested=True, tags={STAGE: "copy"}) as run_id:
        model = mlflow.initialize_logged_model(
            name=f"{name}-source",
            source_run_id=run_id,
            model_type="pytorch",
            tags={STAGE: "source", COPY_OF: uri},
        )
        client = MlflowClient()

        def fail(_: BaseException) -> None:
            client.finalize_logged_model(model.model_id, LoggedModelStatus.FAILED)

        with failure_logged(run_id, fail):
            upload(model, path)
        done = client.finalize_logged_model(model.model_id, LoggedModelStatus.READY)
    _log.info("%s is of MLflow 2; its copy is models:/%s", uri, model.model_id)
    return done


def _without_alias(uri: str) -> str:
    """The same model for good: an alias may move."""
    from mlflow import MlflowClient

    if not (uri.startswith("models:/") and "@" in uri):
        return uri
    version = MlflowClient().get_model_version_by_alias(*uri.removeprefix("models:/").split("@"))
    return f"models:/{version.name}/{version.version}"
