"""ONNX and a target -> engine."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from functools import partial
from math import inf
from pathlib import Path
from typing import Any

from mlflow_e2eai.artifacts.build_settings import DEFAULT_BUILD, BuildSettings
from mlflow_e2eai.artifacts.files import atomic_write, sha256_of
from mlflow_e2eai.artifacts.libraries import describe_libraries
from mlflow_e2eai.artifacts.values import EngineArtifact, OnnxArtifact, Target, require_graph
from mlflow_e2eai.engine import backends
from mlflow_e2eai.engine.builder import Built, write_build, write_plan
from mlflow_e2eai.engine.plugins import check_plugins
from mlflow_e2eai.engine.targets import resolve, unbuildable_here
from mlflow_e2eai.engine.timing_cache import timings_key
from mlflow_e2eai.errors import (
    EngineBuildError,
    RunnerError,
    require_flags,
    require_function,
    require_kind,
    require_path,
    warn_caller,
)
from mlflow_e2eai.runtime.process import Reproduction, WorkerProcess
from mlflow_e2eai.runtime.progress import steps
from mlflow_e2eai.runtime.storage import storage_errors


@storage_errors()
def compile(
    source: OnnxArtifact,
    target: Target | str,
    *,
    out: Path,
    tf32: bool = False,
    plugin_libraries: Sequence[Path] = (),
    settings: BuildSettings = DEFAULT_BUILD,
    timing_cache: Path | None = None,
    step: Callable[[str, int, int], None] | None = None,
) -> EngineArtifact:
    """Build a TensorRT engine, in a process of its own: a builder may crash, hang or be killed.

    The network is strongly typed: the engine computes in the types of the graph. Its optimisation
    profile is the graph's dynamic axes, from min over opt to max.

    Args:
        source: The graph; its precision is the engine's.
        target: What to build for: a Target, or the text that names one (see `resolve`).
        out: The file to write.
        tf32: Let fp32 arithmetic be rounded to TF32, which TensorRT does by default at about 3e-3
            absolute error on unit-scale convolutions. Off by default: fp32 means fp32.
        plugin_libraries: Shared libraries with plugins for operators of the graph. They are native
            code; naming them here allows loading them. Where an operator has a
            function too, TensorRT takes the plugin.
        settings: How to build.
        timing_cache: A folder for timings of kernels, which later builds reuse; created if
            missing. It is for TensorRT, which times kernels where it builds, and not for
            TensorRT-RTX. Timings of another GPU or version are ignored with a warning.
        step: Called while it builds with the name of a phase, how many of its steps are done, and
            how many there are; an error of it stops the build. By default there is a bar on stderr
            where that is a terminal.

    Returns:
        The engine.

    Raises:
        InvalidInputError: There is no such target, a library is not there, or the target's TensorRT
            takes no plugins.
        RunnerError: TensorRT cannot load a library.
        MissingDependencyError: The target's TensorRT is not installed.
        EngineBuildError: TensorRT refuses the graph: names the node, its operator and TensorRT's
            own words. Or the graph is recorded as fp16 and nothing in it, or in the built engine,
            computes in fp16; or the builder crashed, was killed, or took longer than its time
            limit.

    Examples:
        >>> engine = mlflow_e2eai.compile(cleaned, "A100", out=folder / "a100.plan")
        >>> str(engine.target)
        'tensorrt_rtx-sm80'
    """
    source, out = require_graph(source), require_path("out", out)
    if isinstance(target, str):
        target = resolve(target)
    require_kind("target", target, Target, "a GPU, such as 'A100', or a target, such as 'sm80'")
    require_flags(tf32=tf32)
    require_kind("settings", settings, BuildSettings, "a BuildSettings")
    if step is not None:
        require_function("step", step, "a function of a phase, the steps done and all steps")
    if timing_cache is not None:
        timing_cache = require_path("timing_cache", timing_cache, "the path of a folder")
    libraries = describe_libraries(plugin_libraries)
    check_plugins(target, libraries)
    if (reason := unbuildable_here(source, target, settings)) is not None:
        msg = f"{source.path.name} cannot be built for {target}: {reason}."
        raise EngineBuildError(msg, reason=reason)
    backend = backends.BACKENDS[target.backend]
    trt = backends.load(backend)
    if not backends.lists_capabilities(backend, trt, target.capabilities):
        warn_caller(
            f"{backend.title} {trt.__version__} does not list this GPU "
            f"({target.compute_capability}) as supported: the engine may compute wrong outputs on "
            "it.",
            backends.UnlistedGPUWarning,
        )
    if timings_key(target, settings) is None:
        timing_cache = None
    elif timing_cache is not None:
        timing_cache.mkdir(parents=True, exist_ok=True)
    request: dict[str, Any] = {"source": source, "target": target, "tf32": tf32}
    request |= {"libraries": libraries, "settings": settings}
    with atomic_write(out) as temporary:
        built = _build(
            partial(write_plan, **request, timing_cache=timing_cache, out=temporary),
            partial(write_build, **request),
            f"{source.path.name} for {target}",
            settings.time_limit_s,
            step,
            # Plugins stay loaded in a process that has loaded them.
            is_new=bool(libraries),
        )
    if built.refused:
        warn_caller(
            "The timing cache was ignored, because it is damaged or of another GPU or version "
            f"than {backend.title} {trt.__version__} here: {', '.join(built.refused)}."
        )
    return EngineArtifact(
        path=out,
        sha256=sha256_of(out),
        parent_sha256=source.sha256,
        target=target,
        backend_version=str(trt.__version__),
        precision=source.precision,
        tf32=tf32,
        inputs=source.inputs,
        outputs=source.outputs,
        axes=source.axes,
        build_s=built.build_s,
        size_bytes=out.stat().st_size,
        libraries=libraries,
        settings=settings,
        checked=built.checked,
    )


def _build(
    write: Callable[..., Built],
    reproduction: Reproduction,
    title: str,
    time_limit_s: float,
    step: Callable[[str, int, int], None] | None,
    *,
    is_new: bool,
) -> Built:
    """Write a plan in a worker process, with a progress bar."""
    with _builder(is_new=is_new) as process, steps(title) as bar:
        process.reproduction = reproduction
        try:
            built: Built = process.call(
                write, callbacks={"step": step or bar}, timeout_s=inf, time_limit_s=time_limit_s
            )
        except RunnerError as error:
            if not process.has_ended:
                raise
            msg = (
                f"TensorRT did not finish {title}. {error} Build it on a machine with more "
                f"memory, raise time_limit_s, or leave this target out."
            )
            raise EngineBuildError(msg, reason=str(error)) from error
        except BaseException:  # Ctrl-C: the build is of no use any more
            process.kill()
            raise
    return built


# The process that builds engines. A pipeline or a worker of a fleet, which build many, reuse their
# own from build to build: importing TensorRT takes longer than building a small engine.

_reused: list[WorkerProcess | None] = []
"""The idle builder of this process, if it reuses one; None before the first engine."""


def reuse_builder() -> None:
    """Reuse the builder of the next engine of this process for all later ones."""
    if not _reused:
        _reused.append(None)


@contextmanager
def reused_builder() -> Iterator[None]:
    """Build all engines of the block in one process, or in the one that is reused already."""
    if _reused:
        yield
        return
    reuse_builder()
    try:
        yield
    finally:
        while _reused:
            if (process := _reused.pop()) is not None:
                process.close()


@contextmanager
def _builder(*, is_new: bool) -> Iterator[WorkerProcess]:
    """A process to build an engine in: the one that this process reuses, or a new one."""
    if is_new or not _reused:
        with closing(WorkerProcess()) as process:
            yield process
        return
    process = _reused.pop() or WorkerProcess()
    if process.has_ended:
        process.close()
        process = WorkerProcess()
    try:
        yield process
    except BaseException:  # its state is unknown
        process.close()
        reuse_builder()
        raise
    _reused.append(process)
