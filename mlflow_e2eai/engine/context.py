"""Execution contexts: each has a stream and memory of its own, and one caller at a time.

Written by hand, with memory.py and device_tensors.py: polygraphy's TrtRunner serves one caller,
copies every output, and takes no tensors of other libraries on the GPU.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from mlflow_e2eai.artifacts.arrays import is_on_gpu
from mlflow_e2eai.artifacts.values import Array, EngineArtifact, Tensors
from mlflow_e2eai.engine.cuda_graphs import CudaGraphs
from mlflow_e2eai.engine.loading import refusal
from mlflow_e2eai.engine.memory import TensorMemory, View, allocator
from mlflow_e2eai.errors import InvalidInputError, RunnerError

if TYPE_CHECKING:
    from cuda.core import Device, Event, Stream


Shape = tuple[int, ...]
Result = TypeVar("Result")

_ALIGNMENT = 256
"""Of an address that TensorRT takes (NvInferRuntime.h, ``IExecutionContext::setTensorAddress``)."""

_POISON = 0xFF  # in every byte: NaN in all floating-point types, -1 in signed integers


class Context:
    """An execution context for one profile; for one thread at a time.

    Args:
        engine: The engine.
        execution: TensorRT's execution context, at its first profile.
        profile: The profile that it is to have.
        trt: TensorRT.
        log: Its log; see `backends.logger`.
        device: The GPU, which is current in every call of the context.
        captures_graphs: Whether calls are captured as CUDA graphs here: TensorRT does not.
        poisoned: Whether outputs are filled with NaN before each call.
    """

    def __init__(
        self,
        engine: EngineArtifact,
        execution: Any,
        profile: int,
        *,
        trt: Any,
        log: Any,
        device: Device,
        captures_graphs: bool,
        poisoned: bool,
    ) -> None:
        from cuda.core import StreamOptions

        self._engine, self._execution, self._poisoned = engine, execution, poisoned
        self._log, self._allocator = log, partial(allocator, trt)
        self.device = device
        self.stream = device.create_stream(options=StreamOptions(nonblocking=True))
        self.handle = int(self.stream.handle)
        self._event = device.create_event()
        if profile:
            self._call(execution.set_optimization_profile_async, profile, self.handle)
        specs = (*engine.inputs, *engine.outputs)
        self._memory = {spec.name: TensorMemory(device, self.stream, spec.dtype) for spec in specs}
        self._allocators: dict[str, Any] = {}
        # Inputs that decide shapes are read by the host, and would be part of a CUDA graph.
        self._on_host = {
            spec.name
            for spec in engine.inputs
            if execution.engine.get_tensor_location(spec.name) == trt.TensorLocation.HOST
        }
        in_graphs = captures_graphs and not self._on_host
        self._graphs = CudaGraphs(self.stream, engine.path.name) if in_graphs else None
        self._addresses: dict[str, int] = {}
        self._shapes: tuple[Shape, ...] | None = None
        self._outputs: list[tuple[str, Shape]] = []
        self._in_flight = False

    def infer(
        self, tensors: Tensors, shapes: tuple[Shape, ...], events: Sequence[Event] = ()
    ) -> dict[str, Array]:
        """Copy in, run, between two CUDA events where they are given, copy out, and wait.

        Args:
            tensors: An array for each input.
            shapes: Their shapes, in the order of the engine's inputs.
            events: None, or two with timing.
        """
        self.set_inputs(shapes, tensors)
        for spec, shape in zip(self._engine.inputs, shapes, strict=True):
            self.copy_input(spec.name, tensors[spec.name], shape)
        views = self.allocate_outputs()
        self.run(events)
        views |= self.data_dependent_outputs()
        for view in views.values():
            view.buffer.copy_to(view.pinned, stream=self.stream)
        self.wait()
        return {spec.name: views[spec.name].array.copy() for spec in self._engine.outputs}

    def set_inputs(self, shapes: tuple[Shape, ...], tensors: Mapping[str, Any]) -> None:
        """Set the shapes of a call's inputs, and the values of those that decide shapes.

        Raises:
            InvalidInputError: A value that decides shapes is on the GPU.
            RunnerError: The profile does not cover them.
        """
        if shapes == self._shapes and not self._on_host:
            return
        self._shapes = None
        for name in self._on_host:
            self._set_host_input(name, tensors[name])
        for spec, shape in zip(self._engine.inputs, shapes, strict=True):
            if not self._execution.set_input_shape(spec.name, shape):
                axes = ", ".join(f"{a.name} from {a.min} to {a.max}" for a in self._engine.axes)
                msg = (
                    f"The engine does not take {spec.name!r} of shape {list(shape)}; its "
                    f"profile has {list(spec.shape)} with {axes or 'no dynamic axes'}."
                )
                raise RunnerError(msg)
        if missing := self._call(self._execution.infer_shapes):
            msg = f"The shapes of {missing} are missing; give every input."
            raise RunnerError(msg)
        self._outputs = []
        for spec in self._engine.outputs:
            shape = tuple(self._execution.get_tensor_shape(spec.name))
            if spec.name in self._allocators or min(shape, default=0) < 0:
                self._allocate_while_running(spec.name)
            else:
                self._outputs.append((spec.name, shape))
        self._shapes = shapes

    def _set_host_input(self, name: str, value: Any) -> None:
        """Give TensorRT the value of an input that decides shapes."""
        if is_on_gpu(value):
            msg = f"Input {name!r} determines shapes and is read on the CPU; give an array."
            raise InvalidInputError(msg)
        if self._in_flight:  # a call before may still read it
            self.wait()
        view = self._memory[name].view(value.shape)
        np.copyto(view.array, value)
        self._addresses.pop(name, None)  # the content is new, so the address must be set again
        self.set_address(name, int(view.pinned.handle))

    def _allocate_while_running(self, name: str) -> None:
        """Set an allocator for an output whose shape depends on the data.

        ``setTensorAddress`` in NvInferRuntime.h requires it for an output with a size of -1 when
        all inputs have their shapes. Allocation cannot be part of a CUDA graph.
        """
        if name not in self._allocators:
            self._allocators[name] = self._allocator(self._memory[name])
            self._execution.set_output_allocator(name, self._allocators[name])
            self._graphs = None

    def _call(self, function: Callable[..., Result], *arguments: Any) -> Result:
        """Call TensorRT, whose bindings refuse some arguments by a RuntimeError.

        Raises:
            RunnerError: TensorRT refuses.
        """
        try:
            return function(*arguments)
        except RuntimeError as error:
            raise self._refusal() from error

    def _refusal(self) -> RunnerError:
        return refusal(self._engine, self._log.reason())

    def copy_input(self, name: str, array: Array, shape: Shape) -> None:
        """Copy an input to the GPU, unless it is for the host."""
        if name in self._on_host:
            return
        if self._in_flight:  # a call before may still read the pinned memory
            self.wait()
        view = self._memory[name].view(shape)
        np.copyto(view.array, array)
        view.pinned.copy_to(view.buffer, stream=self.stream)
        self.set_address(name, view.address)

    def allocate_outputs(self) -> dict[str, View]:
        """Allocate memory of the context for the outputs whose shape is known."""
        views = {name: self._memory[name].view(shape) for name, shape in self._outputs}
        for name, view in views.items():
            if self._poisoned:
                view.buffer.fill(_POISON, stream=self.stream)
            self.set_address(name, view.address)
        return views

    def set_address(self, name: str, address: int) -> None:
        """Set the address of a tensor, unless it is set already."""
        if self._addresses.get(name) != address:
            if not self._execution.set_tensor_address(name, address):
                raise self._refusal()
            self._addresses[name] = address

    def run(self, events: Sequence[Event] = ()) -> None:
        """Enqueue the engine's work in the stream."""
        if events:
            self.stream.record(events[0])
        self._in_flight = True
        if self._graphs is None:
            self._enqueue(self.handle)
        else:
            self._graphs.run((self._shapes, *self._addresses.values()), self._enqueue)
        if events:
            self.stream.record(events[1])

    def _enqueue(self, stream: int) -> None:
        if not self._execution.execute_async_v3(stream):
            for allocator in self._allocators.values():
                if (error := allocator.error) is not None:
                    allocator.error = None
                    raise error
            raise self._refusal()

    def data_dependent_outputs(self) -> dict[str, View]:
        """The outputs whose shape depends on the data, as TensorRT has set it during the call."""
        return {
            name: self._memory[name].view(allocator.shape)
            for name, allocator in self._allocators.items()
        }

    @property
    def output_shapes(self) -> list[Shape | None]:
        """The shape of each output for the current inputs; None where it depends on the data."""
        known = dict(self._outputs)
        return [known.get(spec.name) for spec in self._engine.outputs]

    def wait_for(self, stream: Stream) -> None:
        """Make later work here wait for the earlier work of another stream."""
        stream.record(self._event)
        self.stream.wait(self._event)

    def make_wait(self, stream: Stream) -> None:
        """Make later work of another stream wait for the earlier work here."""
        self.stream.record(self._event)
        stream.wait(self._event)

    def read_input(self, name: str, address: int, shape: Shape) -> None:
        """Set an input that lies on the GPU: at its own address unless TensorRT cannot take that.

        A part of a larger tensor may begin anywhere, and PyTorch's empty tensors are at 0.
        """
        if address and not address % _ALIGNMENT:
            self.set_address(name, address)
            return
        from cuda.core import Buffer

        view = self._memory[name].view(shape)
        if view.array.nbytes:
            view.buffer.copy_from(
                Buffer.from_handle(address, view.array.nbytes), stream=self.stream
            )
        self.set_address(name, view.address)

    def write_output(self, name: str, address: int, shape: Shape) -> None:
        """Set the address of an output on the GPU; that of an empty output may be 0."""
        self.set_address(name, address or self._memory[name].view(shape).address)

    def copy_output(self, view: View, address: int) -> None:
        """Copy an output from memory of the context to another address on the GPU."""
        from cuda.core import Buffer

        if size := view.array.nbytes:
            view.buffer.copy_to(Buffer.from_handle(address, size), stream=self.stream)

    def wait(self) -> None:
        """Wait until the GPU has done all work of this context."""
        self.stream.sync()
        self._in_flight = False

    def close(self) -> None:
        """Free the memory, once nothing uses it."""
        self.wait()
        self._graphs = None
        self._memory.clear()
        self._execution = None
        self.wait()  # which is when memory is free


def shapes_of(names: Sequence[str], tensors: Mapping[str, Any]) -> tuple[Shape, ...]:
    """The shapes of a call's inputs, in the order of the engine's."""
    return tuple([tuple(tensors[name].shape) for name in names])
