"""Ten healthy models, as ONNX Runtime runs them in fp32 and in fp16."""

from __future__ import annotations

import inspect
from contextlib import contextmanager

import numpy as np
import torch
from torch import nn

import mlflow_e2eai
from mlflow_e2eai import Axis
from mlflow_e2eai.precision.stage import convert
from mlflow_e2eai.pytorch.runner import torch_runner
from mlflow_e2eai.runtime.ort import onnxruntime_runner

N = Axis("N", min=1, opt=4, max=8)
SIZES = (4, 1, 8)


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(16, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(),
                nn.Conv2d(16, 16, 3, padding=1), nn.BatchNorm2d(16),
            )
            for _ in range(4)
        )  # fmt: skip
        self.head = nn.Linear(16, 10)

    def forward(self, x):
        x = self.stem(x)
        for block in self.blocks:
            x = torch.relu(x + block(x))
        return self.head(x.mean((2, 3)))


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.norm = nn.Embedding(100, 32), nn.LayerNorm(32)
        self.qkv, self.out, self.head = nn.Linear(32, 96), nn.Linear(32, 32), nn.Linear(32, 12)

    def forward(self, x):
        y = self.embed(x)
        q, k, v = self.qkv(self.norm(y)).chunk(3, dim=-1)
        y = y + self.out(torch.softmax(q @ k.transpose(1, 2) / 32**0.5, dim=-1) @ v)
        return self.head(y)


class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.a, self.b = nn.Linear(24, 48), nn.Linear(48, 5), nn.Linear(48, 1)

    def forward(self, x):
        y = torch.tanh(self.body(x))
        return self.a(y).softmax(-1), self.b(y).sigmoid()


class Recurrent(nn.Module):
    """Unrolled by hand."""

    def __init__(self):
        super().__init__()
        self.cell, self.head = nn.RNNCell(12, 24), nn.Linear(24, 7)

    def forward(self, x):
        state = torch.zeros_like(x[:, 0, :1]).expand(-1, 24)
        for step in range(6):
            state = self.cell(x[:, step], state)
        return self.head(state)


class Embedding(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(24, 64), nn.GELU(), nn.Linear(64, 32))

    def forward(self, x):
        return nn.functional.normalize(self.body(x), dim=-1)


def deep():
    layers = [part for _ in range(12) for part in (nn.Linear(32, 32), nn.LayerNorm(32), nn.SiLU())]
    return nn.Sequential(*layers, nn.Linear(32, 6))


def autoencoder():
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.LeakyReLU(),
        nn.ConvTranspose2d(8, 3, 4, stride=2, padding=1), nn.Sigmoid(),
    )  # fmt: skip


def separable():
    return nn.Sequential(
        nn.Conv2d(3, 12, 1), nn.Conv2d(12, 12, 3, groups=12, padding=1), nn.BatchNorm2d(12),
        nn.Hardswish(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 4),
    )  # fmt: skip


def wide():
    return nn.Sequential(nn.Linear(24, 1024), nn.ReLU(), nn.Linear(1024, 1000))


def signal():
    return nn.Sequential(
        nn.Conv1d(4, 16, 5, padding=2), nn.ELU(), nn.MaxPool1d(2), nn.Conv1d(16, 4, 3)
    )


def ids(rng, size):
    return rng.integers(0, 100, (size, 9))


def floats(*shape):
    return lambda rng, size: rng.standard_normal((size, *shape)).astype(np.float32)


MODELS = {
    "residual": (Residual, floats(3, 16, 16), "trace"),
    "attention": (Attention, ids, "trace"),
    "two heads": (Two, floats(24), "trace"),
    "recurrent": (Recurrent, floats(6, 12), "trace"),
    "embedding": (Embedding, floats(24), "dynamo"),
    "deep": (deep, floats(32), "trace"),
    "autoencoder": (autoencoder, floats(3, 16, 16), "trace"),
    "separable": (separable, floats(3, 16, 16), "trace"),
    "wide": (wide, floats(24), "trace"),
    "signal": (signal, floats(4, 32), "trace"),
}


@contextmanager
def runners(name, seed, folder):
    """The PyTorch module, ONNX Runtime on its graph by precision, and samples."""
    build, draw, exporter = MODELS[name]
    torch.manual_seed(seed)
    module = build().eval()
    rng = np.random.default_rng(seed)
    samples = [{"x": draw(rng, size)} for size in SIZES]

    (own,) = inspect.signature(module.forward).parameters
    samples = [{own: sample["x"]} for sample in samples]
    graph, _ = mlflow_e2eai.export(
        module, samples[0], out=folder / "m.onnx", dynamic_axes={own: {0: N}}, exporter=exporter
    )
    half, _ = convert(graph, "fp16", out=folder / "half.onnx")
    outputs = [spec.name for spec in graph.outputs]
    with (
        torch_runner(module, inputs=[own], outputs=outputs) as reference,
        onnxruntime_runner(graph.path) as fp32,
        onnxruntime_runner(half.path, precision="fp16") as fp16,
    ):
        yield reference, {"fp32": fp32, "fp16": fp16}, samples
