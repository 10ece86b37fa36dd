"""Memory for the tensors of calls, on the GPU and pinned on the host, reused call by call."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from mlflow_e2eai.artifacts.values import Array, Axis, TensorSpec
from mlflow_e2eai.errors import RunnerError

if TYPE_CHECKING:
    from cuda.core import Buffer, Device, Stream


_MAX_VIEWS = 64
"""Views of a tensor that are cached, one for each shape."""


class View(NamedTuple):
    """Part of the memory of a tensor, for one shape.

    Attributes:
        buffer: On the GPU.
        address: Of `buffer`.
        pinned: On the host, in memory that the GPU copies from and to by itself.
        array: `pinned`, as an array.
    """

    buffer: Buffer
    address: int
    pinned: Buffer
    array: Array


class TensorMemory:
    """Memory of one tensor of an execution context, which grows to the largest shape.

    Args:
        device: The GPU.
        stream: The stream whose work uses the memory.
        dtype: The tensor's NumPy dtype name.
    """

    def __init__(self, device: Device, stream: Stream, dtype: str) -> None:
        from cuda.core import Buffer, LegacyPinnedMemoryResource

        self.dtype = np.dtype(dtype)
        self._device, self._stream = device, stream
        self._host = LegacyPinnedMemoryResource()
        self._part = Buffer.from_handle
        self._size = 0
        self._buffer: Any = None
        self._pinned: Any = None
        self._views: dict[tuple[int, ...], View] = {}

    def view(self, shape: tuple[int, ...]) -> View:
        """Return memory for a tensor of a shape; earlier content may be lost."""
        if (known_view := self._views.get(shape)) is not None:
            return known_view
        used = math.prod(shape) * self.dtype.itemsize
        address = self.reserve(used)
        if len(self._views) >= _MAX_VIEWS:
            self._views.clear()
        bytes_: Any = np.from_dlpack(self._pinned)
        view = View(
            buffer=self._part(address, used, owner=self._buffer),
            address=address,
            pinned=self._part(int(self._pinned.handle), used, owner=self._pinned),
            array=bytes_[:used].view(self.dtype).reshape(shape),
        )
        self._views[shape] = view
        return view

    def reserve(self, size: int) -> int:
        """Reserve bytes on the GPU and return their address; earlier content may be lost."""
        if size > self._size or not self._size:
            self._views.clear()
            # The old memory is freed first: there may not be enough for both.
            self._size, self._buffer, self._pinned = 0, None, None
            self._stream.sync()
            self._buffer = self._device.allocate(max(1, size), stream=self._stream)
            self._pinned = self._host.allocate(max(1, size))
            self._size = max(1, size)
        return int(self._buffer.handle)


# The GPU of an engine: current in the thread during a call, and restored after it.


class Gpu:
    """The first GPU of the driver, which all engines run on.

    CUDA has a current GPU for each thread, which PyTorch uses too. The caller's is current again
    after the block.

    Attributes:
        device: The GPU.

    Raises:
        RunnerError: CUDA's driver cannot be used.
    """

    def __init__(self) -> None:
        from cuda.bindings import driver
        from cuda.core import Device

        try:
            self.device = Device(0)
        except Exception as error:
            what = str(error).strip().partition("\n")[0].rstrip(".")
            msg = f"CUDA cannot be used here: {what}; check the driver with `nvidia-smi`."
            raise RunnerError(msg) from error
        self._current, self._set_current = driver.cuCtxGetCurrent, driver.cuCtxSetCurrent
        self._trim = driver.cuMemPoolTrimTo
        self._own = 0

    def enter(self) -> Any:
        """Make this GPU current.

        Returns:
            The context that was current before, for `leave`.

        Raises:
            RunnerError: This process was forked from one that used the GPU.
        """
        error, before = self._current()
        if error.name == "CUDA_ERROR_NOT_INITIALIZED":  # it was initialised before the fork
            msg = (
                "This process was forked from one that uses the GPU, which CUDA does not allow; "
                "load the model after the fork, or start processes by spawn."
            )
            raise RunnerError(msg)
        if (current := int(before)) and current == self._own:
            return None
        self.device.set_current()
        self._own = int(self._current()[1])
        # A thread that had none may keep this one: none was chosen there.
        return before if current not in (0, self._own) else None

    def leave(self, before: Any) -> None:
        """Make the context current again that was before `enter`."""
        if before is not None:
            self._set_current(before)

    def trim(self) -> None:
        """Free the memory that cuda.core reserves for later allocations."""
        pool = getattr(self.device.memory_resource, "handle", None)
        if pool is not None:  # not every GPU has pools
            self._trim(pool, 0)

    @contextmanager
    def current(self) -> Iterator[None]:
        """Make this GPU the current device inside the block."""
        before = self.enter()
        try:
            yield
        finally:
            self.leave(before)


# Outputs whose shape depends on the data: TensorRT asks for their memory while it runs.


def has_data_dependent_shapes(outputs: Sequence[TensorSpec], axes: Sequence[Axis]) -> bool:
    """Whether an output has a named size that is no expression of the axes.

    ``found`` may be the count of ``NonZero``; ``floor(H/2)`` is known when ``H`` is.
    """
    names = {axis.name for axis in axes}
    return any(
        isinstance(size, str) and names.isdisjoint(re.findall(r"\w+", size))
        for spec in outputs
        for size in spec.shape
    )


def allocator(trt: Any, memory: TensorMemory) -> Any:
    """Make an output allocator that reserves memory, and stores the shape that TensorRT sets.

    Returns:
        An ``IOutputAllocator``; its `shape` is right when ``execute_async_v3`` returns, until
        which TensorRT calls ``notify_shape`` (NvInferRuntime.h, ``IOutputAllocator``). Its
        `error` is why there was no memory: nothing can be raised through TensorRT.
    """

    class Allocator(trt.IOutputAllocator):  # type: ignore[misc]  # the bindings ship no types
        def __init__(self) -> None:
            super().__init__()
            self.shape: tuple[int, ...] = ()
            self.error: Exception | None = None

        def reallocate_output(self, name: str, current: int, size: int, alignment: int) -> int:  # noqa: ARG002
            try:
                return memory.reserve(size)
            except Exception as error:  # noqa: BLE001  # raised once TensorRT has returned
                self.error = error
                return 0

        def reallocate_output_async(
            self, name: str, current: int, size: int, alignment: int, stream: int
        ) -> int:
            del stream  # the memory is there already when this returns
            return self.reallocate_output(name, current, size, alignment)

        def notify_shape(self, name: str, shape: Any) -> None:  # noqa: ARG002
            self.shape = tuple(shape)

    return Allocator()
