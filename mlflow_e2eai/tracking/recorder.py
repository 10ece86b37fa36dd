"""Who is told of the stages.

A `Recorder` is told of every stage; MLflow is one (tracking), and `Silent` is none. So saving to a
folder and logging to a server take the same way.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, Protocol

from mlflow_e2eai.artifacts.values import EngineArtifact, OnnxArtifact, Tensors
from mlflow_e2eai.engine.request import Planned, Wanted
from mlflow_e2eai.evaluation.evidence import Evidence, MachineEvidence
from mlflow_e2eai.latency.report import LatencyReport


class Stage(Protocol):
    """What a stage tells its recorder, and the one thing that it asks."""

    def found(self, planned: Planned, *, folder: Path) -> EngineArtifact | None:
        """The same engine built by others, put into a folder; waited for while they build it.

        It is what the stage has made, as if it had been built now. None where there is none: from
        then on the others wait for the one that this stage makes.
        """

    def timings(self, key: str, *, folder: Path) -> None:
        """Timings of kernels with this key are wanted in a folder; see `engine.timings_key`."""

    def timed(self, key: str, *, folder: Path) -> None:
        """A build has left its timings in that folder."""

    def made(self, artifact: OnnxArtifact | EngineArtifact, *, example: Tensors) -> None:
        """An artifact is finished."""

    def noted(self, name: str, value: Any) -> None:
        """A report (a dataclass) is to be kept beside the stage."""

    def kept(self, nodes: Sequence[str]) -> None:
        """These nodes of the graph stay in fp32."""

    def measured(self, evidence: Evidence, latency: Mapping[str, LatencyReport]) -> None:
        """A variant was measured, or could not be."""


class Recorder(Protocol):
    """Who is told of the stages.

    Attributes:
        away: Whether other machines build the engines, which may have GPUs that this one lacks.
    """

    away: bool

    def elsewhere(
        self, wanted: Sequence[Wanted], *, folder: Path
    ) -> Mapping[Wanted, EngineArtifact | str]:
        """Engines that others have built, put into a folder; or why one failed.

        What is not in it is built here.
        """

    def judged(
        self,
        graphs: Sequence[OnnxArtifact],
        engines: Sequence[EngineArtifact],
        *,
        batch_sizes: Sequence[int],
    ) -> tuple[list[MachineEvidence], Mapping[str, str]]:
        """What other machines found of engines that this one cannot run, and of the graphs there.

        Returns:
            That, and why engines were judged nowhere, by digest. What is in neither is left to this
            machine.
        """

    def stage(self, name: str, *, inputs: Sequence[str]) -> AbstractContextManager[Stage]:
        """A stage begins, on artifacts with these digests; it ends, well or not, with the block."""


class Silent:
    """A recorder, and a stage, that keeps nothing."""

    away = False

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

    def judged(
        self,
        graphs: Sequence[OnnxArtifact],  # noqa: ARG002
        engines: Sequence[EngineArtifact],  # noqa: ARG002
        *,
        batch_sizes: Sequence[int],  # noqa: ARG002
    ) -> tuple[list[MachineEvidence], Mapping[str, str]]:
        """Nobody judges."""
        return [], {}

    def found(self, planned: Planned, *, folder: Path) -> EngineArtifact | None:  # noqa: ARG002
        """Nothing was kept."""
        return None

    def timings(self, key: str, *, folder: Path) -> None:
        """Nothing was kept."""

    def timed(self, key: str, *, folder: Path) -> None:
        """Nobody is told."""

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
