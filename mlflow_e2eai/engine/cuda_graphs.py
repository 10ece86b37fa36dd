"""Never run on its hardware yet: CUDA graphs of TensorRT's work, captured here.

Written by hand: TensorRT-RTX captures by itself, TensorRT leaves it to its caller, and polygraphy's
runner does not capture. A graph launches an engine's work for one shape as one piece.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import TYPE_CHECKING

from mlflow_e2eai.errors import warn_caller

if TYPE_CHECKING:
    from cuda.core import Stream
    from cuda.core.graph import Graph

_MAX_GRAPHS = 8
"""CUDA graphs of an execution context; each takes some memory of the GPU."""

_MAX_SEEN = 64
"""Keys of calls without a graph that are remembered."""


class CudaGraphs:
    """The CUDA graphs of an execution context.

    A graph holds the addresses that it was captured with. So there is one for each shape and set
    of addresses, captured when they come a second time: addresses that never come again are not
    worth one. Right before a capture is a plain call of the same, as TensorRT wants it whenever
    shapes were set.

    Args:
        stream: The context's stream.
        name: File name of the engine, for warnings.
    """

    def __init__(self, stream: Stream, name: str) -> None:
        self._stream, self._handle, self._name = stream, int(stream.handle), name
        self._graphs: dict[Hashable, Graph] = {}
        self._seen: dict[Hashable, None] = {}
        self._can_capture = True

    def run(self, key: Hashable, enqueue: Callable[[int], None]) -> None:
        """Run the work that `enqueue` puts into the stream, by a graph where there is one.

        Args:
            key: The shapes and addresses of the call.
            enqueue: Puts the engine's work into the stream with a handle.
        """
        if (graph := self._graphs.get(key)) is not None:
            graph.launch(self._stream)
            return
        enqueue(self._handle)
        if key in self._seen and self._can_capture:
            self._capture(key, enqueue)
        self._seen[key] = None
        if len(self._seen) > _MAX_SEEN:
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
            self._can_capture = False
            msg = f"{self._name} runs without a CUDA graph, because it cannot be captured: {error}"
            warn_caller(msg)
            return
        if len(self._graphs) == _MAX_GRAPHS:
            del self._graphs[next(iter(self._graphs))]
        self._graphs[key] = graph
