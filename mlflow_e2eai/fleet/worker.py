"""One attempt at a job, in a worker process next to the thread or task that waits for it.

A builder is native code that may crash, hang or take all memory. In a process it leaves its log and
its exit code; the process is reused for the next job, as importing MLflow takes seconds.
"""

from __future__ import annotations

import socket
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TypeAlias

from mlflow_e2eai import bundle, tracking
from mlflow_e2eai.artifacts.libraries import native_allowed
from mlflow_e2eai.bundle.side_by_side import SideBySide, measure_side_by_side
from mlflow_e2eai.engine.stage import reuse_builder
from mlflow_e2eai.errors import E2EAIError
from mlflow_e2eai.fleet.job import Attempt, Job
from mlflow_e2eai.pipeline import jobs
from mlflow_e2eai.runtime.process import WorkerProcess
from mlflow_e2eai.runtime.worker import Worker
from mlflow_e2eai.tracking import remote_jobs


@dataclass(frozen=True, slots=True, kw_only=True)
class JobRequest:
    """One attempt at a job, as it is sent to a worker.

    Attributes:
        job: The job.
        parent: The run that is the parent of the job's run.
        attempt_id: Tag of the runs of this attempt.
        allowed: File names of the libraries in models that may be loaded.
        timeout_s: Seconds after which the worker is taken to hang.
        worker: Name of the machine, or of the Ray node; None for the name of this machine.
    """

    job: Job
    parent: remote_jobs.ParentRun
    attempt_id: str
    allowed: frozenset[str]
    timeout_s: float
    worker: str | None = None


AttemptJob: TypeAlias = Callable[[JobRequest], Attempt]
"""Runs a job once, in some worker."""


class JobWorker:
    """A worker process for jobs, replaced by a new one where it has ended."""

    def __init__(self) -> None:
        self._process: WorkerProcess | None = None
        self._folder = Path()
        self._stack = ExitStack()
        self._stopped = False

    def attempt(self, request: JobRequest) -> Attempt:
        """Run a job once; an error, or the end of the process, is an attempt that failed."""
        process = self._live_process()
        since = len(process.log())
        work = partial(run_job, request=request, folder=self._folder)
        try:
            attempt: Attempt = process.call(work, timeout_s=request.timeout_s)
        except E2EAIError as error:
            log = process.log(since).decode(errors="replace")
            return Attempt(error=str(error), lost=process.has_ended and not self._stopped, log=log)
        return attempt

    def stop(self) -> None:
        """Kill the process during a job, from another thread; the job does not count as lost."""
        self._stopped = True
        if self._process is not None:
            self._process.kill()

    def close(self) -> None:
        """End the process."""
        self._process = None
        self._stack.close()

    def _live_process(self) -> WorkerProcess:
        if self._process is not None and self._process.has_ended:
            self.close()
        if self._process is None:
            self._folder = Path(self._stack.enter_context(TemporaryDirectory()))
            self._process = self._stack.enter_context(closing(WorkerProcess()))
        return self._process


def run_job(_: Worker, *, request: JobRequest, folder: Path) -> Attempt:
    """Run a job in a worker process.

    Args:
        request: The job.
        folder: A folder of this process, for graphs that its next job may need too.

    Returns:
        The attempt, which succeeded.

    Raises:
        E2EAIError: The job failed; the traceback is in the log.
    """
    job = request.job
    if job.stage == "compile":
        reuse_builder()
    worker = request.worker or socket.gethostname()
    try:
        with (
            native_allowed(request.allowed),
            remote_jobs.child_runs(
                request.parent, request.attempt_id, worker=worker, folder=folder
            ),
        ):
            return _STAGES[job.stage](job)
    except Exception:
        traceback.print_exc()  # into the log
        raise


def _compile(job: Job) -> Attempt:
    return Attempt(models=tuple(jobs.compile(job.model_uri, **job.arguments)))


def _evaluate(job: Job) -> Attempt:
    with tracking.run(job.name, nested=True, tags={tracking.STAGE: "evaluate"}) as run_id:
        remote_jobs.log_evidence(jobs.evaluate(job.model_uri, **job.arguments), run_id)
    return Attempt(run_id=run_id)


def _remeasure(job: Job) -> Attempt:
    with tracking.run(job.name, nested=True, tags={tracking.STAGE: "remeasure"}) as run_id:
        remote_jobs.log_side_by_side(remeasure(job.model_uri, **job.arguments), run_id)
    return Attempt(run_id=run_id)


def remeasure(model_uri: str, *, champion: str, variants: Sequence[str] = ()) -> SideBySide:
    """Measure the latency of two bundles on this machine, in turns; every file is verified.

    Args:
        model_uri: A bundle.
        champion: The bundle whose time is the unit.
        variants: See `measure_side_by_side`.
    """
    with TemporaryDirectory() as folder:
        paths = []
        for uri in (model_uri, champion):
            model = tracking.ancestor(tracking.resolve(uri), ("package",))
            place = Path(folder, str(model.model_id))
            place.mkdir()
            paths.append(tracking.fetch_verified(model, place) / bundle.FOLDER)
        return measure_side_by_side(*paths, variants=variants)


_STAGES: Mapping[str, Callable[[Job], Attempt]] = {
    "compile": _compile,
    "evaluate": _evaluate,
    "remeasure": _remeasure,
}
