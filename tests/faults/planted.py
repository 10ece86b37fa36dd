"""Faults, each planted in a candidate that is right but for it.

The model is a small network of NumPy with two outputs of one shape, an integer one, and weights
from a seed, so that a fault is the only difference there is.
"""

from __future__ import annotations

import itertools
import threading
import time
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


# Weights


def _ulp(net):
    weights = net.weights["second"]
    half = weights[3, 5].astype(np.float16)
    weights[3, 5] += np.float32(np.nextafter(half, np.float16(9))) - np.float32(half)


for _precision in ("fp32", "fp16"):
    weights_changed(f"one weight off by one ulp of fp16, as {_precision}", precision=_precision)(
        _ulp
    )


@weights_changed("one channel of the last layer scaled by 1.01", "tolerance")
def _(net):
    net.weights["logits"][:, 3] *= 1.01
    net.weights["other"][:, 3] *= 1.01


@weights_changed("one channel of 64 of an inner layer scaled by 1.01", "tolerance")
def _(net):
    net.weights["second"][:, 7] *= 1.01


@fault("one channel of 512 of an inner layer scaled by 1.01", "snr")
def _():
    net, broken = Net(hidden=512), Net(hidden=512)
    broken.weights["second"][:, 7] *= 1.01
    return net, broken, batches(64, 1, 16)


@weights_changed("two channels change places", "tolerance")
def _(net):
    net.weights["second"] = net.weights["second"][:, [1, 0, *range(2, HIDDEN)]]


@weights_changed("a square weight is transposed", "tolerance")
def _(net):
    net.weights["second"] = net.weights["second"].T


@weights_changed("one channel is pruned", "tolerance")
def _(net):
    net.weights["second"][:, 7] = 0


@weights_changed("the bias is lost", "tolerance")
def _(net):
    net.bias = 0 * net.bias


@weights_changed("one bit of a weight's exponent flipped", "tolerance")
def _(net):
    net.weights["second"].view(np.uint32)[3, 5] ^= 1 << 24


@weights_changed("weights in fp16 that say fp32", "snr")
def _(net):
    net.weights = {n: w.astype(np.float16).astype(np.float32) for n, w in net.weights.items()}


@weights_changed("weights in bf16 that say fp32", "tolerance")
def _(net):
    for weights in net.weights.values():
        weights.view(np.uint32)[:] &= 0xFFFF0000


@weights_changed("weights in int8 that say fp16", "tolerance", precision="fp16")
def _(net):
    for weights in net.weights.values():
        step = np.abs(weights).max() / 31  # as coarse as a bad calibration makes it
        weights[:] = np.round(weights / step) * step


# Interface


@answers_changed("outputs change places", "tolerance", "swapped")
def _(answer, _t, _n):
    return {**answer, "logits": answer["other"], "other": answer["logits"]}


@answers_changed("an output is transposed", "shape", "transposed")
def _(answer, _t, _n):
    return {**answer, "logits": answer["logits"].T}


@fault("a square output is transposed", "tolerance", "transposed")
def _():
    net = only("logits")(Net())
    return net, lambda t: {"logits": net(t)["logits"].T}, batches(CLASSES, CLASSES)


@answers_changed("an output is renamed", "missing_output", "unexpected_output")
def _(answer, _t, _n):
    return {"logits_1" if name == "logits" else name: value for name, value in answer.items()}


@answers_changed("an output is missing", "missing_output")
def _(answer, _t, _n):
    del answer["other"]
    return answer


@answers_changed("an output is missing from the fourth call on", "missing_output")
def _(answer, _t, number):
    return {"logits": answer["logits"]} if number > 3 else answer


@answers_changed("an output too many", "unexpected_output")
def _(answer, _t, _n):
    return {**answer, "debug": answer["label"]}


@answers_changed("float64 for float32", "dtype")
def _(answer, _t, _n):
    return {**answer, "logits": answer["logits"].astype(np.float64)}


@answers_changed("float16 for float32", "dtype")
def _(answer, _t, _n):
    return {**answer, "logits": answer["logits"].astype(np.float16)}


@answers_changed("int32 for int64", "dtype")
def _(answer, _t, _n):
    return {**answer, "label": answer["label"].astype(np.int32)}


@answers_changed("an axis too many", "shape")
def _(answer, _t, _n):
    return {**answer, "logits": answer["logits"][None]}


@answers_changed("a batch of one is squeezed", "shape")
def _(answer, _t, _n):
    return {**answer, "logits": np.squeeze(answer["logits"])}


@answers_changed("padding to a power of two is not cut off", "shape")
def _(answer, _t, _n):
    return {**answer, "logits": np.pad(answer["logits"], [(0, 0), (0, 6)])}


