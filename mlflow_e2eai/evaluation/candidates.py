"""What is to be judged: every variant, and the one that it was made of."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from mlflow_e2eai.artifacts import EngineArtifact, OnnxArtifact
from mlflow_e2eai.bundle import FILE, TORCH, step_of
from mlflow_e2eai.isolation import Opener
from mlflow_e2eai.runners import onnxruntime_devices
from mlflow_e2eai.variants import engine_variant, graph_variant, is_emulated, raw_runner, runner

EXPORT = "export"

_EMULATED = (
    "ONNX Runtime has no bf16 kernels for the CPU: its numbers here come from fp32 kernels with "
    "every value rounded to bf16, and it was not timed."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """What is to be judged, and where it comes from.

    Attributes:
        name: A runner and what it runs.
        artifact: The file.
        step: What made it of the variant before.
        before: That variant.
        opener: Opens its runner.
        untimed: Why its time says nothing; None where it is to be timed.
    """

    name: str
    artifact: OnnxArtifact | EngineArtifact
    step: str
    before: str
    opener: Opener
    untimed: str | None = None

    @property
    def precision(self) -> str:
        """The one whose tolerance it is held to."""
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
    """All variants by name, each after the one that it was made of, or else the reference."""
    plain = {graph.sha256: graph_variant(graph, "cpu") for graph in graphs}
    found: dict[str, Variant] = {}

    def add(name: str, artifact: OnnxArtifact | EngineArtifact, step: str, before: str) -> None:
        opener = partial(runner, name, graphs, engines)
        found[name] = Variant(name=name, artifact=artifact, step=step, before=before, opener=opener)

    if raw is not None:
        opener = partial(raw_runner, raw, graphs[0])
        found[FILE] = Variant(name=FILE, artifact=raw, step=EXPORT, before=TORCH, opener=opener)
        plain[raw.sha256] = FILE
    for graph in graphs:
        before = plain.get(graph.parent_sha256 or "", reference)
        step = step_of(graph, "onnxruntime-cpu")
        step = "export or clean" if before == TORCH and step == "clean" else step
        add(graph_variant(graph, "cpu"), graph, step, before)
        if is_emulated(graph, "cpu"):
            name = graph_variant(graph, "cpu")
            found[name] = dataclasses.replace(found[name], untimed=_EMULATED)
    for device in onnxruntime_devices():
        for graph in graphs if device != "cpu" else ():
            step = step_of(graph, f"onnxruntime-{device}")
            add(graph_variant(graph, device), graph, step, plain[graph.sha256])
    for engine in engines:
        step = step_of(engine, str(engine.target))
        add(engine_variant(engine), engine, step, plain.get(engine.parent_sha256, reference))
    return found
