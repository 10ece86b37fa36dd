"""ONNX and a target -> plan: the serialised engine, built in this process."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlflow_e2eai.artifacts import graphs
from mlflow_e2eai.artifacts.build_settings import BuildSettings
from mlflow_e2eai.artifacts.values import Library, OnnxArtifact, Target
from mlflow_e2eai.engine import backends
from mlflow_e2eai.engine.backends import logger
from mlflow_e2eai.engine.inspection import inspect_plan
from mlflow_e2eai.engine.plugins import load_plugins
from mlflow_e2eai.engine.profiles import profiles, shape_at
from mlflow_e2eai.engine.timing_cache import load_timings, save_timings
from mlflow_e2eai.errors import EngineBuildError, RunnerError
from mlflow_e2eai.runtime.crashes import add_file, add_graph, add_script
from mlflow_e2eai.runtime.worker import Worker

_BETWEEN_STEPS_S = 0.1
"""Seconds between two reports of progress: some builds take a million steps."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Built:
    """Facts about a plan that was built.

    Attributes:
        build_s: Seconds that TensorRT took.
        checked: The checked parts; see `inspect_plan`.
        refused: Names of the timing files that did not fit.
    """

    build_s: float
    checked: tuple[str, ...]
    refused: tuple[str, ...] = ()


def write_plan(
    worker: Worker,
    *,
    source: OnnxArtifact,
    target: Target,
    tf32: bool,
    libraries: Sequence[Library],
    settings: BuildSettings,
    timing_cache: Path | None,
    out: Path,
) -> Built:
    """Build an engine, compare it with the request, and write it.

    Args:
        worker: The worker process that builds. Its callback ``step`` gets the name of a phase, how
            many of its steps are done, and how many there are; an error of it stops the build.
        source: See `compile`.
        target: What to build for.
        tf32: See `compile`.
        libraries: Libraries of plugins.
        settings: See `compile`.
        timing_cache: A folder of timings that fit; see `timings`.
        out: The file to write.

    Returns:
        Facts about the plan.

    Raises:
        E2EAIError: See `compile`.
    """
    backend = backends.BACKENDS[target.backend]
    trt = backends.load(backend)
    log = logger(trt, is_quiet=True)
    started = time.perf_counter()
    builder = backends.start(trt.Builder, log, backend)
    if settings.threads is not None:
        builder.max_threads = settings.threads
    load_plugins(builder, libraries)
    flag = 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    network = builder.create_network(flag)
    parser = trt.OnnxParser(network, log)
    if not parser.parse_from_file(str(source.path)):
        raise _parse_error(parser, source, backend.title)
    _check_precision(network, trt, source)
    _check_inputs(network, source, backend.title)
    config = builder.create_builder_config()
    if not tf32:
        config.clear_flag(trt.BuilderFlag.TF32)
    configure(config, trt, settings)
    # Else the inspector reports names only. For ResNet-50 TensorRT-RTX 1.6.1 wrote 52,249,156
    # bytes in 0.5 s of CPU time with and without.
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    timings = None if timing_cache is None else load_timings(config, timing_cache)
    config.progress_monitor = monitor = _monitor(trt, worker)
    _set_target(config, trt, target)
    if source.axes:
        _add_profiles(builder, config, source)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        if monitor.failure is not None:
            raise monitor.failure
        reason = log.reason()
        msg = (
            f"{backend.title} cannot build {source.path.name} for {target}: "
            f"{reason}; change the graph by surgery, or leave this target out."
        )
        raise EngineBuildError(msg, reason=reason)
    build_s = time.perf_counter() - started
    checked = inspect_plan(trt, log, plan, source=source, target=target)
    out.write_bytes(memoryview(plan))
    if timings is None or timing_cache is None:
        return Built(build_s=build_s, checked=checked)
    save_timings(timings, timing_cache)
    refused = tuple(path.name for path in timings.refused)
    return Built(build_s=build_s, checked=checked, refused=refused)


