"""Execution contexts: each has a stream and memory of its own, and one caller at a time."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Hashable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from mlflow_e2eai.artifacts.arrays import is_on_gpu
from mlflow_e2eai.artifacts.values import Array, EngineArtifact, Tensors
from mlflow_e2eai.engine.loading import refused
from mlflow_e2eai.engine.memory import Place, View, allocator
from mlflow_e2eai.errors import InvalidInputError, RunnerError

if TYPE_CHECKING:
    from cuda.core import Device, Event, Stream
    from cuda.core.graph import Graph


Shape = tuple[int, ...]
Answer = TypeVar("Answer")

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
        log: Its log; see `log.logger`.
        device: The GPU, which is current wherever the context is made or asked.
        replays: Whether calls are captured as CUDA graphs here, as TensorRT does not by itself.
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
        replays: bool,
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
            self._compare_all(execution.set_optimization_profile_async, profile, self.handle)
        specs = (*engine.inputs, *engine.outputs)
        self._places = {spec.name: Place(device, self.stream, spec.dtype) for spec in specs}
        self._unsized: dict[str, Any] = {}
        # What decides shapes is read by the host, and is part of what a graph would hold.
        self._on_host = {
            spec.name
            for spec in engine.inputs
            if execution.engine.get_tensor_location(spec.name) == trt.TensorLocation.HOST
        }
        in_graphs = replays and not self._on_host
        self._replays = Replays(self.stream, engine.path.name) if in_graphs else None
        self._addresses: dict[str, int] = {}
        self._shapes: tuple[Shape, ...] | None = None
        self._outputs: list[tuple[str, Shape]] = []
        self._in_flight = False

    def answer(
        self, tensors: Tensors, shapes: tuple[Shape, ...], events: Sequence[Event] = ()
    ) -> dict[str, Array]:
        """Copy in, run, between two CUDA events where they are given, copy out, and wait.

        Args:
            tensors: An array for each input.
            shapes: Theirs, in the order of the engine's inputs.
            events: None, or two that tell the time.
        """
        self.take(shapes, tensors)
        for spec, shape in zip(self._engine.inputs, shapes, strict=True):
            self.bring(spec.name, tensors[spec.name], shape)
        views = self.make_room()
        self.run(events)
        views |= self.sized()
        for view in views.values():
            view.buffer.copy_to(view.pinned, stream=self.stream)
        self.wait()
        return {spec.name: views[spec.name].array.copy() for spec in self._engine.outputs}

    def take(self, shapes: tuple[Shape, ...], tensors: Mapping[str, Any]) -> None:
        """Set the shapes of a call's inputs, and the values of those that decide shapes.

        Raises:
            InvalidInputError: A value that decides shapes is on the GPU.
            RunnerError: The profile does not cover them.
        """
        if shapes == self._shapes and not self._on_host:
            return
        self._shapes = None
        for name in self._on_host:
            self._tell_host(name, tensors[name])
        for spec, shape in zip(self._engine.inputs, shapes, strict=True):
            if not self._execution.set_input_shape(spec.name, shape):
                axes = ", ".join(f"{a.name} from {a.min} to {a.max}" for a in self._engine.axes)
                msg = (
                    f"The engine does not take {spec.name!r} of shape {list(shape)}; its "
                    f"profile has {list(spec.shape)} with {axes or 'no dynamic axes'}."
                )
                raise RunnerError(msg)
        if missing := self._compare_all(self._execution.infer_shapes):
            msg = f"The shapes of {missing} are missing; give every input."
            raise RunnerError(msg)
        self._outputs = []
        for spec in self._engine.outputs:
            found = tuple(self._execution.get_tensor_shape(spec.name))
            if spec.name in self._unsized or min(found, default=0) < 0:
                self._size_later(spec.name)
            else:
                self._outputs.append((spec.name, found))
        self._shapes = shapes

    def _tell_host(self, name: str, value: Any) -> None:
        """Give TensorRT a value that decides shapes."""
        if is_on_gpu(value):
            msg = f"Input {name!r} decides shapes, which the host reads; give an array."
            raise InvalidInputError(msg)
        if self._in_flight:  # a call before may still read it
            self.wait()
        view = self._places[name].view(value.shape)
        np.copyto(view.array, value)
        self._addresses.pop(name, None)  # what is there is new, and TensorRT is to hear of it
        self.lies_at(name, int(view.pinned.handle))

    def _size_later(self, name: str) -> None:
        """Have TensorRT ask for an output's memory, as its shape depends on the data.

        It is as ``setTensorAddress`` in NvInferRuntime.h wants it of an output with a size of -1
        when all inputs have their shapes. Asking cannot be part of a CUDA graph.
        """
        if name not in self._unsized:
            self._unsized[name] = self._allocator(self._places[name])
            self._execution.set_output_allocator(name, self._unsized[name])
            self._replays = None

    def _compare_all(self, do: Callable[..., Answer], *arguments: Any) -> Answer:
        """Ask TensorRT, whose bindings refuse some things by a RuntimeError.

        Raises:
            RunnerError: It refuses.
        """
        try:
            return do(*arguments)
        except RuntimeError as error:
            raise self._refused() from error

    def _refused(self) -> RunnerError:
        return refused(self._engine, self._log.why())

    def bring(self, name: str, array: Array, shape: Shape) -> None:
        """Copy an input to the GPU, unless it is for the host."""
        if name in self._on_host:
            return
        if self._in_flight:  # a call before may still read the pinned memory
            self.wait()
        view = self._places[name].view(shape)
        np.copyto(view.array, array)
        view.pinned.copy_to(view.buffer, stream=self.stream)
        self.lies_at(name, view.address)

    def make_room(self) -> dict[str, View]:
        """Memory of the context's own for the outputs whose shape is known."""
        views = {name: self._places[name].view(shape) for name, shape in self._outputs}
        for name, view in views.items():
            if self._poisoned:
                view.buffer.fill(_POISON, stream=self.stream)
            self.lies_at(name, view.address)
        return views

    def lies_at(self, name: str, address: int) -> None:
        """Tell TensorRT where a tensor is."""
        if self._addresses.get(name) != address:
            if not self._execution.set_tensor_address(name, address):
                raise self._refused()
            self._addresses[name] = address

    def run(self, events: Sequence[Event] = ()) -> None:
        """Put the engine's work into the stream."""
        if events:
            self.stream.record(events[0])
        self._in_flight = True
        if self._replays is None:
            self._enqueue(self.handle)
        else:
            self._replays.run((self._shapes, *self._addresses.values()), self._enqueue)
        if events:
            self.stream.record(events[1])

    def _enqueue(self, stream: int) -> None:
        if not self._execution.execute_async_v3(stream):
            for asked in self._unsized.values():
                if (error := asked.error) is not None:
                    asked.error = None
                    raise error
            raise self._refused()

    def sized(self) -> dict[str, View]:
        """The outputs whose shape depends on the data, which TensorRT told while it was asked."""
        return {name: self._places[name].view(found.shape) for name, found in self._unsized.items()}

    @property
    def output_shapes(self) -> list[Shape | None]:
        """Of each output, for the shapes that were taken; None where it depends on the data."""
        known = dict(self._outputs)
        return [known.get(spec.name) for spec in self._engine.outputs]

    def after(self, stream: Stream) -> None:
        """Let what comes here wait for what was asked of another stream."""
        stream.record(self._event)
        self.stream.wait(self._event)

    def before(self, stream: Stream) -> None:
        """Let what comes in another stream wait for what was asked here."""
        self.stream.record(self._event)
        stream.wait(self._event)

    def reads(self, name: str, address: int, shape: Shape) -> None:
        """Take an input that lies on the GPU, from where it is unless TensorRT cannot.

        A part of a larger tensor may begin anywhere, and PyTorch's empty tensors are at 0.
        """
        if address and not address % _ALIGNMENT:
            self.lies_at(name, address)
            return
        from cuda.core import Buffer

        view = self._places[name].view(shape)
        if view.array.nbytes:
            view.buffer.copy_from(
                Buffer.from_handle(address, view.array.nbytes), stream=self.stream
            )
        self.lies_at(name, view.address)

    def writes(self, name: str, address: int, shape: Shape) -> None:
        """Have an output written to somewhere on the GPU; an empty one may be nowhere."""
        self.lies_at(name, address or self._places[name].view(shape).address)

    def copy(self, view: View, address: int) -> None:
        """Copy a tensor of the context's own to somewhere else on the GPU."""
        from cuda.core import Buffer

        if size := view.array.nbytes:
            view.buffer.copy_to(Buffer.from_handle(address, size), stream=self.stream)

    def wait(self) -> None:
        """Wait until the GPU has done all that was asked of this context."""
        self.stream.sync()
        self._in_flight = False

    def close(self) -> None:
        """Give the memory back, once nothing uses it."""
        self.wait()
        self._replays = None
        self._places.clear()
        self._execution = None
        self.wait()  # which is when memory is free


