"""The model, its samples, and how a fault is put on the list."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

FEATURES, HIDDEN, CLASSES = 32, 64, 10


class Net:
    """x [N, 32] -> logits [N, 10], other [N, 10] and label [N]."""

    def __init__(self, seed=0, hidden=HIDDEN):
        rng = np.random.default_rng(seed)
        self.weights = {
            name: (rng.standard_normal(shape) / np.sqrt(shape[0])).astype(np.float32)
            for name, shape in {
                "first": (FEATURES, hidden),
                "second": (hidden, hidden),
                "logits": (hidden, CLASSES),
                "other": (hidden, CLASSES),
            }.items()
        }
        self.bias = rng.standard_normal(hidden).astype(np.float32)

    def hidden(self, x):
        return np.maximum(x @ self.weights["first"] + self.bias, 0)

    def heads(self, hidden):
        hidden = np.maximum(hidden @ self.weights["second"], 0)
        logits = hidden @ self.weights["logits"]
        return {
            "logits": logits,
            "other": hidden @ self.weights["other"],
            "label": logits.argmax(-1),
        }

    def __call__(self, tensors):
        return self.heads(self.hidden(tensors["x"]))


def batches(*sizes, seed=0):
    """Samples of these sizes, all different."""
    rng = np.random.default_rng(seed)
    return [{"x": rng.standard_normal((size, FEATURES)).astype(np.float32)} for size in sizes]


SIZES = (4, 1, 16, 4)
"""opt, min, max, and opt again with other numbers."""


@dataclass(frozen=True)
class Fault:
    """A fault, and what must be said of it.

    Attributes:
        name: What it is.
        make: Gives reference, candidate and samples.
        kinds: Kinds of finding that must be there; empty where the candidate must pass.
        options: For `compare`.
    """

    name: str
    make: Callable[[], tuple[Callable, Callable, Sequence[dict]]]
    kinds: frozenset[str]
    options: dict[str, Any] = field(default_factory=dict)


FAULTS: list[Fault] = []


def fault(name, *kinds, **options):
    """Register a function that makes the three."""

    def register(make):
        FAULTS.append(Fault(name, make, frozenset(kinds), options))
        return make

    return register


def answers_changed(name, *kinds, **options):
    """Register a fault that changes a right answer, given it, the inputs and the call's number."""

    def register(change):
        def make():
            net, calls = Net(), itertools.count(1)
            return net, lambda t: change(dict(net(t)), t, next(calls)), batches(*SIZES)

        FAULTS.append(Fault(name, make, frozenset(kinds), options))
        return change

    return register


def weights_changed(name, *kinds, **options):
    """Register a fault that changes the weights."""

    def register(change):
        def make():
            net, broken = Net(), Net()
            change(broken)
            return net, broken, batches(64, 1, 16)

        FAULTS.append(Fault(name, make, frozenset(kinds), options))
        return change

    return register


def only(*names):
    """A reference or candidate with some of its outputs."""
    return lambda infer: lambda tensors: {name: infer(tensors)[name] for name in names}


def of_arrays(right, given, count=1):
    """Both sides as constants."""
    return lambda _: {"y": right.copy()}, lambda _: {"y": given.copy()}, [{}] * count
