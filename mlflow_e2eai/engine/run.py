"""Engine -> `Infer`, on the GPU that it was built for."""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from mlflow_e2eai.artifacts import EngineArtifact, Infer, Tensors
from mlflow_e2eai.context import gpu_name
from mlflow_e2eai.engine import backends
from mlflow_e2eai.engine.profiles import profile_of, profiles, sizes_of
from mlflow_e2eai.engine.targets import covers
from mlflow_e2eai.errors import EngineMismatchError, MissingDependencyError, RunnerError
from mlflow_e2eai.files import verify
from mlflow_e2eai.latency import Timing


def why_not_here(engine: EngineArtifact) -> EngineMismatchError | MissingDependencyError | None:
    """Why this machine cannot run an engine; None when nothing speaks against it."""
    return next(_reasons(engine), None)


def _reasons(engine: EngineArtifact) -> Iterator[EngineMismatchError | MissingDependencyError]:
    target = engine.target
    backend = backends.BACKENDS[target.backend]
    capability = backends.local_compute_capability()
    wanted = f"a GPU of {target.compute_capability or 'sm80 or later'}"
    if capability is None:
        yield EngineMismatchError(wanted=wanted, found="no GPU")
    elif not covers(target, capability):
        yield EngineMismatchError(wanted=wanted, found=f"one of {capability}")
    if target.gpu_name is not None and target.gpu_name != gpu_name():
        yield EngineMismatchError(wanted=f"an {target.gpu_name}", found=str(gpu_name()))
    if engine.settings.strip_weights:
        yield EngineMismatchError(wanted="its weights, which were stripped", found="none of them")
    try:
        trt = backends.load(backend)
    except MissingDependencyError as error:
        yield error
        return
    if str(trt.__version__) != engine.backend_version:
        yield EngineMismatchError(
            wanted=f"{backend.title} {engine.backend_version}",
            found=f"{backend.title} {trt.__version__}",
        )


@contextmanager
def engine_runner(engine: EngineArtifact) -> Iterator[Infer]:
    """Run an engine on this machine's GPU.

    Memory and the stream are PyTorch's. Output buffers are poisoned with NaN before every call, so
    that an output that the engine did not write is seen. The callable returns when its answer is
    on the host. It is for one thread at a time.

    Args:
        engine: The engine; its digest is checked before it is loaded, as it is native code.

    Raises:
        ArtifactError: The file has changed since it was built.
        EngineMismatchError: It was built for another GPU or another TensorRT version.
        MissingDependencyError: Its TensorRT is not installed.
        RunnerError: TensorRT cannot load or run it, or a library of its plugins is not allowed.
    """
    verify(engine.path, engine.sha256)
    if (reason := why_not_here(engine)) is not None:
        raise reason
    backend = backends.BACKENDS[engine.target.backend]
    trt = backends.load(backend)
    here = backends.local_compute_capability()
    if here is not None and not backends.lists(backend, trt, [here]):
        warnings.warn(
            f"{backend.title} {trt.__version__} does not list this GPU ({here}) as supported: "
            f"{engine.path.name} may answer wrongly here.",
            stacklevel=3,
        )
    log = trt.Logger(trt.Logger.ERROR)
    runtime = trt.Runtime(log)
    backends.load_plugins(runtime, engine.libraries)
    plan = engine.path.read_bytes()
    loaded = runtime.deserialize_cuda_engine(plan)
    if loaded is None:
        reasons = backends.why_invalid(backend, trt, runtime, plan)
        why = f" ({reasons})" if reasons else ""
        msg = f"TensorRT cannot load {engine.path.name}{why}; compile it again on this machine."
        raise RunnerError(msg)
    _check_interface(engine, loaded)
    yield _Call(engine, loaded)


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


class _Call:
    """A stream, an execution context for each profile that was asked for, and a call's steps."""

    def __init__(self, engine: EngineArtifact, loaded: Any) -> None:
        import torch

        self._engine, self._loaded = engine, loaded
        self._stream = torch.cuda.Stream()
        self._contexts: dict[int, Any] = {}
        opt = {axis.name: axis.opt for axis in engine.axes}
        self._context = self._context_at(profile_of(engine.axes, opt))

    def _context_at(self, profile: int) -> Any:
        """The context for a profile, made when it is first needed: each takes device memory."""
        if profile not in self._contexts:
            context = self._loaded.create_execution_context()
            if context is None:
                msg = f"TensorRT cannot start {self._engine.path.name}; is the GPU's memory full?"
                raise RunnerError(msg)
            # A context begins with the first profile.
            if profile and not context.set_optimization_profile_async(
                profile, self._stream.cuda_stream
            ):
                msg = f"TensorRT does not take profile {profile} of {self._engine.path.name}."
                raise RunnerError(msg)
            self._contexts[profile] = context
        return self._contexts[profile]

    def __call__(self, tensors: Tensors) -> Tensors:
        """Answer."""
        return self._answer(tensors)

    def timed(self, tensors: Tensors) -> Timing:
        """Answer, timed: all of it here, and what the engine itself took by the GPU's clock."""
        import torch

        began, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        started = time.perf_counter()
        self._answer(tensors, began, ended)
        host_ms = 1e3 * (time.perf_counter() - started)
        return Timing(host_ms=host_ms, device_ms=float(began.elapsed_time(ended)))

    def _answer(self, tensors: Tensors, began: Any = None, ended: Any = None) -> Tensors:
        """Copy in, run between two CUDA events where they are given, copy out."""
        import torch

        with torch.cuda.stream(self._stream):
            held = self._inputs(tensors)
            if missing := self._context.infer_shapes():
                msg = f"The shapes of {missing} are missing; give every input."
                raise RunnerError(msg)
            outputs = self._outputs()
            if began is not None:
                began.record(self._stream)
            if not self._context.execute_async_v3(self._stream.cuda_stream):
                msg = f"TensorRT cannot run {self._engine.path.name}; see its log."
                raise RunnerError(msg)
            if ended is not None:
                ended.record(self._stream)
            answer = {name: tensor.cpu().numpy() for name, tensor in outputs.items()}
        self._stream.synchronize()
        del held  # the engine reads them until the stream is done
        return answer

    def _inputs(self, tensors: Tensors) -> list[Any]:
        import torch

        held = []
        sizes = sizes_of(self._engine.inputs, tensors)
        self._context = self._context_at(profile_of(self._engine.axes, sizes))
        for spec in self._engine.inputs:
            tensor = torch.from_numpy(tensors[spec.name]).cuda(non_blocking=True).contiguous()
            if not self._context.set_input_shape(spec.name, tuple(tensor.shape)):
                axes = ", ".join(f"{a.name} from {a.min} to {a.max}" for a in self._engine.axes)
                msg = (
                    f"The engine does not take {spec.name!r} of shape {list(tensor.shape)}; its "
                    f"profile has {list(spec.shape)} with {axes or 'no dynamic axes'}."
                )
                raise RunnerError(msg)
            self._context.set_tensor_address(spec.name, tensor.data_ptr())
            held.append(tensor)
        return held

    def _outputs(self) -> dict[str, Any]:
        import torch

        outputs = {}
        for spec in self._engine.outputs:
            shape = tuple(self._context.get_tensor_shape(spec.name))
            tensor = torch.empty(shape, dtype=getattr(torch, spec.dtype), device="cuda")
            if tensor.is_floating_point():
                tensor.fill_(float("nan"))
            self._context.set_tensor_address(spec.name, tensor.data_ptr())
            outputs[spec.name] = tensor
        return outputs
