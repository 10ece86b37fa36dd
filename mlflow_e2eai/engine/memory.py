"""Memory for the tensors of calls: on the GPU, and pinned on the host; kept from call to call."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from mlflow_e2eai.artifacts import Array

if TYPE_CHECKING:
    from cuda.core import Buffer, Device, Stream

_MOST_VIEWS = 64
"""Views that a place keeps: one for each shape that was asked for."""


class View(NamedTuple):
    """A place, as large as a tensor of one shape.

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


class Place:
    """Where one tensor of an execution context lies, as large as the largest that there was.

    Args:
        device: The GPU.
        stream: The stream whose work uses the place.
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
        """The place for a tensor of a shape; what it held before may be lost."""
        if (found := self._views.get(shape)) is not None:
            return found
        used = math.prod(shape) * self.dtype.itemsize
        address = self.at_least(used)
        if len(self._views) >= _MOST_VIEWS:
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

    def at_least(self, size: int) -> int:
        """The address of as many bytes on the GPU; what was there before may be lost."""
        if size > self._size or not self._size:
            self._views.clear()
            # The old memory is given back first: there may not be enough for both.
            self._size, self._buffer, self._pinned = 0, None, None
            self._stream.sync()
            self._buffer = self._device.allocate(max(1, size), stream=self._stream)
            self._pinned = self._host.allocate(max(1, size))
            self._size = max(1, size)
        return int(self._buffer.handle)
