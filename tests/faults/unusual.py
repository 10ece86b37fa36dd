"""Healthy models with unusual inputs, sizes or outputs, the whole way from export to evidence."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from unittest import mock

import torch
from torch import nn

import mlflow_e2eai
from mlflow_e2eai import Axis
from mlflow_e2eai.evaluation import stage
from mlflow_e2eai.parity.samples import profile_samples
from mlflow_e2eai.pytorch.runner import torch_runner

_UNTIMED = replace(stage.EFFORTS["standard"], load_s=0.0)

N = Axis("N", min=1, opt=3, max=8)
T = Axis("T", min=2, opt=6, max=16)
SIDE = {"H": Axis("H", min=8, opt=16, max=33), "W": Axis("W", min=8, opt=12, max=20)}
IMAGE = {"x": {0: N, 2: SIDE["H"], 3: SIDE["W"]}}
BATCH = {"x": {0: N}}
TOKENS = {name: {0: N, 1: T} for name in ("ids", "mask")}
GRAPH = {
    "x": {0: Axis("V", min=4, opt=7, max=20)},
    "edges": {1: Axis("E", min=1, opt=12, max=24)},  # 6 a node at most: 20 add up fp16's errors
}
BUCKETED = {"x": {0: Axis("N", min=4, opt=8, max=64, multiple=4, buckets=(16, 32))}}


@dataclass(frozen=True)
class Unusual:
    """A healthy model.

    Attributes:
        name: What is unusual.
        make: The module, made once PyTorch's seed is set.
        example: Its inputs by name, made after it.
        axes: Its dynamic axes.
        half: Whether it goes in fp16 too.
        exporter: See `mlflow_e2eai.export`; dynamo takes seconds.
    """

    name: str
    make: Callable[[], nn.Module]
    example: Callable[[], dict[str, torch.Tensor]]
    axes: Mapping[str, Mapping[int, Axis]]
    half: bool = True
    exporter: str = "trace"

    @property
    def is_slow(self) -> bool:
        """Whether its export takes seconds."""
        return self.exporter == "dynamo"


UNUSUAL: list[Unusual] = []


def unusual(name, example, axes=BATCH, **settings):
    """Register a module."""

    def register(make):
        UNUSUAL.append(Unusual(name, make, example, axes, **settings))
        return make

    return register


def alarms(model, seed, folder):
    """What is said of a model, by variant; nothing where all is well."""
    torch.manual_seed(seed)
    module, example = model.make().eval(), model.example()
    arrays = {name: tensor.numpy() for name, tensor in example.items()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the exporters, which are not on trial here
        raw, report = mlflow_e2eai.export(
            module,
            example,
            out=folder / "raw.onnx",
            dynamic_axes=model.axes,
            exporter=model.exporter,
        )
        samples = list(profile_samples(arrays, raw).values())
        clean, _ = mlflow_e2eai.clean(raw, out=folder / "clean.onnx", samples=samples)
        graphs = [clean]
        if model.half:
            out = folder / "half.onnx"
            graphs.append(mlflow_e2eai.convert(clean, "fp16", out=out, samples=samples)[0])
        outputs = [spec.name for spec in clean.outputs]
        with (
            # Time is not on trial here.
            mock.patch.object(stage, "_measure_latency", return_value={}),
            mock.patch.object(stage, "EFFORTS", {"standard": _UNTIMED}),
            torch_runner(module, inputs=list(example), outputs=outputs) as reference,
        ):
            evidence, *_ = stage.evaluate(reference, graphs, [], arrays, raw=raw)
    said = {
        entry.variant: (entry.reason, *entry.findings) for entry in evidence if not entry.passed
    }
    return said | ({"export": report.unverified} if report.unverified else {})


def images():
    return {"x": torch.rand(3, 3, 16, 12)}


def features():
    return {"x": torch.randn(3, 12)}


class Function(nn.Module):
    """A linear layer, and a function of what it gives."""

    def __init__(self, function, *, into=10):
        super().__init__()
        self.body, self.function = nn.Linear(12, into), function

    def forward(self, x):
        return self.function(self.body(x))


def of_logits(name, function, *, into=10, **settings):
    """Register a function of logits."""
    unusual(name, features, **settings)(lambda: Function(function, into=into))


# Detectors


class Detector(nn.Module):
    """Boxes in pixels and scores in one output, from a grid of half the size, rounded up."""

    def __init__(self, *, channels_first):
        super().__init__()
        self.body = nn.Conv2d(3, 16, 3, stride=2, padding=1)
        self.boxes, self.scores = nn.Conv2d(16, 4, 1), nn.Conv2d(16, 20, 1)
        self.channels_first = channels_first

    def forward(self, x):
        y = torch.relu(self.body(x))
        found = torch.cat([640 * self.boxes(y).sigmoid(), (self.scores(y) - 4).sigmoid()], 1)
        return found.flatten(2) if self.channels_first else found.flatten(2).transpose(1, 2)


unusual("boxes beside scores, of images of odd sizes", images, IMAGE)(
    lambda: Detector(channels_first=True)
)
unusual("boxes beside scores in the last axis", images, IMAGE)(
    lambda: Detector(channels_first=False)
)


@unusual("a U-net whose input may be odd", images, IMAGE)
class UNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.down = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.up = nn.Conv2d(11, 2, 3, padding=1)

    def forward(self, x):
        y = torch.relu(self.down(x))
        y = nn.functional.interpolate(y, size=x.shape[2:], mode="bilinear", align_corners=False)
        return self.up(torch.cat([x, y], 1))


# Sequences


def tokens():
    lengths = torch.randint(2, 7, (3,))
    return {
        "ids": torch.randint(1, 50, (3, 6)),
        "mask": torch.arange(6) < lengths[:, None],
    }


class Padded(nn.Module):
    """A transformer that pays no attention to padding."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(50, 16, padding_idx=0)
        layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
        self.layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)

    def forward(self, ids, mask):
        y = self.layers(self.embed(ids), src_key_padding_mask=~mask)
        weights = mask[..., None].to(y.dtype)
        return (y * weights).sum(1) / weights.sum(1).clamp(min=1)


