"""A plan -> TensorRT's engine, or one sentence on why not."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from mlflow_e2eai.artifacts.values import EngineArtifact, OnnxArtifact
from mlflow_e2eai.artifacts.weight_files import verify_graph
from mlflow_e2eai.engine import backends
from mlflow_e2eai.engine.backends import Backend, logger
from mlflow_e2eai.engine.inspection import layers_checked
from mlflow_e2eai.engine.profiles import profiles
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
        count = len(profiles(engine.axes))
        if not engine.axes or loaded.num_optimization_profiles == count:
            return
        found, wanted = f"{loaded.num_optimization_profiles} profiles", str(count)
    msg = f"{engine.path.name} has {found}, but {wanted} are recorded; compile it again."
    raise RunnerError(msg)


# Weights that an engine was stripped of, given back from the graph that it was built from.


def refit(engine: EngineArtifact, loaded: Any, graph: OnnxArtifact, *, trt: Any, log: Any) -> None:
    """Give an engine the weights of its graph.

    Args:
        engine: The engine.
        loaded: It, as TensorRT loaded it.
        graph: The graph that it was built from; its digest is checked.
        trt: TensorRT.
        log: TensorRT's log; see `log.logger`.

    Raises:
        ArtifactError: The graph has changed since it was recorded.
        RunnerError: TensorRT does not find every weight in the graph.
    """
    verify_graph(graph)
    refitter = trt.Refitter(loaded, log)
    reader = trt.OnnxParserRefitter(refitter, log)
    if not reader.refit_from_file(str(graph.path)) or not refitter.refit_cuda_engine():
        missing = [str(name) for name in refitter.get_missing_weights()]
        what = f"{len(missing)} are missing, {missing[0]!r} first" if missing else log.why()
        msg = (
            f"TensorRT cannot give {engine.path.name} the weights of {graph.path.name}: {what}; "
            f"compile it again from this graph."
        )
        raise RunnerError(msg)


# What TensorRT or CUDA refused, in one sentence that says what to do.


_IS_FULL = re.compile(r"out.?of.?memory", re.IGNORECASE)
"""As CUDA (``CUDA_ERROR_OUT_OF_MEMORY``, ``out of memory``) and TensorRT (``OutOfMemory``) say."""

_STAYS = "terminated and relaunched"
"""So the CUDA driver API ends what it says of an error after which each call fails in this process:
see ``CUresult``, for example of CUDA_ERROR_ILLEGAL_ADDRESS. cuda.core quotes it."""


def is_full(why: str) -> bool:
    """Whether it was for want of memory on the GPU."""
    return _IS_FULL.search(why) is not None


def refused(engine: EngineArtifact, why: str) -> RunnerError:
    """The error for what TensorRT did not do, by what its log says."""
    if is_full(why):
        return RunnerError(
            f"TensorRT cannot run {engine.path.name}: the GPU's memory is full; end what else runs "
            f"on it, ask for fewer items at once, or compile for a smaller max."
        )
    return RunnerError(f"TensorRT cannot run {engine.path.name}: {why}")


def failed(engine: EngineArtifact, error: Exception) -> RunnerError:
    """The error for one of CUDA's."""
    said = str(error)
    if is_full(said):
        return refused(engine, said)
    if _STAYS in said:
        name = said.partition(":")[0]
        return RunnerError(
            f"The GPU failed while it ran {engine.path.name} ({name}), and does no more for this "
            f"process; start it again, and compile the engine again if that repeats."
        )
    return RunnerError(f"The GPU cannot run {engine.path.name}: {said}")
