"""ONNX and a target -> engine."""

from __future__ import annotations

import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mlflow_e2eai import graphs
from mlflow_e2eai.artifacts import BuildSettings, EngineArtifact, OnnxArtifact, Target, TensorSpec
from mlflow_e2eai.engine import backends
from mlflow_e2eai.engine.limits import why_not_built
from mlflow_e2eai.engine.targets import resolve
from mlflow_e2eai.errors import EngineBuildError
from mlflow_e2eai.files import sha256_of, written
from mlflow_e2eai.libraries import named

_DEFAULT = BuildSettings()


def compile(
    source: OnnxArtifact,
    target: Target | str,
    *,
    out: Path,
    tf32: bool = False,
    plugin_libraries: Sequence[Path] = (),
    settings: BuildSettings = _DEFAULT,
) -> EngineArtifact:
    """Build a TensorRT engine.

    The network is strongly typed: the engine computes in the types of the graph. Its optimisation
    profile is the graph's dynamic axes, from min over opt to max.

    Args:
        source: The graph; its precision is the engine's.
        target: What to build for: a Target, or the text that names one (see `resolve`).
        out: The file to write.
        tf32: Let fp32 arithmetic be rounded to TF32, which TensorRT does by default at about 3e-3
            absolute error on unit-scale convolutions. Here fp32 means fp32 unless asked.
        plugin_libraries: Shared libraries with plugins for operators of the graph. They are native
            code; to name them here is to allow that they are loaded. Where an operator has a
            function too, TensorRT takes the plugin.
        settings: How to build.

    Returns:
        The engine.

    Raises:
        InvalidInputError: There is no such target, a library is not there, or the target's TensorRT
            takes no plugins.
        RunnerError: TensorRT cannot load a library.
        MissingDependencyError: The target's TensorRT is not installed.
        EngineBuildError: TensorRT refuses the graph: names the node, its operator and TensorRT's
            own words. Or the graph says fp16 and nothing in it computes in fp16.
    """
    if isinstance(target, str):
        target = resolve(target)
    libraries = named(plugin_libraries)
    backends.check_plugins(target, libraries)
    if (reason := why_not_built(source, target, settings)) is not None:
        msg = f"{source.path.name} cannot be built for {target}: {reason}."
        raise EngineBuildError(msg, reason=reason)
    backend = backends.BACKENDS[target.backend]
    trt = backends.load(backend)
    log = _logger(trt)
    started = time.perf_counter()
    builder = trt.Builder(log)
    if settings.threads is not None:
        builder.max_threads = settings.threads
    backends.load_plugins(builder, libraries)
    flag = 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    network = builder.create_network(flag)
    parser = trt.OnnxParser(network, log)
    if not parser.parse_from_file(str(source.path)):
        raise _parse_error(parser, source, backend.title)
    _check_precision(network, trt, source)
    config = builder.create_builder_config()
    if not tf32:
        config.clear_flag(trt.BuilderFlag.TF32)
    set_up(config, trt, settings)
    _aim(config, trt, target)
    if source.axes:
        _add_profile(builder, config, source)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        reason = "; ".join(log.errors) or "TensorRT gave no reason"
        msg = (
            f"{backend.title} cannot build {source.path.name} for {target}: "
            f"{reason}; change the graph by surgery, or leave this target out."
        )
        raise EngineBuildError(msg, reason=reason)
    with written(out) as temporary:
        temporary.write_bytes(memoryview(plan))
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
        build_s=time.perf_counter() - started,
        size_bytes=out.stat().st_size,
        libraries=libraries,
        settings=settings,
    )


def _check_precision(network: Any, trt: Any, source: OnnxArtifact) -> None:
    """Refuse a graph that says fp16 and computes nothing in it.

    The network is strongly typed, so the engine computes in the network's types. What an engine
    holds can be asked of it only where there is a GPU to load it.
    """
    if source.precision != "fp16":
        return
    layers = [network.get_layer(at) for at in range(network.num_layers)]
    held = (trt.LayerType.CONSTANT, trt.LayerType.CAST, trt.LayerType.IDENTITY)
    computing = [layer for layer in layers if layer.type not in held]
    made = [layer.get_output(at) for layer in computing for at in range(layer.num_outputs)]
    if not any(result.dtype == trt.DataType.HALF for result in made):
        reason = f"none of its {len(computing)} layers computes in fp16"
        msg = f"{source.path.name} says fp16, but {reason}; convert the fp32 graph to fp16."
        raise EngineBuildError(msg, reason=reason)


