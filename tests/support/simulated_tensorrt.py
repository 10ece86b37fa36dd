"""TensorRT with no GPU behind it: ONNX Runtime runs engines, in the memory that they are given.

It stands behind tests/support/driver.c, whose streams it puts its work into, and checks what
TensorRT checks and what TensorRT leaves to its callers. Enumerations are the real TensorRT-RTX's,
and tests/simulated/test_names.py compares the names of its classes and methods with it.
"""

from __future__ import annotations

import collections
import contextlib
import ctypes
import io
import json
import threading
import time
import zipfile

import numpy as np
import onnx
import onnxruntime
import tensorrt_rtx

__version__ = tensorrt_rtx.__version__
ILogger = tensorrt_rtx.ILogger
Logger = tensorrt_rtx.Logger
CudaGraphStrategy = tensorrt_rtx.CudaGraphStrategy
DynamicShapesKernelSpecializationStrategy = tensorrt_rtx.DynamicShapesKernelSpecializationStrategy
EngineInvalidityDiagnostics = tensorrt_rtx.EngineInvalidityDiagnostics
ExecutionContextAllocationStrategy = tensorrt_rtx.ExecutionContextAllocationStrategy
ComputeCapability = tensorrt_rtx.ComputeCapability
LayerInformationFormat = tensorrt_rtx.LayerInformationFormat
TensorLocation = tensorrt_rtx.TensorLocation

CALLS = collections.Counter()
"""What was asked of it, by name."""

FAILURES = []
"""What callers did that TensorRT does not forgive, and what went wrong where nobody could hear."""

SETTINGS = {
    "layers": [],
    "invalid": 0,
    "contexts": 1000,
    "skips": frozenset(),
    "slow_s": 0.0,
    "refuses": {},
}
"""``layers``: what the inspector says of them. ``invalid``: why no engine loads, as bits.
``contexts``: how many there is memory for. ``skips``: outputs that are not written. ``slow_s``:
seconds that a call takes at least. ``refuses``: what is refused, by the name of the method, and
what the log is told."""

DRIVER = ctypes.CDLL("libcuda.so.1")
DRIVER.simulated_limit.argtypes = (ctypes.c_size_t,)
DRIVER.simulated_kind.argtypes = (ctypes.c_uint64,)
HOST_FUNCTION = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
_KEPT = []  # callbacks must outlive the graphs that they were captured in


ALIGNMENT = 256
"""Of an address that `IExecutionContext.set_tensor_address` takes: NvInferRuntime.h says so."""


def _primary_context(device=0):
    found = ctypes.c_void_p()
    DRIVER.cuInit(0)
    DRIVER.cuDevicePrimaryCtxRetain(ctypes.byref(found), device)
    return found


def _refuses(name, log):
    if (why := SETTINGS["refuses"].get(name)) is None:  # type: ignore[attr-defined]  # mypy sees a wider type
        return False
    log.log(ILogger.ERROR, why)
    return True


def _capturing(stream):
    found = ctypes.c_int()
    DRIVER.cuStreamIsCapturing(ctypes.c_void_p(stream), ctypes.byref(found))
    return bool(found.value)


def plan(model, profiles, *, stripped=False, on_host=()):
    """A plan of the simulation's own: a model, and min, opt and max by axis for each profile."""
    inside = io.BytesIO()
    weights = {w.name: onnx.numpy_helper.to_array(w) for w in model.graph.initializer}
    if stripped:
        kept = onnx.ModelProto()
        kept.CopyFrom(model)
        for weight in kept.graph.initializer:
            zero = np.zeros_like(weights[weight.name])
            weight.CopyFrom(onnx.numpy_helper.from_array(zero, weight.name))
        model = kept
    facts = {
        "profiles": profiles,
        "missing": sorted(weights) if stripped else [],
        "on_host": list(on_host),
    }
    with zipfile.ZipFile(inside, "w") as archive:
        archive.writestr("model.onnx", model.SerializeToString())
        archive.writestr("facts.json", json.dumps(facts))
    return inside.getvalue()


class Runtime:
    def __init__(self, log):
        if _refuses("Runtime", log):
            raise TypeError  # as pybind11 does of a null pointer that a factory returns
        self.log = log

    def get_engine_validity(self, plan):
        return tensorrt_rtx.EngineValidity.INVALID, SETTINGS["invalid"]

    def deserialize_cuda_engine(self, plan):
        CALLS["deserialize_cuda_engine"] += 1
        if SETTINGS["invalid"] or _refuses("deserialize_cuda_engine", self.log):
            return None
        if DRIVER.simulated_device() < 0:  # as the CUDA runtime does at its first call of a thread
            DRIVER.cuCtxSetCurrent(_primary_context())
        with zipfile.ZipFile(io.BytesIO(plan)) as archive:
            model = onnx.load_from_string(archive.read("model.onnx"))
            return ICudaEngine(model, json.loads(archive.read("facts.json")), self.log)


