"""A list of jobs, under one parent run."""

from __future__ import annotations

import functools
import uuid
from collections.abc import Sequence

from mlflow_e2eai import tracking
from mlflow_e2eai.artifacts.libraries import allowed_names
from mlflow_e2eai.artifacts.machine import processors
from mlflow_e2eai.errors import InvalidInputError, require_kind, suggestion
from mlflow_e2eai.fleet import local, ray
from mlflow_e2eai.fleet.job import EXECUTORS, Executor, Job, Outcome
from mlflow_e2eai.fleet.worker import AttemptJob, JobRequest
from mlflow_e2eai.tracking import remote_jobs

TIMEOUT_S = 3600.0
"""Seconds that a job may take: a choice. Builds seen here took seconds; a large network at full
optimisation may take tens of minutes."""

ATTEMPTS = 2
"""A lost job may be the machine's fault; one that is lost twice is taken for the cause."""


def run(
    jobs: Sequence[Job],
    *,
    executor: Executor = "local",
    workers: int | None = None,
    timeout_s: float = TIMEOUT_S,
) -> list[Outcome]:
    """Run jobs under the active run, or under a new one named ``fleet``.

    Each job gets a run of its own. One that fails fails alone: its run is FAILED, with the reason
    as the tag ``e2eai.error`` and with ``job.log``. One whose worker is lost (crashed, killed, or
    silent for too long) is tried once again. Engines are built before anything is evaluated, and
    on this machine one measurement runs at a time, as other jobs would disturb it.

    Args:
        jobs: The jobs. Of equal ones one is run.
        executor: ``local`` for processes here, ``ray`` for a Ray cluster.
        workers: Processes here; by default one for each processor. A Ray cluster decides by itself.
        timeout_s: Seconds after which a worker is taken to hang.

    Returns:
        The outcomes, in the order of the jobs.

    Raises:
        InvalidInputError: There is no such executor, fewer than one worker, or no node of the
            cluster that has what a compile job needs.
        MissingDependencyError: Ray is wanted and not installed.
        TrackingError: The tracking server cannot be reached.
    """
    check_executor(executor, workers)
    distinct = [job for at, job in enumerate(jobs) if job not in jobs[:at]]
    outcomes: list[Outcome] = []
    with tracking.run("fleet"):
        run_job = functools.partial(
            _run_job,
            parent=remote_jobs.active_parent(),
            allowed=allowed_names(),
            timeout_s=timeout_s,
        )
        for stage, most in (
            ("compile", workers or processors()),
            ("evaluate", 1),
            ("remeasure", 1),
        ):
            of_stage = [job for job in distinct if job.stage == stage]
            if executor == "ray":
                outcomes += ray.run_jobs(of_stage, run_job)
            else:
                outcomes += local.run_jobs(of_stage, run_job, workers=most)
    return [next(outcome for outcome in outcomes if outcome.job == job) for job in jobs]


def check_executor(executor: str, workers: int | None) -> None:
    """Refuse an executor or number of workers that `run` cannot use.

    Raises:
        InvalidInputError: There is no such executor, or fewer than one worker.
    """
    if require_kind("executor", executor, str, " or ".join(EXECUTORS)) not in EXECUTORS:
        msg = f"There is no executor {executor!r}; {suggestion(executor, EXECUTORS)}"
        raise InvalidInputError(msg)
    if workers is not None and require_kind("workers", workers, int, "a number of processes") < 1:
        msg = f"workers is {workers}, but at least 1 is expected."
        raise InvalidInputError(msg)


def _run_job(
    job: Job,
    attempt_job: AttemptJob,
    *,
    parent: remote_jobs.ParentRun,
    allowed: frozenset[str],
    timeout_s: float,
) -> Outcome:
    """Attempt a job until it succeeds, fails, or is lost too often."""
    failed_runs: list[str] = []
    while True:
        request = JobRequest(
            job=job,
            parent=parent,
            attempt_id=uuid.uuid4().hex,
            allowed=allowed,
            timeout_s=timeout_s,
        )
        attempt = attempt_job(request)
        if attempt.error is None:
            return Outcome(
                job=job,
                models=attempt.models,
                run_id=attempt.run_id,
                failed_runs=tuple(failed_runs),
            )
        failed_runs.append(
            remote_jobs.fail_attempt(
                parent, request.attempt_id, name=job.name, error=attempt.error, log=attempt.log
            )
        )
        if not attempt.lost or len(failed_runs) == ATTEMPTS:
            return Outcome(job=job, error=attempt.error, failed_runs=tuple(failed_runs))