unusual("a padded transformer", tokens, TOKENS, exporter="dynamo")(Padded)


@unusual("causal attention over minus infinities", tokens, TOKENS)
class Causal(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.head = nn.Embedding(50, 16), nn.Linear(16, 9)

    def forward(self, ids, mask):
        y = self.embed(ids)
        place = torch.arange(ids.shape[1], device=ids.device)
        seen = (place[:, None] >= place) & mask[:, None]
        seen = seen | (place[:, None] == place)  # at least itself
        scores = (y @ y.transpose(1, 2) / 4).masked_fill(~seen, float("-inf"))
        return self.head(scores.softmax(-1) @ y)


@unusual("next tokens of which some are ruled out by minus infinity", tokens, TOKENS)
class Rules(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.head = nn.Embedding(50, 16), nn.Linear(16, 50)

    def forward(self, ids, mask):
        logits = self.head(self.embed(ids).tanh())
        banned = torch.arange(50, device=ids.device) % 7 == 3
        return logits.masked_fill(banned | ~mask[..., None], float("-inf"))


def sequences():
    return {"x": torch.randn(3, 6, 12), "lengths": torch.tensor([2, 6, 4])}


@unusual("lengths in no order", sequences, {"x": {0: N}, "lengths": {0: N}})
class Masked(nn.Module):
    def __init__(self):
        super().__init__()
        self.cell, self.head = nn.RNNCell(12, 16), nn.Linear(16, 5)

    def forward(self, x, lengths):
        state = torch.zeros_like(x[:, 0, :1]).expand(-1, 16)
        for step in range(6):
            state = torch.where((lengths > step)[:, None], self.cell(x[:, step], state), state)
        return self.head(state)


class Packed(nn.Module):
    """A GRU over sequences without their padding."""

    def __init__(self, *, in_order):
        super().__init__()
        self.cell, self.in_order = nn.GRU(12, 8, batch_first=True), in_order

    def forward(self, x, lengths):
        packed = nn.utils.rnn.pack_padded_sequence(
            x, lengths, batch_first=True, enforce_sorted=self.in_order
        )
        padded = nn.utils.rnn.pad_packed_sequence(
            self.cell(packed)[0], batch_first=True, total_length=6
        )
        return padded[0]


def in_order():
    return {**sequences(), "lengths": torch.tensor([6, 4, 2])}


unusual("packed sequences, the longest first", in_order, {"x": {0: N}, "lengths": {0: N}})(
    lambda: Packed(in_order=True)
)


class LastState(nn.Module):
    """The last states of an LSTM in both directions, over sequences without their padding."""

    def __init__(self):
        super().__init__()
        self.cell = nn.LSTM(12, 8, batch_first=True, bidirectional=True)
        self.head = nn.Linear(16, 5)

    def forward(self, x, lengths):
        packed = nn.utils.rnn.pack_padded_sequence(
            x, lengths, batch_first=True, enforce_sorted=False
        )
        _, (states, _) = self.cell(packed)
        return self.head(torch.cat([states[-2], states[-1]], dim=-1))


unusual("the last state of packed sequences", sequences, {"x": {0: N}, "lengths": {0: N}})(
    LastState
)
unusual("packed sequences in no order", sequences, {"x": {0: N}, "lengths": {0: N}})(
    lambda: Packed(in_order=False)
)


# Graphs


def graph():
    return {"x": torch.randn(7, 12), "edges": torch.randint(0, 7, (2, 12))}


class Messages(nn.Module):
    """Sums over edges, of which several may end in one node."""

    def __init__(self):
        super().__init__()
        self.own, self.others = nn.Linear(12, 12), nn.Linear(12, 12)

    def forward(self, x, edges):
        for _ in range(2):
            come = torch.zeros_like(x).index_add(0, edges[1], self.others(x)[edges[0]])
            x = torch.tanh(self.own(x) + come)
        return x


unusual("a network on a graph", graph, GRAPH, exporter="dynamo")(Messages)


def several_graphs():
    return {"x": torch.randn(7, 12), "graph": torch.tensor([0, 0, 1, 1, 1, 2, 3])}


NODES = {name: {0: GRAPH["x"][0]} for name in ("x", "graph")}


@unusual("means over the nodes of each graph", several_graphs, NODES, exporter="dynamo")
class Means(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Linear(12, 6)

    def forward(self, x, graph):
        y = torch.relu(self.body(x))
        sums = torch.zeros(4, 6).index_add(0, graph, y)
        counts = torch.zeros(4).index_add(0, graph, torch.ones_like(y[:, 0]))
        return sums / counts.clamp(min=1)[:, None]


# Choices


@unusual(
    "the best of many, with their places",
    lambda: {"x": torch.randn(24, 12)},
    {"x": {0: Axis("A", min=8, opt=24, max=100)}},
    half=False,
)
class Best(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Linear(12, 1)

    def forward(self, x):
        return torch.topk(self.body(x)[:, 0], 5)


@unusual("the best of scores that are tied", features)
class Tied(nn.Module):
    """Half of the scores are zero, so that any of them may stand at the end."""

    def __init__(self):
        super().__init__()
        self.body = nn.Linear(12, 20)

    def forward(self, x):
        return torch.topk(torch.relu(self.body(x)), 15).values


of_logits("a class as an integer", lambda y: y.argmax(-1), half=False)
of_logits("a decision as a boolean", lambda y: y > 0, half=False)
of_logits("sorted scores", lambda y: y.sort(-1, descending=True).values)


# Numbers

of_logits("a thousand probabilities", lambda y: (4 * y).softmax(-1), into=1000)
of_logits("very small numbers", lambda y: y * 1e-7)
of_logits("very large numbers", lambda y: y * 1e6)
of_logits("a single number", lambda y: y.square().mean())
of_logits("nothing but zeros", lambda y: torch.relu(-y.abs()))
of_logits("columns from 1e-3 to 1e4", lambda y: y * torch.logspace(-3, 4, 10))
of_logits("NaN by design", lambda y: torch.where(y > 0.5, float("nan"), y), half=False)
of_logits("an output that no input changes", lambda y: (y, torch.arange(10.0) / 7))
of_logits("nothing found: no rows", lambda y: y[y.sum(-1) > 1e9])
of_logits("a spectrum", lambda y: torch.fft.rfft(y).abs(), exporter="dynamo", half=False)
unusual("sizes that are multiples, with buckets", lambda: {"x": torch.randn(8, 12)}, BUCKETED)(
    lambda: Function(lambda y: y.reshape(-1, 4, 10).cumsum(1))
)
