"""Engine -> `Infer`, on the GPU that it was built for."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from importlib.util import find_spec
from typing import Any, TypeVar

from mlflow_e2eai.artifacts.files import verify
from mlflow_e2eai.artifacts.machine import gpu_name
from mlflow_e2eai.artifacts.values import EngineArtifact, OnnxArtifact, Tensors
from mlflow_e2eai.engine import backends, device_tensors
from mlflow_e2eai.engine.context import Context, Shape, shapes_of
from mlflow_e2eai.engine.kernel_cache import KernelCache, kernel_cache_path
from mlflow_e2eai.engine.loading import (
    LoadedEngine,
    cuda_error,
    load_engine,
    refusal,
    warn_if_unlisted,
)
from mlflow_e2eai.engine.memory import Gpu, has_data_dependent_shapes
from mlflow_e2eai.engine.profiles import dynamic_of, profile_of, profiles, sizes_of
from mlflow_e2eai.engine.targets import covers
from mlflow_e2eai.errors import E2EAIError, EngineMismatchError, MissingDependencyError, RunnerError
from mlflow_e2eai.latency.report import Timing

Result = TypeVar("Result")

_log = logging.getLogger(__name__)

MAX_CONTEXTS = 4
"""Execution contexts for one profile: calls that are under way at once. Each takes device memory
(see `EngineRunner.profile_memory_bytes`); how many are best on which GPU was not measured."""

_MAX_REMEMBERED = 256
"""Shapes of calls whose profile is cached."""


def unsupported_here(
    engine: EngineArtifact, graphs: Sequence[OnnxArtifact] = ()
) -> EngineMismatchError | MissingDependencyError | None:
    """Return the reason why this machine cannot run an engine; None if there is none.

    Args:
        engine: The engine.
        graphs: Available graphs: an engine that was stripped of its weights needs its own.
    """
    return next(_reasons(engine, graphs), None)


def _reasons(
    engine: EngineArtifact, graphs: Sequence[OnnxArtifact]
) -> Iterator[EngineMismatchError | MissingDependencyError]:
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
    if engine.settings.strip_weights and graph_of(engine, graphs) is None:
        yield EngineMismatchError(wanted="its weights, which were stripped", found="none of them")
    try:
        trt = backends.load(backend)
    except MissingDependencyError as error:
        yield error
        return
    if not _has_cuda_core():
        yield MissingDependencyError(
            package="cuda-core", extra=backend.extra, purpose=f"To run a {backend.title} engine"
        )
    if str(trt.__version__) != engine.backend_version:
        yield EngineMismatchError(
            wanted=f"{backend.title} {engine.backend_version}",
            found=f"{backend.title} {trt.__version__}",
        )


def _has_cuda_core() -> bool:
    try:
        return find_spec("cuda.core") is not None
    except ModuleNotFoundError:  # not even the folder that it shares with others
        return False


def graph_of(engine: EngineArtifact, graphs: Sequence[OnnxArtifact]) -> OnnxArtifact | None:
    """The graph that an engine was built from; None if it is not available."""
    return next((graph for graph in graphs if graph.sha256 == engine.parent_sha256), None)


@contextmanager
def engine_runner(
    engine: EngineArtifact, *, graphs: Sequence[OnnxArtifact] = (), serving: bool = False
) -> Iterator[EngineRunner]:
    """Run an engine on this machine's GPU.

    Args:
        engine: The engine; its digest is checked before it is loaded, as it is native code.
        graphs: Available graphs: an engine that was stripped of its weights gets them from
            its own.
        serving: Whether the engine serves calls. Otherwise it is evaluated: output buffers are
            filled with NaN before every call, so that an output that the engine did not write is
            detected, and it starts as on a machine that never ran it, with no cached kernels.

    Yields:
        The engine as a callable on named arrays, for any number of threads, which returns when the
        outputs are on the host. `EngineRunner.on_device` takes tensors that are on the GPU.

    Raises:
        ArtifactError: The file has changed since it was built.
        EngineMismatchError: It was built for another GPU or another TensorRT version.
        MissingDependencyError: Its TensorRT, or cuda.core, is not installed.
        RunnerError: TensorRT cannot load or run it, or a library of its plugins is not allowed.
    """
    verify(engine.path, engine.sha256)
    if (reason := unsupported_here(engine, graphs)) is not None:
        raise reason
    warn_if_unlisted(engine)
    gpu = Gpu()
    with ExitStack() as stack:
        # TensorRT loads an engine onto the GPU that is current.
        with gpu.current():
            loaded = stack.enter_context(load_engine(engine, graph_of(engine, graphs)))
            runner = EngineRunner(engine, loaded, gpu, serving=serving)
        stack.callback(runner.close)
        yield runner


class EngineRunner:
    """An engine as a callable: arrays in, arrays out, from any number of threads."""

    def __init__(
        self, engine: EngineArtifact, loaded: LoadedEngine, gpu: Gpu, *, serving: bool
    ) -> None:
        self._engine, self._opened, self._gpu = engine, loaded, gpu
        self._serving = serving
        self._names = [spec.name for spec in engine.inputs]
        self._profiles = profiles(engine.axes)
        self._chosen: dict[tuple[Shape, ...], int] = {}
        self._config, self._kernels = self._configure()
        self._pool = ContextPool(self._context, MAX_CONTEXTS)
        # An engine that cannot start fails here, at its opt, the most frequent size.
        opt = {axis.name: axis.opt for axis in engine.axes}
        profile = profile_of(self._profiles, opt)
        self._pool.release(profile, self._translate_errors(self._pool.acquire, profile))

    def _configure(self) -> tuple[Any, KernelCache | None]:
        """Settings of contexts, and the kernel cache, where the backend has them."""
        backend, trt = self._opened.backend, self._opened.trt
        loaded = self._opened.engine
        runtime_config = loaded.create_runtime_config()
        # Else each context takes the memory of the largest profile.
        strategy = trt.ExecutionContextAllocationStrategy.ON_PROFILE_CHANGE
        runtime_config.set_execution_context_allocation_strategy(strategy)
        if backend.graph_capture is None:
            return runtime_config, None
        if not has_data_dependent_shapes(self._engine.outputs, self._engine.axes):
            runtime_config.cuda_graph_strategy = trt.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
        runtime_config.dynamic_shapes_kernel_specialization_strategy = (
            trt.DynamicShapesKernelSpecializationStrategy.EAGER
        )
        if not self._serving:
            return runtime_config, None
        capability = backends.local_compute_capability() or ""
        return runtime_config, KernelCache(
            runtime_config, kernel_cache_path(self._engine, capability)
        )

    def _context(self, profile: int) -> Context:
        loaded = self._opened.engine
        execution = loaded.create_execution_context(self._config)
        if execution is None:
            raise refusal(self._engine, self._opened.log.reason())
        return Context(
            self._engine,
            execution,
            profile,
            trt=self._opened.trt,
            log=self._opened.log,
            device=self._gpu.device,
            captures_graphs=self._opened.backend.graph_capture is None,
            poisoned=not self._serving,
        )

    def __call__(self, tensors: Tensors) -> Tensors:
        """Run the engine on arrays."""
        return self._with_context(tensors, lambda c, shapes: c.infer(tensors, shapes))

    def timed(self, tensors: Tensors) -> Timing:
        """Run the engine, timed: the whole call here, and the engine alone by the GPU's clock."""
        from cuda.core import EventOptions

        device = self._gpu.device
        with self._gpu.current():
            began, ended = (
                device.create_event(EventOptions(timing_enabled=True)) for _ in range(2)
            )
        started = time.perf_counter()
        self._with_context(tensors, lambda c, shapes: c.infer(tensors, shapes, (began, ended)))
        host_ms = 1e3 * (time.perf_counter() - started)
        return Timing(host_ms=host_ms, device_ms=float(ended - began))

    def on_device(self, tensors: Mapping[str, Any]) -> dict[str, Any]:
        """Run the engine on tensors on the GPU; see `device_tensors.infer_on_device`."""
        specs = self._engine.inputs, self._engine.outputs
        return self._with_context(
            tensors, lambda c, s: device_tensors.infer_on_device(c, tensors, s, *specs)
        )

    @property
    def profile_memory_bytes(self) -> tuple[int, ...]:
        """GPU memory of a context for each profile, in bytes, the dynamic profile first."""
        loaded, dynamic = self._opened.engine, dynamic_of(self._profiles)
        order = sorted(range(loaded.num_optimization_profiles), key=lambda at: at != dynamic)
        return tuple(int(loaded.get_device_memory_size_for_profile_v2(at)) for at in order)

    def close(self) -> None:
        """Save the compiled kernels, and free the GPU's memory."""
        try:
            with self._gpu.current():
                if self._kernels is not None:
                    self._kernels.save()
                self._translate_errors(self._pool.close)
                self._gpu.trim()
        except RunnerError as error:  # an earlier call has raised the GPU's failure
            _log.info(
                "The memory of %s could not be freed; the process frees it when it ends: %s",
                self._engine.path,
                error,
            )

    def _with_context(
        self, tensors: Mapping[str, Any], call: Callable[[Context, tuple[Shape, ...]], Result]
    ) -> Result:
        shapes = shapes_of(self._names, tensors)
        profile = self._chosen.get(shapes)
        if is_new := profile is None:
            profile = self._profile_of(shapes, tensors)
        before = self._gpu.enter()
        try:
            context = self._translate_errors(self._pool.acquire, profile)
            try:
                result = self._translate_errors(call, context, shapes)
            finally:
                self._pool.release(profile, context)
            if is_new and self._kernels is not None:
                self._kernels.save()
        finally:
            self._gpu.leave(before)
        return result

    def _profile_of(self, shapes: tuple[Shape, ...], tensors: Mapping[str, Any]) -> int:
        """Find the profile for new shapes, and cache it."""
        sizes = sizes_of(self._engine.inputs, tensors)
        profile = profile_of(self._profiles, sizes)
        if len(self._chosen) >= _MAX_REMEMBERED:
            self._chosen = {}
        self._chosen[shapes] = profile
        return profile

    def _translate_errors(self, function: Callable[..., Result], *arguments: Any) -> Result:
        """Call a function that uses CUDA.

        Raises:
            RunnerError: CUDA raised an error.
        """
        try:
            return function(*arguments)
        except E2EAIError:
            raise
        except Exception as error:
            if type(error).__name__ != "CUDAError":
                raise
            raise cuda_error(self._engine, error) from error


