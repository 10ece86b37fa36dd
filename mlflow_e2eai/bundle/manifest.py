"""The directory on disk: one manifest next to the files that it names, and how it is run.

    bundle/
      manifest.json        list of files, digests, evidence
      model.onnx           the cleaned fp32 graph
      model-fp16.onnx      the same in other precisions
      <digest>.weights     weights of graphs that are too large for one file
      engines/             one file for each precision and target
      libraries/           native code, loaded only where the caller allows it
      input_example.npz    one array for each input

Paths in the manifest are relative to the directory.
"""

from __future__ import annotations

import contextlib
import dataclasses
import shutil
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from mlflow_e2eai.artifacts import libraries
from mlflow_e2eai.artifacts.arrays import load_arrays, save_arrays
from mlflow_e2eai.artifacts.files import (
    Summary,
    Table,
    atomic_write,
    from_json,
    read_sealed,
    require_inside,
    seal,
    to_json,
    verify,
)
from mlflow_e2eai.artifacts.values import (
    Array,
    Axis,
    EngineArtifact,
    OnnxArtifact,
    Tensors,
    TensorSpec,
)
from mlflow_e2eai.artifacts.weight_files import link, verify_graph
from mlflow_e2eai.bundle.digests import refuse_links
from mlflow_e2eai.errors import ArtifactError, InvalidInputError, shown
from mlflow_e2eai.evaluation.effort import EvidenceLevel
from mlflow_e2eai.evaluation.evidence import Evidence, MachineEvidence, machine_name
from mlflow_e2eai.evaluation.metrics import NEGATED
from mlflow_e2eai.evaluation.variants import FILE
from mlflow_e2eai.latency.report import LatencyReport
from mlflow_e2eai.precision.stage import PrecisionReport
from mlflow_e2eai.pytorch.stage import ExportReport
from mlflow_e2eai.surgery.report import SurgeryReport

Artifact = TypeVar("Artifact", OnnxArtifact, EngineArtifact)

FORMAT_VERSION = 1
"""Version of the manifest. Raise it when a reader of the version before would misread a new one.

1 (2026-11): the first.
"""

FOLDER = "bundle"
"""Folder of a bundle in its MLflow model."""

