"""ONNX Runtime's sessions on a GPU, asked for tensors that are there already."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mlflow_e2eai.arrays import is_on_gpu
from mlflow_e2eai.artifacts import Infer, Tensors
from mlflow_e2eai.errors import InvalidInputError, RunnerError


class GpuSession:
    """A session that answers arrays with arrays, and torch tensors with torch tensors.

    Args:
        session: ONNX Runtime's.
        infer: What asks it for arrays.
        outputs: The names of its outputs.
        device: Where outputs are to be.
    """

    def __init__(
        self, session: Any, infer: Infer, outputs: Sequence[str], *, device: str = "cuda"
    ) -> None:
        self._session, self._infer, self._outputs = session, infer, outputs
        self._device = device
        self._types = {value.name: value.type for value in session.get_inputs()}

    def __call__(self, tensors: Tensors) -> Tensors:
        """Answer arrays."""
        return self._infer(tensors)

    def on_device(self, tensors: Mapping[str, Any]) -> dict[str, Any]:
        """Answer torch tensors where they are, by I/O binding.

        ONNX Runtime works in a stream of its own. So what PyTorch's current stream is still to
        write is waited for here, and the answer is there when this returns.

        Args:
            tensors: torch tensors and, for inputs that are not on the GPU, arrays.

        Raises:
            InvalidInputError: A tensor on the GPU is not PyTorch's, of another dtype than the
                graph's, or not contiguous.
            RunnerError: ONNX Runtime cannot run.
        """
        torch = sys.modules.get("torch")
        binding = self._session.io_binding()
        for name, value in tensors.items():
            if torch is not None and isinstance(value, torch.Tensor):
                self._bind(binding, name, value.detach(), torch)
            elif is_on_gpu(value):
                msg = (
                    f"Input {name!r} is on the GPU and no torch tensor, which ONNX Runtime takes "
                    f"there; give one, or an array."
                )
                raise InvalidInputError(msg)
            else:
                binding.bind_cpu_input(name, np.ascontiguousarray(value))
        for name in self._outputs:
            binding.bind_output(name, self._device)
        try:
            self._session.run_with_iobinding(binding)
        except Exception as error:  # onnxruntime's exceptions share no base class
            msg = f"ONNX Runtime cannot run on these inputs: {str(error).strip().splitlines()[0]}"
            raise RunnerError(msg) from error
        found = zip(self._outputs, binding.get_outputs(), strict=True)
        return {name: self._tensor(torch, value) for name, value in found}

    def _bind(self, binding: Any, name: str, tensor: Any, torch: Any) -> None:
        dtype = str(tensor.dtype).removeprefix("torch.")
        if _TYPES.get(dtype) != self._types[name]:
            msg = f"Input {name!r} is {dtype}, but {self._types[name]} is wanted; convert it."
            raise InvalidInputError(msg)
        if not tensor.is_contiguous():
            msg = f"Input {name!r} is not contiguous; make it so by .contiguous()."
            raise InvalidInputError(msg)
        if tensor.is_cuda:
            torch.cuda.current_stream(tensor.device).synchronize()
        binding.bind_input(
            name,
            tensor.device.type,
            tensor.device.index or 0,
            np.dtype(dtype),
            tuple(tensor.shape),
            tensor.data_ptr(),
        )

    @staticmethod
    def _tensor(torch: Any, value: Any) -> Any:
        tensor = torch.from_dlpack(value)
        # DLPack has had no bool for long, and ONNX Runtime says uint8.
        return tensor.bool() if value.data_type() == "tensor(bool)" else tensor


_TYPES = {
    "float16": "tensor(float16)",
    "float32": "tensor(float)",
    "float64": "tensor(double)",
    "int8": "tensor(int8)",
    "int16": "tensor(int16)",
    "int32": "tensor(int32)",
    "int64": "tensor(int64)",
    "uint8": "tensor(uint8)",
    "bool": "tensor(bool)",
}
"""NumPy's and PyTorch's names of types, as ONNX Runtime says them."""