class IRuntimeCache:
    def __init__(self):
        self.kernels = set()

    def deserialize(self, content):
        try:
            self.kernels = set(json.loads(content)["kernels"])
        except ValueError:
            return False
        return True

    def serialize(self):
        return json.dumps({"kernels": sorted(self.kernels)}).encode()


class IRuntimeConfig:
    cuda_graph_strategy = CudaGraphStrategy.DISABLED
    dynamic_shapes_kernel_specialization_strategy = DynamicShapesKernelSpecializationStrategy.LAZY
    _cache = None

    def create_runtime_cache(self):
        return IRuntimeCache()

    def set_runtime_cache(self, cache):
        self._cache = cache

    def set_execution_context_allocation_strategy(self, strategy):
        self._strategy = strategy


class ICudaEngine:
    def __init__(self, model, facts, log):
        self._log = log
        self.model, self.profiles, self.missing = model, facts["profiles"], set(facts["missing"])
        self.on_host = facts["on_host"]
        self.inputs = {v.name: self._dims(v) for v in model.graph.input}
        self.outputs = {v.name: self._dims(v) for v in model.graph.output}
        self.names = [*self.inputs, *self.outputs]
        self.num_io_tensors = len(self.names)
        self.num_optimization_profiles = len(self.profiles)
        self.contexts = 0
        self.device = DRIVER.simulated_device()
        self._begin()

    def _begin(self):
        self.session = onnxruntime.InferenceSession(
            self.model.SerializeToString(), providers=["CPUExecutionProvider"]
        )
        self.dtypes = {
            v.name: onnx.helper.tensor_dtype_to_np_dtype(v.type.tensor_type.elem_type)
            for v in (*self.model.graph.input, *self.model.graph.output)
        }

    @staticmethod
    def _dims(value):
        return [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]

    def get_tensor_name(self, at):
        return self.names[at]

    def get_tensor_location(self, name):
        return TensorLocation.HOST if name in self.on_host else TensorLocation.DEVICE

    def get_device_memory_size_for_profile_v2(self, profile):
        return 1000 * (profile + 1)

    def create_engine_inspector(self):
        return EngineInspector()

    def get_tensor_profile_shape(self, name, profile):
        bounds = self.profiles[profile]
        return [
            tuple(bounds[d][which] if isinstance(d, str) else d for d in self.inputs[name])
            for which in range(3)
        ]

    def create_runtime_config(self):
        return IRuntimeConfig()

    def _on_its_gpu(self):
        """An engine is for the GPU that was current when it was loaded."""
        if DRIVER.simulated_device() != self.device:
            FAILURES.append(f"GPU {DRIVER.simulated_device()} is current, not {self.device}")

    def create_execution_context(self, config):
        self._on_its_gpu()
        if self.contexts >= SETTINGS["contexts"]:
            self._log.log(ILogger.ERROR, "Error Code 2: OutOfMemory (Requested size was 1 bytes.)")
            return None
        if _refuses("create_execution_context", self._log):
            return None
        self.contexts += 1
        CALLS["create_execution_context"] += 1
        return IExecutionContext(self, config)


class EngineInspector:
    def get_engine_information(self, form):
        assert form == LayerInformationFormat.JSON
        return json.dumps({"Layers": SETTINGS["layers"]})


