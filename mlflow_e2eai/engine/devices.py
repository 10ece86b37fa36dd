"""Tensors that lie on the GPU already: taken and given without a copy, in the order of streams."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mlflow_e2eai.artifacts import TensorSpec
from mlflow_e2eai.engine.contexts import Context, Shape
from mlflow_e2eai.errors import InvalidInputError

_ON_GPU = (2, 13)
"""kDLCUDA and kDLCUDAManaged of DLPack's DLDeviceType, see dlpack.h."""


def is_on_gpu(value: Any) -> bool:
    """Whether a value says by DLPack that it lies in the memory of an NVIDIA GPU."""
    device = getattr(value, "__dlpack_device__", None)
    return device is not None and device()[0] in _ON_GPU


def answer(
    context: Context,
    tensors: Mapping[str, Any],
    shapes: tuple[Shape, ...],
    inputs: Sequence[TensorSpec],
    outputs: Sequence[TensorSpec],
) -> dict[str, Any]:
    """Run a context on tensors on the GPU, which stay where they are.

    What torch tensors ask is in the order of PyTorch's current stream: the engine starts when that
    stream has come so far, the stream goes on when the engine is done, and nobody waits here. Of
    other tensors, whose stream is not known, the answer is there when this returns.

    Args:
        context: The context.
        tensors: Tensors on the GPU and, for inputs that are not, arrays, which are copied there.
        shapes: Theirs, in the order of the inputs.
        inputs: The engine's.
        outputs: The engine's.

    Returns:
        torch tensors where one was given, else objects that speak DLPack; all on the GPU.

    Raises:
        InvalidInputError: A tensor is on another GPU, of another dtype, or not contiguous.
        RunnerError: The profile does not cover the shapes, or TensorRT cannot run.
    """
    context.device.set_current()
    context.take(shapes)
    torch = sys.modules.get("torch")
    kind = () if torch is None else torch.Tensor
    lead = next((t for t in tensors.values() if isinstance(t, kind) and t.is_cuda), None)
    ours = _Packed(context) if lead is None else _Torch(torch, lead, context)
    ours.begin()
    held = [_bring(context, spec, tensors[spec.name], shapes[at]) for at, spec in enumerate(inputs)]
    found = {}
    for spec, shape in zip(outputs, context.output_shapes, strict=True):
        if shape is not None:
            found[spec.name], address = ours.empty(spec, shape)
            context.lies_at(spec.name, address)
    context.run()
    for name, view in context.sized().items():
        spec = next(spec for spec in outputs if spec.name == name)
        found[name], address = ours.empty(spec, view.array.shape)
        context.copy(view, address)
    ours.end()
    del held  # whoever made them has been told, or the work is done
    return {spec.name: found[spec.name] for spec in outputs}


def _bring(context: Context, spec: TensorSpec, value: Any, shape: Shape) -> Any:
    """Tell TensorRT where an input is; what must not go away before the stream has read it."""
    if not is_on_gpu(value):
        context.bring(spec.name, np.asarray(value), shape)
        return None
    from cuda.core.utils import StridedMemoryView

    if getattr(value, "requires_grad", False):
        value = value.detach()
    view = StridedMemoryView.from_any_interface(value, stream_ptr=context.handle)
    if view.device_id != context.device.device_id:
        msg = (
            f"Input {spec.name!r} is on GPU {view.device_id}, but the engine runs on GPU "
            f"{context.device.device_id}; move it there."
        )
        raise InvalidInputError(msg)
    if view.dtype != np.dtype(spec.dtype):
        msg = f"Input {spec.name!r} is {view.dtype}, but {spec.dtype} is wanted; convert it."
        raise InvalidInputError(msg)
    if not _is_contiguous(view.shape, view.strides):
        msg = (
            f"Input {spec.name!r} of shape {list(view.shape)} has the strides "
            f"{list(view.strides)}; make it contiguous, for example with .contiguous()."
        )
        raise InvalidInputError(msg)
    context.lies_at(spec.name, view.ptr)
    return view


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


class _Torch:
    """PyTorch's current stream, and tensors in its memory."""

    def __init__(self, torch: Any, like: Any, context: Context) -> None:
        from cuda.core import Stream

        self._torch, self._device, self._context = torch, like.device, context
        handle = torch.cuda.current_stream(like.device).cuda_stream
        self._theirs = Stream.from_handle(handle)

    def begin(self) -> None:
        self._context.after(self._theirs)

    def empty(self, spec: TensorSpec, shape: Shape) -> tuple[Any, int]:
        dtype = getattr(self._torch, spec.dtype)
        tensor = self._torch.empty(shape, dtype=dtype, device=self._device)
        return tensor, tensor.data_ptr()

    def end(self) -> None:
        self._context.before(self._theirs)


class _Packed:
    """Tensors that say by DLPack what they are, and nothing of the stream that will read them."""

    def __init__(self, context: Context) -> None:
        from cuda.core import LEGACY_DEFAULT_STREAM

        self._context, self._theirs = context, LEGACY_DEFAULT_STREAM

    def begin(self) -> None:
        pass  # each tensor was told our stream when it was asked for

    def empty(self, spec: TensorSpec, shape: Shape) -> tuple[Any, int]:
        """Memory of the default stream's, which waits for others before it takes it back."""
        from cuda.core.utils import StridedMemoryView

        dtype = np.dtype(spec.dtype)
        size = max(1, math.prod(shape)) * dtype.itemsize
        buffer = self._context.device.allocate(size, stream=self._theirs)
        self._context.after(self._theirs)
        return StridedMemoryView.from_buffer(buffer, shape, dtype=dtype), int(buffer.handle)

    def end(self) -> None:
        self._context.wait()
