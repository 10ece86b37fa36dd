"""Outputs whose shape depends on the data: TensorRT asks for their memory while it runs."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from mlflow_e2eai.artifacts import Axis, TensorSpec
from mlflow_e2eai.engine.memory import Place


def may_be_unsized(outputs: Sequence[TensorSpec], axes: Sequence[Axis]) -> bool:
    """Whether a size of an output is named, and not after an axis: the graph tells no more.

    ``found`` may be what ``NonZero`` found; ``floor(H/2)`` is known when ``H`` is.
    """
    names = {axis.name for axis in axes}
    return any(
        isinstance(size, str) and names.isdisjoint(re.findall(r"\w+", size))
        for spec in outputs
        for size in spec.shape
    )


def allocator(trt: Any, place: Place) -> Any:
    """An output allocator that gives a place's memory, and keeps the shape that TensorRT found.

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

        def reallocate_output(self, name: str, memory: int, size: int, alignment: int) -> int:  # noqa: ARG002
            try:
                return place.at_least(size)
            except Exception as error:  # noqa: BLE001  # raised once TensorRT has returned
                self.error = error
                return 0

        def reallocate_output_async(
            self, name: str, memory: int, size: int, alignment: int, stream: int
        ) -> int:
            del stream  # the memory is there already when this returns
            return self.reallocate_output(name, memory, size, alignment)

        def notify_shape(self, name: str, shape: Any) -> None:  # noqa: ARG002
            self.shape = tuple(shape)

    return Allocator()