# Execution contexts for many callers at once.


class ContextPool:
    """Execution contexts for many callers, created when they are first needed.

    Args:
        create: Creates a context for a profile.
        most: Contexts for one profile; fewer where the GPU's memory does not suffice.
    """

    def __init__(self, create: Callable[[int], Context], most: int) -> None:
        self._create, self._most = create, most
        self._free: dict[int, list[Context]] = {}
        self._created: dict[int, int] = {}
        self._bounds: dict[int, int] = {}
        self._changed = threading.Condition()
        self._is_closed = False

    def acquire(self, profile: int) -> Context:
        """Take a context for one caller alone, until `release`; waits while all are in use.

        Raises:
            RunnerError: None can be created, or the pool is closed.
            CUDAError: None can be created.
        """
        with self._changed:
            if free := self._free.get(profile):  # the usual case ends here
                return free.pop()
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._is_closed or self._has_room(profile))
                if self._is_closed:
                    msg = "The model was closed; load it again."
                    raise RunnerError(msg)
                if free := self._free.get(profile):
                    return free.pop()
                self._created[profile] = self._created.get(profile, 0) + 1
            try:
                return self._create(profile)
            except BaseException as error:
                with self._changed:
                    self._created[profile] -= 1
                    self._changed.notify_all()
                    if not self._created[profile] or not isinstance(error, Exception):
                        raise
                    self._bounds[profile] = self._created[profile]

    def _has_room(self, profile: int) -> bool:
        created, most = self._created.get(profile, 0), self._bounds.get(profile, self._most)
        return bool(self._free.get(profile)) or created < most

    def release(self, profile: int, context: Context) -> None:
        """Return a context to the pool."""
        with self._changed:
            if not self._is_closed:
                self._free.setdefault(profile, []).append(context)
            self._changed.notify_all()
        if self._is_closed:
            context.close()

    def close(self) -> None:
        """Free the memory of all contexts; of those in use, when their calls are done."""
        with self._changed:
            self._is_closed = True
            free, self._free = self._free, {}
            self._changed.notify_all()
        for contexts in free.values():
            for context in contexts:
                context.close()
