"""A PyTorch module as a runner."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from mlflow_e2eai.artifacts.values import Infer, Tensors
from mlflow_e2eai.pytorch.flat_module import call, output_arrays, output_tensors
from mlflow_e2eai.pytorch.module import device_of, evaluation_mode

if TYPE_CHECKING:
    import torch


@contextmanager
def torch_runner(
    model: torch.nn.Module, *, inputs: Sequence[str], outputs: Sequence[str]
) -> Iterator[Infer]:
    """Run a PyTorch module, in evaluation mode and without gradients.

    Args:
        model: The module; its mode and state are restored after the block, and its state after
            each call where a call moves it.
        inputs: Names of the inputs, bound as by `call`.
        outputs: Names for the outputs, in the order of `output_tensors`.
    """
    import torch

    moves: bool | None = None  # known after the first call

    device = device_of(model)

    def infer(tensors: Tensors) -> Tensors:
        nonlocal moves
        arguments = {name: torch.from_numpy(tensors[name].copy()).to(device) for name in inputs}
        with torch.no_grad():
            arrays = output_arrays(output_tensors(call(model, arguments))).values()
        if moves is None:
            moves = bool(opened.state.moved_names())
        if moves:
            opened.state.restore()
        return dict(zip(outputs, arrays, strict=True))

    with evaluation_mode(model) as opened, _without_tf32(device):
        yield infer


@contextmanager
def _without_tf32(device: torch.device) -> Iterator[None]:
    """Turn off TF32 on CUDA in the block: PyTorch rounds convolutions to it by default."""
    import torch

    if device.type != "cuda":
        yield
        return
    cudnn, matmul = torch.backends.cudnn, torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with cudnn.flags(
            enabled=cudnn.enabled,
            benchmark=cudnn.benchmark,
            deterministic=cudnn.deterministic,
            allow_tf32=False,
        ):
            yield
    finally:
        torch.set_float32_matmul_precision(matmul)
