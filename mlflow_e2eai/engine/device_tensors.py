"""Tensors that lie on the GPU already: taken and given without a copy, in the order of streams."""

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
    context.take(shapes, tensors)
    torch = sys.modules.get("torch")
    kind = () if torch is None else torch.Tensor
    lead = next((t for t in tensors.values() if isinstance(t, kind) and t.is_cuda), None)
    ours = _Packed(context) if lead is None else _Torch(torch, lead, context)
    # Memory first: what others asked of it before it was free is then waited for too.
    found, addresses = {}, {}
    for spec, shape in zip(outputs, context.output_shapes, strict=True):
        if shape is not None:
            found[spec.name], addresses[spec.name] = ours.empty(spec, shape)
    ours.begin()
    held = [_bring(context, spec, tensors[spec.name], shapes[at]) for at, spec in enumerate(inputs)]
    for name, address in addresses.items():
        context.writes(name, address, tuple(found[name].shape))
    context.run()
    for name, view in context.sized().items():
        spec = next(spec for spec in outputs if spec.name == name)
        found[name], address = ours.empty(spec, view.array.shape)
        ours.begin()
        context.copy(view, address)
    ours.end()
    del held  # whoever made them has been told, or the work is done
    return {spec.name: found[spec.name] for spec in outputs}


class _Lying(NamedTuple):
    """Where and how a tensor lies on the GPU."""

    address: int
    dtype: str
    device: int
    is_contiguous: bool
    held: Any


def _lying(value: Any, stream: int) -> _Lying:
    """Look at a tensor, after which `stream` waits for who is to write it, unless that is PyTorch.

    PyTorch's is told by `_Torch` once for all of them.
    """
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(value, torch.Tensor):
        dtype = str(value.dtype).removeprefix("torch.")
        at = value.device.index or 0
        return _Lying(value.data_ptr(), dtype, at, value.is_contiguous(), value)
    from cuda.core.utils import StridedMemoryView

    view = StridedMemoryView.from_any_interface(value, stream_ptr=stream)
    is_contiguous = _is_contiguous(view.shape, view.strides)
    return _Lying(view.ptr, str(view.dtype), view.device_id, is_contiguous, view)


def _bring(context: Context, spec: TensorSpec, value: Any, shape: Shape) -> Any:
    """Tell TensorRT where an input is; what must not go away before the stream has read it."""
    if not is_on_gpu(value):
        context.bring(spec.name, np.asarray(value), shape)
        return None
    found = _lying(value, context.handle)
    if found.device != context.device.device_id:
        msg = (
            f"Input {spec.name!r} is on GPU {found.device}, but the engine runs on GPU "
            f"{context.device.device_id}; move it there."
        )
        raise InvalidInputError(msg)
    if found.dtype != spec.dtype:
        msg = f"Input {spec.name!r} is {found.dtype}, but {spec.dtype} is wanted; convert it."
        raise InvalidInputError(msg)
    if not found.is_contiguous:
        msg = (
            f"Input {spec.name!r} of shape {list(shape)} is not contiguous; make it so, for "
            f"example by .contiguous()."
        )
        raise InvalidInputError(msg)
    context.reads(spec.name, found.address, shape)
    return found.held


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
    """Somebody else's stream; to make one of its handle takes 14 microseconds."""
    from cuda.core import Stream

    return Stream.from_handle(handle)


class _Torch:
    """PyTorch's current stream, and tensors in its memory."""

    def __init__(self, torch: Any, like: Any, context: Context) -> None:
        self._torch, self._device, self._context = torch, like.device, context
        self._theirs = _stream(torch.cuda.current_stream(like.device).cuda_stream)

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
        # Each tensor was told our stream when it was asked for; memory of an answer that was given
        # back may still be read in the default stream.
        self._context.after(self._theirs)

    def empty(self, spec: TensorSpec, shape: Shape) -> tuple[Any, int]:
        """Memory of the default stream's, which waits for streams that block before it is free."""
        from cuda.core.utils import StridedMemoryView

        dtype = np.dtype(spec.dtype)
        size = max(1, math.prod(shape)) * dtype.itemsize
        buffer = self._context.device.allocate(size, stream=self._theirs)
        return StridedMemoryView.from_buffer(buffer, shape, dtype=dtype), int(buffer.handle)

    def end(self) -> None:
        self._context.wait()
