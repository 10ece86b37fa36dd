"""Loading of a bundle with the best variant for this machine."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from mlflow_e2eai.artifacts.libraries import native_allowed
from mlflow_e2eai.artifacts.values import EngineArtifact, Infer, OnnxArtifact
from mlflow_e2eai.bundle.audit import audit, refuse_changes
from mlflow_e2eai.bundle.batching import bound_sizes, fill_to_buckets
from mlflow_e2eai.bundle.choice import Choice, Goal
from mlflow_e2eai.bundle.manifest import MANIFEST, Manifest
from mlflow_e2eai.bundle.model import Model
from mlflow_e2eai.bundle.selection import RankedVariants
from mlflow_e2eai.engine.runner import graph_of
from mlflow_e2eai.errors import E2EAIError, EngineMismatchError, RunnerError, warn_caller
from mlflow_e2eai.evaluation.variants import artifact_of, engine_variant, open_variant


def load(
    directory: Path,
    *,
    variant: str | None = None,
    goal: str = "latency",
    split: bool = False,
    fallback: bool = True,
    allow_native: Sequence[str] = (),
    fetch: Callable[[Path], object] = lambda _: None,
    sha256: str | None = None,
) -> Model:
    """Load a bundle with the best variant that this machine can run.

    The best is the one with the best measurement for the goal on this kind of GPU, or without a GPU
    on this kind of processor. Without such evidence the order is: an engine that fits this machine,
    ONNX Runtime on a GPU, ONNX Runtime on the CPU; among variants of one runner, fp32, unless
    another precision was measured to be better anywhere. A variant that failed its comparison with
    the PyTorch module is chosen by name only; so is one that nobody measured, where another passed.
    Each step down is announced by a warning.

    Args:
        directory: The bundle.
        variant: The variant to run, by name; by default the best.
        goal: The criterion: ``latency``, ``latency@8`` for calls of 8 items,
            ``throughput`` or ``memory``; see `Goal`.
        split: Cut batches that are larger than the profile's max, fill those below its min, and
            fill those between an engine's buckets where that is quicker, where the first axis of
            every input and output is the same dynamic one; see `batching.bound_sizes`
            and `batching.fill_to_buckets`. If False, an engine refuses such a batch, and ONNX
            Runtime, which has no profile, runs it unchanged if it has items, and as many as a
            multiple of the axis's.
        fallback: Take the next variant when a better one cannot run. If False, that is an error.
        allow_native: Libraries in the bundle that may be loaded, by file name.
        fetch: Called with each needed file, relative to the directory, before it is read, to
            download it.
        sha256: The digest of the manifest, where the model's other files or the server have it.

    Raises:
        ArtifactError: The manifest or a file is missing or has changed.
        InvalidInputError: There is no such variant, or the goal is not known.
        EngineMismatchError: The requested engine is for another machine, or no engine fits and
            `fallback` is False.
        RunnerError: No variant can run here.
    """
    aim = Goal.parse(goal)
    fetch(Path(MANIFEST))
    with native_allowed(allow_native):
        manifest = audit(directory, sha256=sha256, whole=False)
    variants = RankedVariants(manifest, aim)
    # Of each file the digest, before it is opened.
    open_one = partial(_open, manifest, directory, fetch=fetch, split=split)
    if variant is not None:
        choice = variants.choose(variant)
        return open_one(variant, lambda: choice)
    return _open_best(variants, _why_no_engine(manifest, variants), open_one, fallback=fallback)


def _open_best(
    variants: RankedVariants,
    unfit: E2EAIError | None,
    open_one: Callable[[str, Callable[[], Choice]], Model],
    *,
    fallback: bool,
) -> Model:
    """Open the first of the ranked variants that can run here.

    Args:
        variants: The bundle's variants.
        unfit: Why none of its engines can be used here; None where one can, or there is none.
        open_one: Opens a variant by name, with the explanation of the choice.
        fallback: Take the next variant when a better one cannot run.
    """
    failures: dict[str, E2EAIError] = {}
    for name in variants.ranked:
        reason = unfit or next(iter(failures.values()), None)
        if reason is not None and not fallback:
            raise reason
        try:
            # Comparing variants takes milliseconds, so it is deferred until `explain` is called.
            model = open_one(name, partial(variants.choice, name, dict(failures)))
        except (RunnerError, EngineMismatchError) as error:
            failures[name] = error
            continue
        if reason is not None:
            warn_caller(f"Falling back to {name}: {reason}")
        return model
    if reason := unfit or next(iter(failures.values()), None):
        raise reason
    msg = (
        f"No variant of this bundle passed its comparison with the {variants.subject}; "
        f"name one to run."
    )
    raise RunnerError(msg)


def _why_no_engine(manifest: Manifest, variants: RankedVariants) -> E2EAIError | None:
    """Why none of the engines can be used here; None where one can, or there is none."""
    names = [engine_variant(engine) for engine in manifest.engines]
    if not all(name in variants.errors for name in names):
        return None
    return next((variants.errors[name] for name in names), None)


def _open(
    manifest: Manifest,
    directory: Path,
    variant: str,
    explain: Callable[[], Choice],
    *,
    fetch: Callable[[Path], object],
    split: bool,
) -> Model:
    """Fetch a variant's files, check their digests and open it."""
    artifact = artifact_of(variant, manifest.graphs, manifest.engines)
    files = _files(artifact, manifest.graphs)
    for path in files:
        fetch(path.relative_to(directory))
    with ExitStack() as stack:
        runner = open_variant(variant, manifest.graphs, manifest.engines, serving=True)
        with refuse_changes(files):
            infer = stack.enter_context(runner)
        bounded = partial(_limit_sizes, manifest=manifest, artifact=artifact, split=split)
        on_device = getattr(infer, "on_device", None)
        if on_device is not None:
            on_device = bounded(on_device)
        infer = bounded(infer)
        return Model(manifest, variant, explain, infer, stack.pop_all(), on_device=on_device)


def _files(artifact: OnnxArtifact | EngineArtifact, graphs: Sequence[OnnxArtifact]) -> list[Path]:
    """The files that a variant is opened from."""
    libraries = [library.path for library in artifact.libraries]
    if isinstance(artifact, EngineArtifact):
        graph = graph_of(artifact, graphs) if artifact.settings.strip_weights else None
        return [artifact.path, *libraries, *([] if graph is None else _files(graph, ()))]
    weights = [artifact.path.parent / file.path for file in artifact.weights]
    return [artifact.path, *weights, *libraries]


def _limit_sizes(
    infer: Infer, *, manifest: Manifest, artifact: OnnxArtifact | EngineArtifact, split: bool
) -> Infer:
    """Refuse sizes that a variant does not take; cut or fill batches where that is allowed."""
    interface = manifest.inputs, manifest.outputs, artifact.axes
    has_profile = isinstance(artifact, EngineArtifact)
    if split and has_profile:
        infer = fill_to_buckets(infer, *interface)
    return bound_sizes(infer, *interface, split=split, profile=split or has_profile)