@fault("a ragged output with one item too short", "shape")
def _():
    def ragged(cut):
        return lambda t: {"y": [row[: 3 + at - cut * (at == 1)] for at, row in enumerate(t["x"])]}

    return ragged(0), ragged(1), batches(4, 2)


@fault("a ragged output with one number wrong", "tolerance")
def _():
    def ragged(more):
        return lambda t: {"y": [row[: 3 + at] + more * (at == 1) for at, row in enumerate(t["x"])]}

    return ragged(np.float32(0)), ragged(np.float32(1)), batches(4, 2)


@fault("a data-dependent count is off by one", "shape")
def _():
    def kept(limit):
        return lambda t: {"y": np.sort(t["x"].ravel())[::-1][: int((t["x"] > limit).sum()) + 1]}

    def candidate(tensors):
        return {"y": kept(0)(tensors)["y"][:-1]}

    return kept(0), candidate, batches(4, 2)


@fault("one text differs", "tolerance")
def _():
    return of_arrays(np.array(["cat", "dog"]), np.array(["cat", "dot"]))


# When


@answers_changed("wrong only at the largest batch", "tolerance")
def _(answer, tensors, _n):
    return {**answer, "logits": answer["logits"] + np.float32(len(tensors["x"]) == 16)}


@answers_changed("wrong only at odd batches", "tolerance")
def _(answer, tensors, _n):
    return {**answer, "logits": answer["logits"] + np.float32(len(tensors["x"]) % 2)}


@answers_changed("wrong only in the last item of a batch", "tolerance")
def _(answer, tensors, _n):
    answer["logits"][-1] *= 1 if len(tensors["x"]) == 1 else np.float32(1.1)
    return answer


@answers_changed("wrong only at the first call", "tolerance", "nondeterministic")
def _(answer, _t, number):
    return {**answer, "logits": answer["logits"] + np.float32(number == 1)}


@answers_changed("wrong from the third call of a sample on", "tolerance", "nondeterministic")
def _(answer, _t, number):
    return {**answer, "logits": answer["logits"] + np.float32(number > 8)}


@answers_changed("wrong at one call in nine", "tolerance", "nondeterministic")
def _(answer, _t, number):
    return {**answer, "logits": answer["logits"] + np.float32(number % 9 == 8)}


@answers_changed("drifts by a little at each call", "tolerance", "nondeterministic")
def _(answer, _t, number):
    return {**answer, "logits": answer["logits"] * np.float32(1 + 2e-4 * number)}


@fault("wrong only right after a change of shape", "tolerance", "nondeterministic")
def _():
    net, seen = Net(), []

    def candidate(tensors):
        changed = bool(seen) and seen[-1] != len(tensors["x"])
        seen.append(len(tensors["x"]))
        answer = net(tensors)
        return {**answer, "logits": answer["logits"] + np.float32(changed)}

    return net, candidate, batches(*SIZES)


@fault("wrong for every shape but the first that it saw", "tolerance")
def _():
    net, seen = Net(), []

    def candidate(tensors):
        seen.append(len(tensors["x"]))
        answer = net(tensors)
        return {**answer, "logits": answer["logits"] * np.float32(1 + (seen[-1] != seen[0]))}

    return net, candidate, batches(*SIZES)


# Memory


@fault("the answer of the call before", "tolerance", "stale")
def _():
    net, last = only("logits")(Net()), []

    def candidate(tensors):
        last.append(net(tensors))
        return last.pop(0) if len(last) > 1 else last[0]

    return net, candidate, batches(4, 4)


@fault("answers kept by shape", "tolerance", "stale")
def _():
    net, kept = Net(), {}
    return net, lambda t: kept.setdefault(len(t["x"]), net(t)), batches(4, 4)


@fault("a buffer that is written once and returned ever after", "tolerance", "stale")
def _():
    net, kept = only("logits")(Net()), []

    def candidate(tensors):
        kept.append(net(tensors)["logits"]) if not kept else None
        return {"logits": kept[0]}

    return net, candidate, batches(4, 4)


def _tail(rows):
    """A buffer of the largest size; `rows` says which of them are written, after the first time."""
    net = only("logits")(Net())
    buffer, calls = np.zeros((16, CLASSES), np.float32), itertools.count()
    same = batches(4)[0]["x"]

    def candidate(tensors):
        answer, size = net(tensors)["logits"], len(tensors["x"])
        written = slice(0, size) if next(calls) < 2 else rows(size)
        buffer[:size][written] = answer[written]
        return {"logits": buffer[:size]}

    other = same.copy()
    other[0] += 1  # only the first row tells the samples apart
    return net, candidate, [{"x": same}, {"x": other}]