def _check_precision(network: Any, trt: Any, source: OnnxArtifact) -> None:
    """Refuse a graph none of whose layers computes in its recorded precision.

    The network is strongly typed, so the engine computes in the network's types. The engine itself
    can be inspected only where there is a GPU to load it.
    """
    types = {
        "fp16": trt.DataType.HALF,
        "bf16": trt.DataType.BF16,
        "int8": trt.DataType.INT8,
        "fp8": trt.DataType.FP8,
    }
    if source.precision not in types:
        return
    layers = [network.get_layer(at) for at in range(network.num_layers)]
    passive = (trt.LayerType.CONSTANT, trt.LayerType.CAST, trt.LayerType.IDENTITY)
    computing = [layer for layer in layers if layer.type not in passive]
    results = [layer.get_output(at) for layer in computing for at in range(layer.num_outputs)]
    if not any(result.dtype == types[source.precision] for result in results):
        wanted = source.precision
        reason = f"none of its {len(computing)} layers computes in {wanted}"
        msg = (
            f"{source.path.name} is declared as {wanted}, but {reason}; convert the fp32 graph to "
            f"{wanted}."
        )
        raise EngineBuildError(msg, reason=reason)


def configure(config: Any, trt: Any, settings: BuildSettings) -> None:
    """Apply the build settings to a builder's configuration."""
    config.builder_optimization_level = settings.optimization_level
    if settings.workspace_bytes is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, settings.workspace_bytes)
    if settings.refit:
        config.set_flag(trt.BuilderFlag.REFIT)
    if settings.strip_weights:
        config.set_flag(trt.BuilderFlag.STRIP_PLAN)
        if not settings.refit:  # only the same weights will be restored
            config.set_flag(trt.BuilderFlag.REFIT_IDENTICAL)


def _set_target(config: Any, trt: Any, target: Target) -> None:
    """Build for the target's GPUs.

    TensorRT-RTX takes compute capabilities, and with none, as where it does not list this GPU's,
    it builds for all from Ampere on. TensorRT builds for the GPU in the machine, and for others
    only with compatibility.
    """
    backend = backends.BACKENDS[target.backend]
    if backend.capability_targets is None:
        if target.compatible:
            config.hardware_compatibility_level = (
                trt.HardwareCompatibilityLevel.SAME_COMPUTE_CAPABILITY
                if target.capabilities
                else trt.HardwareCompatibilityLevel.AMPERE_PLUS
            )
        return
    members = [backends.compute_capability(trt, name) for name in target.capabilities]
    if None in members:
        return
    config.num_compute_capabilities = len(members)
    for at, capability in enumerate(members):
        config.set_compute_capability(capability, at)


def _monitor(trt: Any, worker: Worker) -> Any:
    """Report the progress of TensorRT to the parent; stop the build where that fails."""

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]  # the bindings ship no types
        def __init__(self) -> None:
            super().__init__()
            self.failure: Exception | None = None
            self._steps: dict[str, int] = {}
            self._reported = 0.0
            self._lock = threading.Lock()  # TensorRT may report from several threads

        def phase_start(self, phase: str, parent: str | None, steps: int) -> None:  # noqa: ARG002
            self._steps[phase] = steps
            self._report(phase, 0)

        def step_complete(self, phase: str, step: int) -> bool:
            if time.monotonic() - self._reported > _BETWEEN_STEPS_S:
                self._report(phase, step + 1)
            return self.failure is None

        def phase_finish(self, phase: str) -> None:
            self._report(phase, self._steps[phase])

        def _report(self, phase: str, done: int) -> None:
            with self._lock:
                if self.failure is not None:
                    return
                self._reported = time.monotonic()
                try:
                    worker.note.write_activity(f"in the phase {phase!r}")
                    worker.call_back("step", phase, done, self._steps[phase])
                except (RunnerError, EOFError, OSError) as error:
                    self.failure = error

    return Monitor()


def _parse_error(parser: Any, source: OnnxArtifact, title: str) -> EngineBuildError:
    """The error for the first refused node, with its domain, which the parser omits."""
    errors = [parser.get_error(index) for index in range(parser.num_errors)]
    nodes = graphs.read(source.path).graph.node
    if not errors:
        msg = f"{title} cannot parse {source.path.name} and gave no reason."
        return EngineBuildError(msg, reason="no parser error was recorded")
    first = errors[0]
    node, operator = first.node_name(), first.node_operator()
    reason = " ".join(str(first.desc()).split())
    # For an operator that it knows but cannot build, TensorRT 10 and later report just 'false'.
    if not reason or reason == "false":
        reason = f"{operator} is not supported"
    # By number: a name may be empty, or taken twice. Nodes of subgraphs are numbered apart.
    at = first.node()
    inside = 0 <= at < len(nodes) and nodes[at].op_type == operator
    domain = nodes[at].domain if inside else None
    operator = graphs.operator_name(domain, operator) if operator else None
    others = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
    msg = (
        f"{title} rejects node {node!r}, operator {operator}{others}: {reason}; bypass, remove or "
        "replace it by surgery."
    )
    return EngineBuildError(msg, node=node or None, operator=operator, reason=reason)


