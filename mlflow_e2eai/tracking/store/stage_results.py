"""Results of stages by their keys: a run that has done the same work before, with its files.

The root of trust is the run's tag with the digest of ``result.json``, which has the report of the
stage and the digest of its model's MLmodel, which has that of the list of all other files.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlflow_e2eai.artifacts.arrays import load_arrays
from mlflow_e2eai.artifacts.files import from_json, to_json
from mlflow_e2eai.artifacts.values import Array, EngineArtifact, OnnxArtifact
from mlflow_e2eai.bundle.manifest import EXAMPLE
from mlflow_e2eai.errors import ArtifactError, E2EAIError, TrackingError, brief, warn_caller
from mlflow_e2eai.tracking.downloads import fetch_text
from mlflow_e2eai.tracking.lineage import (
    MLMODEL_SHA256,
    SIGNATURE_SHA256,
    STAGE,
    fetch,
    read_artifact,
    resolve,
)
from mlflow_e2eai.tracking.recorder import Reused
from mlflow_e2eai.tracking.server import experiments
from mlflow_e2eai.tracking.store.artifact_store import finished_models, warn_skipped
from mlflow_e2eai.tracking.store.integrity import verify_logged_files

if TYPE_CHECKING:
    from mlflow.entities import LoggedModel, Run

STAGE_KEY = "e2eai.stage_key"
"""Tag of a run that did a stage: the digest of all that its result depends on. Also one of a
bundle's model, which outlives a run that died before the end of the stage."""

RESULT_SHA256 = "e2eai.result_sha256"
"""Tag of such a run: the digest of its `RESULT`."""

REUSED_FROM = "e2eai.reused_from"
"""Tag of a run that did no work: the run whose result it links, and how old that is."""

REUSED = "e2eai.reused"
"""Tag of the run of a pipeline: a line for each stage whose result is of an earlier run."""

RESULT = "result.json"
"""File of a run with the result of its stage."""

_MOST = 5
"""Runs with one key that are looked at, the newest first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StageResult:
    """The result of a stage.

    Attributes:
        model_id: The model that it logged or linked; None for a stage without one.
        mlmodel_sha256: The digest of that model's MLmodel.
        report: Its report as JSON; empty where it has none.
    """

    model_id: str | None = None
    mlmodel_sha256: str | None = None
    report: str = ""


def log_result(run_id: str, key: str, result: StageResult) -> None:
    """Log the result of a stage on its run, and its key last: with it the run is found."""
    from mlflow import MlflowClient
    from mlflow.entities import RunTag

    text, client = to_json(result), MlflowClient()
    client.log_text(run_id, text, RESULT)
    digest = hashlib.sha256(text.encode()).hexdigest()
    client.log_batch(run_id, tags=[RunTag(RESULT_SHA256, digest), RunTag(STAGE_KEY, key)])


def runs_of(key: str) -> list[Run]:
    """The finished runs with a key, from any experiment of the tracking server, newest first."""
    from mlflow import MlflowClient

    return list(
        MlflowClient().search_runs(
            list(experiments()),
            f"tags.`{STAGE_KEY}` = '{key}' AND attributes.status = 'FINISHED'",
            order_by=["attributes.start_time DESC"],
            max_results=_MOST,
        )
    )


def find_result(key: str, report: type[Any], folder: Path) -> Reused | None:
    """Fetch the newest result with a key, and verify all of it.

    One that has changed since it was logged is skipped with a warning.

    Args:
        key: The key.
        report: The kind of the stage's report.
        folder: A folder for the files of its model; created if missing.
    """
    for each in runs_of(key):
        run_id = str(each.info.run_id)
        try:
            # MLflow hides why one of runs:/ cannot be downloaded.
            text = fetch_text(f"{each.info.artifact_uri}/{RESULT}")
            _verify_text(text, each.data.tags.get(RESULT_SHA256, ""))
            return _fetch(each, from_json(StageResult, text), report, folder / run_id)
        except (E2EAIError, UnicodeDecodeError) as error:
            warn_caller(f"The result of run {run_id} cannot be reused: {brief(error)}")
    return None


def _verify_text(text: str, sha256: str) -> None:
    if hashlib.sha256(text.encode()).hexdigest() != sha256:
        msg = f"{RESULT} has changed since it was logged."
        raise ArtifactError(msg)


def _fetch(run: Run, result: StageResult, report: type[Any], folder: Path) -> Reused:
    artifact: OnnxArtifact | EngineArtifact | None = None
    example: dict[str, Array] = {}
    if result.model_id is not None:
        model, path = _fetch_model(result, folder)
        if model.tags.get(STAGE) in ("export", "clean", "convert"):
            artifact, example = (
                read_artifact(OnnxArtifact, model, path),
                load_arrays(path / EXAMPLE),
            )
    return Reused(
        run_id=str(run.info.run_id),
        ended_at=time_text(run.info.end_time or 0),
        report=from_json(report, result.report) if result.report else None,
        artifact=artifact,
        example=example,
        model_id=result.model_id,
    )


def _fetch_model(result: StageResult, folder: Path) -> tuple[LoggedModel, Path]:
    """Download the model of a result into a folder, and verify each of its files."""
    model = resolve(str(result.model_id))
    if str(model.status) != "READY":
        msg = f"Model {model.model_id} is {model.status}."
        raise TrackingError(msg)
    folder.mkdir(parents=True, exist_ok=True)
    path = fetch(model, folder)
    signature = model.tags.get(SIGNATURE_SHA256)  # it may have been signed since
    verify_logged_files(path, result.mlmodel_sha256, signature_sha256=signature)
    return model, path


def find_logged_model(key: str, folder: Path) -> str | None:
    """Fetch and verify the newest finished model with a key, whose run may have died since.

    Returns:
        The model's id; None if there is none.
    """
    for model in finished_models(STAGE_KEY, key, experiments()):
        model_id, sha256 = str(model.model_id), model.tags.get(MLMODEL_SHA256)
        try:
            _fetch_model(StageResult(model_id=model_id, mlmodel_sha256=sha256), folder / model_id)
        except E2EAIError as error:
            warn_skipped("bundle", model, error)
        else:
            return model_id
    return None


def time_text(milliseconds: int) -> str:
    """A time of MLflow's in UTC, as `evaluation.evidence.now_text` has it."""
    return datetime.fromtimestamp(int(milliseconds) / 1e3, UTC).isoformat(timespec="seconds")