class IExecutionContext:
    def __init__(self, engine, config):
        self.engine, self.config = engine, config
        self.profile, self.shapes, self.addresses, self.allocators = 0, {}, {}, {}
        self.busy = threading.Lock()
        self.is_settled, self.profile_stream = False, None

    @contextlib.contextmanager
    def _alone(self):
        """Only one thread may use a context at a time."""
        if not self.busy.acquire(blocking=False):
            FAILURES.append("two threads use one context")
            self.busy.acquire()
        try:
            yield
        finally:
            self.busy.release()

    def set_optimization_profile_async(self, profile, stream):
        CALLS["set_optimization_profile_async"] += 1
        self.engine._on_its_gpu()
        self.profile, self.shapes = profile, {}  # which are to be set again
        self.is_settled, self.profile_stream = False, stream
        if _refuses("set_optimization_profile_async", self.engine._log):
            raise RuntimeError  # as pyCore.cpp of the bindings does
        return profile < len(self.engine.profiles)

    def set_input_shape(self, name, shape):
        with self._alone():
            CALLS["set_input_shape"] += 1
            bounds = self.engine.profiles[self.profile]
            for wanted, size in zip(self.engine.inputs[name], shape, strict=True):
                low, _, high = bounds[wanted] if isinstance(wanted, str) else (wanted,) * 3
                if not low <= size <= high:
                    return False
            self.shapes[name], self.is_settled = tuple(shape), False
            return True

    def infer_shapes(self):
        if _refuses("infer_shapes", self.engine._log):
            raise RuntimeError  # as pyCore.cpp of the bindings does
        return [name for name in self.engine.inputs if name not in self.shapes]

    def get_tensor_shape(self, name):
        sizes = {
            axis: size
            for of, shape in self.shapes.items()
            for axis, size in zip(self.engine.inputs[of], shape, strict=True)
        }
        return tuple(
            d if isinstance(d, int) else sizes.get(d, -1) for d in self.engine.outputs[name]
        )

    def set_tensor_address(self, name, address):
        if address % ALIGNMENT:
            FAILURES.append(f"the address of {name} is not a multiple of {ALIGNMENT}")
            return False
        if DRIVER.simulated_kind(address) != (1 if name in self.engine.on_host else 2):
            FAILURES.append(f"{name} is not where it is to be")
        self.addresses[name] = address
        return True

    def set_output_allocator(self, name, allocator):
        self.allocators[name] = allocator
        return True

    def execute_async_v3(self, stream):
        with self._alone():
            CALLS["execute_async_v3"] += 1
            self.engine._on_its_gpu()
            if self.profile_stream not in (None, stream):
                FAILURES.append("the profile was set in another stream, which nobody waited for")
            if _capturing(stream) and not self.is_settled:
                FAILURES.append("shapes were set, and captured before a call that was not")
            self.is_settled = True
            if _refuses("execute_async_v3", self.engine._log):
                return False
            shapes, addresses = dict(self.shapes), dict(self.addresses)
            wanted = {*self.engine.inputs, *self.engine.outputs} - set(self.allocators)
            if unset := wanted - set(addresses):
                FAILURES.append(f"no addresses of {sorted(unset)}")
                return False
            if self.config is not None and self.config._cache is not None:
                self.config._cache.kernels.add(f"{self.profile} {sorted(shapes.items())}")
            if self.allocators:
                return self._execute_and_allocate(stream, shapes, addresses)
            work = HOST_FUNCTION(lambda _: self._run(shapes, addresses))
            _KEPT.append(work)
            return DRIVER.cuLaunchHostFunc(ctypes.c_void_p(stream), work, None) == 0

    def _execute_and_allocate(self, stream, shapes, addresses):
        DRIVER.cuStreamSynchronize(ctypes.c_void_p(stream))
        for name, array in self._answers(shapes, addresses).items():
            if (allocator := self.allocators.get(name)) is not None:
                try:
                    # "Always positive, even for an empty tensor", says NvInferRuntime.h.
                    size = max(1, array.nbytes)
                    address = allocator.reallocate_output_async(name, 0, size, ALIGNMENT, stream)
                except Exception:  # noqa: BLE001  # the bindings print it, and go on with nullptr
                    FAILURES.append("an allocator raised where nobody can hear it")
                    address = None
                if not address:
                    return False
                allocator.notify_shape(name, array.shape)
            else:
                address = addresses[name]
            self._write(name, array, address)
        return True

    def _answers(self, shapes, addresses):
        given = {name: self._at(name, addresses[name], shapes[name]) for name in shapes}
        if self.engine.missing:
            FAILURES.append("an engine ran without its weights")
        names = list(self.engine.outputs)
        return dict(zip(names, self.engine.session.run(names, given), strict=True))

    def _run(self, shapes, addresses):
        try:
            time.sleep(SETTINGS["slow_s"])
            for name, array in self._answers(shapes, addresses).items():
                self._write(name, array, addresses[name])
        except Exception as error:  # noqa: BLE001  # of a callback nobody else would hear
            FAILURES.append(repr(error))

    def _write(self, name, array, address):
        if name not in SETTINGS["skips"]:
            array = np.ascontiguousarray(array)
            ctypes.memmove(address, array.ctypes.data, array.nbytes)

    def _at(self, name, address, shape):
        dtype = self.engine.dtypes[name]
        size = int(np.prod(shape)) * dtype.itemsize
        held = ctypes.string_at(address, size)
        return np.frombuffer(held, dtype).reshape(shape)


class IOutputAllocator:
    def __init__(self):
        pass


class Refitter:
    def __init__(self, engine, log):
        self.engine = engine

    def get_missing_weights(self):
        return sorted(self.engine.missing)

    def refit_cuda_engine(self):
        CALLS["refit_cuda_engine"] += 1
        self.engine._begin()
        return not self.engine.missing


class OnnxParserRefitter:
    def __init__(self, refitter, log):
        self.engine = refitter.engine

    def refit_from_file(self, path):
        weights = {weight.name: weight for weight in onnx.load(path).graph.initializer}
        for weight in self.engine.model.graph.initializer:
            if weight.name in weights:
                weight.CopyFrom(weights[weight.name])
                self.engine.missing.discard(weight.name)
        return not self.engine.missing
