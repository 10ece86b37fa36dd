"""The engines of a pipeline, built and evaluated as jobs of a fleet."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mlflow_e2eai.artifacts.libraries import native_allowed
from mlflow_e2eai.artifacts.values import EngineArtifact, OnnxArtifact, Target
from mlflow_e2eai.engine.request import Wanted
from mlflow_e2eai.engine.targets import covers
from mlflow_e2eai.evaluation.evidence import MachineEvidence
from mlflow_e2eai.fleet.job import Executor, Job, is_away
from mlflow_e2eai.fleet.run import check_executor, run
from mlflow_e2eai.tracking.lineage import fetch_engine, resolve
from mlflow_e2eai.tracking.remote_jobs import fetch_found


class EngineJobs:
    """Builds and evaluates the engines of a pipeline by an executor; a `recorder.RemoteJobs`.

    Args:
        executor: See `fleet.run`.
        workers: Number of workers; None for one on each core.
        models: Ids of LoggedModels by the digests of their files, as `MlflowRecorder.models`; those
            of the engines that are built come to them.

    Raises:
        InvalidInputError: There is no such executor, or fewer than one worker.
    """

    def __init__(self, executor: Executor, workers: int | None, *, models: dict[str, str]) -> None:
        check_executor(executor, workers)
        self.other_machines = is_away(executor)
        self._executor = executor
        self._workers = workers
        self._models = models

    def build(
        self, wanted: Sequence[Wanted], *, folder: Path
    ) -> Mapping[Wanted, EngineArtifact | str]:
        """Build engines and fetch them, verified, into a folder; or the reason why one failed."""
        jobs = [self._build_job(one) for one in wanted]
        outcomes = run(jobs, executor=self._executor, workers=self._workers)
        built: dict[Wanted, EngineArtifact | str] = {}
        for one, outcome in zip(wanted, outcomes, strict=True):
            if outcome.error is not None:
                built[one] = outcome.error
                continue
            (model_id, *_) = outcome.models
            path = folder / model_id
            path.mkdir(exist_ok=True)  # two texts may name one target
            engine = fetch_engine(resolve(model_id), path)
            self._models[engine.sha256] = model_id
            built[one] = engine
        return built

    def _build_job(self, wanted: Wanted) -> Job:
        return Job(
            stage="compile",
            model_uri=self._models[wanted.graph],
            arguments={
                "targets": [wanted.target],
                "precision": wanted.precision,
                "plugin_libraries": list(wanted.plugin_libraries),
                "build_settings": wanted.build_settings,
                "rebuild": wanted.rebuild,
            },
        )

    def evaluate(
        self,
        graphs: Sequence[OnnxArtifact],
        engines: Sequence[EngineArtifact],
        *,
        batch_sizes: Sequence[int],
    ) -> tuple[list[MachineEvidence], dict[str, str]]:
        """Evaluate engines on machines with their GPUs, the graphs with them.

        The libraries that are allowed here are allowed there.

        Returns:
            The evidence of each machine; and by digest of an engine, why none evaluated it.
        """
        if not self.other_machines or not engines:
            return [], {}
        digests = {self._models[engine.sha256]: engine.sha256 for engine in engines}
        first, *others = (self._models[graph.sha256] for graph in graphs)
        by_machine = by_gpu({self._models[engine.sha256]: engine.target for engine in engines})
        jobs = [
            Job(
                stage="evaluate",
                model_uri=first,
                arguments={"beside": [*others, *ids], "batch_sizes": list(batch_sizes)},
                gpu=gpu,
            )
            for gpu, ids in by_machine.items()
        ]
        libraries = [each for graph in graphs for each in graph.libraries]
        libraries += [each for engine in engines for each in engine.libraries]
        with native_allowed({each.path.name for each in libraries if each.allowed}):
            outcomes = run(jobs, executor=self._executor, workers=self._workers)
        machines = [fetch_found(outcome.run_id) for outcome in outcomes if outcome.run_id]
        evaluated = {entry.sha256 for machine in machines for entry in machine.evidence}
        failed = {
            digests[model_id]: str(outcome.error)
            for ids, outcome in zip(by_machine.values(), outcomes, strict=True)
            if not outcome.run_id
            for model_id in ids
        }
        return machines, {key: failed[key] for key in failed if key not in evaluated}


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
