"""A list of jobs, under one parent run."""

from __future__ import annotations

import uuid
from collections.abc import Sequence

from mlflow_e2eai import tracking
from mlflow_e2eai.artifacts.libraries import allowed_names
from mlflow_e2eai.errors import InvalidInputError
from mlflow_e2eai.fleet import local, ray
from mlflow_e2eai.fleet.job import EXECUTORS, Executor, Job, Outcome
from mlflow_e2eai.fleet.worker import Attempting, Order

LIMIT_S = 3600.0
"""Seconds that a job may take: a choice. Builds seen here took seconds; a large network at full
optimisation may take tens of minutes."""

ATTEMPTS = 2
"""A lost job may have met a sick machine; one that is lost twice is the cause itself."""


def run(
    jobs: Sequence[Job],
    *,
    executor: Executor = "local",
    workers: int | None = None,
    limit_s: float = LIMIT_S,
) -> list[Outcome]:
    """Do jobs under the active run, or under a new one named ``fleet``.

    Each job gets a run of its own. One that fails fails alone: its run is FAILED, says why, and
    keeps ``job.log``. One whose worker is lost (crashed, killed, or silent for too long) is tried
    once again. Engines are built before anything is evaluated, and here one evaluation runs at a
    time, as neighbours would spoil what it measures.

    Args:
        jobs: The jobs. Equal ones are done once.
        executor: ``local`` for processes here, ``ray`` for a Ray cluster.
        workers: Processes here; by default one for each core. A Ray cluster knows its own.
        limit_s: Seconds after which a worker is taken to hang.

    Returns:
        What came of each, in the order of the jobs.

    Raises:
        InvalidInputError: There is no such executor, fewer than one worker, or no node of the
            cluster that has what a compile job needs.
        MissingDependencyError: Ray is wanted and not installed.
        TrackingError: The tracking server cannot be reached.
    """
    check_executor(executor, workers)
    distinct = [job for at, job in enumerate(jobs) if job not in jobs[:at]]
    found: list[Outcome] = []
    with tracking.run("fleet"):
        tries = _Tries(tracking.place_here(), limit_s)
        for stage, most in (("compile", workers or local.cores()), ("evaluate", 1)):
            of_stage = [job for job in distinct if job.stage == stage]
            if executor == "ray":
                found += ray.each(of_stage, tries.done)
            else:
                found += local.each(of_stage, tries.done, workers=most)
    return [next(outcome for outcome in found if outcome.job == job) for job in jobs]


def check_executor(executor: str, workers: int | None) -> None:
    """Refuse what `run` cannot use.

    Raises:
        InvalidInputError: There is no such executor, or fewer than one worker.
    """
    if executor not in EXECUTORS:
        msg = f"executor is {executor!r}, but one of {', '.join(EXECUTORS)} is wanted."
        raise InvalidInputError(msg)
    if workers is not None and workers < 1:
        msg = f"workers is {workers}, but at least 1 is wanted."
        raise InvalidInputError(msg)


class _Tries:
    """Tries jobs until they are done or given up."""

    def __init__(self, place: tracking.Place, limit_s: float) -> None:
        self._place = place
        self._limit_s = limit_s
        self._allowed = allowed_names()

    def done(self, job: Job, attempt: Attempting) -> Outcome:
        """What came of a job."""
        failed: list[str] = []
        while True:
            ticket = uuid.uuid4().hex
            order = Order(
                job=job,
                place=self._place,
                ticket=ticket,
                allowed=self._allowed,
                limit_s=self._limit_s,
            )
            tried = attempt(order)
            if tried.error is None:
                return Outcome(
                    job=job,
                    models=tried.models,
                    run_id=tried.run_id,
                    failed_runs=tuple(failed),
                )
            failed.append(
                tracking.end_attempt(
                    self._place, ticket, name=job.name, error=tried.error, log=tried.log
                )
            )
            if not tried.lost or len(failed) == ATTEMPTS:
                return Outcome(job=job, error=tried.error, failed_runs=tuple(failed))
