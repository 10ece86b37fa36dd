"""One attempt at a job, in a process of its own beside whoever asked for it.

A builder is native code that may crash, hang or take all memory. It does so in a process that
leaves its log and its death behind, and that is kept for the next job where it lives.
"""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import traceback
from collections.abc import Callable, Mapping
from contextlib import ExitStack, closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TypeAlias

from mlflow_e2eai import tracking
from mlflow_e2eai.artifacts.libraries import native_allowed
from mlflow_e2eai.engine.stage import keep_builder
from mlflow_e2eai.errors import E2EAIError
from mlflow_e2eai.fleet.job import Attempt, Job
from mlflow_e2eai.pipeline import jobs
from mlflow_e2eai.runtime.process import Process

_PR_SET_PDEATHSIG = 1
"""From Linux's ``prctl.h``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """All that a worker is told of a job.

    Attributes:
        job: The job.
        place: Where its run belongs.
        ticket: What the runs of this attempt are found by.
        allowed: Libraries in models that may be loaded, by file name.
        limit_s: Seconds after which the worker is taken to hang.
        worker: Who does it; None for this machine.
    """

    job: Job
    place: tracking.Place
    ticket: str
    allowed: frozenset[str]
    limit_s: float
    worker: str | None = None


Attempting: TypeAlias = Callable[[Order], Attempt]
"""Has the job of an order done, once."""


class Seat:
    """A process for jobs, and the next one where that has ended."""

    def __init__(self) -> None:
        self._process: Process | None = None
        self._folder = Path()
        self._stack = ExitStack()
        self._limit_s = 0.0
        self._stopped = False

    def attempt(self, order: Order) -> Attempt:
        """Have a job done, once."""
        there = self._sit(order.limit_s)
        since = len(there.log())
        task = partial(work, order, os.getpid(), self._folder)
        try:
            done: Attempt = there.do("call", {}, function=task)
        except E2EAIError as error:
            log = there.log(since).decode(errors="replace")
            return Attempt(error=str(error), lost=there.ended and not self._stopped, log=log)
        return done

    def stop(self) -> None:
        """End what is being done, for good."""
        self._stopped = True
        if self._process is not None:
            self._process.kill()

    def close(self) -> None:
        """End the process."""
        self._process = None
        self._stack.close()

    def _sit(self, limit_s: float) -> Process:
        if self._process is not None and (self._process.ended or self._limit_s != limit_s):
            self.close()
        if self._process is None:
            self._folder = Path(self._stack.enter_context(TemporaryDirectory()))
            self._process = self._stack.enter_context(closing(Process(patience_s=limit_s)))
            self._limit_s = limit_s
        return self._process


def work(order: Order, parent: int, folder: Path) -> Attempt:
    """Do a job: the other side of `Seat.attempt`.

    Args:
        order: The job.
        parent: The process that waits for it.
        folder: What this process keeps for its next job is there.

    Returns:
        What came of it, where it did not fail.
    """
    _end_with(parent)
    job = order.job
    if job.stage == "compile":
        keep_builder()
    worker = order.worker or socket.gethostname()
    try:
        with (
            native_allowed(order.allowed),
            tracking.working_at(order.place, order.ticket, worker=worker, folder=folder),
        ):
            return _STAGES[job.stage](job)
    except Exception:
        traceback.print_exc()  # into the log
        raise


def _end_with(parent: int) -> None:
    """End this process with its parent: nobody would wait for what it makes, or know of it."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def _compile(job: Job) -> Attempt:
    return Attempt(models=tuple(jobs.compile(job.model_uri, **job.arguments)))


def _evaluate(job: Job) -> Attempt:
    with tracking.run(job.name, nested=True, tags={tracking.STAGE: "evaluate"}) as run_id:
        tracking.log_found(jobs.evaluate(job.model_uri, **job.arguments), run_id)
    return Attempt(run_id=run_id)


_STAGES: Mapping[str, Callable[[Job], Attempt]] = {"compile": _compile, "evaluate": _evaluate}