def _check_inputs(network: Any, source: OnnxArtifact, title: str) -> None:
    """Refuse a graph with an input whose values are sizes inside: no dynamic axis says them."""
    inputs = [network.get_input(index) for index in range(network.num_inputs)]
    sizes = [tensor.name for tensor in inputs if tensor.is_shape_tensor]
    if sizes:
        msg = (
            f"{title} reads the values of input {sizes[0]!r} of {source.path.name} as sizes, which "
            "dynamic axes cannot describe; make it a constant of the model, or leave the target "
            "out and run the graph with ONNX Runtime."
        )
        raise EngineBuildError(msg, reason=f"input {sizes[0]!r} is a shape tensor")


def _add_profiles(builder: Any, config: Any, source: OnnxArtifact) -> None:
    for sizes in profiles(source.axes):
        profile = builder.create_optimization_profile()
        for spec in source.inputs:
            profile.set_shape(spec.name, *(shape_at(spec, sizes, bound) for bound in range(3)))
        if config.add_optimization_profile(profile) < 0:
            msg = f"TensorRT rejects the profile {sizes} of {source.path.name}."
            raise EngineBuildError(msg, reason="add_optimization_profile gave -1")


# The same build without this package, for a crash.

_SCRIPT = """
from importlib import import_module

trt = import_module(MODULE)
log = trt.Logger()
builder = trt.Builder(log)
if THREADS is not None:
    builder.max_threads = THREADS
for library in LIBRARIES:
    builder.get_plugin_registry().load_library(os.path.abspath(library))
network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
parser = trt.OnnxParser(network, log)
assert parser.parse_from_file("graph.onnx")
config = builder.create_builder_config()
config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
config.builder_optimization_level = OPTIMIZATION_LEVEL
if not TF32:
    config.clear_flag(trt.BuilderFlag.TF32)
for flag in FLAGS:
    config.set_flag(getattr(trt.BuilderFlag, flag))
if WORKSPACE_BYTES is not None:
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, WORKSPACE_BYTES)
if COMPATIBILITY is not None:
    levels = trt.HardwareCompatibilityLevel
    config.hardware_compatibility_level = getattr(levels, COMPATIBILITY)
if CAPABILITIES and all(hasattr(trt.ComputeCapability, name) for name in CAPABILITIES):
    config.num_compute_capabilities = len(CAPABILITIES)
    for at, name in enumerate(CAPABILITIES):
        config.set_compute_capability(getattr(trt.ComputeCapability, name), at)
for shapes in PROFILES:
    profile = builder.create_optimization_profile()
    for name, bounds in shapes.items():
        profile.set_shape(name, *bounds)
    config.add_optimization_profile(profile)
assert builder.build_serialized_network(network, config) is not None
"""


def write_build(
    folder: Path,
    _: str,
    *,
    source: OnnxArtifact,
    target: Target,
    tf32: bool,
    libraries: Sequence[Library],
    settings: BuildSettings,
) -> None:
    """Write a build as a reproduction into a folder; for the arguments see `write_plan`."""
    backend = backends.BACKENDS[target.backend]
    names = [name.upper() for name in target.capabilities]
    level = "SAME_COMPUTE_CAPABILITY" if names else "AMPERE_PLUS"
    is_for_this_gpu = backend.capability_targets is None
    flags = {
        "REFIT": settings.refit,
        "STRIP_PLAN": settings.strip_weights,
        "REFIT_IDENTICAL": settings.strip_weights and not settings.refit,
    }
    add_graph(folder, source.path, source.path.parent)
    for library in libraries:
        add_file(folder, library.path, library.path.name)
    add_script(
        folder,
        _SCRIPT,
        module=backend.module,
        threads=settings.threads,
        libraries=[library.path.name for library in libraries],
        optimization_level=settings.optimization_level,
        tf32=tf32,
        flags=[flag for flag, is_set in flags.items() if is_set],
        workspace_bytes=settings.workspace_bytes,
        compatibility=level if is_for_this_gpu and target.compatible else None,
        capabilities=[] if is_for_this_gpu else names,
        profiles=[
            {
                spec.name: [list(shape_at(spec, sizes, bound)) for bound in range(3)]
                for spec in source.inputs
            }
            for sizes in (profiles(source.axes) if source.axes else ())
        ],
    )
