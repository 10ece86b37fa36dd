"""The differences between TensorRT and TensorRT-RTX, in one table."""

from __future__ import annotations

import logging
import warnings
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Literal, TypeVar

from mlflow_e2eai.artifacts.machine import local_compute_capability as local_compute_capability  # noqa: PLC0414
from mlflow_e2eai.errors import MissingDependencyError, RunnerError

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True, kw_only=True)
class Backend:
    """A library that builds and runs engines.

    Names in the Python bindings that only some backends have, or None. Of other names, only those
    that all `versions` of both have are used. Sources: the bindings
    themselves (tensorrt-cu13-bindings 10.16.1.11 and 11.4.0.106, tensorrt-rtx 1.6.1.120), which
    tests/engine/test_bindings.py compares with this table and all of this folder.

    Engines for other versions of TensorRT are not in it. To run a plan that was built with
    VERSION_COMPATIBLE a later TensorRT loads the lean runtime of the version that built it: out of
    the plan, which is host code in a model, or, with EXCLUDE_LEAN_RUNTIME, from a library "built
    with the same version" (NvInferRuntime.h, ``IRuntime::loadRuntime``). Where that must be
    installed, so can TensorRT of that version be, without the kernels that the lean one lacks.

    Two differences need no entry. A strongly typed network is bit 1 of the creation flags in
    TensorRT 10 and bit 0 in the others, and other flags and enumerations are numbered differently
    too: they are always taken by name. The builder flags for precisions, which TensorRT 11 and
    TensorRT-RTX lack, are never used: the precision is the graph's.

    Attributes:
        module: Its Python module.
        title: Its name, for people.
        extra: The extra of this package that brings it.
        requirement: The distribution that a serving environment needs.
        versions: The major versions that it is known in.
        capability_targets: Sets compute capabilities of GPUs that need not be in this machine;
            where there is none, engines are for the GPU that builds them.
        compatibility: Builds an engine that is not bound to the GPU model that builds it.
            TensorRT-RTX has the name and reports that it is not supported.
        plugins: Puts a plugin into a network.
        validity: Checks, from its first bytes, whether an engine fits the machine. TensorRT checks
            it only when it loads the engine.
        timing_cache: Reuses timings of kernels in later builds. TensorRT-RTX has it,
            deprecated and without effect: it times kernels where they run.
        graph_capture: Makes the library capture CUDA graphs by itself, one a shape. With TensorRT
            the caller captures the stream.
        kernel_specialisation: When kernels for a dynamic profile's shapes are compiled. TensorRT
            compiles at build time only.
    """

    module: Literal["tensorrt", "tensorrt_rtx"]
    title: str
    extra: str
    requirement: str
    versions: tuple[int, ...]
    capability_targets: str | None = None
    compatibility: str | None = None
    plugins: str | None = None
    validity: str | None = None
    timing_cache: str | None = None
    graph_capture: str | None = None
    kernel_specialisation: str | None = None


class UnlistedGPUWarning(UserWarning):
    """A backend does not list the GPU that an engine is built for, or runs on.

    Such an engine is built portable and evaluated as any other, and this warning is given each
    time. A caller who trusts the evidence can filter it by this class.
    """


BACKENDS: Mapping[str, Backend] = {
    "tensorrt": Backend(
        module="tensorrt",
        title="TensorRT",
        extra="tensorrt",
        requirement="tensorrt-cu13",
        versions=(10, 11),
        compatibility="IBuilderConfig.hardware_compatibility_level",
        timing_cache="IBuilderConfig.set_timing_cache",
        plugins="INetworkDefinition.add_plugin_v3",
    ),
    "tensorrt_rtx": Backend(
        module="tensorrt_rtx",
        title="TensorRT-RTX",
        extra="rtx",
        requirement="tensorrt-rtx-cu13",
        versions=(1,),
        capability_targets="IBuilderConfig.set_compute_capability",
        validity="Runtime.get_engine_validity",
        graph_capture="IRuntimeConfig.cuda_graph_strategy",
        kernel_specialisation="IRuntimeConfig.dynamic_shapes_kernel_specialization_strategy",
    ),
}


def load(backend: Backend) -> Any:
    """Import a backend.

    Raises:
        MissingDependencyError: It is not installed, or its libraries do not load.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            return import_module(backend.module)
    except (ImportError, OSError) as error:
        raise MissingDependencyError(
            package=backend.module, extra=backend.extra, purpose=f"A {backend.title} engine"
        ) from error


def start(make: Callable[[Any], Result], log: Any, backend: Backend) -> Result:
    """Start TensorRT's builder or runtime.

    Args:
        make: TensorRT's class.
        log: Its log; see `backends.logger`.
        backend: The backend.

    Raises:
        RunnerError: It does not start, for example as the driver is too old for its CUDA: the
            bindings then report only that a factory returned a null pointer.
    """
    try:
        return make(log)
    except TypeError as error:
        msg = (
            f"{backend.title} does not start on this machine: {log.reason()}; check with "
            "`nvidia-smi` that the driver is new enough for it."
        )
        raise RunnerError(msg) from error


def compute_capability(trt: Any, name: str) -> Any:
    """The enumeration member for ``sm86``, by name: versions number them differently.

    Returns:
        The member; None where this version of the backend does not list it.
    """
    return getattr(trt.ComputeCapability, name.upper(), None)


def lists_capabilities(backend: Backend, trt: Any, names: Sequence[str]) -> bool:
    """Whether this version of a backend lists compute capabilities as supported.

    TensorRT has no list. TensorRT-RTX 1.6.1 runs on an H100 (sm90), which it does not list, and was
    seen to compute wrong outputs there.
    """
    return backend.capability_targets is None or all(
        compute_capability(trt, name) is not None for name in names
    )


def invalidity(backend: Backend, trt: Any, runtime: Any, plan: bytes) -> str:
    """The reasons of the backend why a plan cannot be loaded on this machine; empty for none."""
    if backend.validity is None:
        return ""
    _, bits = runtime.get_engine_validity(plan)
    reasons = trt.EngineInvalidityDiagnostics.__members__.items()
    return ", ".join(name for name, bit in reasons if bits & int(bit))


# TensorRT's refusals: calls return None or False, and the reason is in its log.


_log = logging.getLogger(__name__)

_MOST = 16
"""Number of the last errors that a logger stores."""


def logger(trt: Any, *, is_quiet: bool = False) -> Any:
    """Make a logger for TensorRT that stores its errors: its calls return only None or False.

    Args:
        trt: TensorRT.
        is_quiet: Whether errors are not logged as Python warnings too.

    Returns:
        An ``ILogger``, for any thread; its `reason` returns the errors since its last call.
    """

    class Log(trt.ILogger):  # type: ignore[misc]  # the bindings ship no types
        def __init__(self) -> None:
            super().__init__()
            self._errors: deque[str] = deque(maxlen=_MOST)

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.Severity.ERROR, trt.ILogger.Severity.INTERNAL_ERROR):
                self._errors.append(error := " ".join(message.split()))
                if not is_quiet:
                    _log.warning("TensorRT: %s", error)

        def reason(self) -> str:
            reason = "; ".join(self._errors) or "TensorRT gave no reason"
            self._errors.clear()
            return reason

    return Log()
