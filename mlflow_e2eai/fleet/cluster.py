"""Workers of a Ray cluster: each job goes where its GPU type is.

A Ray task asks a `Seat` on its node, as a thread does here. Ray tries nothing again by itself: a
lost attempt must first be ended in the tracking store, so the tries are counted where all are seen.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, TypeVar

from mlflow_e2eai.errors import InvalidInputError, MissingDependencyError
from mlflow_e2eai.fleet.values import Attempt, Job
from mlflow_e2eai.fleet.working import Attempting, Order, Seat

Result = TypeVar("Result")

_MOST_AT_ONCE = 256
"""Jobs that Ray is given at once: a thread waits for each."""

_ACCELERATOR = "accelerator_type:"
"""How Ray writes a node's accelerator type among its resources."""


def each(jobs: Sequence[Job], do: Callable[[Job, Attempting], Result]) -> list[Result]:
    """Do all jobs, as many at once as the cluster has room for; results are in their order.

    The cluster is the one that Ray finds (``RAY_ADDRESS``, or one on this machine), else a new one
    of this machine alone. Its nodes need this package, and reach the tracking server by its URI.

    Args:
        jobs: The jobs.
        do: Does one, given what attempts an order on the cluster.

    Raises:
        InvalidInputError: No node has what a job needs.
        MissingDependencyError: Ray is not installed.
    """
    if not jobs:
        return []
    with _connected() as ray:
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        for job in jobs:
            _wanted(job, nodes)  # all of them, before any begins
        remote = ray.remote(_attempt)

        def attempt(order: Order) -> Attempt:
            options = _wanted(order.job, nodes)
            try:
                tried: Attempt = ray.get(remote.options(max_retries=0, **options).remote(order))
            except ray.exceptions.RayError as error:
                reason = str(error).strip().partition("\n")[0]
                return Attempt(error=f"Its Ray worker was lost: {reason}", lost=True)
            return tried

        with ThreadPoolExecutor(min(len(jobs), _MOST_AT_ONCE)) as pool:
            return list(pool.map(lambda job: do(job, attempt), jobs))


@contextmanager
def _connected() -> Iterator[Any]:
    try:
        import ray
    except ImportError as error:
        raise MissingDependencyError(
            package="ray", extra="ray", purpose="The executor 'ray'"
        ) from error
    ours = not ray.is_initialized()
    if ours:
        ray.init(log_to_driver=False)
    try:
        yield ray
    finally:
        if ours:
            ray.shutdown()


def _wanted(job: Job, nodes: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    """Ray's options for a job.

    Raises:
        InvalidInputError: No node has that; Ray itself would wait for one for ever.
    """
    needs = {"CPU": 1.0, **job.resources}
    if job.accelerator is not None:
        needs |= {f"{_ACCELERATOR}{job.accelerator}": 0.001, "GPU": 1.0}
    fit = [node for node in nodes if all(node.get(key, 0) >= much for key, much in needs.items())]
    if not fit:
        known = {key for node in nodes for key in node if not key.startswith("node:")}
        wanted = ", ".join(f"{key} {much:g}" for key, much in needs.items())
        msg = f"No node of the Ray cluster has what {job.name} needs ({wanted}); there are "
        msg += f"{', '.join(sorted(known))}."
        raise InvalidInputError(msg)
    # What is measured is measured alone on its node: it takes all cores of the smallest that fits.
    alone = min(node["CPU"] for node in fit)
    return {
        "num_cpus": alone if job.stage == "evaluate" else 1,
        "num_gpus": needs.get("GPU", 0),
        "accelerator_type": job.accelerator,
        "resources": dict(job.resources),
    }


def _attempt(order: Order) -> Attempt:
    """On a node of the cluster: one attempt."""
    import ray

    node = ray.get_runtime_context().get_node_id()
    return _seat().attempt(dataclasses.replace(order, worker=f"Ray node {node}"))


@functools.cache
def _seat() -> Seat:
    """The seat of this Ray worker, which Ray keeps for more jobs."""
    return Seat()
