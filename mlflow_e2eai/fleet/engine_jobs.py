"""The engines of a pipeline, built and evaluated as jobs of a fleet."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mlflow_e2eai.artifacts.libraries import native_allowed
from mlflow_e2eai.artifacts.values import EngineArtifact, OnnxArtifact, Target
from mlflow_e2eai.engine.request import EngineRequest
from mlflow_e2eai.engine.targets import covers
from mlflow_e2eai.evaluation.effort import EvidenceLevel
from mlflow_e2eai.evaluation.evidence import MachineEvidence
from mlflow_e2eai.fleet.job import Executor, Job, uses_other_machines
from mlflow_e2eai.fleet.run import check_executor, run
from mlflow_e2eai.pytorch.consent import permitted_digests
from mlflow_e2eai.tracking.lineage import fetch_engine, resolve
from mlflow_e2eai.tracking.remote_jobs import fetch_evidence


class EngineJobs:
    """Builds and evaluates the engines of a pipeline by an executor; a `recorder.RemoteJobs`.

    Args:
        executor: See `fleet.run`.
        workers: Number of workers; None for one on each core.
        models: Ids of LoggedModels by the digests of their files, as `MlflowRecorder.models`; those
            of built engines are added.

    Raises:
        InvalidInputError: There is no such executor, or fewer than one worker.
    """

    def __init__(self, executor: Executor, workers: int | None, *, models: dict[str, str]) -> None:
        check_executor(executor, workers)
        self.other_machines = uses_other_machines(executor)
        self._executor = executor
        self._workers = workers
        self._models = models

    def build(
        self, wanted: Sequence[EngineRequest], *, folder: Path
    ) -> Mapping[EngineRequest, EngineArtifact | str]:
        """Build engines and fetch them, verified, into a folder; or the reason why one failed."""
        jobs = [self._build_job(one) for one in wanted]
        outcomes = run(jobs, executor=self._executor, workers=self._workers)
        built: dict[EngineRequest, EngineArtifact | str] = {}
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

    def _build_job(self, wanted: EngineRequest) -> Job:
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
        level: EvidenceLevel,
    ) -> tuple[list[MachineEvidence], dict[str, str]]:
        """Evaluate engines on machines with their GPUs, the graphs with them.

        The libraries that are allowed here are allowed there. Without other machines nothing is
        evaluated.

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
                arguments={
                    "others": [*others, *ids],
                    "batch_sizes": list(batch_sizes),
                    "evidence": level,
                    # The PyTorch model, which this process wrote or was allowed to load.
                    "allow_pickle": permitted_digests(),
                },
                gpu=gpu,
            )
            for gpu, ids in by_machine.items()
        ]
        libraries = [each for graph in graphs for each in graph.libraries]
        libraries += [each for engine in engines for each in engine.libraries]
        with native_allowed({each.path.name for each in libraries if each.allowed}):
            outcomes = run(jobs, executor=self._executor, workers=self._workers)
        machines = [fetch_evidence(outcome.run_id) for outcome in outcomes if outcome.run_id]
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
    """Make the jobs that evaluate a model: one for each kind of GPU that its engines need.

    Args:
        model_uri: The graph, engine or bundle.
        engines: Targets of the engines in it, by digest.
        executor: The executor; processes of this machine evaluate all in one job.
        **arguments: Further arguments of `pipeline.jobs.evaluate`.
    """
    return [
        Job(
            stage="evaluate",
            model_uri=model_uri,
            arguments=arguments if gpu is None else {"engines": names, **arguments},
            gpu=gpu,
        )
        for gpu, names in _groups(engines, executor)
    ]


def remeasurements(
    model_uri: str, engines: Mapping[str, Target], *, executor: Executor, **arguments: Any
) -> list[Job]:
    """Make the jobs that measure a bundle next to another, one for each kind of GPU.

    Args:
        model_uri: The bundle.
        engines: Targets of the engines in it, by digest.
        executor: The executor.
        **arguments: Further arguments of `worker.remeasure`.
    """
    return [
        Job(stage="remeasure", model_uri=model_uri, arguments=arguments, gpu=gpu)
        for gpu, _ in _groups(engines, executor)
    ]


def _groups(
    engines: Mapping[str, Target], executor: Executor
) -> list[tuple[str | None, list[str]]]:
    """Engines by the GPU that they need; None where one job here is for all."""
    if not engines or not uses_other_machines(executor):
        return [(None, [*engines])]
    return [*by_gpu(engines).items()]


def by_gpu(engines: Mapping[str, Target]) -> dict[str, list[str]]:
    """Group engines by the GPU on which they are evaluated together.

    An engine for several GPUs is evaluated on each GPU that has an engine of its own, for the
    comparison with that; without such GPUs, on any that it runs on.

    Args:
        engines: Targets by name.

    Returns:
        Names of engines by `Target.compute_capability`.
    """
    groups: dict[str, list[str]] = {}
    for name in sorted(engines, key=lambda one: len(engines[one].capabilities) or math.inf):
        target = engines[name]
        others = [gpu for gpu in groups if gpu and all(covers(target, g) for g in gpu.split("+"))]
        for gpu in others or [target.compute_capability]:
            groups.setdefault(gpu, []).append(name)
    return groups
