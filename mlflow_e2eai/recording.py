"""Who is told of the stages.

A `Recorder` is told of every stage; MLflow is one (tracking), and `Silent` is none. So saving to a
folder and logging to a server take the same way.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from mlflow_e2eai.artifacts import EngineArtifact, OnnxArtifact, Precision, Tensors
from mlflow_e2eai.building import DEFAULT_BUILD, BuildSettings
from mlflow_e2eai.bundle import Evidence
from mlflow_e2eai.latency import LatencyReport


class Stage(Protocol):
    """What a stage tells its recorder, and the one thing that it asks."""

    def found(self, key: str, *, folder: Path) -> EngineArtifact | None:
        """An engine with this key that was built before, put into a folder; None if there is none.

        It is what the stage has made, as if it had been built now.
        """

    def made(self, artifact: OnnxArtifact | EngineArtifact, *, example: Tensors) -> None:
        """An artifact is finished."""

    def noted(self, name: str, value: Any) -> None:
        """A report (a dataclass) is to be kept beside the stage."""

    def kept(self, nodes: Sequence[str]) -> None:
        """These nodes of the graph stay in fp32."""

    def measured(self, evidence: Evidence, latency: Mapping[str, LatencyReport]) -> None:
        """A variant was measured, or could not be."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """An engine that is to be built.

    Attributes:
        graph: Digest of its graph.
        precision: What it computes in.
        target: What it is for, as the caller says it.
        plugin_libraries: Libraries with its plugins.
        build_settings: How it is built.
        rebuild: Whether it is built even where there is one.
    """

    graph: str
    precision: Precision
    target: str
    plugin_libraries: tuple[Path, ...] = ()
    build_settings: BuildSettings = DEFAULT_BUILD
    rebuild: bool = False


class Recorder(Protocol):
    """Who is told of the stages."""

    def elsewhere(
        self, wanted: Sequence[Wanted], *, folder: Path
    ) -> Mapping[Wanted, EngineArtifact | str]:
        """Engines that others have built, put into a folder; or why one failed.

        What is not in it is built here.
        """

    def stage(self, name: str, *, inputs: Sequence[str]) -> AbstractContextManager[Stage]:
        """A stage begins, on artifacts with these digests; it ends, well or not, with the block."""


class Silent:
    """A recorder, and a stage, that keeps nothing."""

    def stage(self, name: str, *, inputs: Sequence[str]) -> AbstractContextManager[Stage]:  # noqa: ARG002
        """Nobody is told."""
        return nullcontext(self)

    def elsewhere(
        self,
        wanted: Sequence[Wanted],  # noqa: ARG002
        *,
        folder: Path,  # noqa: ARG002
    ) -> Mapping[Wanted, EngineArtifact | str]:
        """Nobody builds."""
        return {}

    def found(self, key: str, *, folder: Path) -> EngineArtifact | None:  # noqa: ARG002
        """Nothing was kept."""
        return None

    def made(self, artifact: OnnxArtifact | EngineArtifact, *, example: Tensors) -> None:
        """Nobody is told."""

    def noted(self, name: str, value: Any) -> None:
        """Nobody is told."""

    def kept(self, nodes: Sequence[str]) -> None:
        """Nobody is told."""

    def measured(self, evidence: Evidence, latency: Mapping[str, LatencyReport]) -> None:
        """Nobody is told."""


def record(
    evidence: Sequence[Evidence], latency: Mapping[str, LatencyReport], recorder: Recorder
) -> None:
    """Tell a recorder what was measured, a stage for each variant: they were measured together."""
    for entry in evidence:
        inputs = [] if entry.sha256 is None else [entry.sha256]
        with recorder.stage(f"evaluate {entry.variant}", inputs=inputs) as stage:
            stage.measured(entry, latency)
