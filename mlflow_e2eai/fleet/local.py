"""Workers here: a thread for each, that waits for its process."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from queue import SimpleQueue
from typing import TypeVar

from mlflow_e2eai.fleet.values import Attempt
from mlflow_e2eai.fleet.working import Order, Seat

Work = TypeVar("Work")
Result = TypeVar("Result")

Attempting = Callable[[Order], Attempt]


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0))


def each(
    works: Sequence[Work], do: Callable[[Work, Attempting], Result], *, workers: int
) -> list[Result]:
    """Do all of it, with so many processes; results are in the order of what was given.

    Args:
        works: What there is to do.
        do: Does one, given what attempts an order in a process.
        workers: Number of processes.
    """
    count = min(workers, len(works))
    if not count:
        return []
    with ExitStack() as stack:
        idle: SimpleQueue[Seat] = SimpleQueue()
        seats = [stack.enter_context(closing(Seat())) for _ in range(count)]
        for seat in seats:
            idle.put(seat)

        def sit(work: Work) -> Result:
            seat = idle.get()
            try:
                return do(work, seat.attempt)
            finally:
                idle.put(seat)

        pool = stack.enter_context(ThreadPoolExecutor(count))
        results = [pool.submit(sit, work) for work in works]
        try:
            return [result.result() for result in results]
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            for seat in seats:
                seat.stop()
            raise
