"""Graphs, engines and timings of kernels that are in the tracking store already.

A graph or engine that is there is linked to the run that would log it, and not logged again.

Two pipelines that build the same engine at the same time both build it, which is harmless: a lock
over MLflow's tags would cost every build several requests.

Never run on its hardware yet: the timings, which are for TensorRT 10 and 11 only. A run's timings
never change: each build fetches those of all runs and logs them with its own as new ones, so that
two builds at once lose nothing. A run names the runs whose timings its own contain, and those are
not fetched again.
"""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mlflow_e2eai.artifacts.arrays import load_arrays
from mlflow_e2eai.artifacts.values import EngineArtifact, OnnxArtifact, Tensors
from mlflow_e2eai.bundle.manifest import EXAMPLE
from mlflow_e2eai.engine.request import key_of
from mlflow_e2eai.engine.timing_cache import SUFFIX as TIMINGS_SUFFIX
from mlflow_e2eai.errors import ArtifactError, TrackingError, brief, warn_caller
from mlflow_e2eai.tracking.lineage import (
    ERROR,
    MLMODEL_SHA256,
    SHA256,
    STAGE,
    fetch_engine,
    fetch_graph,
)
from mlflow_e2eai.tracking.server import address, experiments
from mlflow_e2eai.tracking.store.integrity import verify_logged_files

if TYPE_CHECKING:
    from mlflow.entities import LoggedModel


KEY = "e2eai.engine_key"
"""Tag of an engine's model: the key that is known before the build; see `engine.key_for`."""

EXISTING = "e2eai.existing_model"
"""Tag of a run that logged no model: id of the one that was there, of the same content."""


def find_engine(key: str, folder: Path) -> tuple[EngineArtifact, LoggedModel] | None:
    """Fetch the newest finished engine with a key, from any experiment of the tracking server.

    One that cannot be fetched, or differs from its record, is skipped with a warning.

    Args:
        key: The key.
        folder: A folder for the engine; created if missing.

    Returns:
        The engine, verified, and its model; None if there is none.
    """
    for model in finished_models(KEY, key, experiments()):
        path = folder / str(model.model_id)
        path.mkdir(parents=True)
        try:
            return _fetch(model, path, key), model
        except (ArtifactError, TrackingError) as error:
            warn_skipped("engine", model, error)
    return None


def _fetch(model: LoggedModel, folder: Path, key: str) -> EngineArtifact:
    engine = fetch_engine(model, folder)
    verify_logged_files(engine.path.parent, model.tags.get(MLMODEL_SHA256))
    if (own := key_of(engine)) != key:
        msg = f"it is the engine of another key, {own[:12]}…"
        raise ArtifactError(msg)
    return engine


def find_graph(graph: OnnxArtifact, example: Tensors, *, name: str, run_id: str) -> str | None:
    """Find the newest finished model of a graph in the experiment of a run.

    Its name, stage, file, axes, libraries and input example are the same, so that every later stage
    does the same with it. Its lineage may be another: that of the first model which gave this
    graph. One that cannot be fetched, or differs from its record, is skipped with a warning.

    Args:
        graph: The graph.
        example: Its input example.
        name: Name of its model.
        run_id: The run.

    Returns:
        The model's id; None if there is none.
    """
    from mlflow import MlflowClient

    experiment_id = str(MlflowClient().get_run(run_id).info.experiment_id)
    for model in finished_models(SHA256, graph.sha256, [experiment_id]):
        if (model.name, model.tags.get(STAGE)) != (name, graph.stage):
            continue
        with tempfile.TemporaryDirectory() as folder:
            try:
                found = fetch_graph(model, Path(folder))
                verify_logged_files(found.path.parent, model.tags.get(MLMODEL_SHA256))
                stored = load_arrays(found.path.parent / EXAMPLE)
            except (ArtifactError, TrackingError) as error:
                warn_skipped("graph", model, error)
                continue
        digests = [[one.sha256 for one in each.libraries] for each in (found, graph)]
        plain = dataclasses.replace(found, path=graph.path, libraries=graph.libraries)
        if plain == graph and digests[0] == digests[1] and _same(stored, example):
            return str(model.model_id)
    return None


