"""The engines of a pipeline: each is built once, by whoever is the first to want it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from mlflow_e2eai.artifacts.build_settings import BuildSettings
from mlflow_e2eai.artifacts.libraries import named
from mlflow_e2eai.artifacts.values import (
    EngineArtifact,
    OnnxArtifact,
    Precision,
    Target,
    Tensors,
    graph_precision,
    variant_name,
)
from mlflow_e2eai.engine.request import Planned, Wanted, key_for, version_for
from mlflow_e2eai.engine.stage import compile
from mlflow_e2eai.engine.targets import parse, resolve, why_not_built, why_nowhere
from mlflow_e2eai.engine.timing_cache import timings_key
from mlflow_e2eai.evaluation.evidence import Evidence
from mlflow_e2eai.runtime.progress import progress
from mlflow_e2eai.tracking.recorder import Recorder, Stage


def compile_on(
    stage: Stage,
    graph: OnnxArtifact,
    target: Target,
    wanted: Wanted,
    *,
    out: Path,
    example: Tensors,
) -> EngineArtifact:
    """Build an engine and tell a stage, unless the stage knows where it has been built before.

    Args:
        stage: Who is asked and told.
        graph: See `mlflow_e2eai.compile`.
        target: The same.
        wanted: The rest of it. Builds are not the same to the bit, so that to rebuild makes another
            engine.
        out: The file to write, where it is built.
        example: The input example under the graph's names.

    Raises:
        E2EAIError: As `mlflow_e2eai.compile`.
    """
    libraries, settings = named(wanted.plugin_libraries), wanted.build_settings
    tf32 = wanted.precision == "tf32"
    planned = Planned(
        key=key_for(graph, target, tf32=tf32, libraries=libraries, settings=settings),
        parent_sha256=graph.sha256,
        target=target,
        arithmetic=wanted.precision,
        backend_version=version_for(target),
        settings=settings,
    )
    if not wanted.rebuild:
        others = stage.found(planned, folder=out.with_suffix(".found"))
        if others is not None:
            # By digest the same libraries; but these here the caller has allowed.
            return dataclasses.replace(others, libraries=libraries)
    with _timings(stage, target, settings, out.with_suffix(".timings")) as timings:
        engine = compile(
            graph,
            target,
            out=out,
            tf32=tf32,
            plugin_libraries=wanted.plugin_libraries,
            settings=settings,
            timing_cache=timings,
        )
    stage.made(engine, example=example)
    return engine


@contextmanager
def _timings(
    stage: Stage, target: Target, settings: BuildSettings, folder: Path
) -> Iterator[Path | None]:
    """A folder with the timings that a stage knows of, which gets what a build leaves there."""
    key = timings_key(target, settings)
    if key is None:
        yield None
        return
    folder.mkdir()
    stage.timings(key, folder=folder)
    yield folder
    stage.timed(key, folder=folder)


def compile_all(
    graphs: Sequence[OnnxArtifact],
    *,
    precisions: Sequence[Precision],
    targets: Sequence[str],
    plugin_libraries: Sequence[Path],
    build_settings: BuildSettings,
    rebuild: bool,
    work: Path,
    recorder: Recorder,
    example: Tensors,
) -> tuple[list[EngineArtifact], list[Evidence]]:
    """The engines, and evidence for those that TensorRT does not build, or others failed to."""
    engines, unbuilt = [], []
    todo = {
        Wanted(
            graph=graph.sha256,
            precision=precision,
            target=text,
            plugin_libraries=plugin_libraries,
            build_settings=build_settings,
            rebuild=rebuild,
        ): (graph, target, _why_not(graph, target, build_settings, recorder))
        for graph in graphs
        for precision in dict.fromkeys(precisions)
        if graph_precision(precision) == graph.precision
        for text, target in _aims(targets, recorder).items()
    }
    others = recorder.elsewhere(
        [wanted for wanted, (_, _, reason) in todo.items() if reason is None], folder=work
    )
    for wanted, (graph, target, known) in progress(todo.items(), "compile", unit="engines"):
        made = others.get(wanted, known)
        if isinstance(made, EngineArtifact):
            engines.append(dataclasses.replace(made, libraries=named(plugin_libraries)))
            continue
        name = f"compile {wanted.precision} {wanted.target}"
        with recorder.stage(name, inputs=[graph.sha256]) as stage:
            if made is not None:
                variant = variant_name(str(target or wanted.target), wanted.precision)
                said = Evidence(variant=variant, sha256=graph.sha256, measured=False, reason=made)
                unbuilt.append(said)
                stage.measured(said, {})
                continue
            engine = compile_on(
                stage,
                graph,
                target or resolve(wanted.target),
                wanted,
                out=work / f"{wanted.precision}-{wanted.target}.engine",
                example=example,
            )
        engines.append(engine)
    # Elsewhere, too, two texts may name one target.
    return list({engine.sha256: engine for engine in engines}.values()), unbuilt


def _aims(texts: Sequence[str], recorder: Recorder) -> dict[str, Target | None]:
    """What each text names; None for the GPU of another machine, which only that one knows."""
    aims = {
        (None if text == "local" else parse(text)) if recorder.away else resolve(text): text
        for text in texts
    }
    # Two texts may name one target, as `local` and `sm86` on a machine with such a GPU.
    return {text: target for target, text in aims.items()}


def _why_not(
    graph: OnnxArtifact, target: Target | None, settings: BuildSettings, recorder: Recorder
) -> str | None:
    """Why an engine is not even tried; None where it is."""
    if target is None:
        return None
    if recorder.away:
        return why_nowhere(graph, target)
    return why_not_built(graph, target, settings)
