"""Packed sequences: recurrent layers without padding, or of which only the last state is read."""

from __future__ import annotations

from collections.abc import Callable

import onnx
import pytest
import torch
from torch import nn

from mlflow_e2eai import export
from mlflow_e2eai.artifacts.values import Axis

N, T = Axis("N", min=1, opt=3, max=8), Axis("T", min=6, opt=6, max=11)
AXES = {"x": {0: N, 1: T}, "lengths": {0: N}}

pytestmark = [pytest.mark.exporters, pytest.mark.usefixtures("on_threads")]


def pack(x, lengths):
    return nn.utils.rnn.pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)


def pad(sequence):
    return nn.utils.rnn.pad_packed_sequence(sequence, batch_first=True)[0]


class Last(nn.Module):
    """The last state of a recurrent layer, of both directions where it has two."""

    def __init__(self, layer, **settings):
        super().__init__()
        self.cell = layer(4, 8, batch_first=True, **settings)

    def forward(self, x, lengths):
        state = self.cell(pack(x, lengths))[1]
        state = state[0] if isinstance(self.cell, nn.LSTM) else state
        return torch.cat([state[-2], state[-1]], 1) if self.cell.bidirectional else state[-1]


class Two(nn.Module):
    """Two layers, the second on the packed or padded sequence of the first."""

    def __init__(self, *, padded):
        super().__init__()
        self.first = nn.GRU(4, 8, batch_first=True)
        self.second = nn.LSTM(8, 8, batch_first=True)
        self.padded = padded

    def forward(self, x, lengths):
        sequence, state = self.first(pack(x, lengths))
        if self.padded:
            sequence = pack(pad(sequence).relu(), lengths)
        return self.second(sequence)[1][0][-1] + state[-1]


class Both(nn.Module):
    """The sequence and the last state."""

    def __init__(self):
        super().__init__()
        self.cell = nn.GRU(4, 8, batch_first=True)

    def forward(self, x, lengths):
        sequence, state = self.cell(pack(x, lengths))
        return pad(sequence).sum(1), state[-1]


MODULES: dict[str, Callable[[], nn.Module]] = {
    "the last state of an RNN": lambda: Last(nn.RNN),
    "the last state of a GRU": lambda: Last(nn.GRU),
    "the last state of two GRU layers": lambda: Last(nn.GRU, num_layers=2),
    "the last state of an LSTM in both directions": lambda: Last(nn.LSTM, bidirectional=True),
    "a layer on the packed sequence of another": lambda: Two(padded=False),
    "a layer on the padded sequence of another": lambda: Two(padded=True),
    "sequence and state": Both,
}


@pytest.mark.parametrize("name", MODULES)
def test_a_packed_sequence_that_nothing_pads_goes_through_the_trace(name, tmp_path):
    torch.manual_seed(0)
    out = tmp_path / "model.onnx"
    module = MODULES[name]().eval()
    example = {"x": torch.randn(3, 6, 4), "lengths": torch.tensor([2, 6, 4])}
    right = module(**example)
    names = ["sums", "state"] if isinstance(right, tuple) else ["state"]

    artifact, report = export(
        module, example, out=out, dynamic_axes=AXES, exporter="trace", output_names=names
    )

    assert [spec.name for spec in artifact.outputs] == names
    assert report.unverified is None
    assert {"min", "opt", "max"} <= set(report.samples)
    graph = onnx.load(out).graph
    read = {name for node in graph.node for name in node.input} | set(names)
    assert all(read.intersection(node.output) for node in graph.node)
    assert not any(part._forward_hooks for part in module.modules())
