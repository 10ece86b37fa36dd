"""Plan -> TensorRT's engine, or an error with a next step."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from mlflow_e2eai.artifacts.files import to_json
from mlflow_e2eai.artifacts.values import EngineArtifact, OnnxArtifact
from mlflow_e2eai.engine import backends
from mlflow_e2eai.engine.backends import Backend, logger
from mlflow_e2eai.engine.inspection import check_layers
from mlflow_e2eai.engine.plugins import load_plugins
from mlflow_e2eai.engine.profiles import profiles
from mlflow_e2eai.engine.refit import refit
from mlflow_e2eai.errors import EngineBuildError, RunnerError, warn_caller
from mlflow_e2eai.runtime.crashes import add_file, add_graph, add_script, before_native

_ADVICE = {
    "OLD_CUDA_DRIVER": "the driver is too old for it: install a newer one",
    "OLD_CUDA_RUNTIME": "the CUDA runtime is too old for it: install a newer one",
    "INSUFFICIENT_GPU_MEMORY": "the GPU has too little free memory for it: free some",
    "MALFORMED_ENGINE": "it is not an engine",
}
"""What TensorRT-RTX's `EngineInvalidityDiagnostics` mean, where compiling again will not help."""


class LoadedEngine(NamedTuple):
    """An engine that TensorRT has loaded.

    Attributes:
        backend: What loaded it.
        trt: Its module.
        engine: The engine.
        log: TensorRT's log; see `backends.logger`.
    """

    backend: Backend
    trt: Any
    engine: Any
    log: Any


def warn_if_unlisted(engine: EngineArtifact) -> None:
    """Warn where an engine's backend does not list this GPU."""
    backend = backends.BACKENDS[engine.target.backend]
    trt = backends.load(backend)
    here = backends.local_compute_capability()
    if here is not None and not backends.lists_capabilities(backend, trt, [here]):
        warn_caller(
            f"{backend.title} {trt.__version__} does not list this GPU ({here}) as supported: "
            f"{engine.path.name} may compute wrong outputs here.",
            backends.UnlistedGPUWarning,
        )


@contextmanager
def load_engine(engine: EngineArtifact, graph: OnnxArtifact | None) -> Iterator[LoadedEngine]:
    """Load an engine whose digest was checked, and which is for this machine.

    Args:
        engine: The engine.
        graph: The graph that it was built from, where it is at hand: an engine that was stripped of
            its weights gets them from there.

    Raises:
        RunnerError: TensorRT cannot load it, it differs from its record, or a library of its
            plugins is not allowed.
    """
    backend = backends.BACKENDS[engine.target.backend]
    trt = backends.load(backend)
    log = logger(trt)
    before_native(partial(write_engine, engine=engine, graph=graph))
    runtime = backends.start(trt.Runtime, log, backend)
    load_plugins(runtime, engine.libraries)
    plan = engine.path.read_bytes()
    loaded = runtime.deserialize_cuda_engine(plan)
    if loaded is None:
        invalidity = backends.invalidity(backend, trt, runtime, plan)
        names = invalidity.split(", ")
        advice = next((_ADVICE[name] for name in names if name in _ADVICE), None)
        reason = invalidity or log.reason()
        if is_out_of_memory(reason):
            raise refusal(engine, reason)
        what = advice or "compile it again on this machine"
        msg = f"TensorRT cannot load {engine.path.name} ({reason}); {what}."
        raise RunnerError(msg)
    _check_interface(engine, loaded)
    _check_precision(engine, trt, loaded)
    if engine.settings.strip_weights and graph is not None:
        refit(engine, loaded, graph, trt=trt, log=log)
    yield LoadedEngine(backend, trt, loaded, log)


def _check_precision(engine: EngineArtifact, trt: Any, loaded: Any) -> None:
    """Refuse an engine none of whose layers computes in its precision, where it lists layers.

    Raises:
        RunnerError: None of its layers does.
    """
    if engine.precision == "fp32":
        return
    inspector = loaded.create_engine_inspector()
    information = inspector.get_engine_information(trt.LayerInformationFormat.JSON)
    try:
        check_layers(information, engine)
    except EngineBuildError as error:
        msg = (
            f"{engine.path.name} is declared as {engine.precision}, but {error.reason}; compile "
            "it again."
        )
        raise RunnerError(msg) from error


