"""Healthy models that look like faults: nothing may be said of them.

Each is made from a seed, and its candidate rounds as another library or fp16 would.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from planted.cases import SIZES, Net, batches, only


@dataclass(frozen=True)
class Harmless:
    """A healthy model.

    Attributes:
        name: What makes it look like a fault.
        make: Gives reference, candidate and samples, from a seed.
        options: For `compare`.
    """

    name: str
    make: Callable[[int], tuple[Callable, Callable, Sequence[dict]]]
    options: dict[str, Any] = field(default_factory=dict)


HARMLESS: list[Harmless] = []


def harmless(name, **options):
    """Register a function that makes the three from a seed."""

    def register(make):
        HARMLESS.append(Harmless(name, make, options))
        return make

    return register


def rounded(change):
    """Reference and candidate that give a function of the logits, of two orders of summing."""

    def make(seed):
        net, samples = only("logits")(Net(seed)), batches(*SIZES, seed=seed)

        def reference(tensors):
            return {"y": change(net(tensors)["logits"])}

        return reference, lambda t: {"y": change(_other_order(Net(seed), t))}, samples

    return make


def _other_order(net, tensors):
    """The logits, summed from the last term to the first."""
    hidden = np.maximum(tensors["x"][:, ::-1] @ net.weights["first"][::-1] + net.bias, 0)
    hidden = np.maximum(hidden[:, ::-1] @ net.weights["second"][::-1], 0)
    return hidden[:, ::-1] @ net.weights["logits"][::-1]


def _half(array):
    return array.astype(np.float16).astype(np.float32)


# Numbers

harmless("columns from 1e-6 to 1e6")(
    rounded(lambda y: y * np.logspace(-6, 6, y.shape[1], dtype=np.float32))
)
harmless("nothing but zeros")(rounded(lambda y: 0 * y))
harmless("the same answer to every sample")(rounded(np.ones_like))
harmless("denormals")(rounded(lambda y: (y * 1e-41).astype(np.float32)))
harmless("numbers near the largest of fp32")(rounded(lambda y: y * np.float32(1e36)))
harmless("a sum that cancels to a hundredth")(rounded(lambda y: np.float32(50) * y - y * 49))
harmless("one number")(rounded(lambda y: np.array(y.sum())))
harmless("one number in a list")(rounded(lambda y: y.sum(keepdims=True)[0]))
harmless("nothing found: no rows")(rounded(lambda y: y[:0]))
harmless("whole numbers")(rounded(lambda y: np.round(y).astype(np.int64)))
harmless("whole numbers beyond 2^53")(rounded(lambda y: 2**60 + np.round(y).astype(np.int64)))
harmless("a mask")(rounded(lambda y: y > 0.5))
harmless("texts")(rounded(lambda y: np.array(["cat", "dog"])[(y[:, 0] > 0).astype(int)]))
harmless("complex numbers")(rounded(np.fft.fft))
harmless("a symmetric matrix")(rounded(lambda y: y[:1].T @ y[:1]))
harmless("ragged rows")(rounded(lambda y: [row[: 1 + at % 5] for at, row in enumerate(y)]))
harmless("NaN by design")(rounded(lambda y: np.where(y < 0, np.float32(np.nan), y)))
harmless("a mask of minus infinity")(rounded(lambda y: np.where(y < 0, np.float32(-np.inf), y)))
harmless("two views of one array")(rounded(lambda y: np.broadcast_to(y[:, None], (len(y), 2, 10))))
harmless("probabilities of nearly 0 and 1, in fp16", precision="fp16")(
    lambda seed: (
        lambda t: {"y": 1 / (1 + np.exp(-9 * only("logits")(Net(seed))(t)["logits"]))},
        lambda t: {"y": _half(1 / (1 + np.exp(-9 * _half(_other_order(Net(seed), t)))))},
        batches(*SIZES, seed=seed),
    )
)


@harmless("equal logits: rounding chooses among ties")
def _(seed):
    rng = np.random.default_rng(seed)
    net, samples = only("logits")(Net(seed)), batches(*SIZES, seed=seed)

    def tied(tensors):
        return {"logits": np.repeat(net(tensors)["logits"][:, :5], 2, axis=1)}

    def candidate(tensors):
        y = tied(tensors)["logits"]
        return {"logits": np.nextafter(y, rng.choice(np.array([-9, 9], "f4"), y.shape))}

    return tied, candidate, samples


@harmless("two outputs with the same numbers")
def _(seed):
    net = only("logits")(Net(seed))

    def infer(tensors):
        return {name: net(tensors)["logits"] for name in ("one", "two")}

    return infer, infer, batches(*SIZES, seed=seed)


# Behaviour


# Several units in one output

_LOW = {"fp16": 2.0**-11, "bf16": 2.0**-8}
"""Precisions, each with its unit roundoff."""


def _units(precision, make):
    """Register an output of several units, whose candidate rounds every number by itself."""

    def register(seed):
        right = make(np.random.default_rng(seed))
        noise = np.random.default_rng(seed + 100).uniform(-3, 3, right.shape)
        given = (right * (1 + _LOW[precision] * noise)).astype(np.float32)
        return lambda _: {"y": right}, lambda _: {"y": given}, [{}]

    return register


def _detections(rng):
    boxes = 640 * rng.random((2, 300, 4))
    scores = np.where(rng.random((2, 300, 20)) > 0.99, 0.9, 0.01 * rng.random((2, 300, 20)))
    return np.concatenate([boxes, scores], -1).astype(np.float32)


def _saturated(rng, count=200):
    """Probabilities of which most are of what never happens."""
    logits = 8 * rng.standard_normal((6, count))
    powers = np.exp(logits - logits.max(-1, keepdims=True))
    return (powers / powers.sum(-1, keepdims=True)).astype(np.float32)


for _precision in _LOW:
    harmless(f"boxes beside scores, in {_precision}", precision=_precision)(
        _units(_precision, _detections)
    )
    harmless(f"probabilities of what never happens, in {_precision}", precision=_precision)(
        _units(_precision, _saturated)
    )
    harmless(f"a class that is dead, in {_precision}", precision=_precision)(
        _units(
            _precision,
            lambda rng: rng.standard_normal((5, 12, 9), np.float32) * (np.arange(12)[:, None] > 0),
        )
    )
    harmless(f"columns that are near zero by chance, in {_precision}", precision=_precision)(
        lambda seed, precision=_precision: _by_chance(seed, _LOW[precision])
    )


def _by_chance(seed, unit):
    """One item many times, as the corners of a profile have it; errors are shares of the whole."""
    rng = np.random.default_rng(seed)
    right = rng.standard_normal((1, 500)).astype(np.float32)
    error = (unit * rng.standard_normal((1, 500))).astype(np.float32)
    samples = [{"n": np.array(size)} for size in (1, 8, 64)]

    def many(row):
        return lambda tensors: {"y": np.repeat(row, int(tensors["n"]), axis=0)}

    return many(right), many(right + error), samples


@harmless("an order of summing that changes from call to call")
def _(seed):
    net, rng = Net(seed), np.random.default_rng(seed)

    def candidate(tensors):
        order = rng.permutation(tensors["x"].shape[1])
        hidden = tensors["x"][:, order] @ net.weights["first"][order] + net.bias
        return {"logits": net.heads(np.maximum(hidden, 0))["logits"]}

    return only("logits")(net), candidate, batches(*SIZES, seed=seed)


@harmless("noise that the reference has too", tolerance=1e-2)
def _(seed):
    def noisy(offset):
        net, rng = only("logits")(Net(seed)), np.random.default_rng((seed, offset))

        def infer(tensors):
            y = net(tensors)["logits"]
            return {"logits": y * (1 + rng.normal(scale=1e-3, size=y.shape)).astype("f4")}

        return infer

    return noisy(0), noisy(1), batches(*SIZES, seed=seed)


@harmless("a buffer that is used again and written whole", threads=1)
def _(seed):
    net, buffer = Net(seed), np.zeros((16, 10), np.float32)

    def candidate(tensors):
        size = len(tensors["x"])
        buffer[:size] = net(tensors)["logits"]
        return {"logits": buffer[:size]}

    return only("logits")(net), candidate, batches(*SIZES, seed=seed)


@harmless("a constant of the model, handed out itself")
def _(seed):
    anchors = np.random.default_rng(seed).random((6, 4)).astype(np.float32)
    return lambda _: {"y": anchors.copy()}, lambda _: {"y": anchors}, batches(*SIZES, seed=seed)


@harmless("an answer that cannot be written to, in another order of memory")
def _(seed):
    net = only("logits")(Net(seed))

    def candidate(tensors):
        y = np.asfortranarray(net(tensors)["logits"])
        y.flags.writeable = False
        return {"logits": y}

    return net, candidate, batches(*SIZES, seed=seed)


@harmless("the same sample twice")
def _(seed):
    net, (sample,) = Net(seed), batches(4, seed=seed)
    return net, net, [sample, sample]
