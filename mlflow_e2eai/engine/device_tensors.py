"""Tensors on the GPU as inputs and outputs, without a copy, in the order of streams."""

from __future__ import annotations

import functools
import math
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from mlflow_e2eai.artifacts.arrays import is_on_gpu
from mlflow_e2eai.artifacts.values import TensorSpec
from mlflow_e2eai.engine.context import Context, Shape
from mlflow_e2eai.errors import InvalidInputError

if TYPE_CHECKING:
    from cuda.core import Stream


def infer_on_device(
    context: Context,
    tensors: Mapping[str, Any],
    shapes: tuple[Shape, ...],
    inputs: Sequence[TensorSpec],
    outputs: Sequence[TensorSpec],
) -> dict[str, Any]:
    """Run a context on tensors on the GPU, which stay where they are.

    With torch tensors the call is ordered in PyTorch's current stream: the engine starts after the
    earlier work of that stream, later work waits for the engine, and the host does not wait. With
    other tensors, whose stream is not known, the outputs are complete when this returns.

    Args:
        context: The context.
        tensors: Tensors on the GPU and, for inputs that are not, arrays, which are copied there.
        shapes: Their shapes, in the order of the inputs.
        inputs: The engine's inputs.
        outputs: The engine's outputs.

    Returns:
        torch tensors where one was given, else objects with DLPack's methods; all on the GPU.

    Raises:
        InvalidInputError: A tensor is on another GPU, of another dtype, or not contiguous.
        RunnerError: The profile does not cover the shapes, or TensorRT cannot run.
    """
    context.set_inputs(shapes, tensors)
    torch = sys.modules.get("torch")
    kind = () if torch is None else torch.Tensor
    lead = next((t for t in tensors.values() if isinstance(t, kind) and t.is_cuda), None)
    library = _DlpackTensors(context) if lead is None else _TorchTensors(torch, lead, context)
    # Memory first: earlier work of others on it is then waited for too.
    results, addresses = {}, {}
    for spec, shape in zip(outputs, context.output_shapes, strict=True):
        if shape is not None:
            results[spec.name], addresses[spec.name] = library.empty(spec, shape)
    library.begin()
    inputs_in_use = [
        _set_input(context, spec, tensors[spec.name], shapes[at]) for at, spec in enumerate(inputs)
    ]
    for name, address in addresses.items():
        context.write_output(name, address, tuple(results[name].shape))
    context.run()
    for name, view in context.data_dependent_outputs().items():
        spec = next(spec for spec in outputs if spec.name == name)
        results[name], address = library.empty(spec, view.array.shape)
        library.begin()
        context.copy_output(view, address)
    library.end()
    del inputs_in_use  # their producers wait for the stream, or the work is done
    return {spec.name: results[spec.name] for spec in outputs}


class _DeviceTensor(NamedTuple):
    """Address and layout of a tensor on the GPU."""

    address: int
    dtype: str
    device: int
    is_contiguous: bool
    owner: Any


def _describe(value: Any, stream: int) -> _DeviceTensor:
    """Describe a device tensor and make `stream` wait for its producer.

    With PyTorch `_TorchTensors` makes it wait, once for all tensors.
    """
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(value, torch.Tensor):
        dtype = str(value.dtype).removeprefix("torch.")
        at = value.device.index or 0
        return _DeviceTensor(value.data_ptr(), dtype, at, value.is_contiguous(), value)
    from cuda.core.utils import StridedMemoryView

    view = StridedMemoryView.from_any_interface(value, stream_ptr=stream)
    is_contiguous = _is_contiguous(view.shape, view.strides)
    return _DeviceTensor(view.ptr, str(view.dtype), view.device_id, is_contiguous, view)


def _set_input(context: Context, spec: TensorSpec, value: Any, shape: Shape) -> Any:
    """Set an input; returns the object that must outlive its use by the stream."""
    if not is_on_gpu(value):
        context.copy_input(spec.name, np.asarray(value), shape)
        return None
    tensor = _describe(value, context.handle)
    if tensor.device != context.device.device_id:
        msg = (
            f"Input {spec.name!r} is on GPU {tensor.device}, but the engine runs on GPU "
            f"{context.device.device_id}; move it there."
        )
        raise InvalidInputError(msg)
    if tensor.dtype != spec.dtype:
        msg = f"Input {spec.name!r} is {tensor.dtype}, but {spec.dtype} is expected; convert it."
        raise InvalidInputError(msg)
    if not tensor.is_contiguous:
        msg = (
            f"Input {spec.name!r} of shape {list(shape)} is not contiguous; make it so, for "
            f"example by .contiguous()."
        )
        raise InvalidInputError(msg)
    context.read_input(spec.name, tensor.address, shape)
    return tensor.owner


def _is_contiguous(shape: Shape, strides: Sequence[int] | None) -> bool:
    """Whether a tensor's elements lie one after the other, the last axis quickest."""
    if strides is None:
        return True
    expected = 1
    for size, stride in zip(reversed(shape), reversed(strides), strict=True):
        if size not in (1, 0) and stride != expected:
            return False
        expected *= size
    return True


@functools.lru_cache(maxsize=64)
def _stream(handle: int) -> Stream:
    """Make a stream of another library's handle, which takes 14 microseconds."""
    from cuda.core import Stream

    return Stream.from_handle(handle)


class _TorchTensors:
    """PyTorch's current stream, and tensors in its memory."""

    def __init__(self, torch: Any, like: Any, context: Context) -> None:
        self._torch, self._device, self._context = torch, like.device, context
        self._stream = _stream(torch.cuda.current_stream(like.device).cuda_stream)

    def begin(self) -> None:
        self._context.wait_for(self._stream)

    def empty(self, spec: TensorSpec, shape: Shape) -> tuple[Any, int]:
        dtype = getattr(self._torch, spec.dtype)
        tensor = self._torch.empty(shape, dtype=dtype, device=self._device)
        return tensor, tensor.data_ptr()

    def end(self) -> None:
        self._context.make_wait(self._stream)


class _DlpackTensors:
    """Tensors with DLPack only: the stream that will read the outputs is not known."""

    def __init__(self, context: Context) -> None:
        from cuda.core import LEGACY_DEFAULT_STREAM

        self._context, self._stream = context, LEGACY_DEFAULT_STREAM

    def begin(self) -> None:
        # Each tensor's producer got our stream by DLPack; freed memory of an earlier output may
        # still be read in the default stream.
        self._context.wait_for(self._stream)

    def empty(self, spec: TensorSpec, shape: Shape) -> tuple[Any, int]:
        """Memory of the default stream's, which waits for streams that block before it is free."""
        from cuda.core.utils import StridedMemoryView

        dtype = np.dtype(spec.dtype)
        size = max(1, math.prod(shape)) * dtype.itemsize
        buffer = self._context.device.allocate(size, stream=self._stream)
        return StridedMemoryView.from_buffer(buffer, shape, dtype=dtype), int(buffer.handle)

    def end(self) -> None:
        self._context.wait()
