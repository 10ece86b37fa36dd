"""The directory on disk: one manifest beside the files that it names, and how it is run.

    bundle/
      manifest.json        what there is, digests, evidence
      model.onnx           the cleaned fp32 graph
      model-fp16.onnx      the same in other precisions
      engines/             one file for each precision and target
      input_example.npz    one array for each input

Paths in the manifest are relative to the directory.
"""

from __future__ import annotations

import dataclasses
import shutil
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self, TypeVar

import numpy as np

from mlflow_e2eai.artifacts import (
    Array,
    Axis,
    EngineArtifact,
    Infer,
    OnnxArtifact,
    Tensors,
    TensorSpec,
    from_json,
    to_json,
    variant_name,
    verify,
    written,
)
from mlflow_e2eai.engine import engine_runner, why_not_here
from mlflow_e2eai.errors import (
    ArtifactError,
    E2EAIError,
    EngineMismatchError,
    InvalidInputError,
    RunnerError,
)
from mlflow_e2eai.latency import LatencyReport
from mlflow_e2eai.parity import ParityReport
from mlflow_e2eai.runners import feed, onnxruntime_devices, onnxruntime_runner
from mlflow_e2eai.surgery import SurgeryReport

Artifact = TypeVar("Artifact", OnnxArtifact, EngineArtifact)

FORMAT_VERSION = 1
"""Version of the manifest. Raise it when a reader of the version before would misread a new one.

1 (2026-11): the first.
"""

