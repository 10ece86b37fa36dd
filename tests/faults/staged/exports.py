"""Graphs that are right on the example and wrong elsewhere, as the tracer writes them.

A module in Python takes another way at other sizes or values, and the tracer keeps that of the
example.
"""

from __future__ import annotations

import warnings

import torch

import mlflow_e2eai
from mlflow_e2eai import Axis
from staged.cases import staged

X = torch.randn(2, 4, generator=torch.Generator().manual_seed(0))
T = Axis("T", min=2, opt=4, max=64)
BUCKETED = Axis("T", min=2, opt=4, max=64, buckets=(32,))


def traced(module, example, folder, axes=None):
    """Export a module by trace; it must not come to the return."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the tracer's, which is not on trial
        mlflow_e2eai.export(
            module.eval(),
            example,
            out=folder / "m.onnx",
            dynamic_axes=axes,
            exporter="trace",
            opset=17,
        )
    return set()


# Sizes


class AnotherWay(torch.nn.Module):
    """Halves its input at some sizes."""

    def __init__(self, at):
        super().__init__()
        self.at = at

    def forward(self, x):
        return torch.tanh(x / 2 if self.at(int(x.shape[1])) else x)


def _is_prime(size):
    return all(size % by for by in range(2, size))


for _name, _at, _axis, _words in (
    ("at odd sizes only", lambda size: size % 2 == 1, T, "on the sample 'T="),
    ("at the size before the largest only", lambda size: size == 63, T, "'T=63'"),
    ("at the size after the smallest only", lambda size: size == 3, T, "'T=3'"),
    ("at primes only", lambda size: size > 2 and _is_prime(size), T, "on the sample 'T="),
    ("at the size after a bucket only", lambda size: size == 33, BUCKETED, "'T=33'"),
    ("at the size before a bucket only", lambda size: size == 31, BUCKETED, "'T=31'"),
):
    staged(f"a branch frozen that is taken {_name}", "ExportError", words=_words)(
        lambda folder, at=_at, axis=_axis: traced(
            AnotherWay(at), {"x": X}, folder, {"x": {1: axis}}
        )
    )


@staged("a size of the example taken for a constant", "ExportError", words="on the sample 'min'")
def _(folder):
    class Mean(torch.nn.Module):
        def forward(self, x):
            return x.sum(1) / float(x.shape[1])

    return traced(Mean(), {"x": X}, folder, {"x": {1: T}})


# Values


@staged("a branch frozen on a mask that is all True", "ExportError", words="'mask: one False'")
def _(folder):
    class Masks(torch.nn.Module):
        def forward(self, x, mask):
            x = x if bool(mask.all()) else x.masked_fill(~mask, 0.0)
            return x.sum(1) / mask.sum(1)

    return traced(Masks(), {"x": X, "mask": torch.ones(2, 4).bool()}, folder)


@staged("a padding token that the example never has", "ExportError", words="'ids: some 7'")
def _(folder):
    class Pads(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.table = torch.nn.Embedding(9, 4, padding_idx=7)

        def forward(self, ids):
            found = self.table(ids)
            if bool((ids == 7).any()):
                found = found / (ids != 7).sum()
            return found.sum(1)

    return traced(Pads(), {"ids": torch.tensor([[3, 1, 2], [4, 8, 5]])}, folder)


@staged("a loop unrolled for a count of one", "ExportError", words="'count: one more'")
def _(folder):
    class Repeats(torch.nn.Module):
        def forward(self, x, count):
            for _ in range(int(count)):
                x = x * 1.5
            return x + count

    return traced(Repeats(), {"x": X, "count": torch.tensor(1)}, folder)


@staged("a sum at indices that loses duplicates", "ExportError", words="on the sample 'index: ")
def _(folder):
    class Adds(torch.nn.Module):
        def forward(self, x, index):
            return torch.zeros(6, 4).index_add(0, index, x)

    return traced(Adds(), {"x": X, "index": torch.tensor([3, 1])}, folder)


@staged("lengths that are in order in the example", "ExportError", words="on the sample 'lengths: ")
def _(folder):
    class Longest(torch.nn.Module):
        def forward(self, x, lengths):
            steps = lengths.diff()
            in_order = bool((steps <= 0).all()) or bool((steps >= 0).all())
            return x / (torch.maximum(lengths[0], lengths[-1]) if in_order else lengths.max())

    example = {"x": torch.ones(4, 3), "lengths": torch.tensor([9, 7, 4, 2])}
    return traced(Longest(), example, folder)


@staged("a branch frozen on the sign of a sum", "ExportError", words="on the sample")
def _(folder):
    class Sign(torch.nn.Module):
        def forward(self, x):
            return x.tanh() if bool(x.sum() > 0) else x.sin()

    return traced(Sign(), {"x": X}, folder)


@staged("a frozen branch beside minus infinities by design", "ExportError", words="on the sample")
def _(folder):
    class Bans(torch.nn.Module):
        def forward(self, x):
            x = x * 2 + 1 if bool(x.sum() > 0) else x
            return x.masked_fill(torch.tensor([False, True, False, True]), float("-inf"))

    return traced(Bans(), {"x": X}, folder)


# State


@staged("a module that counts its calls", "InvalidInputError", words="forward changes 'calls'")
def _(folder):
    class Counts(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, x):
            self.calls += 1
            return x * self.calls

    return traced(Counts(), {"x": X}, folder)


@staged("a module that draws numbers", "InvalidInputError", words="draws random numbers")
def _(folder):
    class Noisy(torch.nn.Module):
        def forward(self, x):
            return x + torch.randn_like(x)

    return traced(Noisy(), {"x": X}, folder)
