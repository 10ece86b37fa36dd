"""The engines of a pipeline, built by a fleet."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from mlflow_e2eai.artifacts.values import Target
from mlflow_e2eai.engine.request import Wanted
from mlflow_e2eai.engine.targets import covers
from mlflow_e2eai.errors import RunnerError
from mlflow_e2eai.fleet.job import Executor, Job, is_away
from mlflow_e2eai.fleet.run import check_executor, run
from mlflow_e2eai.tracking.remote_jobs import Builder, Judge


def builder(executor: Executor | None, workers: int | None = None) -> Builder | None:
    """What has a recorder's engines built; None for no executor, where the caller builds them.

    Args:
        executor: See `fleet.run`.
        workers: The same.

    Raises:
        InvalidInputError: There is no such executor, or fewer than one worker.
    """
    if executor is None:
        return None
    check_executor(executor, workers)

    def build(wanted: Sequence[tuple[str, Wanted]]) -> list[str | Exception]:
        jobs = [_job(model_id, one) for model_id, one in wanted]
        return [
            RunnerError(outcome.error) if outcome.error is not None else outcome.models[0]
            for outcome in run(jobs, executor=executor, workers=workers)
        ]

    return build


def _job(model_id: str, wanted: Wanted) -> Job:
    return Job(
        stage="compile",
        model_uri=model_id,
        arguments={
            "targets": [wanted.target],
            "precision": wanted.precision,
            "plugin_libraries": list(wanted.plugin_libraries),
            "build_settings": wanted.build_settings,
            "rebuild": wanted.rebuild,
        },
    )


# The evaluations of engines, each on a machine that has the GPU.


def judge(executor: Executor | None, workers: int | None = None) -> Judge | None:
    """What has a recorder's engines judged elsewhere; None where no other machine does the jobs.

    Args:
        executor: See `fleet.run`. Processes here would find what this one finds.
        workers: The same.

    Raises:
        InvalidInputError: There is no such executor, or fewer than one worker.
    """
    if executor is None or not is_away(executor):
        return None
    check_executor(executor, workers)

    def ask(
        graphs: Sequence[str], engines: Mapping[str, Target], batch_sizes: Sequence[int]
    ) -> list[tuple[Sequence[str], str | Exception]]:
        first, *others = graphs
        each = by_gpu(engines)
        jobs = [
            Job(
                stage="evaluate",
                model_uri=first,
                arguments={"beside": [*others, *held], "batch_sizes": list(batch_sizes)},
                gpu=gpu,
            )
            for gpu, held in each.items()
        ]
        outcomes = run(jobs, executor=executor, workers=workers)
        return [
            (held, outcome.run_id or RunnerError(str(outcome.error)))
            for held, outcome in zip(each.values(), outcomes, strict=True)
        ]

    return ask


def evaluations(
    model_uri: str, engines: Mapping[str, Target], *, executor: Executor, **arguments: Any
) -> list[Job]:
    """Jobs that judge a model, together on one machine each: one for every kind of GPU.

    Args:
        model_uri: See `chained.evaluate`.
        engines: Targets of the engines in it, by digest.
        executor: Who is to do them: processes here are one machine, which judges all.
        **arguments: The others of `chained.evaluate`.
    """
    if not engines or not is_away(executor):
        return [Job(stage="evaluate", model_uri=model_uri, arguments=arguments)]
    return [
        Job(
            stage="evaluate",
            model_uri=model_uri,
            arguments={"engines": held, **arguments},
            gpu=gpu,
        )
        for gpu, held in by_gpu(engines).items()
    ]


def by_gpu(engines: Mapping[str, Target]) -> dict[str, list[str]]:
    """Engines by the compute capability of the GPU that they are judged on together.

    One that runs on several is judged beside the engines that run on one of these only, on each of
    them: there it is compared with what it must beat. Where there are none, any GPU will do that
    it runs on.

    Args:
        engines: Their targets.

    Returns:
        Names of engines by what `Target.compute_capability` says.
    """
    found: dict[str, list[str]] = {}
    for name in sorted(engines, key=lambda one: len(engines[one].capabilities) or math.inf):
        target = engines[name]
        others = [gpu for gpu in found if gpu and all(covers(target, g) for g in gpu.split("+"))]
        for gpu in others or [target.compute_capability]:
            found.setdefault(gpu, []).append(name)
    return found
