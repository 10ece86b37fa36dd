"""Numbers that are not those of the model."""

from __future__ import annotations

import numpy as np

from planted.cases import FEATURES, SIZES, Net, answers_changed, batches, fault, of_arrays, only


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


def _banned(change):
    """Logits of which some classes are ruled out by minus infinity, and the same changed."""
    net = only("logits")(Net())
    banned = np.arange(10) % 4 == 1

    def reference(tensors):
        return {"logits": np.where(banned, np.float32(-np.inf), net(tensors)["logits"])}

    return reference, lambda t: {"logits": change(reference(t)["logits"])}, batches(*SIZES)


@fault("minus infinity cut to the smallest number of fp16", "nonfinite", precision="fp16")
def _():
    return _banned(lambda y: np.maximum(y, np.float32(np.finfo(np.float16).min)))


@fault("one class wrong beside minus infinities", "tolerance")
def _():
    return _banned(lambda y: np.where(np.arange(10) == 3, y * np.float32(1.01), y))


@fault("two classes that change places, one of them ruled out", "nonfinite")
def _():
    return _banned(lambda y: y[:, [0, 2, 1, *range(3, 10)]])


@fault("NaN for minus infinity", "nonfinite")
def _():
    return _banned(lambda y: np.where(np.isinf(y), np.float32(np.nan), y))


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


@fault("argmax ties go to the last of several largest", "tolerance")
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