@fault("a tail that is not written, where the samples are alike", "nonfinite", "unwritten")
def _():
    return _tail(lambda size: slice(0, size - 1))


@fault("a head that is not written", "nonfinite", "unwritten")
def _():
    return _tail(lambda _: slice(1, None))


@fault("it writes into its input", "changed_input")
def _():
    net = Net()

    def candidate(tensors):
        answer = net(tensors)
        np.maximum(tensors["x"], 0, out=tensors["x"])
        return answer

    return net, candidate, batches(*SIZES)


# Threads


def _scratch(wrong):
    net, scratch = only("logits")(Net()), {}

    def candidate(tensors):
        scratch["x"] = tensors["x"]
        time.sleep(0.002)
        return wrong(net, tensors, scratch)

    return net, candidate, batches(4, 4)


@fault("scratch memory that threads share", "threads")
def _():
    return _scratch(lambda net, _, scratch: net(scratch))


@fault("an output buffer that threads share", "threads")
def _():
    net, buffer = only("logits")(Net()), np.empty((16, CLASSES), np.float32)

    def candidate(tensors):
        out = buffer[: len(tensors["x"])]
        out[:] = net(tensors)["logits"]
        return {"logits": out}

    return net, candidate, batches(4, 4)


@fault("an error only under two threads", "threads")
def _():
    net, lock = Net(), threading.Lock()

    def candidate(tensors):
        if not lock.acquire(blocking=False):
            msg = "busy"
            raise RuntimeError(msg)
        try:
            time.sleep(0.002)
            return net(tensors)
        finally:
            lock.release()

    return net, candidate, batches(*SIZES)


# Numbers


@fault("NaN in one element of ten million", "nonfinite")
def _():
    right = np.random.default_rng(0).standard_normal(10_000_000).astype(np.float32)
    given = right.copy()
    given[7_654_321] = np.nan
    return (*of_arrays(right, given)[:2], [{}])


@fault("one wrong element of ten million", "tolerance")
def _():
    right = np.random.default_rng(0).standard_normal(10_000_000).astype(np.float32)
    given = right.copy()
    given[-1] += 0.1
    return (*of_arrays(right, given)[:2], [{}])


@fault("an overflow of fp16", "nonfinite", precision="fp16")
def _():
    right = np.array([1, 60000, 70000], np.float32)
    with np.errstate(over="ignore"):
        return of_arrays(right, right.astype(np.float16).astype(np.float32))


@fault("an overflow of fp16 that saturates", "tolerance", precision="fp16")
def _():
    right = np.array([1, 60000, 70000], np.float32)
    return of_arrays(right, np.minimum(right, 65504))


def _softmax(dtype):
    def infer(tensors):
        with np.errstate(all="ignore"):
            powers = np.exp((8 * tensors["x"]).astype(dtype))
            return {"y": (powers / powers.sum(-1, keepdims=True)).astype(np.float32)}

    return infer


@fault("Inf over Inf: a softmax that does not take the largest away", "nonfinite", precision="fp16")
def _():
    return _softmax(np.float64), _softmax(np.float16), batches(4, 8)


@fault("Inf that cancels: one over an overflow is zero", "tolerance", precision="fp16")
def _():
    def norm(dtype):
        def infer(tensors):
            x = (100 * tensors["x"]).astype(dtype)
            with np.errstate(over="ignore"):
                return {"y": (x / np.sqrt(np.square(x).sum(-1, keepdims=True))).astype("f4")}

        return infer

    return norm(np.float64), norm(np.float16), batches(4, 8)


@fault("NaN of the reference becomes zero", "nonfinite")
def _():
    return of_arrays(np.array([1, np.nan], np.float32), np.array([1, 0], np.float32))


@fault("an int64 index cut to int32", "dtype", "tolerance")
def _():
    right = np.array([1, 2**31 + 5])
    return of_arrays(right, right.astype(np.int32))


@fault("an int64 index cut to int32 on the way", "tolerance")
def _():
    right = np.array([1, 2**31 + 5])
    return of_arrays(right, right.astype(np.int32).astype(np.int64))


@fault("an int64 that went through float64", "tolerance")
def _():
    right = np.array([1, 2**53 + 1])
    return of_arrays(right, right.astype(np.float64).astype(np.int64))


@fault("uint8 that wraps where it must saturate", "tolerance")
def _():
    right = np.array([3, 255], np.uint8)
    return of_arrays(right, np.array([3, 4], np.uint8))


@fault("a mask with one element flipped", "tolerance")
def _():
    right = np.arange(1000) % 3 == 0
    return of_arrays(right, right ^ (np.arange(1000) == 77))


