"""A job, its attempts, and its outcome."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias, get_args

from mlflow_e2eai.engine.targets import parse
from mlflow_e2eai.errors import InvalidInputError, RunnerError

Executor: TypeAlias = Literal["local", "ray"]

JobStage: TypeAlias = Literal["compile", "evaluate", "remeasure"]

EXECUTORS: tuple[Executor, ...] = ("local", "ray")


def uses_other_machines(executor: Executor | None) -> bool:
    """Whether jobs run on other machines, which may have other GPUs."""
    return executor == "ray"


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A stage on a logged model, plain enough to be sent to any machine.

    Attributes:
        stage: The stage.
        model_uri: The model; see `pipeline.jobs.compile`, `pipeline.jobs.evaluate` and
            `worker.remeasure`.
        arguments: The other arguments of those.
        accelerator: Ray's accelerator type that it needs, for example ``H100``; None for one that
            has the compute capability of its target, where that is built on such a GPU only.
        gpu: Compute capability of the GPU that a measurement needs, written as in
            `Target.compute_capability`; None where it needs no GPU.
        resources: Custom resources of Ray that it needs, by name.
    """

    stage: JobStage
    model_uri: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    accelerator: str | None = None
    gpu: str | None = None
    resources: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.stage not in get_args(JobStage):
            stages = " or ".join(get_args(JobStage))
            msg = f"A job's stage is {self.stage!r}, but {stages} is expected."
            raise InvalidInputError(msg)

    @property
    def capability(self) -> str | None:
        """Compute capability of the GPU that it needs: empty for any GPU, None for no GPU.

        TensorRT builds an engine on a GPU like the one that it is for, TensorRT-RTX on any machine.
        """
        if self.stage != "compile":
            return self.gpu
        for text in self.arguments.get("targets", ()):
            if text == "local":
                return ""
            target = parse(text)
            if target.backend == "tensorrt":
                return target.compute_capability
        return None

    @property
    def name(self) -> str:
        """Name of its run until the stage sets another."""
        gpu = () if self.gpu is None else (self.gpu or "rtx",)
        return " ".join([self.stage, *self.arguments.get("targets", ()), *gpu])


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """The result of one attempt at a job.

    Attributes:
        models: Ids of the engines, for ``compile``.
        run_id: The run with what was measured, for the others.
        error: The reason of a failure; None for success.
        lost: Whether its worker ended, so that another attempt may succeed.
        log: The output of the worker, where it failed.
    """

    models: tuple[str, ...] = ()
    run_id: str | None = None
    error: str | None = None
    lost: bool = False
    log: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """The result of a job.

    Attributes:
        job: The job.
        models: Ids of the engines, for ``compile``.
        run_id: The run with what was measured, for the others.
        error: The reason of a failure; None for success.
        failed_runs: The run of each attempt that failed: a lost job is tried again once.
    """

    job: Job
    models: tuple[str, ...] = ()
    run_id: str | None = None
    error: str | None = None
    failed_runs: tuple[str, ...] = ()


def require_success(outcomes: Sequence[Outcome]) -> Sequence[Outcome]:
    """Return the outcomes if no job failed.

    Raises:
        RunnerError: Jobs failed; the message has the reasons, and the runs with their logs.
    """
    failed = [outcome for outcome in outcomes if outcome.error is not None]
    if failed:
        reasons = "; ".join(
            f"{outcome.job.name} (run {outcome.failed_runs[-1]}): {outcome.error}"
            for outcome in failed
        )
        msg = f"{len(failed)} of {len(outcomes)} jobs failed, and the others succeeded: {reasons}"
        raise RunnerError(msg)
    return outcomes
