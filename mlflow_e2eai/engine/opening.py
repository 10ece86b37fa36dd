"""A plan -> TensorRT's engine, or one sentence on why not."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from mlflow_e2eai.artifacts import EngineArtifact, OnnxArtifact
from mlflow_e2eai.engine import backends
from mlflow_e2eai.engine.backends import Backend
from mlflow_e2eai.engine.inspecting import layers_checked
from mlflow_e2eai.engine.log import logger
from mlflow_e2eai.engine.profiles import profiles_of
from mlflow_e2eai.engine.refitting import refit
from mlflow_e2eai.engine.refusing import is_full, refused
from mlflow_e2eai.errors import EngineBuildError, RunnerError

_ADVICE = {
    "OLD_CUDA_DRIVER": "the driver is too old for it: install a newer one",
    "OLD_CUDA_RUNTIME": "the CUDA runtime is too old for it: install a newer one",
    "INSUFFICIENT_GPU_MEMORY": "the GPU's memory is too full for it: free some",
    "MALFORMED_ENGINE": "it is no engine",
}
"""What TensorRT-RTX's `EngineInvalidityDiagnostics` mean, where compiling again will not help."""


class Opened(NamedTuple):
    """An engine that TensorRT has loaded.

    Attributes:
        backend: What loaded it.
        trt: Its module.
        engine: The engine.
        log: TensorRT's log; see `log.logger`.
    """

    backend: Backend
    trt: Any
    engine: Any
    log: Any


def announce(engine: EngineArtifact, *, stacklevel: int) -> None:
    """Warn where an engine's backend does not say that it supports this GPU."""
    backend = backends.BACKENDS[engine.target.backend]
    trt = backends.load(backend)
    here = backends.local_compute_capability()
    if here is not None and not backends.lists(backend, trt, [here]):
        warnings.warn(
            f"{backend.title} {trt.__version__} does not list this GPU ({here}) as supported: "
            f"{engine.path.name} may answer wrongly here.",
            backends.UnlistedGPUWarning,
            stacklevel=stacklevel,
        )


@contextmanager
def opened(engine: EngineArtifact, graph: OnnxArtifact | None) -> Iterator[Opened]:
    """Load an engine whose digest was checked, and which is for this machine.

    Args:
        engine: The engine.
        graph: The graph that it was built from, where it is at hand: an engine that was stripped of
            its weights gets them from there.

    Raises:
        RunnerError: TensorRT cannot load it, it is not what was recorded of it, or a library of its
            plugins is not allowed.
    """
    backend = backends.BACKENDS[engine.target.backend]
    trt = backends.load(backend)
    log = logger(trt)
    runtime = backends.started(trt.Runtime, log, backend)
    backends.load_plugins(runtime, engine.libraries)
    plan = engine.path.read_bytes()
    loaded = runtime.deserialize_cuda_engine(plan)
    if loaded is None:
        found = backends.why_invalid(backend, trt, runtime, plan)
        advice = next((_ADVICE[name] for name in found.split(", ") if name in _ADVICE), None)
        why = found or log.why()
        if is_full(why):
            raise refused(engine, why)
        what = advice or "compile it again on this machine"
        msg = f"TensorRT cannot load {engine.path.name} ({why}); {what}."
        raise RunnerError(msg)
    _check_interface(engine, loaded)
    _check_precision(engine, trt, loaded)
    if engine.settings.strip_weights and graph is not None:
        refit(engine, loaded, graph, trt=trt, log=log)
    yield Opened(backend, trt, loaded, log)


def _check_precision(engine: EngineArtifact, trt: Any, loaded: Any) -> None:
    """Refuse an engine that says a precision and computes nothing in it, where it tells its layers.

    Raises:
        RunnerError: It is such an engine.
    """
    if engine.precision == "fp32":
        return
    inspector = loaded.create_engine_inspector()
    said = inspector.get_engine_information(trt.LayerInformationFormat.JSON)
    try:
        layers_checked(said, engine)
    except EngineBuildError as error:
        msg = f"{engine.path.name} says {engine.precision}, but {error.reason}; compile it again."
        raise RunnerError(msg) from error


def _check_interface(engine: EngineArtifact, loaded: Any) -> None:
    """Refuse an engine that is not what was recorded of it.

    Raises:
        RunnerError: Its inputs and outputs, or the number of its profiles, are others.
    """
    names = {loaded.get_tensor_name(at) for at in range(loaded.num_io_tensors)}
    recorded = {spec.name for spec in (*engine.inputs, *engine.outputs)}
    found, wanted = f"the inputs and outputs {sorted(names)}", str(sorted(recorded))
    if names == recorded:
        count = len(profiles_of(engine))
        if not engine.axes or loaded.num_optimization_profiles == count:
            return
        found, wanted = f"{loaded.num_optimization_profiles} profiles", str(count)
    msg = f"{engine.path.name} has {found}, but {wanted} are recorded; compile it again."
    raise RunnerError(msg)
