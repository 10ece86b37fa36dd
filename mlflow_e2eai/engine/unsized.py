"""Outputs whose shape depends on the data: TensorRT asks for their memory while it runs."""

from __future__ import annotations

from typing import Any

from mlflow_e2eai.engine.memory import Place


def allocator(trt: Any, place: Place) -> Any:
    """An output allocator that gives a place's memory, and keeps the shape that TensorRT found.

    Returns:
        An ``IOutputAllocator``; its `shape` is right once the call's work is done.
    """

    class Allocator(trt.IOutputAllocator):  # type: ignore[misc]  # the bindings ship no types
        def __init__(self) -> None:
            super().__init__()
            self.shape: tuple[int, ...] = ()

        def reallocate_output(self, name: str, memory: int, size: int, alignment: int) -> int:  # noqa: ARG002
            return place.at_least(size)

        def reallocate_output_async(
            self, name: str, memory: int, size: int, alignment: int, stream: int
        ) -> int:
            del stream  # the memory is there already when this returns
            return self.reallocate_output(name, memory, size, alignment)

        def notify_shape(self, name: str, shape: Any) -> None:  # noqa: ARG002
            self.shape = tuple(shape)

    return Allocator()
