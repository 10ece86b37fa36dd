"""Variants: what can run a bundle, which of them to run here, and the callable that does."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Any, Self

import numpy as np

from mlflow_e2eai import trees
from mlflow_e2eai.arrays import feed
from mlflow_e2eai.artifacts import Array, EngineArtifact, Infer, OnnxArtifact, Tensors, variant_name
from mlflow_e2eai.bundle import Manifest, located, read
from mlflow_e2eai.engine import engine_runner, why_not_here
from mlflow_e2eai.errors import E2EAIError, EngineMismatchError, InvalidInputError, RunnerError
from mlflow_e2eai.latency import LatencyReport
from mlflow_e2eai.libraries import native_allowed
from mlflow_e2eai.runners import onnxruntime_devices, onnxruntime_runner
from mlflow_e2eai.surgery import answering
from mlflow_e2eai.trees import Tree
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
            inputs: One array or tensor for the only input, or a mapping of names to them. Where
                the PyTorch module took nested arguments, these will do too.
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

    def structured(self, outputs: Mapping[str, Any]) -> Any:
        """Outputs in the Python shape in which the PyTorch module returned them.

        A dataclass, named tuple or ModelOutput comes back as its class where the program has
        imported it, else as a dict. None stands for an output that surgery removed, and what
        it exposed is left out. Of a bundle from before the shape was kept, outputs come back as
        they are.
        """
        if self.manifest.export is None or self.manifest.export.outputs is None:
            return dict(outputs)
        tree, origins = self.manifest.export.outputs, self.manifest.graphs[0].origins
        now = [spec.name for spec in self.manifest.outputs]
        if origins is None:
            return trees.unflatten(_under_names(tree, now), outputs)
        new = dict(zip(origins.outputs, now, strict=True))
        renamed = {name: new.get(name, "") for name in trees.names(tree)}
        return trees.unflatten(trees.renamed(tree, renamed), outputs)

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
        names = [spec.name for spec in self.manifest.inputs]
        tree = None if self.manifest.export is None else self.manifest.export.inputs
        if tree is not None and not tree.is_plain:
            given = {**(inputs if isinstance(inputs, Mapping) else {}), **named}
            if set(given) == set(names):
                return given
            is_only = len(tree.keys) == 1 and inputs is not None and tree.keys[0] not in given
            nested = {tree.keys[0]: inputs} if is_only else given
            return trees.select(_under_names(tree, names), nested)
        if inputs is None:
            return dict(named)
        if isinstance(inputs, Mapping):
            return {**inputs, **named}
        if len(names) != 1 or named:
            msg = f"The model has the inputs {names}; give each by name."
            raise InvalidInputError(msg)
        return {names[0]: inputs}


def _under_names(tree: Tree, names: Sequence[str]) -> Tree:
    """A tree under the names that surgery left; it keeps the order of those that it keeps."""
    old = trees.names(tree)
    if len(old) != len(names):
        return tree
    return trees.renamed(tree, dict(zip(old, names, strict=True)))


def _as_arrays(given: Mapping[str, Any]) -> tuple[Any, dict[str, Array]]:
    """The inputs as arrays, and the device of the torch tensors among them, if there are any."""
    torch = sys.modules.get("torch")
    device, arrays = None, {}
    for name, value in given.items():
        try:
            if torch is not None and isinstance(value, torch.Tensor):
                device = value.device
                arrays[name] = value.detach().cpu().numpy()
            else:
                arrays[name] = np.asarray(value)
        except (TypeError, ValueError) as error:
            msg = f"Input {name!r} is no array of numbers: {error}; convert it to one."
            raise InvalidInputError(msg) from error
    return device, arrays


def _as_tensors(answer: Tensors, device: Any) -> dict[str, Any]:
    import torch

    return {name: torch.from_numpy(np.asarray(value)).to(device) for name, value in answer.items()}


def load(
    directory: Path,
    *,
    variant: str | None = None,
    fallback: bool = True,
    allow_native: Sequence[str] = (),
) -> Model:
    """Load a bundle with the best variant that this machine can run.

    The order is: an engine that fits this machine, ONNX Runtime on a GPU, ONNX Runtime on the CPU;
    among variants of one runner, fp32, unless another precision was measured to be faster. What
    failed its comparison with the PyTorch module is never chosen unasked. Each step down is
    announced by a warning.

    Args:
        directory: The bundle.
        variant: The variant to run, by name; by default the best.
        fallback: Take the next variant when a better one cannot run. If False, that is an error.
        allow_native: Libraries in the bundle that may be loaded, by file name.

    Raises:
        ArtifactError: The manifest or a file is missing or has changed.
        InvalidInputError: There is no such variant.
        EngineMismatchError: The engine asked for is for another machine, or no engine fits and
            falling back was refused.
        RunnerError: No variant can run here.
    """
    with native_allowed(allow_native):
        placed = located(read(directory), directory)
    if variant is not None:
        return _open(placed, _named_candidate(placed, variant))
    failures = _engines_that_cannot_be_used(placed)
    for candidate in _candidates(placed):
        if failures and not fallback:
            break
        try:
            model = _open(placed, candidate)
        except (RunnerError, EngineMismatchError) as error:
            failures.append(error)
            continue
        if failures:
            warnings.warn(f"Running {candidate} instead: {failures[0]}", stacklevel=2)
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


def _engines_that_cannot_be_used(manifest: Manifest) -> list[E2EAIError]:
    """Why not, where the bundle has engines and none can be used here; else nothing."""
    failed = _failed(manifest)
    reasons: list[E2EAIError] = []
    for engine in manifest.engines:
        name = engine_variant(engine)
        reason: E2EAIError | None = why_not_here(engine)
        if reason is None and name in failed:
            reason = RunnerError(f"{name} failed its comparison with the PyTorch model.")
        if reason is None:
            return []
        reasons.append(reason)
    return reasons


def _failed(manifest: Manifest) -> set[str]:
    return {
        entry.variant
        for entry in manifest.evidence
        if entry.rejected or (entry.measured and not entry.passed)
    }


def _candidates(manifest: Manifest) -> Iterator[str]:
    failed = _failed(manifest)
    engines = [engine_variant(e) for e in manifest.engines if why_not_here(e) is None]
    groups = [engines]
    groups += [
        [graph_variant(g, device) for g in manifest.graphs if not is_emulated(g, device)]
        for device in onnxruntime_devices()
    ]
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
    verify_graph(graph)
    with onnxruntime_runner(
        graph.path,
        device=device,
        rounded=is_emulated(graph, device),
        fused=graph.precision != "fp8",
        libraries=graph.libraries,
    ) as infer:
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


@contextmanager
def raw_runner(raw: OnnxArtifact, cleaned: OnnxArtifact) -> Iterator[Infer]:
    """Run a graph as it was exported, under the names that surgery left."""
    with (
        _verified(raw, "cpu") as infer,
        answering(infer, raw, cleaned, run=onnxruntime_runner) as answer,
    ):
        yield answer
