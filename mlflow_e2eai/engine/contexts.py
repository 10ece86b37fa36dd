"""Execution contexts: each has a stream and memory of its own, and one caller at a time."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from mlflow_e2eai.artifacts import Array, EngineArtifact, Tensors
from mlflow_e2eai.engine.memory import Place, View
from mlflow_e2eai.engine.replaying import Replays
from mlflow_e2eai.engine.unsized import allocator
from mlflow_e2eai.errors import RunnerError

if TYPE_CHECKING:
    from cuda.core import Device, Event, Stream

Shape = tuple[int, ...]

_POISON = 0xFF  # in every byte: NaN in all floating-point types, -1 in signed integers


class Context:
    """An execution context for one profile; for one thread at a time.

    Args:
        engine: The engine.
        execution: TensorRT's execution context, at its first profile.
        profile: The profile that it is to have.
        trt: TensorRT.
        device: The GPU.
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
        device: Device,
        replays: bool,
        poisoned: bool,
    ) -> None:
        from cuda.core import StreamOptions

        self._engine, self._execution, self._poisoned = engine, execution, poisoned
        self.device = device
        self.stream = device.create_stream(options=StreamOptions(nonblocking=True))
        self.handle = int(self.stream.handle)
        self._event = device.create_event()
        if profile and not execution.set_optimization_profile_async(profile, self.handle):
            msg = f"TensorRT does not take profile {profile} of {engine.path.name}."
            raise RunnerError(msg)
        specs = (*engine.inputs, *engine.outputs)
        self._places = {spec.name: Place(device, self.stream, spec.dtype) for spec in specs}
        self._unsized: dict[str, Any] = {}
        for spec in engine.outputs:
            if "?" in spec.shape:
                self._unsized[spec.name] = allocator(trt, self._places[spec.name])
                execution.set_output_allocator(spec.name, self._unsized[spec.name])
        in_graphs = replays and not self._unsized
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
        self.device.set_current()
        self.take(shapes)
        for spec, shape in zip(self._engine.inputs, shapes, strict=True):
            self.bring(spec.name, tensors[spec.name], shape)
        views = self.make_room()
        self.run(events)
        views |= self.sized()
        for view in views.values():
            view.buffer.copy_to(view.pinned, stream=self.stream)
        self.wait()
        return {spec.name: views[spec.name].array.copy() for spec in self._engine.outputs}

    def take(self, shapes: tuple[Shape, ...]) -> None:
        """Set the shapes of a call's inputs, which give those of its outputs.

        Raises:
            RunnerError: The profile does not cover them.
        """
        if shapes == self._shapes:
            return
        self._shapes = None
        for spec, shape in zip(self._engine.inputs, shapes, strict=True):
            if not self._execution.set_input_shape(spec.name, shape):
                axes = ", ".join(f"{a.name} from {a.min} to {a.max}" for a in self._engine.axes)
                msg = (
                    f"The engine does not take {spec.name!r} of shape {list(shape)}; its "
                    f"profile has {list(spec.shape)} with {axes or 'no dynamic axes'}."
                )
                raise RunnerError(msg)
        if missing := self._execution.infer_shapes():
            msg = f"The shapes of {missing} are missing; give every input."
            raise RunnerError(msg)
        self._outputs = [
            (spec.name, tuple(self._execution.get_tensor_shape(spec.name)))
            for spec in self._engine.outputs
            if spec.name not in self._unsized
        ]
        self._shapes = shapes

    def bring(self, name: str, array: Array, shape: Shape) -> None:
        """Copy an input to the GPU."""
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
            self._execution.set_tensor_address(name, address)
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
            msg = f"TensorRT cannot run {self._engine.path.name}; see its log."
            raise RunnerError(msg)

    def sized(self) -> dict[str, View]:
        """The outputs whose shape depends on the data, which is known once the GPU is done."""
        if self._unsized:
            self.wait()
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

    def copy(self, view: View, address: int) -> None:
        """Copy a tensor of the context's own to somewhere else on the GPU."""
        from cuda.core import Buffer

        view.buffer.copy_to(Buffer.from_handle(address, view.buffer.size), stream=self.stream)

    def wait(self) -> None:
        """Wait until the GPU has done all that was asked of this context."""
        self.stream.sync()
        self._in_flight = False

    def close(self) -> None:
        """Give the memory back, once nothing uses it."""
        self.device.set_current()
        self.wait()
        self._replays = None
        self._places.clear()
        self._execution = None


class Pool:
    """Contexts, made when they are first needed; who finds all in use waits for one.

    Args:
        make: Makes one for a profile.
        most: Contexts for one profile. There are fewer where the GPU's memory does not take them.
    """

    def __init__(self, make: Callable[[int], Context], most: int) -> None:
        self._make, self._most = make, most
        self._free: dict[int, list[Context]] = {}
        self._made: dict[int, int] = {}
        self._bounds: dict[int, int] = {}
        self._changed = threading.Condition()

    def take(self, profile: int) -> Context:
        """A context that nobody else uses, until it is given back.

        Raises:
            RunnerError: There is none yet, and none can be made.
            CUDAError: The same.
        """
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._free.get(profile) or self._may_make(profile))
                if free := self._free.get(profile):
                    return free.pop()
                self._made[profile] = self._made.get(profile, 0) + 1
            try:
                return self._make(profile)
            except BaseException as error:
                with self._changed:
                    self._made[profile] -= 1
                    self._changed.notify()
                    if not self._made[profile] or not isinstance(error, Exception):
                        raise
                    self._bounds[profile] = self._made[profile]

    def _may_make(self, profile: int) -> bool:
        return self._made.get(profile, 0) < self._bounds.get(profile, self._most)

    def give(self, profile: int, context: Context) -> None:
        """Give a context back."""
        with self._changed:
            self._free.setdefault(profile, []).append(context)
            self._changed.notify()

    def close(self) -> None:
        """Give back the memory of all contexts, none of which may be in use."""
        for contexts in self._free.values():
            while contexts:
                contexts.pop().close()


def shapes_of(names: Sequence[str], tensors: Mapping[str, Any]) -> tuple[Shape, ...]:
    """The shapes of a call's inputs, in the order of the engine's."""
    return tuple([tensors[name].shape for name in names])
