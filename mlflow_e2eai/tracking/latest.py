"""``latest``: the newest model or version of the active experiment that a step can take."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from mlflow_e2eai.errors import E2EAIError, TrackingError, shown
from mlflow_e2eai.tracking.lineage import OUTPUTS, PARENT, STAGE, resolve
from mlflow_e2eai.tracking.server import check_server
from mlflow_e2eai.tracking.versions import name_filter

if TYPE_CHECKING:
    from mlflow.entities import LoggedModel
    from mlflow.entities.model_registry import ModelVersion

_log = logging.getLogger(__name__)

IMPORTED = "import"
"""Name of the stage of the raw graph at the root of a lineage, where that is an ONNX file."""

_PAGE = 20


def latest_model(stages: Sequence[str]) -> LoggedModel:
    """Find the newest READY model of the active experiment that one of these stages made.

    Args:
        stages: Values of the tag `STAGE`, or `IMPORTED`.

    Raises:
        TrackingError: There is none, or the tracking server cannot be reached.
    """
    check_server()
    experiment_id = _active_experiment_id()
    newest = [model for stage in stages if (model := _newest_of(stage, experiment_id)) is not None]
    if not newest:
        kind, step = OUTPUTS[stages[0]]
        msg = (
            f"Experiment {_name_of(experiment_id)!r} does not have {kind}; make one with `mlflow "
            f"run . -e {step}` or `mlflow_e2eai {step}` first, or give model_uri."
        )
        raise TrackingError(msg)
    model = max(newest, key=lambda model: int(model.creation_timestamp))
    _report(f"models:/{model.model_id} ({model.name})")
    return model


def latest_version(name: str | None = None) -> ModelVersion:
    """Find the newest registered version that has a bundle.

    Args:
        name: Name of the registered model; None for any, of which the bundle must have been logged
            in the active experiment.

    Raises:
        TrackingError: There is none, or the tracking server cannot be reached.
    """
    from mlflow import MlflowClient

    check_server()
    experiment_id = _active_experiment_id() if name is None else None
    named = None if name is None else name_filter(name)
    token = None
    while True:
        page = MlflowClient().search_model_versions(
            named, _PAGE, order_by=["creation_timestamp DESC"], page_token=token
        )
        for version in page:
            if _is_bundle_of(experiment_id, version):
                _report(f"models:/{version.name}/{version.version}")
                return version
        if (token := page.token) is None:
            break
    if experiment_id is None:
        which, instead = f"{shown(name)} has no version", "give its version, or another name"
    else:
        which = f"Experiment {_name_of(experiment_id)!r} has no registered version"
        instead = "give name and version"
    msg = (
        f"{which} with a bundle; make one with `mlflow run . -e pipeline -P "
        f"registered_model_name=...` first, or {instead}."
    )
    raise TrackingError(msg)


def _active_experiment_id() -> str:
    from mlflow_e2eai.tracking import _mlflow

    return str(_mlflow.active_experiment_id())


def _name_of(experiment_id: str) -> str:
    from mlflow import MlflowClient

    return str(MlflowClient().get_experiment(experiment_id).name)


def _newest_of(stage: str, experiment_id: str) -> LoggedModel | None:
    for model in _models_of("export" if stage == IMPORTED else stage, experiment_id):
        # MLflow's filter accepts `status`, but finds nothing by it.
        if str(model.status) == "READY" and (stage != IMPORTED or PARENT not in model.tags):
            return model
    return None


def _models_of(stage: str, experiment_id: str) -> Iterator[LoggedModel]:
    """All models that a stage made, the newest first."""
    from mlflow import MlflowClient

    token = None
    while True:
        page = MlflowClient().search_logged_models(
            [experiment_id],
            f"tags.`{STAGE}` = '{stage}'",
            max_results=_PAGE,
            order_by=[{"field_name": "creation_timestamp", "ascending": False}],
            page_token=token,
        )
        yield from page
        if (token := page.token) is None:
            return


def _is_bundle_of(experiment_id: str | None, version: ModelVersion) -> bool:
    try:
        model = resolve(f"models:/{version.name}/{version.version}")
    except E2EAIError:  # the model of a version may be deleted, or of another kind
        return False
    is_here = experiment_id in (None, str(model.experiment_id))
    return is_here and model.tags.get(STAGE) == "package"


def _report(uri: str) -> None:
    """Report the URI of ``latest``: in the log, and on the run of `mlflow run`."""
    from mlflow import MlflowClient

    _log.info("latest is %s", uri)
    if (run_id := os.environ.get("MLFLOW_RUN_ID")) is not None:
        MlflowClient().set_tag(run_id, "e2eai.latest", uri)
