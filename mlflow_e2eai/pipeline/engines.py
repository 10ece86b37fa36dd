"""The engines of a pipeline: for each precision and target, here or by remote jobs."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from mlflow_e2eai.artifacts.build_settings import BuildSettings
from mlflow_e2eai.artifacts.libraries import describe_libraries
from mlflow_e2eai.artifacts.values import (
    EngineArtifact,
    OnnxArtifact,
    Target,
    Tensors,
    graph_precision,
    variant_name,
)
from mlflow_e2eai.engine.request import EngineRequest, key_of
from mlflow_e2eai.engine.stage import reused_builder
from mlflow_e2eai.engine.targets import parse, resolve, unbuildable_anywhere, unbuildable_here
from mlflow_e2eai.evaluation.evidence import Evidence
from mlflow_e2eai.pipeline.settings import Settings
from mlflow_e2eai.pipeline.stages import compile_on
from mlflow_e2eai.runtime.progress import progress
from mlflow_e2eai.tracking.recorder import EngineCache, Measurement, Recorder, RemoteJobs


def compile_all(
    graphs: Sequence[OnnxArtifact],
    settings: Settings,
    *,
    work: Path,
    recorder: Recorder,
    cache: EngineCache | None,
    remote: RemoteJobs | None,
    example: Tensors,
) -> tuple[list[EngineArtifact], list[Evidence]]:
    """Build the engines for all precisions and targets of the settings.

    Returns:
        The engines; and evidence for those that TensorRT or remote jobs did not build.
    """
    engines: list[EngineArtifact] = []
    not_built = []
    plans = _plans(graphs, settings, remote)
    buildable = [wanted for wanted, plan in plans.items() if plan.refusal is None]
    built = remote.build(buildable, folder=work) if remote is not None and buildable else {}
    with reused_builder():
        for wanted, plan in progress(plans.items(), "compile", unit="engines"):
            outcome = built.get(wanted, plan.refusal)
            if isinstance(outcome, EngineArtifact):
                libraries = describe_libraries(settings.plugin_libraries)
                engines.append(dataclasses.replace(outcome, libraries=libraries))
                continue
            name = f"compile {wanted.precision} {wanted.target}"
            with recorder.stage(name, inputs=[plan.graph.sha256]) as log:
                if outcome is not None:
                    variant = variant_name(str(plan.target or wanted.target), wanted.precision)
                    not_built.append(
                        Evidence(
                            variant=variant,
                            sha256=plan.graph.sha256,
                            measured=False,
                            reason=outcome,
                        )
                    )
                    log(Measurement(evidence=not_built[-1], latency={}))
                    continue
                engine = compile_on(
                    log,
                    cache,
                    plan.graph,
                    plan.target or resolve(wanted.target),
                    wanted,
                    out=work / f"{wanted.precision}-{wanted.target}.engine",
                    example=example,
                )
            engines.append(engine)
    # Two texts may name one target, which two workers may both have built.
    return list({key_of(engine): engine for engine in engines}.values()), not_built


class _Plan(NamedTuple):
    """A graph, its target (None for the GPU of a remote machine), and why it is not built."""

    graph: OnnxArtifact
    target: Target | None
    refusal: str | None


def _plans(
    graphs: Sequence[OnnxArtifact], settings: Settings, remote: RemoteJobs | None
) -> dict[EngineRequest, _Plan]:
    """An engine for each precision and target, with the graph that it is built from."""
    other_machines = remote is not None and remote.other_machines
    return {
        EngineRequest(
            graph=graph.sha256,
            precision=precision,
            target=text,
            plugin_libraries=settings.plugin_libraries,
            build_settings=settings.build_settings,
            rebuild=settings.rebuild or settings.fresh,
        ): _Plan(
            graph,
            target,
            _refusal(graph, target, settings.build_settings, other_machines=other_machines),
        )
        for graph in graphs
        for precision in dict.fromkeys(settings.precisions)
        if graph_precision(precision) == graph.precision
        for text, target in _targets(settings.targets, other_machines=other_machines).items()
    }


def _targets(texts: Sequence[str], *, other_machines: bool) -> dict[str, Target | None]:
    """The target of each text; None for ``local`` on another machine."""
    targets = {
        (None if text == "local" else parse(text)) if other_machines else resolve(text): text
        for text in texts
    }
    # Two texts may name one target, as `local` and `sm86` on a machine with such a GPU.
    return {text: target for target, text in targets.items()}


def _refusal(
    graph: OnnxArtifact, target: Target | None, settings: BuildSettings, *, other_machines: bool
) -> str | None:
    """Reason why a build is not tried; None where it is."""
    if target is None:
        return None
    if other_machines:
        return unbuildable_anywhere(graph, target)
    return unbuildable_here(graph, target, settings)
