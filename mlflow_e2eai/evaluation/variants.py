"""The names of variants, and their runners."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

from mlflow_e2eai.artifacts.values import (
    EngineArtifact,
    Infer,
    OnnxArtifact,
    variant_name,
)
from mlflow_e2eai.artifacts.weight_files import verify_graph
from mlflow_e2eai.engine.runner import engine_runner
from mlflow_e2eai.errors import InvalidInputError
from mlflow_e2eai.evaluation.evidence import RAW
from mlflow_e2eai.runtime.isolation import Opener
from mlflow_e2eai.runtime.ort import onnxruntime_devices, onnxruntime_runner
from mlflow_e2eai.surgery.mapping import full_reference

"""Stands for the precision in the name of the variant that runs the graph as it was exported. It is
measured to separate errors of export and of cleaning, and is not in the bundle."""

TORCH = variant_name("torch", "fp32")
"""The variant that is the reference of all others: the PyTorch module."""

FILE = variant_name("onnxruntime-cpu", RAW)
"""ONNX Runtime on the raw graph; the reference where the lineage starts at an ONNX file."""


def step_of(artifact: OnnxArtifact | EngineArtifact, runner: str) -> str:
    """The step that made a variant of the one before it.

    Args:
        artifact: The file that it runs.
        runner: Name of its runner, for example ``onnxruntime-cpu``, the plainest run of a graph.
    """
    if isinstance(artifact, EngineArtifact):
        return f"compile {artifact.arithmetic} {artifact.target}"
    if runner != "onnxruntime-cpu":
        return f"run on {runner}"
    return f"convert {artifact.precision}" if artifact.stage == "convert" else artifact.stage


def engine_variant(engine: EngineArtifact) -> str:
    """Name of the variant that runs an engine."""
    return variant_name(str(engine.target), engine.arithmetic)


def graph_variant(graph: OnnxArtifact, device: str) -> str:
    """Name of the variant that runs a graph with ONNX Runtime."""
    return variant_name(f"onnxruntime-{device}", graph.precision)


def is_emulated(graph: OnnxArtifact, device: str) -> bool:
    """Whether ONNX Runtime has no kernels for a graph there, and fp32 kernels replace them.

    Every value is rounded as on a GPU, so that the numbers are a GPU's, but not the time.
    """
    return device == "cpu" and graph.precision == "bf16"


@contextmanager
def _verified_runner(
    graph: OnnxArtifact, device: Any, *, spinning: bool = False
) -> Iterator[Infer]:
    verify_graph(graph)
    with onnxruntime_runner(
        graph.path,
        device=device,
        precision=graph.precision,
        rounded=is_emulated(graph, device),
        spinning=spinning,
        libraries=graph.libraries,
    ) as infer:
        yield infer


def open_variant(
    variant: str,
    graphs: Sequence[OnnxArtifact],
    engines: Sequence[EngineArtifact],
    *,
    serving: bool = False,
) -> AbstractContextManager[Infer]:
    """Open the runner of a variant, after its file's digest was checked.

    Args:
        variant: Its name.
        graphs: Graphs that it may run.
        engines: Engines that it may run.
        serving: Whether it serves calls and is not evaluated: then idle workers of ONNX Runtime may
            spin (see `onnxruntime_runner`), and for an engine see `engine_runner`.

    Raises:
        InvalidInputError: None of the graphs and engines is that variant.
    """
    artifact = artifact_of(variant, graphs, engines)
    if isinstance(artifact, EngineArtifact):
        return engine_runner(artifact, graphs=graphs, serving=serving)
    device = "cpu" if graph_variant(artifact, "cpu") == variant else "cuda"
    return _verified_runner(artifact, device, spinning=serving)


def artifact_of(
    variant: str, graphs: Sequence[OnnxArtifact], engines: Sequence[EngineArtifact]
) -> OnnxArtifact | EngineArtifact:
    """The file that a variant runs.

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
    """Run a graph as it was exported, under the names after surgery."""
    with (
        _verified_runner(raw, "cpu") as infer,
        full_reference(infer, raw, cleaned, run=onnxruntime_runner) as infer_all,
    ):
        yield infer_all


@dataclass(frozen=True, slots=True, kw_only=True)
class Reference:
    """The model that the variants are compared with, under the names of the cleaned graph.

    Attributes:
        infer: The model.
        alone: The same without the tensors that surgery exposed, which ONNX Runtime computes: the
            callable whose latency is measured.
        name: Its variant: `TORCH`, or `FILE`.
    """

    infer: Infer
    alone: Infer
    name: str


# The variants to evaluate, each with the one that it was made of.


EXPORT = "export"

_EMULATED = (
    "ONNX Runtime has no bf16 kernels for the CPU: its accuracy was emulated with fp32 kernels "
    "and every value rounded to bf16, and its latency was not measured."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """A variant to evaluate, and its origin.

    Attributes:
        name: A runner and a precision.
        artifact: The file.
        step: The step that made it of the variant before.
        before: That variant.
        opener: Opens its runner.
        untimed: Why its time is meaningless; None where it is to be timed.
    """

    name: str
    artifact: OnnxArtifact | EngineArtifact
    step: str
    before: str
    opener: Opener
    untimed: str | None = None

    @property
    def precision(self) -> str:
        """The precision whose tolerance applies."""
        artifact = self.artifact
        return artifact.arithmetic if isinstance(artifact, EngineArtifact) else artifact.precision

    @property
    def shipped(self) -> bool:
        """Whether it goes into the bundle; the graph as it was exported does not."""
        return self.step != EXPORT


def variants_of(
    graphs: Sequence[OnnxArtifact],
    engines: Sequence[EngineArtifact],
    raw: OnnxArtifact | None,
    reference: str = TORCH,
) -> dict[str, Variant]:
    """All variants by name, each after the variant that it was made of, or the reference."""
    plain = {graph.sha256: graph_variant(graph, "cpu") for graph in graphs}
    variants: dict[str, Variant] = {}

    def add(name: str, artifact: OnnxArtifact | EngineArtifact, step: str, before: str) -> None:
        opener = partial(open_variant, name, graphs, engines)
        variants[name] = Variant(
            name=name, artifact=artifact, step=step, before=before, opener=opener
        )

    if raw is not None:
        opener = partial(raw_runner, raw, graphs[0])
        variants[FILE] = Variant(name=FILE, artifact=raw, step=EXPORT, before=TORCH, opener=opener)
        plain[raw.sha256] = FILE
    for graph in graphs:
        before = plain.get(graph.parent_sha256 or "", reference)
        step = step_of(graph, "onnxruntime-cpu")
        step = "export or clean" if before == TORCH and step == "clean" else step
        add(graph_variant(graph, "cpu"), graph, step, before)
        if is_emulated(graph, "cpu"):
            name = graph_variant(graph, "cpu")
            variants[name] = dataclasses.replace(variants[name], untimed=_EMULATED)
    for device in onnxruntime_devices():
        for graph in graphs if device != "cpu" else ():
            step = step_of(graph, f"onnxruntime-{device}")
            add(graph_variant(graph, device), graph, step, plain[graph.sha256])
    for engine in engines:
        step = step_of(engine, str(engine.target))
        add(engine_variant(engine), engine, step, plain.get(engine.parent_sha256, reference))
    return variants
