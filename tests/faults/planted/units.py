"""Errors in the small numbers of an output that holds large ones too."""

from __future__ import annotations

import numpy as np

from planted.cases import fault

LOW = ("fp16", "bf16", "int8")


def detector(seed=0, *, anchors=300, classes=20, items=2):
    """Boxes in pixels [N, 4, A] and scores from 0 to 1 [N, classes, A]."""
    rng = np.random.default_rng(seed)
    boxes = (640 * rng.random((items, 4, anchors))).astype(np.float32)
    found = rng.random((items, classes, anchors)) > 0.99
    return boxes, np.where(found, 0.9, 0.01 * rng.random(found.shape)).astype(np.float32)


def joined(change, *, layout=lambda array: array):
    """One tensor of boxes and scores, and the same with the scores changed."""
    boxes, scores = detector()
    right, given = (
        np.ascontiguousarray(layout(np.concatenate([boxes, each], 1)), np.float32)
        for each in (scores, change(scores))
    )
    return lambda _: {"y": right}, lambda _: {"y": given}, [{}]


def last(array):
    """Numbers of an anchor next to each other, as the heads of detectors have them."""
    return array.transpose(0, 2, 1)


for precision in LOW:
    fault(f"all scores lost beside boxes in pixels, in {precision}", "slice", precision=precision)(
        lambda: joined(np.zeros_like)
    )
    fault(f"all scores lost in the last columns, in {precision}", "slice", precision=precision)(
        lambda: joined(np.zeros_like, layout=last)
    )


@fault("the scores of one class of twenty lost", "slice", precision="int8")
def _():
    return joined(lambda scores: np.where(np.arange(20)[:, None] == 7, np.float32(0), scores))


@fault("scores rounded to the step of the boxes", "slice", precision="int8")
def _():
    step = 640 / 127
    return joined(lambda scores: np.round(scores / step) * step)


@fault("the scores of the anchor before", "slice", precision="bf16")
def _():
    return joined(lambda scores: np.roll(scores, 1, axis=-1), layout=last)


@fault("two classes that change places beside boxes", "slice", precision="fp16")
def _():
    return joined(lambda scores: scores[:, [1, 0, *range(2, 20)]])


@fault("scores halved beside boxes", "slice", precision="fp16")
def _():
    return joined(lambda scores: scores / 2)


@fault("scores that went through fp8 beside boxes", "slice", precision="fp32")
def _():
    def change(scores):
        mantissa, exponent = np.frexp(scores)
        return np.ldexp(np.round(mantissa * 16) / 16, exponent).astype(np.float32)

    return joined(change)


@fault("angles in radians lost beside distances in metres", "slice", precision="bf16")
def _():
    rng = np.random.default_rng(1)
    samples = [{"x": rng.standard_normal((size, 3)).astype(np.float32)} for size in (4, 1, 8)]

    def pose(tensors):
        x = tensors["x"]
        return np.concatenate([100 * x, np.arctan(x)], axis=1).astype(np.float32)

    def without_angles(tensors):
        y = pose(tensors)
        y[:, 3:] = 0
        return {"y": y}

    return lambda tensors: {"y": pose(tensors)}, without_angles, samples


@fault("a speed of six channels lost, in an axis between others", "slice", precision="fp16")
def _():
    rng = np.random.default_rng(3)
    scale = np.array([1000, 1000, 1000, 1, 1, 1], np.float32)[:, None]
    tracks = (scale * rng.standard_normal((2, 40, 6, 8))).astype(np.float32)
    given = tracks.copy()
    given[:, :, 4] = 0
    return lambda _: {"y": tracks}, lambda _: {"y": given}, [{}]


@fault("one confidence frozen beside coordinates", "slice", precision="int8")
def _():
    rng = np.random.default_rng(2)
    samples = [{"x": rng.random((size, 5)).astype(np.float32)} for size in (4, 1, 8)]
    scale = np.array([500, 500, 200, 200, 1], np.float32)

    def head(tensors):
        return {"y": scale * tensors["x"]}

    def frozen(tensors):
        y = head(tensors)["y"]
        y[:, 4] = 0.01
        return {"y": y}

    return head, frozen, samples
