"""Three small protocols for logging, storing and distributing the work of the stages.

Recorder     logs the values of a stage
EngineCache  finds engines that were built before
RemoteJobs   builds and evaluates engines on other machines

A recorder's fake is a list: `MemoryRecorder` appends values, which is all that saving to a folder,
with no tracking server, needs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol, TypeAlias

from mlflow_e2eai.artifacts.values import EngineArtifact, OnnxArtifact, Tensors
from mlflow_e2eai.engine.request import EngineRequest
from mlflow_e2eai.evaluation.effort import EvidenceLevel
from mlflow_e2eai.evaluation.evidence import Evidence, MachineEvidence, Span
from mlflow_e2eai.latency.report import LatencyReport

Log: TypeAlias = Callable[[Any], None]
"""Logs one value of a stage: one of those below, or the stage's report."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Output:
    """A finished artifact, and the input example under its names."""

    artifact: OnnxArtifact | EngineArtifact
    example: Tensors


@dataclass(frozen=True, slots=True, kw_only=True)
class Fp32Nodes:
    """Names of the nodes that stay in fp32."""

    nodes: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """The evidence of one variant, and the latency of all that were measured with it."""

    evidence: Evidence
    latency: Mapping[str, LatencyReport]


@dataclass(frozen=True, slots=True, kw_only=True)
class NotMeasured:
    """Variants that nothing here can run, with the reason in the evidence of each."""

    evidence: tuple[Evidence, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelTimings:
    """Timings of kernels that a build left in a folder.

    Attributes:
        key: The builds that they are for; see `engine.timings_key`.
        folder: Their files.
        fetched: Names of the files that `EngineCache.get_timings` put there.
    """

    key: str
    folder: Path
    fetched: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Reused:
    """The result of an earlier run, in place of which nothing is done again.

    Attributes:
        run_id: That run.
        ended_at: When it ended, see `evaluation.evidence.now_text`.
        report: The report of its stage; None where it has none.
        artifact: Its artifact, fetched and verified; None where it has none.
        example: The input example under the names of the artifact.
        model_id: The model of the artifact; None where it has none.
    """

    run_id: str
    ended_at: str
    report: Any = None
    artifact: OnnxArtifact | EngineArtifact | None = None
    example: Tensors = field(default_factory=dict)
    model_id: str | None = None

    @property
    def sentence(self) -> str:
        """Where it is from, and how old it is."""
        return f"reused from run {self.run_id}, {age_text(self.ended_at)} old"


@dataclass(frozen=True, slots=True, kw_only=True)
class NotReusable:
    """A stage that is done anew each time, with the reason."""

    reason: str

    @property
    def sentence(self) -> str:
        """The reason as words of a line."""
        return f"anew each time, as {self.reason}"


def age_text(then: str) -> str:
    """The time since a moment, in its largest unit."""
    seconds = (datetime.now(UTC) - datetime.fromisoformat(then)).total_seconds()
    for unit, size in (("day", 86400), ("hour", 3600), ("minute", 60)):
        if (count := int(seconds // size)) > 0:
            return f"{count} {unit}{'' if count == 1 else 's'}"
    return f"{max(int(seconds), 0)} s"


class Recorder(Protocol):
    """Logs the values of stages."""

    @property
    def reused(self) -> Mapping[str, Reused]:
        """Results of earlier runs, by the stage in whose place they were logged."""

    def stage(
        self,
        name: str,
        *,
        inputs: Sequence[str],
        span: Span | None = None,
        key: str | None = None,
    ) -> AbstractContextManager[Log]:
        """A stage; it ends with the block, also on an error.

        Args:
            name: Its name.
            inputs: Digests of the artifacts that it reads.
            span: When its work was done; None for that of the block.
            key: The digest of all that its result depends on, by which it is found again; None
                where that is not known.
        """


class EngineCache(Protocol):
    """Finds the results of earlier runs: of stages, engines and timings of builds."""

    def find(self, key: str, report: type[Any], *, folder: Path) -> Reused | None:
        """Fetch the result of a stage with this key into a folder, verified; None without one.

        Args:
            key: See `Recorder.stage`.
            report: The kind of its report.
            folder: A folder for its files; created if missing.
        """

    def get(self, key: str, *, folder: Path) -> Reused | None:
        """Fetch an engine with this key (see `engine.key_for`) into a folder; None without one."""

    def get_timings(self, key: str, *, folder: Path) -> tuple[str, ...]:
        """Fetch timings of kernels into a folder; returns the names of their files."""


class RemoteJobs(Protocol):
    """Builds and evaluates engines on other machines, or in other processes of this one.

    Attributes:
        other_machines: Whether jobs run on other machines, which may have other GPUs.
    """

    other_machines: bool

    def build(
        self, wanted: Sequence[EngineRequest], *, folder: Path
    ) -> Mapping[EngineRequest, EngineArtifact | str]:
        """Build engines, and fetch them into a folder; for one that failed, the reason."""

    def evaluate(
        self,
        graphs: Sequence[OnnxArtifact],
        engines: Sequence[EngineArtifact],
        *,
        batch_sizes: Sequence[int],
        level: EvidenceLevel,
    ) -> tuple[list[MachineEvidence], Mapping[str, str]]:
        """Evaluate engines, and the graphs with them, on machines with their GPUs.

        Returns:
            The evidence of each machine; and the reason why none evaluated an engine, by its
            digest. An engine in neither is left to this machine, as are all without other
            machines.
        """


@dataclass(frozen=True, slots=True)
class MemoryRecorder:
    """A recorder that appends to a list.

    Attributes:
        values: Each value after the name of its stage.
        reused: Nothing: a list has no earlier runs.
    """

    values: list[tuple[str, Any]] = field(default_factory=list)
    reused: dict[str, Reused] = field(default_factory=dict)

    @contextmanager
    def stage(self, name: str, **_: Any) -> Iterator[Log]:
        """A stage, whose values are appended; a list has no lineage and no clock."""
        # `summary` describes the values of this module.
        from mlflow_e2eai.tracking.summary import add_value, stage_line

        def log(value: Any) -> None:
            self.values.append((name, value))
            add_value(line, value)

        with stage_line(name) as line:
            yield log
