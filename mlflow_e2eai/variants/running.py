"""The names of variants, and what runs each."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from mlflow_e2eai.artifacts import EngineArtifact, Infer, OnnxArtifact, variant_name
from mlflow_e2eai.engine import engine_runner
from mlflow_e2eai.errors import InvalidInputError
from mlflow_e2eai.runners import onnxruntime_runner
from mlflow_e2eai.surgery import answering
from mlflow_e2eai.weights import verify_graph


def engine_variant(engine: EngineArtifact) -> str:
    """Name of the variant that runs an engine."""
    return variant_name(str(engine.target), engine.arithmetic)


def graph_variant(graph: OnnxArtifact, device: str) -> str:
    """Name of the variant that runs a graph with ONNX Runtime."""
    return variant_name(f"onnxruntime-{device}", graph.precision)


def is_emulated(graph: OnnxArtifact, device: str) -> bool:
    """Whether ONNX Runtime has no kernels for a graph there, and fp32 kernels stand in for them.

    Every value is rounded as a GPU rounds it, so that the numbers are a GPU's and the time is not.
    """
    return device == "cpu" and graph.precision == "bf16"


@contextmanager
def _verified(graph: OnnxArtifact, device: Any, *, spinning: bool = False) -> Iterator[Infer]:
    verify_graph(graph)
    with onnxruntime_runner(
        graph.path,
        device=device,
        rounded=is_emulated(graph, device),
        fused=graph.precision != "fp8",
        spinning=spinning,
        libraries=graph.libraries,
    ) as infer:
        yield infer


def runner(
    variant: str,
    graphs: Sequence[OnnxArtifact],
    engines: Sequence[EngineArtifact],
    *,
    serving: bool = False,
) -> AbstractContextManager[Infer]:
    """What runs a variant, after its file's digest was checked.

    Args:
        variant: Its name.
        graphs: Graphs that it may run.
        engines: Engines that it may run.
        serving: Whether it answers callers and is not judged: then idle workers of ONNX Runtime
            may spin (see `onnxruntime_runner`), and for an engine see `engine_runner`.

    Raises:
        InvalidInputError: None of the graphs and engines is that variant.
    """
    artifact = artifact_of(variant, graphs, engines)
    if isinstance(artifact, EngineArtifact):
        return engine_runner(artifact, graphs=graphs, serving=serving)
    device = "cpu" if graph_variant(artifact, "cpu") == variant else "cuda"
    return _verified(artifact, device, spinning=serving)


def artifact_of(
    variant: str, graphs: Sequence[OnnxArtifact], engines: Sequence[EngineArtifact]
) -> OnnxArtifact | EngineArtifact:
    """What a variant runs.

    Raises:
        InvalidInputError: None of the graphs and engines is that variant.
    """
    for engine in engines:
        if engine_variant(engine) == variant:
            return engine
    for graph in graphs:
        if variant in (graph_variant(graph, "cuda"), graph_variant(graph, "cpu")):
            return graph
    msg = f"There is no variant {variant!r} among these graphs and engines."
    raise InvalidInputError(msg)


@contextmanager
def raw_runner(raw: OnnxArtifact, cleaned: OnnxArtifact) -> Iterator[Infer]:
    """Run a graph as it was exported, under the names that surgery left."""
    with (
        _verified(raw, "cpu") as infer,
        answering(infer, raw, cleaned, run=onnxruntime_runner) as answer,
    ):
        yield answer
