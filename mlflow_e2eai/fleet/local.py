"""Workers here: a thread for each, that waits for its process."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from queue import SimpleQueue
from typing import TypeVar

from mlflow_e2eai.fleet.job import Job
from mlflow_e2eai.fleet.worker import Attempting, Seat

Result = TypeVar("Result")


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0))


def each(
    jobs: Sequence[Job], do: Callable[[Job, Attempting], Result], *, workers: int
) -> list[Result]:
    """Do all jobs, with so many processes; results are in their order.

    Args:
        jobs: The jobs.
        do: Does one, given what attempts an order in a process.
        workers: Number of processes.
    """
    count = min(workers, len(jobs))
    if not count:
        return []
    with ExitStack() as stack:
        idle: SimpleQueue[Seat] = SimpleQueue()
        seats = [stack.enter_context(closing(Seat())) for _ in range(count)]
        for seat in seats:
            idle.put(seat)

        def sit(job: Job) -> Result:
            seat = idle.get()
            try:
                return do(job, seat.attempt)
            finally:
                idle.put(seat)

        pool = stack.enter_context(ThreadPoolExecutor(count))
        results = [pool.submit(sit, job) for job in jobs]
        try:
            return [result.result() for result in results]
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            for seat in seats:
                seat.stop()
            raise
