"""Which variant of a bundle to run here."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

from mlflow_e2eai.bundle import Manifest, located, read
from mlflow_e2eai.engine import why_not_here
from mlflow_e2eai.errors import E2EAIError, EngineMismatchError, InvalidInputError, RunnerError
from mlflow_e2eai.latency import LatencyReport
from mlflow_e2eai.libraries import native_allowed
from mlflow_e2eai.runners import onnxruntime_devices
from mlflow_e2eai.variants.model import Model
from mlflow_e2eai.variants.running import engine_variant, graph_variant, is_emulated, runner


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
        opened = runner(variant, manifest.graphs, manifest.engines, spinning=True)
        infer = stack.enter_context(opened)
        return Model(manifest, variant, infer, stack.pop_all())