def _same(one: Tensors, other: Tensors) -> bool:
    """Whether two examples are equal bit by bit."""
    return [*one] == [*other] and all(
        (one[key].dtype, one[key].shape) == (other[key].dtype, other[key].shape)
        and one[key].tobytes() == other[key].tobytes()
        for key in one
    )


def warn_skipped(kind: str, model: LoggedModel, error: Exception) -> None:
    """Warn that a model which was logged before is not taken."""
    warn_caller(
        f"The {kind} that was logged before ({model.model_id}) cannot be reused: {brief(error)}"
    )


def finished_models(tag: str, value: str, experiment_ids: Sequence[str]) -> list[LoggedModel]:
    """The finished models with a tag, the newest first."""
    import mlflow

    models = mlflow.search_logged_models(
        experiment_ids=list(experiment_ids),
        filter_string=f"tags.`{tag}` = '{value}'",
        order_by=[{"field_name": "creation_timestamp", "ascending": False}],
        output_format="list",
    )
    # MLflow's filter accepts `status`, but finds nothing by it.
    return [model for model in models if str(model.status) == "READY"]


def fail_unfinished_models(run_id: str, experiment_id: str, error: str) -> int:
    """Mark the models that a run left unfinished as FAILED, with the reason; their number."""
    from mlflow import MlflowClient

    from mlflow_e2eai.tracking import _mlflow

    client = MlflowClient()
    models = client.search_logged_models([experiment_id], f"source_run_id = '{run_id}'")
    unfinished = [model for model in models if str(model.status) == "PENDING"]
    for model in unfinished:
        _mlflow.set_model_tags(model.model_id, {ERROR: error}, address())
        client.finalize_logged_model(model.model_id, "FAILED")
    return len(unfinished)


TIMINGS = "e2eai.timings"
"""Tag of a run with timings: their key; see `engine.timings_key`."""

CONTAINED_TIMINGS = "e2eai.timings_held"
"""Tag of a run with timings: ids of the runs whose timings they contain, with commas between."""

_FILE = f"kernels{TIMINGS_SUFFIX}"

_MAX_RUNS = 200
"""Runs that are searched, the newest first: these contain the timings of older ones."""


def fetch_timings(key: str, folder: Path) -> tuple[str, ...]:
    """Put all timings of a kind that the tracking server has into a folder.

    Those that cannot be downloaded are left out with a warning.

    Returns:
        Ids of the runs that they are from; each file is named by its run.
    """
    import mlflow
    from mlflow import MlflowClient

    runs = MlflowClient().search_runs(
        list(experiments()),
        f"tags.`{TIMINGS}` = '{key}'",
        order_by=["attributes.start_time DESC"],
        max_results=_MAX_RUNS,
    )
    contained = {run_id for run in runs for run_id in run.data.tags[CONTAINED_TIMINGS].split(",")}
    fetched = []
    for run_id in (run.info.run_id for run in runs if run.info.run_id not in contained):
        try:
            path = mlflow.artifacts.download_artifacts(
                run_id=run_id, artifact_path=_FILE, dst_path=str(folder / run_id)
            )
        except Exception as error:  # noqa: BLE001 - a store may raise anything, and the build goes on
            warn_caller(f"The timing cache of run {run_id} cannot be read: {brief(error)}")
            continue
        Path(path).rename(folder / f"{run_id}{TIMINGS_SUFFIX}")
        fetched.append(run_id)
    return tuple(fetched)


def log_timings(key: str, folder: Path, *, run_id: str, fetched: Collection[str]) -> None:
    """Log the timings that a build left in a folder as an artifact of its run.

    Args:
        key: Their key.
        folder: The folder, as `mlflow_e2eai.compile` leaves it: a new file contains the fetched
            ones that are no longer there.
        run_id: The run.
        fetched: The result of `fetch_timings`.
    """
    from mlflow import MlflowClient
    from mlflow.entities import RunTag

    left = {path.name.removesuffix(TIMINGS_SUFFIX): path for path in folder.iterdir()}
    for path in (path for name, path in left.items() if path.is_file() and name not in fetched):
        client = MlflowClient()
        client.log_artifact(run_id, str(path.rename(folder / _FILE)))
        contained = ",".join(name for name in fetched if not left.get(name, folder).is_file())
        # After the file, and both at once: a run with one of the tags has the other and the file.
        client.log_batch(run_id, tags=[RunTag(CONTAINED_TIMINGS, contained), RunTag(TIMINGS, key)])
