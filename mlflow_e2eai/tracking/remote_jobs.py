"""Runs of jobs that other processes do: begun over there, and ended from here where they die."""

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
from mlflow_e2eai.evaluation.evidence import MachineEvidence
from mlflow_e2eai.tracking.downloads import fetch_text
from mlflow_e2eai.tracking.engine_store import fail_unfinished_models
from mlflow_e2eai.tracking.lineage import ERROR, Shelf
from mlflow_e2eai.tracking.server import at_work

TICKET = "e2eai.ticket"
"""Tag of the runs of one attempt at a job."""

WORKER = "e2eai.worker"
"""Tag of the runs of a job: the machine, or the Ray node, that did it."""

FOUND = "machine_evidence.json"
"""File of an evaluation's run that holds what its machine found."""

_SQLITE = "sqlite:///"

_INHERITED: ContextVar[tuple[str, Mapping[str, str]] | None] = ContextVar(
    "_INHERITED", default=None
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a job's run belongs.

    Attributes:
        tracking_uri: The store.
        experiment_id: The experiment.
        parent_run_id: The run that is its parent.
    """

    tracking_uri: str
    experiment_id: str
    parent_run_id: str


def place_here() -> Place:
    """The place of jobs whose parent is the active run."""
    import mlflow

    uri = str(mlflow.get_tracking_uri())
    if uri.startswith(_SQLITE):
        # Relative to the working folder, which is another one elsewhere.
        uri = _SQLITE + str(Path(uri.removeprefix(_SQLITE)).absolute())
    active: Any = mlflow.active_run()
    return Place(
        tracking_uri=uri,
        experiment_id=active.info.experiment_id,
        parent_run_id=active.info.run_id,
    )


@contextmanager
def working_at(place: Place, ticket: str, *, worker: str, folder: Path) -> Iterator[None]:
    """Have runs that begin in the block, and in no other run, be children of the place's parent.

    Args:
        place: Where.
        ticket: What they are found by should this process end before them.
        worker: Who does the work, for people.
        folder: Where this process keeps the graphs of its jobs.
    """
    import mlflow

    # MLflow would ask for every run that ends, to print where it can be seen.
    os.environ["MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT"] = "true"
    mlflow.set_tracking_uri(place.tracking_uri)
    tags = {"mlflow.parentRunId": place.parent_run_id, TICKET: ticket, WORKER: worker}
    # MLflow's own active experiment would be asked for.
    token = _INHERITED.set((place.experiment_id, tags))
    try:
        with at_work(), _shelf(folder).at_hand():
            yield
    finally:
        _INHERITED.reset(token)


@functools.cache
def _shelf(folder: Path) -> Shelf:
    return Shelf(folder)


def inherited() -> tuple[str, Mapping[str, str]] | None:
    """The experiment and tags of a run without an active one in `working_at`; None outside it."""
    return _INHERITED.get()


def log_found(found: MachineEvidence, run_id: str) -> None:
    """Keep what a machine found with the run of its evaluation."""
    from mlflow import MlflowClient

    MlflowClient().log_text(run_id, to_json(found), FOUND)


def fetch_found(run_id: str) -> MachineEvidence:
    """What the machine of an evaluation found.

    Raises:
        ArtifactError: It is not what `log_found` writes.
        TrackingError: It is not there.
    """
    return from_json(MachineEvidence, fetch_text(f"runs:/{run_id}/{FOUND}"))


def end_attempt(place: Place, ticket: str, *, name: str, error: str, log: str) -> str:
    """End the runs of an attempt that failed as FAILED, with its reason and its log.

    Args:
        place: Where they are.
        ticket: What they are found by. Where there is none yet, one is made.
        name: Name of that one.
        error: The reason.
        log: What the worker wrote; kept as ``job.log`` of the first of them.

    Returns:
        Id of the first of them.
    """
    from mlflow import MlflowClient

    client = MlflowClient(place.tracking_uri)
    begun = client.search_runs(
        [place.experiment_id],
        f"tags.`{TICKET}` = '{ticket}'",
        order_by=["attributes.start_time ASC"],
    )
    tags = {"mlflow.parentRunId": place.parent_run_id, TICKET: ticket}
    runs = [*begun] or [client.create_run(place.experiment_id, run_name=name, tags=tags)]
    first = runs[0].info.run_id
    if log:
        client.log_text(first, log, "job.log")
    below = [
        run
        for above in begun
        for run in client.search_runs(
            [place.experiment_id], f"tags.`mlflow.parentRunId` = '{above.info.run_id}'"
        )
    ]
    for run in [*runs, *below]:
        if run.info.status == "RUNNING":
            fail_unfinished_models(run.info.run_id, place.experiment_id, error)
            client.set_tag(run.info.run_id, ERROR, error)
            client.set_terminated(run.info.run_id, "FAILED")
    return str(first)
