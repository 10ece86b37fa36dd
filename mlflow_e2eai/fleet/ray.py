"""Workers of a Ray cluster: each job runs on a node with its GPU type.

A Ray task waits for a `JobWorker` on its node, as a thread does in local.py. Ray retries nothing by
itself: a lost attempt must first be ended in the tracking store, so `fleet.run` counts attempts.
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
from mlflow_e2eai.fleet.worker import AttemptJob, JobRequest, JobWorker

Result = TypeVar("Result")

_MOST_AT_ONCE = 256
"""Jobs that are submitted to Ray at once: a thread waits for each."""

_ACCELERATOR = "accelerator_type:"
"""Prefix of the resource by which Ray names a node's accelerator type."""

_CAPABILITY = "e2eai_"
"""Prefix of a custom resource that names a node's compute capability by hand, for example
``e2eai_sm90``, where Ray knows no type of its GPU."""

_SHARE = 0.001
"""Share of such a resource that a job takes, as with an accelerator type in Ray: the GPU itself is
counted separately."""

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


def run_jobs(jobs: Sequence[Job], run_job: Callable[[Job, AttemptJob], Result]) -> list[Result]:
    """Run jobs, as many at once as the cluster has room for.

    The cluster is the one that Ray finds (``RAY_ADDRESS``, or one on this machine), else a new one
    of this machine alone. Its nodes need this package, and reach the tracking server by its URI.

    Args:
        jobs: The jobs.
        run_job: Runs one, by as many attempts as it needs.

    Returns:
        The results, in the order of the jobs.

    Raises:
        InvalidInputError: No node has what a compile job needs.
        MissingDependencyError: Ray is not installed.
    """
    if not jobs:
        return []
    with _connect() as ray:
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        for job in jobs:
            if job.stage == "compile":
                _options(job, nodes)  # checks all of them before any starts
        remote = ray.remote(_attempt)

        def attempt(request: JobRequest) -> Attempt:
            try:
                options = _options(request.job, nodes)
            except InvalidInputError as error:  # its engines are built: it fails alone
                return Attempt(error=str(error))
            try:
                task = remote.options(max_retries=0, **options).remote(request)
                result: Attempt = ray.get(task)
            except ray.exceptions.RayError as error:
                reason = str(error).strip().partition("\n")[0]
                return Attempt(error=f"Its Ray worker died: {reason}", lost=True)
            return result

        with ThreadPoolExecutor(min(len(jobs), _MOST_AT_ONCE)) as pool:
            return list(pool.map(lambda job: run_job(job, attempt), jobs))


@contextmanager
def _connect() -> Iterator[Any]:
    try:
        import ray
    except ImportError as error:
        raise MissingDependencyError(
            package="ray", extra="ray", purpose="The executor 'ray'"
        ) from error
    is_new = not ray.is_initialized()
    if is_new:
        ray.init(log_to_driver=False)
    try:
        yield ray
    finally:
        if is_new:
            ray.shutdown()


def _options(job: Job, nodes: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    """Ray's options for the task of a job.

    Raises:
        InvalidInputError: No node has the resources; Ray itself would wait for one for ever.
    """
    choices = _resource_choices(job)
    fitting = [(needs, [node for node in nodes if _has(node, needs)]) for needs in choices]
    needs, fit = next(((needs, fit) for needs, fit in fitting if fit), (choices[0], []))
    if not fit:
        known = {key for node in nodes for key in node if not key.startswith("node:")}
        wanted = " or ".join(
            ", ".join(f"{key} {much:g}" for key, much in choice.items()) for choice in choices
        )
        msg = f"No node of the Ray cluster has what {job.name} needs ({wanted}); there are "
        msg += f"{', '.join(sorted(known))}."
        raise InvalidInputError(msg)
    # A measurement runs alone on its node: it takes all cores of the smallest that fits.
    alone = min(node["CPU"] for node in fit)
    return {
        "num_cpus": 1 if job.stage == "compile" else alone,
        "num_gpus": needs.get("GPU", 0),
        # Ray takes an accelerator type as the resource that it is.
        "resources": {key: much for key, much in needs.items() if key not in ("CPU", "GPU")},
    }


def _resource_choices(job: Job) -> list[dict[str, float]]:
    """The resources that a job needs: several choices, of which the first that exists is taken."""
    needs = {"CPU": 1.0, **job.resources}
    if job.accelerator is not None:
        names = [f"{_ACCELERATOR}{job.accelerator}"]
    elif job.capability is None:
        return [needs]
    else:
        names = [name for sm in _capabilities(job) for name in _resource_names(sm)]
    choices = [{**needs, name: _SHARE, "GPU": 1.0} for name in names]
    return choices if job.accelerator or job.capability else [*choices, {**needs, "GPU": 1.0}]


def _capabilities(job: Job) -> list[str]:
    """The capabilities that a job's GPU may have: for any GPU, those of an engine for all GPUs."""
    if job.capability:
        return job.capability.split("+")
    rtx = parse("rtx")
    return [name for name in ACCELERATORS if job.stage != "compile" and covers(rtx, name)]


def _resource_names(capability: str) -> list[str]:
    types = ACCELERATORS.get(capability, ())
    return [f"{_CAPABILITY}{capability}", *(f"{_ACCELERATOR}{name}" for name in types)]


def _has(node: Mapping[str, float], needs: Mapping[str, float]) -> bool:
    return all(node.get(key, 0) >= much for key, much in needs.items())


def _attempt(request: JobRequest) -> Attempt:
    """Attempt a job on the node of the cluster where this is called."""
    import ray

    node = ray.get_runtime_context().get_node_id()
    return _job_worker().attempt(dataclasses.replace(request, worker=f"Ray node {node}"))


@functools.cache
def _job_worker() -> JobWorker:
    """The worker process of this Ray worker, which Ray reuses for further jobs."""
    return JobWorker()