def shapes_of(names: Sequence[str], tensors: Mapping[str, Any]) -> tuple[Shape, ...]:
    """The shapes of a call's inputs, in the order of the engine's."""
    return tuple([tuple(tensors[name].shape) for name in names])


# CUDA graphs: an engine's work for one shape, captured once and launched as one piece.


_MOST = 8
"""CUDA graphs that an execution context keeps; each takes some memory of the GPU."""

_MOST_SEEN = 64
"""Calls that it remembers to have made without one."""


class Replays:
    """The CUDA graphs of an execution context.

    A graph holds the addresses that it was captured with. So there is one for each shape and set
    of addresses, captured when they come a second time: addresses that never come again are not
    worth one. Right before a capture is a plain call of the same, as TensorRT wants it whenever
    shapes were set.

    Args:
        stream: The context's stream.
        name: The engine's file, for people.
    """

    def __init__(self, stream: Stream, name: str) -> None:
        self._stream, self._handle, self._name = stream, int(stream.handle), name
        self._graphs: dict[Hashable, Graph] = {}
        self._seen: dict[Hashable, None] = {}
        self._is_possible = True

    def run(self, key: Hashable, enqueue: Callable[[int], None]) -> None:
        """Do what `enqueue` puts into the stream, by a graph where there is one.

        Args:
            key: The shapes and addresses of the call.
            enqueue: Puts the engine's work into the stream of a handle.
        """
        if (graph := self._graphs.get(key)) is not None:
            graph.launch(self._stream)
            return
        enqueue(self._handle)
        if key in self._seen and self._is_possible:
            self._capture(key, enqueue)
        self._seen[key] = None
        if len(self._seen) > _MOST_SEEN:
            del self._seen[next(iter(self._seen))]

    def _capture(self, key: Hashable, enqueue: Callable[[int], None]) -> None:
        """Capture what was put into the stream right before, for the calls to come."""
        capture = self._stream.create_graph_builder()
        try:
            capture.begin_building()
            try:
                enqueue(int(capture.stream.handle))
            finally:
                capture.end_building()
            graph = capture.complete()
            graph.upload(self._stream)
        except Exception as error:  # noqa: BLE001  # the plain calls go on
            self._is_possible = False
            msg = f"{self._name} runs without a CUDA graph, as it cannot be captured: {error}"
            warnings.warn(msg, stacklevel=2)
            return
        if len(self._graphs) == _MOST:
            del self._graphs[next(iter(self._graphs))]
        self._graphs[key] = graph
