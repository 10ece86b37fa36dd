"""Runs of jobs in other processes: started there, ended here where their process died."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlflow_e2eai.artifacts.files import from_json, to_json
from mlflow_e2eai.bundle.side_by_side import SideBySide
from mlflow_e2eai.evaluation.evidence import MachineEvidence
from mlflow_e2eai.tracking.downloads import fetch_text
from mlflow_e2eai.tracking.lineage import ERROR, PARENT_RUN, GraphCache
from mlflow_e2eai.tracking.server import cached_lookups
from mlflow_e2eai.tracking.store.artifact_store import fail_unfinished_models

ATTEMPT = "e2eai.ticket"
"""Tag of the runs of one attempt at a job: the id of the attempt."""

WORKER = "e2eai.worker"
"""Tag of the runs of a job: the machine, or the Ray node, that ran it."""

EVIDENCE = "machine_evidence.json"
"""File of an evaluation's run with the evidence of its machine."""

SIDE_BY_SIDE = "side_by_side.json"
"""File of a run in which a machine measured two bundles."""

_SQLITE = "sqlite:///"

_INHERITED: ContextVar[tuple[str, Mapping[str, str]] | None] = ContextVar(
    "_INHERITED", default=None
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ParentRun:
    """The parent of the runs of jobs, for other processes.

    Attributes:
        tracking_uri: The tracking store.
        experiment_id: The experiment.
        run_id: The run.
    """

    tracking_uri: str
    experiment_id: str
    run_id: str


def active_parent() -> ParentRun:
    """Return the active run as a parent."""
    import mlflow

    uri = str(mlflow.get_tracking_uri())
    if uri.startswith(_SQLITE):
        # Relative to the working folder, which another process need not share.
        uri = _SQLITE + str(Path(uri.removeprefix(_SQLITE)).absolute())
    active: Any = mlflow.active_run()
    return ParentRun(
        tracking_uri=uri, experiment_id=active.info.experiment_id, run_id=active.info.run_id
    )


@contextmanager
def child_runs(parent: ParentRun, attempt_id: str, *, worker: str, folder: Path) -> Iterator[None]:
    """Make runs that start in the block, inside no other run, children of a parent.

    Args:
        parent: The parent, of another process.
        attempt_id: Their tag, by which they are found should this process end before them.
        worker: Name of the worker, for people.
        folder: A folder of this process for the graphs of its jobs.
    """
    import mlflow

    # MLflow would request every run that ends, to print its address.
    os.environ["MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT"] = "true"
    mlflow.set_tracking_uri(parent.tracking_uri)
    tags = {PARENT_RUN: parent.run_id, ATTEMPT: attempt_id, WORKER: worker}
    # MLflow's own active experiment would be requested.
    token = _INHERITED.set((parent.experiment_id, tags))
    try:
        with cached_lookups(), _graph_cache(folder).in_use():
            yield
    finally:
        _INHERITED.reset(token)


@functools.cache
def _graph_cache(folder: Path) -> GraphCache:
    return GraphCache(folder)


def inherited_context() -> tuple[str, Mapping[str, str]] | None:
    """The experiment and tags of a run that starts in `child_runs`; None outside it."""
    return _INHERITED.get()


def log_evidence(evidence: MachineEvidence, run_id: str) -> None:
    """Log the evidence of this machine on the run of its evaluation."""
    from mlflow import MlflowClient

    MlflowClient().log_text(run_id, to_json(evidence), EVIDENCE)


def fetch_evidence(run_id: str) -> MachineEvidence:
    """Fetch the evidence that `log_evidence` logged on a run.

    Raises:
        ArtifactError: The file is not what `log_evidence` writes.
        TrackingError: There is no such file.
    """
    return from_json(MachineEvidence, fetch_text(f"runs:/{run_id}/{EVIDENCE}"))


def log_side_by_side(measured: SideBySide, run_id: str) -> None:
    """Log what this machine measured of two bundles on the run of its job."""
    from mlflow import MlflowClient

    MlflowClient().log_text(run_id, to_json(measured), SIDE_BY_SIDE)


def fetch_side_by_side(run_id: str) -> SideBySide:
    """Fetch what `log_side_by_side` logged on a run; the errors are those of `fetch_evidence`."""
    return from_json(SideBySide, fetch_text(f"runs:/{run_id}/{SIDE_BY_SIDE}"))


def fail_attempt(parent: ParentRun, attempt_id: str, *, name: str, error: str, log: str) -> str:
    """End the runs of a failed attempt as FAILED, with its reason and its log.

    Args:
        parent: Their parent.
        attempt_id: Their tag. Where no run has it yet, one is created.
        name: Name of that run.
        error: The reason.
        log: The output of the worker, which becomes ``job.log`` of the first run.

    Returns:
        Id of the first run.
    """
    from mlflow import MlflowClient

    client = MlflowClient(parent.tracking_uri)
    started = client.search_runs(
        [parent.experiment_id],
        f"tags.`{ATTEMPT}` = '{attempt_id}'",
        order_by=["attributes.start_time ASC"],
    )
    tags = {PARENT_RUN: parent.run_id, ATTEMPT: attempt_id}
    runs = [*started] or [client.create_run(parent.experiment_id, run_name=name, tags=tags)]
    first = runs[0].info.run_id
    if log:
        client.log_text(first, log, "job.log")
    children = [
        child
        for run in started
        for child in client.search_runs(
            [parent.experiment_id], f"tags.`{PARENT_RUN}` = '{run.info.run_id}'"
        )
    ]
    for run in [*runs, *children]:
        if run.info.status == "RUNNING":
            fail_unfinished_models(run.info.run_id, parent.experiment_id, error)
            client.set_tag(run.info.run_id, ERROR, error)
            client.set_terminated(run.info.run_id, "FAILED")
    return str(first)
