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

from mlflow_e2eai.engine.targets import covers, parse
from mlflow_e2eai.errors import InvalidInputError, MissingDependencyError
from mlflow_e2eai.fleet.job import Attempt, Job
from mlflow_e2eai.fleet.worker import Attempting, Order, Seat

Result = TypeVar("Result")

_MOST_AT_ONCE = 256
"""Jobs that Ray is given at once: a thread waits for each."""

_ACCELERATOR = "accelerator_type:"
"""How Ray writes a node's accelerator type among its resources."""

_CAPABILITY = "e2eai_"
"""Begins the name of a custom resource that says a node's compute capability by hand, for example
``e2eai_sm90``, where Ray knows no type of its GPU."""

_SOME = 0.001
"""How much of such a resource a job takes, as Ray does of an accelerator type: the GPU itself is
counted beside it."""

ACCELERATORS: Mapping[str, tuple[str, ...]] = {
    "sm75": ("T4",),
    "sm80": ("A100", "A100-40G", "A100-80G"),
    "sm86": ("A10G",),
    "sm89": ("L4", "L40S"),
    "sm90": ("H100", "H200", "H20"),
    "sm100": ("B200", "GB200"),
    "sm103": ("B300", "GB300"),
    "sm120": ("RTX-PRO-6000",),
}
"""Accelerator types of each compute capability: the names are those of ``ray.util.accelerators``
of Ray 2.60, the capabilities those of https://developer.nvidia.com/cuda/gpus."""


def each(jobs: Sequence[Job], do: Callable[[Job, Attempting], Result]) -> list[Result]:
    """Do all jobs, as many at once as the cluster has room for; results are in their order.

    The cluster is the one that Ray finds (``RAY_ADDRESS``, or one on this machine), else a new one
    of this machine alone. Its nodes need this package, and reach the tracking server by its URI.

    Args:
        jobs: The jobs.
        do: Does one, given what attempts an order on the cluster.

    Raises:
        InvalidInputError: No node has what a compile job needs.
        MissingDependencyError: Ray is not installed.
    """
    if not jobs:
        return []
    with _connected() as ray:
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        for job in jobs:
            if job.stage == "compile":
                _wanted(job, nodes)  # all of them, before any begins
        remote = ray.remote(_attempt)

        def attempt(order: Order) -> Attempt:
            try:
                options = _wanted(order.job, nodes)
            except InvalidInputError as error:  # what it would judge is built, so it fails alone
                return Attempt(error=str(error))
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
    ways = _ways(job)
    found = [(way, [node for node in nodes if _has(node, way)]) for way in ways]
    needs, fit = next(((way, fit) for way, fit in found if fit), (ways[0], []))
    if not fit:
        known = {key for node in nodes for key in node if not key.startswith("node:")}
        wanted = " or ".join(
            ", ".join(f"{key} {much:g}" for key, much in way.items()) for way in ways
        )
        msg = f"No node of the Ray cluster has what {job.name} needs ({wanted}); there are "
        msg += f"{', '.join(sorted(known))}."
        raise InvalidInputError(msg)
    # What is measured is measured alone on its node: it takes all cores of the smallest that fits.
    alone = min(node["CPU"] for node in fit)
    return {
        "num_cpus": alone if job.stage == "evaluate" else 1,
        "num_gpus": needs.get("GPU", 0),
        # Ray takes an accelerator type as the resource that it is.
        "resources": {key: much for key, much in needs.items() if key not in ("CPU", "GPU")},
    }


def _ways(job: Job) -> list[dict[str, float]]:
    """The resources that a job needs; of several, one will do, the first there is."""
    needs = {"CPU": 1.0, **job.resources}
    if job.accelerator is not None:
        kinds = [f"{_ACCELERATOR}{job.accelerator}"]
    elif job.capability is None:
        return [needs]
    else:
        kinds = [kind for name in _capabilities(job) for kind in _kinds(name)]
    ways = [{**needs, kind: _SOME, "GPU": 1.0} for kind in kinds]
    return ways if job.accelerator or job.capability else [*ways, {**needs, "GPU": 1.0}]


def _capabilities(job: Job) -> list[str]:
    """Those that a job's GPU may have; of any, what an engine for all GPUs runs on goes first."""
    if job.capability:
        return job.capability.split("+")
    rtx = parse("rtx")
    return [name for name in ACCELERATORS if job.stage == "evaluate" and covers(rtx, name)]


def _kinds(capability: str) -> list[str]:
    known = ACCELERATORS.get(capability, ())
    return [f"{_CAPABILITY}{capability}", *(f"{_ACCELERATOR}{kind}" for kind in known)]


def _has(node: Mapping[str, float], needs: Mapping[str, float]) -> bool:
    return all(node.get(key, 0) >= much for key, much in needs.items())


def _attempt(order: Order) -> Attempt:
    """On a node of the cluster: one attempt."""
    import ray

    node = ray.get_runtime_context().get_node_id()
    return _seat().attempt(dataclasses.replace(order, worker=f"Ray node {node}"))


@functools.cache
def _seat() -> Seat:
    """The seat of this Ray worker, which Ray keeps for more jobs."""
    return Seat()