def set_up(config: Any, trt: Any, settings: BuildSettings) -> None:
    """Tell a builder's configuration how to build."""
    config.builder_optimization_level = settings.optimization_level
    if settings.workspace_bytes is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, settings.workspace_bytes)
    if settings.refit:
        config.set_flag(trt.BuilderFlag.REFIT)
    if settings.strip_weights:
        config.set_flag(trt.BuilderFlag.STRIP_PLAN)
        if not settings.refit:  # nothing but the same weights will be given back
            config.set_flag(trt.BuilderFlag.REFIT_IDENTICAL)


def _aim(config: Any, trt: Any, target: Target) -> None:
    """Build for the target's GPUs.

    TensorRT-RTX takes compute capabilities, and with none it builds for all from Ampere on.
    TensorRT builds for the GPU in the machine, and for others only where compatibility is asked.
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
    found = {name: backends.compute_capability(trt, name) for name in target.capabilities}
    if None in found.values():
        # Only the GPU in this machine can be one that is not listed. TensorRT-RTX 1.6.1 runs on an
        # H100 (sm90), which it does not list, and was seen to answer wrongly there.
        warnings.warn(
            f"{backend.title} {trt.__version__} does not list this GPU "
            f"({target.compute_capability}) as supported: the engine is built for no certain GPU, "
            f"and may answer wrongly here.",
            stacklevel=3,
        )
        return
    config.num_compute_capabilities = len(found)
    for at, capability in enumerate(found.values()):
        config.set_compute_capability(capability, at)


def _logger(trt: Any) -> Any:
    """A TensorRT logger that keeps errors for the exception and stays quiet."""

    class Log(trt.ILogger):  # type: ignore[misc]  # the bindings ship no types
        def __init__(self) -> None:
            super().__init__()
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.Severity.ERROR, trt.ILogger.Severity.INTERNAL_ERROR):
                self.errors.append(" ".join(message.split()))

    return Log()


def _parse_error(parser: Any, source: OnnxArtifact, title: str) -> EngineBuildError:
    """The first node that the parser refused, with its domain, which the parser loses."""
    errors = [parser.get_error(index) for index in range(parser.num_errors)]
    nodes = graphs.read(source.path).graph.node
    if not errors:
        msg = f"{title} cannot parse {source.path.name} and gave no reason."
        return EngineBuildError(msg, reason="no parser error was recorded")
    first = errors[0]
    node, operator = first.node_name(), first.node_operator()
    reason = " ".join(str(first.desc()).split())
    # For an operator that it knows but cannot build, TensorRT 10 and later say just 'false'.
    if not reason or reason == "false":
        reason = f"{operator} is not supported"
    # By number: a name may be empty, or taken twice. Nodes of subgraphs are numbered apart.
    at = first.node()
    inside = 0 <= at < len(nodes) and nodes[at].op_type == operator
    domain = nodes[at].domain if inside else None
    operator = graphs.operator_name(domain, operator) if operator else None
    others = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
    msg = (
        f"{title} refuses node {node!r}, operator {operator}{others}: {reason}; bypass, remove or "
        f"replace it by surgery."
    )
    return EngineBuildError(msg, node=node or None, operator=operator, reason=reason)


def _add_profile(builder: Any, config: Any, source: OnnxArtifact) -> None:
    profile = builder.create_optimization_profile()
    for spec in source.inputs:
        lowest, best, highest = (_shape(spec, source, bound) for bound in ("min", "opt", "max"))
        profile.set_shape(spec.name, lowest, best, highest)
    if config.add_optimization_profile(profile) < 0:
        msg = f"TensorRT refuses the profile of {source.path.name}: {source.axes}."
        raise EngineBuildError(msg, reason="add_optimization_profile gave -1")


def _shape(spec: TensorSpec, source: OnnxArtifact, bound: str) -> tuple[int, ...]:
    sizes = {axis.name: int(getattr(axis, bound)) for axis in source.axes}
    return tuple(size if isinstance(size, int) else sizes[size] for size in spec.shape)