MANIFEST = "manifest.json"
EXAMPLE = "input_example.npz"
GRAPH = "model.onnx"


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Manifest(Summary):
    """The content of a bundle, with all evidence.

    Attributes:
        format_version: See `FORMAT_VERSION`.
        package_version: Version of this package that wrote it.
        source_model: MLflow id of the PyTorch model, where it is logged.
        graphs: ONNX files, the cleaned fp32 one first.
        engines: Engines.
        surgery: The surgery report.
        evidence: One entry for each variant, the PyTorch module first, measured on the machine
            that packaged the bundle.
        latency: Its reports by corner of the profile; their variants took turns.
        environment: That machine: processor, GPU, versions.
        export: The export report; None where an ONNX file was the source.
        conversions: The report of each conversion.
        elsewhere: Evidence of other machines.
        level: How much was compared and measured; see `evaluation.effort`. None where a version of
            this package wrote it that had no levels.
        measured_at: When `evidence` was measured, see `evaluation.evidence.now_text`; None where
            that was not recorded.
        reused: Where the result of a stage is from, by stage, where it is of an earlier run.
    """

    format_version: int
    package_version: str
    source_model: str | None
    graphs: tuple[OnnxArtifact, ...]
    engines: tuple[EngineArtifact, ...]
    surgery: SurgeryReport
    evidence: tuple[Evidence, ...]
    latency: Mapping[str, LatencyReport]
    environment: Mapping[str, str]
    export: ExportReport | None = None
    conversions: tuple[PrecisionReport, ...] = ()
    elsewhere: tuple[MachineEvidence, ...] = ()
    level: EvidenceLevel | None = None
    measured_at: str | None = None
    reused: Mapping[str, str] = field(default_factory=dict)

    @property
    def by_machine(self) -> tuple[Manifest, ...]:
        """The bundle with the evidence of each machine alone, the one that packaged it first."""
        others = (
            dataclasses.replace(
                self,
                environment=there.environment,
                evidence=there.evidence,
                latency=there.latency,
                measured_at=there.measured_at,
                elsewhere=(),
            )
            for there in self.elsewhere
        )
        return (dataclasses.replace(self, elsewhere=()), *others)

    @property
    def all_evidence(self) -> tuple[Evidence, ...]:
        """Evidence of all machines: a variant has an entry for each that measured it."""
        return tuple(entry for there in self.by_machine for entry in there.evidence)

    @property
    def machine(self) -> str:
        """Name of the machine that packaged it."""
        return machine_name(self.environment)

    @property
    def files(self) -> tuple[OnnxArtifact | EngineArtifact, ...]:
        """Graphs and engines, each of which is a file."""
        return (*self.graphs, *self.engines)

    @property
    def digests(self) -> frozenset[str]:
        """Digests of these files."""
        return frozenset(file.sha256 for file in self.files)

    @property
    def reference(self) -> str | None:
        """The variant that all others are compared with, if there is evidence of it."""
        return next((entry.variant for entry in self.evidence if entry.sha256 is None), None)

    @property
    def zero_scores(self) -> tuple[str, ...]:
        """Task metrics by which the reference scores 0, but for those where 0 is the best."""
        scores = [entry.task for entry in self.all_evidence if entry.sha256 is None]
        zeros = {name: None for task in scores for name, value in task.items() if value == 0}
        return tuple(name for name in zeros if not name.startswith(NEGATED))

    @property
    def subject(self) -> str:
        """The reference in words."""
        return "ONNX file" if self.reference == FILE else "PyTorch module"

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """The model's inputs."""
        return self.graphs[0].inputs

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """The model's outputs."""
        return self.graphs[0].outputs

    @property
    def axes(self) -> tuple[Axis, ...]:
        """The dynamic axes."""
        return self.graphs[0].axes

    def _line(self) -> str:
        from mlflow_e2eai.bundle.rows import sentence_of

        return sentence_of(self)

    def _table(self) -> Table:
        from mlflow_e2eai.bundle.rows import VariantRow, rows_of

        return VariantRow, rows_of(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Format:
    """The part that every version of the manifest has."""

    format_version: int
    package_version: str


def write(directory: Path, manifest: Manifest, example: Tensors, *, copy: bool = False) -> Manifest:
    """Copy a manifest's files into a directory and write the manifest there.

    Large weights are linked, not copied.

    Args:
        directory: The directory; created if it is missing.
        manifest: The manifest, with the present paths of its files.
        example: One array for each input.
        copy: Copy large weights too, where both directories stay: ONNX's own loader refuses a file
            with several hard links.

    Returns:
        The manifest with paths relative to the directory.
    """
    paths = [*map(_graph_path, manifest.graphs), *map(_engine_path, manifest.engines)]
    if twice := sorted(str(path) for path, count in Counter(paths).items() if count > 1):
        msg = f"Several files would be {', '.join(twice)}; give each precision and target once."
        raise InvalidInputError(msg)
    graphs = tuple(_copy(graph, _graph_path(graph), directory) for graph in manifest.graphs)
    engines = tuple(_copy(engine, _engine_path(engine), directory) for engine in manifest.engines)
    for graph in manifest.graphs:
        for file in graph.weights:
            link(graph.path.parent / file.path, directory, copy=copy)
    placed = dataclasses.replace(manifest, graphs=graphs, engines=engines)
    save_arrays(directory / EXAMPLE, example)
    with atomic_write(directory / MANIFEST) as temporary:
        temporary.write_text(seal(to_json(placed)), encoding="utf-8")
    return placed


def find(path: Path) -> Path:
    """The bundle at a path, or inside the MLflow model at it.

    Raises:
        ArtifactError: There is neither.
    """
    for folder in (path, path / FOLDER):
        with contextlib.suppress(OSError):  # its name is too long, or its folder may not be read
            if (folder / MANIFEST).is_file():
                return folder
    msg = f"There is no bundle at {shown(path)}; give a folder that mlflow_e2eai.save_model wrote."
    raise ArtifactError(msg)


def read(directory: Path) -> Manifest:
    """Read a bundle's manifest.

    Raises:
        ArtifactError: There is none, it has changed, it or the directory is a link, or another
            version of this package wrote it.
    """
    path = directory / MANIFEST
    if not path.is_file():
        msg = f"{directory} has no {MANIFEST}; give a model that mlflow_e2eai.log_model made."
        raise ArtifactError(msg)
    place = directory.absolute()
    refuse_links(place.parent, [f"{place.name}/{MANIFEST}"])
    text = read_sealed(path)
    version = from_json(_Format, text)
    if version.format_version != FORMAT_VERSION:
        msg = (
            f"The bundle has format {version.format_version}, written by mlflow_e2eai "
            f"{version.package_version}, but the installed version reads format {FORMAT_VERSION}; "
            "install the one that wrote it."
        )
        raise ArtifactError(msg)
    manifest = from_json(Manifest, text)
    weights = [file for graph in manifest.graphs for file in graph.weights]
    native = [library for item in manifest.files for library in item.libraries]
    for each in (*manifest.files, *weights, *native):
        name = each.path.as_posix()
        require_inside(name, f"The manifest of the bundle names {name!r}")
    _check_complete(manifest)
    return manifest


def _check_complete(manifest: Manifest) -> None:
    """Check what the types of its fields do not tell: a graph, and rounds of one length."""
    if not manifest.graphs:
        msg = "The manifest of the bundle has no graph; make the artifact again."
        raise ArtifactError(msg)
    for there in manifest.by_machine:
        for corner, report in there.latency.items():
            rounds = {len(entry.rounds_ms) for entry in report.variants if entry.rounds_ms}
            if len(rounds) > 1:
                counts = " and ".join(str(count) for count in sorted(rounds))
                msg = (
                    f"The manifest of the bundle has variants at {shown(corner)} that were timed "
                    f"{counts} times, but they take turns; make the artifact again."
                )
                raise ArtifactError(msg)


def read_example(directory: Path) -> dict[str, Array]:
    """The input example of a bundle: one array for each input."""
    refuse_links(directory, [EXAMPLE])
    return load_arrays(directory / EXAMPLE)


def _graph_path(graph: OnnxArtifact) -> Path:
    return Path(GRAPH if graph.precision == "fp32" else f"model-{graph.precision}.onnx")


def _engine_path(engine: EngineArtifact) -> Path:
    return Path("engines", f"{engine.target}-{engine.arithmetic}.engine")


def _copy(artifact: Artifact, path: Path, directory: Path) -> Artifact:
    if isinstance(artifact, OnnxArtifact):
        verify_graph(artifact)
    else:
        verify(artifact.path, artifact.sha256)
    with atomic_write(directory / path) as temporary:
        shutil.copyfile(artifact.path, temporary)
    copies = libraries.copy_libraries(artifact.libraries, directory)
    size_bytes = artifact.path.stat().st_size
    if isinstance(artifact, OnnxArtifact):
        size_bytes += sum(file.size_bytes for file in artifact.weights)
    return dataclasses.replace(artifact, path=path, libraries=copies, size_bytes=size_bytes)