def _check_interface(engine: EngineArtifact, loaded: Any) -> None:
    """Refuse an engine whose interface is not the recorded one.

    Raises:
        RunnerError: Its inputs and outputs, or the number of its profiles, differ.
    """
    names = {loaded.get_tensor_name(at) for at in range(loaded.num_io_tensors)}
    recorded = {spec.name for spec in (*engine.inputs, *engine.outputs)}
    actual, expected = f"the inputs and outputs {sorted(names)}", str(sorted(recorded))
    if names == recorded:
        count = len(profiles(engine.axes))
        if not engine.axes or loaded.num_optimization_profiles == count:
            return
        actual, expected = f"{loaded.num_optimization_profiles} profiles", str(count)
    msg = f"{engine.path.name} has {actual}, but {expected} were recorded; compile it again."
    raise RunnerError(msg)


# Errors of TensorRT and CUDA, in one sentence with a next step.


_OUT_OF_MEMORY = re.compile(r"out.?of.?memory", re.IGNORECASE)
"""In CUDA ``CUDA_ERROR_OUT_OF_MEMORY``, ``out of memory``; in TensorRT ``OutOfMemory``."""

_IS_FATAL = "terminated and relaunched"
"""End of the CUDA driver API's text for an error after which each call fails in this process: see
 ``CUresult``, for example of CUDA_ERROR_ILLEGAL_ADDRESS. cuda.core quotes it."""


def is_out_of_memory(reason: str) -> bool:
    """Whether a reason is that the GPU's memory is full."""
    return _OUT_OF_MEMORY.search(reason) is not None


def refusal(engine: EngineArtifact, reason: str) -> RunnerError:
    """Make the error for a refusal of TensorRT, with the reason from its log."""
    if is_out_of_memory(reason):
        return RunnerError(
            f"TensorRT cannot run {engine.path.name}: the GPU is out of memory; stop other "
            "processes on it, use smaller batches, or compile for a smaller max."
        )
    return RunnerError(f"TensorRT cannot run {engine.path.name}: {reason}")


def cuda_error(engine: EngineArtifact, error: Exception) -> RunnerError:
    """Make the error for an error of CUDA."""
    message = str(error)
    if is_out_of_memory(message):
        return refusal(engine, message)
    if _IS_FATAL in message:
        name = message.partition(":")[0]
        return RunnerError(
            f"The GPU failed while it ran {engine.path.name} ({name}), and can no longer be used "
            "by this process; restart the process, and compile the engine again if it happens "
            "again."
        )
    return RunnerError(f"The GPU cannot run {engine.path.name}: {message}")


# An engine that crashes, for whoever opens it elsewhere.

_SCRIPT = """
from dataclasses import replace

from mlflow_e2eai.artifacts.arrays import load_arrays
from mlflow_e2eai.artifacts.files import from_json
from mlflow_e2eai.artifacts.values import EngineArtifact, OnnxArtifact
from mlflow_e2eai.engine.runner import engine_runner

engine = from_json(EngineArtifact, ENGINE)
libraries = tuple(replace(each, allowed=True) for each in engine.libraries)
graphs = [] if GRAPH is None else [from_json(OnnxArtifact, GRAPH)]
with engine_runner(replace(engine, libraries=libraries), graphs=graphs) as infer:
    if os.path.exists("sample.npz"):
        infer(load_arrays(Path("sample.npz")))
"""


def write_engine(folder: Path, *, engine: EngineArtifact, graph: OnnxArtifact | None) -> None:
    """Write an engine as a reproduction, which opens it by this package.

    Args:
        folder: The folder of the reproduction.
        engine: The engine.
        graph: The graph that has its weights, where they are needed.
    """
    add_file(folder, engine.path, "engine.plan")
    libraries = tuple(replace(each, path=Path(each.path.name)) for each in engine.libraries)
    for library in engine.libraries:
        add_file(folder, library.path, library.path.name)
    if graph is not None:
        add_graph(folder, graph.path, graph.path.parent)
        graph = replace(graph, path=Path("graph.onnx"), libraries=())
    placed = replace(engine, path=Path("engine.plan"), libraries=libraries)
    add_script(
        folder,
        _SCRIPT,
        engine=to_json(placed),
        graph=None if graph is None else to_json(graph),
    )