@fault("argmax takes the last of several largest", "tolerance")
def _():
    def infer(pick):
        return lambda t: {"y": pick(np.round(t["x"]))}

    def last(x):
        return x.shape[-1] - 1 - x[:, ::-1].argmax(-1)

    return infer(lambda x: x.argmax(-1)), infer(last), batches(16, 4)


@fault("denormals flushed to zero", "tolerance")
def _():
    def scaled(flush):
        def infer(tensors):
            y = tensors["x"] * np.float32(1e-39)
            return {"y": np.where(np.abs(y) < np.finfo(np.float32).tiny, 0, y) if flush else y}

        return infer

    return scaled(flush=False), scaled(flush=True), batches(4, 2)


@fault("a random seed left in", "nondeterministic")
def _():
    net, rng = Net(), np.random.default_rng()

    def candidate(tensors):
        noise = rng.normal(scale=1e-2, size=tensors["x"].shape).astype(np.float32)
        return net({"x": tensors["x"] + noise})

    return net, candidate, batches(*SIZES)


@fault("a dropout left on", "tolerance", "nondeterministic")
def _():
    net, rng = only("logits")(Net()), np.random.default_rng(0)

    def candidate(tensors):
        return {
            "logits": (y := net(tensors)["logits"]) * (rng.random(y.shape) > 0.1) / np.float32(0.9)
        }

    return net, candidate, batches(*SIZES)


@fault("a reference that does not agree with itself", "noisy_reference")
def _():
    net, rng = only("logits")(Net()), np.random.default_rng(0)

    def reference(tensors):
        y = net(tensors)["logits"]
        return {"logits": (y * (rng.random(y.shape) > 0.1)).astype(np.float32)}

    return reference, net, batches(*SIZES)


def _batch_norm(training):
    net = Net()

    def infer(tensors):
        hidden = net.hidden(tensors["x"])
        mean, variance = (hidden.mean(0), hidden.var(0)) if training else (0.5, 0.8)
        return {"y": net.heads(((hidden - mean) / np.sqrt(variance + 1e-5)).astype("f4"))["logits"]}

    return infer


@fault("a batch-norm in training mode", "tolerance")
def _():
    return _batch_norm(training=False), _batch_norm(training=True), batches(4, 16)


def _layer_norm(epsilon):
    def infer(tensors):
        x = tensors["x"] * np.float32(0.3)
        centred = x - x.mean(-1, keepdims=True)
        return {"y": centred / np.sqrt(x.var(-1, keepdims=True) + np.float32(epsilon))}

    return infer


@fault("a layer-norm with the wrong epsilon", "tolerance")
def _():
    return _layer_norm(1e-5), _layer_norm(1e-3), batches(4, 16)


@fault("a softmax along the wrong axis", "tolerance")
def _():
    def softmax(axis):
        def infer(tensors):
            powers = np.exp(tensors["x"])
            return {"y": powers / powers.sum(axis, keepdims=True)}

        return infer

    return softmax(-1), softmax(0), batches(4, 16)


@fault("ReLU6 for ReLU", "tolerance")
def _():
    def relu(most):
        return lambda t: {"y": np.clip(4 * t["x"], 0, most)}

    return relu(np.inf), relu(6), batches(4, 16)


@fault("the tanh form of GELU", "tolerance", tolerance=1e-4)
def _():
    from math import erf

    def exact(t):
        return {"y": (t["x"] * (1 + np.vectorize(erf)(t["x"] / np.sqrt(2))) / 2).astype("f4")}

    def tanh(t):
        x = t["x"].astype("f8")
        return {
            "y": (x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))) / 2).astype("f4")
        }

    return exact, tanh, batches(64, 16)


@fault("half a pixel: samples taken at corners for centres", "tolerance")
def _():
    def resized(shift):
        def infer(tensors):
            x = tensors["x"]
            places = np.clip((np.arange(64) + shift) / 2 - shift, 0, FEATURES - 1)
            low = np.floor(places).astype(int)
            high, part = np.minimum(low + 1, FEATURES - 1), (places - low).astype(np.float32)
            return {"y": x[:, low] * (1 - part) + x[:, high] * part}

        return infer

    return resized(0.5), resized(0), batches(4, 2)


@answers_changed("items of a batch change places", "tolerance")
def _(answer, _t, _n):
    return {**answer, "logits": np.roll(answer["logits"], 1, axis=0)}


@fault("an item depends on its neighbours", "tolerance")
def _():
    net = only("logits")(Net())
    leak = np.float32(0.05)
    return net, lambda t: net({"x": t["x"] + leak * t["x"].mean(0)}), batches(4, 16)


@answers_changed("one class is wrong by little more than rounding", "tolerance")
def _(answer, _t, _n):
    answer["logits"][:, 2] += np.float32(0.02)
    return answer
