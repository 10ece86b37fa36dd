"""Packed sequences that nothing in a model pads again.

PyTorch's trace exporter turns packing, a recurrent layer and padding into one node, and fails
without a reason where the padding is missing, as in a classifier that reads only the last state.
So such a sequence is padded as one more output of the trace, which is dropped from its graph.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlflow_e2eai.artifacts import graphs

if TYPE_CHECKING:
    import torch


@contextmanager
def padded_sequences(module: torch.nn.Module) -> Iterator[torch.nn.Module]:
    """Give a module whose outputs end with the sequences that its last recurrent layers packed.

    Args:
        module: A module that takes tensors and returns a tuple of them.

    Yields:
        The module itself where it has no recurrent layer of PyTorch; else a wrapper of it, which
        works inside the block.
    """
    import torch

    layers = [each for each in module.modules() if isinstance(each, torch.nn.RNNBase)]
    if not layers:
        yield module
        return
    packed: dict[int, torch.nn.utils.rnn.PackedSequence] = {}

    def keep(_: torch.nn.Module, inputs: Any, outputs: Any) -> None:
        if inputs and isinstance(inputs[0], torch.nn.utils.rnn.PackedSequence):
            packed.pop(id(inputs[0].data), None)  # another layer reads it
            packed[id(outputs[0].data)] = outputs[0]

    class Padded(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = module

        def forward(self, *tensors: torch.Tensor) -> Any:
            packed.clear()
            outputs = self.model(*tensors)
            pad = torch.nn.utils.rnn.pad_packed_sequence
            return (*outputs, *(pad(sequence)[0] for sequence in packed.values()))

        def train(self, mode: bool = True) -> Padded:  # noqa: ARG002, FBT001, FBT002 - torch's
            return self  # as in `flat_module.positional`

    hooks = [layer.register_forward_hook(keep) for layer in layers]
    try:
        wrapper = Padded()
        wrapper.training = False
        yield wrapper
    finally:
        for hook in hooks:
            hook.remove()


def drop_padded_sequences(path: Path, outputs: tuple[str, ...]) -> None:
    """Drop the outputs of a graph that come after its own, and the nodes that only they read."""
    import onnx

    model = onnx.load(path, load_external_data=False)
    graph = model.graph
    if len(graph.output) <= len(outputs):
        return
    del graph.output[len(outputs) :]
    read = {value.name for value in graph.output}
    nodes = []
    for node in reversed(graph.node):
        if read.intersection(node.output):
            nodes.append(node)
            read.update(graphs.reads(node))
    del graph.node[:]
    graph.node.extend(reversed(nodes))
    onnx.save(model, path)
