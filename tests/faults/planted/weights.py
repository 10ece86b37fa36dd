"""Weights that are not those of the model."""

from __future__ import annotations

import numpy as np

from planted.cases import HIDDEN, Net, batches, fault, weights_changed


def _ulp(net):
    weights = net.weights["second"]
    half = weights[3, 5].astype(np.float16)
    weights[3, 5] += np.float32(np.nextafter(half, np.float16(9))) - np.float32(half)


for _precision in ("fp32", "fp16"):
    weights_changed(f"one weight off by one ulp of fp16, as {_precision}", precision=_precision)(
        _ulp
    )


@weights_changed("one channel's weights scaled by 1.01, in the last layer", "tolerance")
def _(net):
    net.weights["logits"][:, 3] *= 1.01
    net.weights["other"][:, 3] *= 1.01


@weights_changed("one channel's weights of 64 scaled by 1.01, in an inner layer", "tolerance")
def _(net):
    net.weights["second"][:, 7] *= 1.01


@fault("one channel's weights of 512 scaled by 1.01, in an inner layer", "snr")
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
