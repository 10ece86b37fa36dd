"""`compile` and `evaluate` of a logged model, here or by an executor."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from mlflow_e2eai import engine as engines
from mlflow_e2eai import fleet, tracking
from mlflow_e2eai.artifacts.build_settings import DEFAULT_BUILD, BuildSettings
from mlflow_e2eai.artifacts.libraries import describe_libraries
from mlflow_e2eai.artifacts.values import Precision
from mlflow_e2eai.errors import InvalidInputError
from mlflow_e2eai.evaluation.effort import EvidenceLevel
from mlflow_e2eai.evaluation.evidence import MachineEvidence
from mlflow_e2eai.pipeline import jobs
from mlflow_e2eai.pipeline.job_inputs import (
    engines_in,
)
from mlflow_e2eai.pytorch.consent import permitted_digests
from mlflow_e2eai.tracking import remote_jobs


def compile(
    model_uri: str,
    *,
    targets: Sequence[str],
    precision: Precision | None = None,
    plugin_libraries: Sequence[Path] = (),
    build_settings: BuildSettings = DEFAULT_BUILD,
    rebuild: bool = False,
    executor: fleet.Executor | None = None,
    workers: int | None = None,
) -> list[str]:
    """Build engines of a logged graph: the converted graph if that is given, else the cleaned.

    An engine that was logged before with the same key under this tracking server is linked instead.

    Args:
        model_uri: Any model of the lineage, from the cleaned graph on.
        targets: See `mlflow_e2eai.log_model`.
        precision: ``tf32`` for the graph in fp32; else None or the graph's own.
        plugin_libraries: See `mlflow_e2eai.compile`.
        build_settings: See `settings` of `mlflow_e2eai.compile`.
        rebuild: Whether engines that were logged before are built again.
        executor: ``local`` for processes of this machine, ``ray`` for a Ray cluster; None for this
            process.
        workers: Number of processes; None for one on each core.

    Returns:
        Ids of the engine LoggedModels.

    Raises:
        InvalidInputError: There are no targets, or the graph is in another precision.
        RunnerError: Engines of an executor failed; the others are built.
    """
    if not targets:
        msg = f"There are no targets; give one of {', '.join(engines.TARGETS)}, or several."
        raise InvalidInputError(msg)
    targets = [*dict.fromkeys(map(engines.canonical, targets))]
    libraries = describe_libraries(plugin_libraries)
    if fleet.uses_other_machines(executor):
        engines.check_anywhere(targets, libraries=libraries)
    else:
        engines.check_here(targets, settings=build_settings, libraries=libraries)
    options: dict[str, Any] = {
        "precision": precision,
        "plugin_libraries": plugin_libraries,
        "build_settings": build_settings,
        "rebuild": rebuild,
    }
    with _parent("compile"):
        if executor is None:
            return jobs.compile(model_uri, targets=targets, **options)
        each = [
            fleet.Job(
                stage="compile", model_uri=model_uri, arguments={"targets": [target], **options}
            )
            for target in targets
        ]
        done = fleet.require_success(fleet.run(each, executor=executor, workers=workers))
        return [outcome.models[0] for outcome in done]


def evaluate(
    model_uri: str,
    *,
    batch_sizes: Sequence[int] = (),
    evidence: EvidenceLevel = "standard",
    allow_pickle: bool = False,
    executor: fleet.Executor | None = None,
    workers: int | None = None,
) -> list[MachineEvidence]:
    """Evaluate a graph, an engine, or all of a bundle against the PyTorch model.

    Args:
        model_uri: The graph, engine or bundle.
        batch_sizes: See `mlflow_e2eai.log_model`.
        evidence: See `mlflow_e2eai.log_model`.
        allow_pickle: See `pipeline.jobs.export`.
        executor: None evaluates in this process, ``local`` in another one, ``ray`` each engine on a
            node that has its GPU, with the graphs.
        workers: Number of processes; see `fleet.run`.

    Returns:
        The evidence of each machine, for each variant, the PyTorch module first.

    Raises:
        RunnerError: Evaluations by an executor failed; the others are done.
    """
    with _parent("evaluate"):
        if executor is None:
            return [
                jobs.evaluate(
                    model_uri,
                    batch_sizes=batch_sizes,
                    evidence=evidence,
                    allow_pickle=allow_pickle,
                )
            ]
        model = tracking.ancestor(tracking.resolve(model_uri), jobs.EVALUATED)
        each = fleet.evaluations(
            model.model_id,
            engines_in(model),
            executor=executor,
            batch_sizes=list(batch_sizes),
            evidence=evidence,
            allow_pickle=allow_pickle or permitted_digests(),
        )
        done = fleet.require_success(fleet.run(each, executor=executor, workers=workers))
        return [remote_jobs.fetch_evidence(str(outcome.run_id)) for outcome in done]


def _parent(name: str) -> AbstractContextManager[str]:
    """A run with a child for each engine or variant."""
    return tracking.run(name, nested=True, tags={tracking.STAGE: name})
