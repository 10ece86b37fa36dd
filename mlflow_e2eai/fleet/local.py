"""Workers on this machine: a pool of threads, each of which waits for its worker process.

The counterpart of ray.py, whose `run_jobs` has the same form.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from queue import SimpleQueue
from typing import TypeVar

from mlflow_e2eai.fleet.job import Job
from mlflow_e2eai.fleet.worker import AttemptJob, JobWorker

Result = TypeVar("Result")


def run_jobs(
    jobs: Sequence[Job], run_job: Callable[[Job, AttemptJob], Result], *, workers: int
) -> list[Result]:
    """Run jobs in worker processes.

    Args:
        jobs: The jobs.
        run_job: Runs one, by as many attempts as it needs.
        workers: Number of processes, at most.

    Returns:
        The results, in the order of the jobs.
    """
    count = min(workers, len(jobs))
    if not count:
        return []
    with ExitStack() as stack:
        pool_of_workers = [stack.enter_context(closing(JobWorker())) for _ in range(count)]
        idle: SimpleQueue[JobWorker] = SimpleQueue()
        for worker in pool_of_workers:
            idle.put(worker)

        def run_on_idle_worker(job: Job) -> Result:
            worker = idle.get()
            try:
                return run_job(job, worker.attempt)
            finally:
                idle.put(worker)

        pool = stack.enter_context(ThreadPoolExecutor(count))
        results = [pool.submit(run_on_idle_worker, job) for job in jobs]
        try:
            return [result.result() for result in results]
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            for worker in pool_of_workers:
                worker.stop()
            raise
