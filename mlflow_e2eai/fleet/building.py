"""The engines of a pipeline, built by a fleet."""

from __future__ import annotations

from collections.abc import Sequence

from mlflow_e2eai.errors import RunnerError
from mlflow_e2eai.fleet.running import check_executor, run
from mlflow_e2eai.fleet.values import Executor, Job
from mlflow_e2eai.recording import Wanted
from mlflow_e2eai.tracking import Builder


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
