"""CUDA graphs: an engine's work for one shape, captured once and launched as one piece."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Hashable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cuda.core import Stream
    from cuda.core.graph import Graph

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