MANIFEST = "manifest.json"
EXAMPLE = "input_example.npz"
GRAPH = "model.onnx"


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """What is known of one variant.

    Attributes:
        variant: A runner and what it runs, for example ``onnxruntime-cpu/fp16``.
        sha256: Digest of the file that it runs; None for the PyTorch module.
        measured: Whether it was run here. What was not measured has not passed.
        reason: Why it was not measured, or how it broke down when it was; None when all went well.
        parity: Against the PyTorch module, by kind of sample: ``profile`` for the input example at
            every corner of the profile, ``data`` for the caller's evaluation data.
        task: Task metrics on the evaluation data, by name; greater is better.
    """

    variant: str
    sha256: str | None
    measured: bool
    reason: str | None = None
    parity: Mapping[str, ParityReport] = field(default_factory=dict)
    task: Mapping[str, float] = field(default_factory=dict)

    @property
    def passed(self) -> bool:
        """Whether it was measured to the end and every comparison passed."""
        compared = self.measured and self.reason is None and bool(self.parity)
        return compared and all(report.passed for report in self.parity.values())

    @property
    def findings(self) -> tuple[str, ...]:
        """What the comparisons found, a sentence each."""
        return tuple(
            finding.sentence for report in self.parity.values() for finding in report.findings
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """What a bundle holds.

    Attributes:
        format_version: See `FORMAT_VERSION`.
        package_version: Version of this package that wrote it.
        source_model: MLflow id of the PyTorch model, where it is logged.
        graphs: ONNX files, the cleaned fp32 one first.
        engines: Engines.
        surgery: What cleaning did.
        evidence: One entry for each variant, the PyTorch module first.
        latency: Reports by corner of the profile; their variants took turns.
        environment: What was measured on: processor, GPU, versions.
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

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """What the model takes."""
        return self.graphs[0].inputs

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """What the model gives."""
        return self.graphs[0].outputs

    @property
    def axes(self) -> tuple[Axis, ...]:
        """The dynamic axes."""
        return self.graphs[0].axes


def write(directory: Path, manifest: Manifest, example: Tensors) -> Manifest:
    """Copy a manifest's files into a directory and write the manifest there.

    Args:
        directory: Where to; made if it is missing.
        manifest: Its paths say where the files are now.
        example: One array for each input.

    Returns:
        The manifest with paths relative to the directory.
    """
    graphs = tuple(_copied(graph, _graph_path(graph), directory) for graph in manifest.graphs)
    engines = tuple(_copied(engine, _engine_path(engine), directory) for engine in manifest.engines)
    placed = dataclasses.replace(manifest, graphs=graphs, engines=engines)
    with written(directory / EXAMPLE) as temporary, temporary.open("wb") as file:
        np.savez(file, allow_pickle=False, **dict(example))
    with written(directory / MANIFEST) as temporary:
        temporary.write_text(to_json(placed), encoding="utf-8")
    return placed


def read(directory: Path) -> Manifest:
    """Read a bundle's manifest.

    Raises:
        ArtifactError: There is none, or another version of this package wrote it.
    """
    path = directory / MANIFEST
    if not path.is_file():
        msg = f"{directory} holds no {MANIFEST}; give a model that mlflow_e2eai.log_model made."
        raise ArtifactError(msg)
    manifest = from_json(Manifest, path.read_bytes())
    if manifest.format_version != FORMAT_VERSION:
        msg = (
            f"The bundle has format {manifest.format_version}, written by mlflow_e2eai "
            f"{manifest.package_version}, but this version reads format {FORMAT_VERSION}; install "
            f"that version."
        )
        raise ArtifactError(msg)
    return manifest


def located(manifest: Manifest, directory: Path) -> Manifest:
    """The same manifest with the paths of its files where the bundle lies."""
    return dataclasses.replace(
        manifest,
        graphs=tuple(dataclasses.replace(g, path=directory / g.path) for g in manifest.graphs),
        engines=tuple(dataclasses.replace(e, path=directory / e.path) for e in manifest.engines),
    )


def read_example(directory: Path) -> dict[str, Array]:
    """The input example of a bundle: one array for each input."""
    try:
        with np.load(directory / EXAMPLE, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files}
    except (OSError, ValueError) as error:
        msg = f"Cannot read {EXAMPLE} in {directory}: {error}; download the bundle again."
        raise ArtifactError(msg) from error


def _graph_path(graph: OnnxArtifact) -> Path:
    return Path(GRAPH if graph.precision == "fp32" else f"model-{graph.precision}.onnx")


def _engine_path(engine: EngineArtifact) -> Path:
    return Path("engines", f"{engine.target}-{engine.precision}.engine")


def _copied(artifact: Artifact, place: Path, directory: Path) -> Artifact:
    verify(artifact.path, artifact.sha256)
    with written(directory / place) as temporary:
        shutil.copyfile(artifact.path, temporary)
    return dataclasses.replace(artifact, path=place)


def engine_variant(engine: EngineArtifact) -> str:
    """Name of the variant that runs an engine."""
    return variant_name(str(engine.target), engine.precision)


def graph_variant(graph: OnnxArtifact, device: str) -> str:
    """Name of the variant that runs a graph with ONNX Runtime."""
    return variant_name(f"onnxruntime-{device}", graph.precision)


class Model:
    """A bundle, loaded: named arrays or tensors in, named arrays or tensors out.

    Attributes:
        variant: What runs it, for example ``onnxruntime-cpu/fp32``.
        manifest: What the bundle holds.
    """

    def __init__(self, manifest: Manifest, variant: str, infer: Infer, stack: ExitStack) -> None:
        self.manifest = manifest
        self.variant = variant
        self._infer = infer
        self._stack = stack

    def __call__(self, inputs: Any = None, /, **named: Any) -> dict[str, Any]:
        """Run the model.

        Args:
            inputs: One array or tensor for the only input, or a mapping of names to them.
            **named: The same, by keyword.

        Returns:
            Outputs by name: torch tensors on the inputs' device when the inputs were tensors, else
            NumPy arrays.

        Raises:
            InvalidInputError: A name, dtype or shape does not fit, and what does is said.
            RunnerError: The model could not be run.
        """
        given = self._named(inputs, named)
        device, arrays = _as_arrays(given)
        answer = self._infer(feed(arrays, self.manifest.inputs))
        return dict(answer) if device is None else _as_tensors(answer, device)

    def __repr__(self) -> str:
        """What it is, for a prompt."""
        inputs = ", ".join(f"{s.name}: {s.dtype}{list(s.shape)}" for s in self.manifest.inputs)
        return f"<mlflow_e2eai.Model {self.variant} ({inputs})>"

    def __enter__(self) -> Self:
        """Use it in a with block, to give its memory back at the end."""
        return self

    def __exit__(self, *_: object) -> None:
        """Give back what the runner holds."""
        self._stack.close()

    def _named(self, inputs: Any, named: Mapping[str, Any]) -> dict[str, Any]:
        if inputs is None:
            return dict(named)
        if isinstance(inputs, Mapping):
            return {**inputs, **named}
        names = [spec.name for spec in self.manifest.inputs]
        if len(names) != 1 or named:
            msg = f"The model has the inputs {names}; give each by name."
            raise InvalidInputError(msg)
        return {names[0]: inputs}


def _as_arrays(given: Mapping[str, Any]) -> tuple[Any, dict[str, Array]]:
    """The inputs as arrays, and the device of the torch tensors among them, if there are any."""
    torch = sys.modules.get("torch")
    device, arrays = None, {}
    for name, value in given.items():
        if torch is not None and isinstance(value, torch.Tensor):
            device = value.device
            arrays[name] = value.detach().cpu().numpy()
        else:
            arrays[name] = np.asarray(value)
    return device, arrays


def _as_tensors(answer: Tensors, device: Any) -> dict[str, Any]:
    import torch

    return {name: torch.from_numpy(np.asarray(value)).to(device) for name, value in answer.items()}


def load(directory: Path, *, variant: str | None = None, fallback: bool = True) -> Model:
    """Load a bundle with the best variant that this machine can run.

    The order is: an engine that fits this machine, ONNX Runtime on a GPU, ONNX Runtime on the CPU;
    among variants of one runner, fp32, unless another precision was measured to be faster. What
    failed its comparison with the PyTorch module is never chosen unasked. Each step down is
    announced by a warning.

    Args:
        directory: The bundle.
        variant: The variant to run, by name; by default the best.
        fallback: Take the next variant when a better one cannot run. If False, that is an error.

    Raises:
        ArtifactError: The manifest or a file is missing or has changed.
        InvalidInputError: There is no such variant.
        EngineMismatchError: The engine asked for is for another machine, or no engine fits and
            falling back was refused.
        RunnerError: No variant can run here.
    """
    placed = located(read(directory), directory)
    if variant is not None:
        return _open(placed, _named_candidate(placed, variant))
    failures: list[E2EAIError] = list(_engines_that_do_not_fit(placed))
    for candidate in _candidates(placed):
        if failures and not fallback:
            break
        try:
            model = _open(placed, candidate)
        except (RunnerError, EngineMismatchError) as error:
            failures.append(error)
            continue
        if failures:
            warnings.warn(f"Running {candidate}: {failures[0]}", stacklevel=2)
        return model
    if failures:
        raise failures[0]
    msg = "No variant of this bundle passed its comparison with the PyTorch model; name one to run."
    raise RunnerError(msg)


def _named_candidate(manifest: Manifest, variant: str) -> str:
    known = [engine_variant(engine) for engine in manifest.engines]
    known += [graph_variant(graph, d) for d in ("cuda", "cpu") for graph in manifest.graphs]
    if variant not in known:
        msg = f"There is no variant {variant!r}; this bundle has {', '.join(known)}."
        raise InvalidInputError(msg)
    return variant


def _engines_that_do_not_fit(manifest: Manifest) -> Iterator[E2EAIError]:
    """Why engines cannot run here, when the bundle has some and none can."""
    reasons = [why_not_here(engine) for engine in manifest.engines]
    if reasons and all(reason is not None for reason in reasons):
        yield from (reason for reason in reasons if reason is not None)


def _candidates(manifest: Manifest) -> Iterator[str]:
    failed = {entry.variant for entry in manifest.evidence if entry.measured and not entry.passed}
    engines = [engine_variant(e) for e in manifest.engines if why_not_here(e) is None]
    groups = [engines]
    for device in onnxruntime_devices():
        groups.append([graph_variant(graph, device) for graph in manifest.graphs])
    for group in groups:
        yield from _fastest_first([name for name in group if name not in failed], manifest.latency)


def _fastest_first(names: list[str], latency: Mapping[str, LatencyReport]) -> list[str]:
    """The names in order, but one that was measured to be faster than the first goes before it."""
    report = latency.get("opt") or latency.get("static")
    if report is None or not names:
        return names
    measured = {entry.name for entry in report.variants}
    faster = [
        name
        for name in names[1:]
        if {name, names[0]} <= measured and report.ratio(name, names[0]).high < 1
    ]
    faster.sort(key=lambda name: report[name].p50_ms)
    return [*faster, *(name for name in names if name not in faster)]


def _open(manifest: Manifest, variant: str) -> Model:
    with ExitStack() as stack:
        infer = stack.enter_context(runner(variant, manifest.graphs, manifest.engines))
        return Model(manifest, variant, infer, stack.pop_all())


@contextmanager
def _verified(graph: OnnxArtifact, device: Any) -> Iterator[Infer]:
    verify(graph.path, graph.sha256)
    with onnxruntime_runner(graph.path, device=device) as infer:
        yield infer


def runner(
    variant: str, graphs: Sequence[OnnxArtifact], engines: Sequence[EngineArtifact]
) -> AbstractContextManager[Infer]:
    """What runs a variant, after its file's digest was checked.

    Raises:
        InvalidInputError: None of the graphs and engines is that variant.
    """
    for engine in engines:
        if engine_variant(engine) == variant:
            return engine_runner(engine)
    for graph in graphs:
        for device in ("cuda", "cpu"):
            if graph_variant(graph, device) == variant:
                return _verified(graph, device)
    msg = f"There is no variant {variant!r} among these graphs and engines."
    raise InvalidInputError(msg)
