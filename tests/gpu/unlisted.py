"""What the tests on a GPU ask, and how they build where the GPU is one that no backend lists."""

from __future__ import annotations

import dataclasses
from importlib.util import find_spec

import numpy as np

from mlflow_e2eai.engine import backends


def images(size, width=32):
    """Noise, another for each number of images."""
    noise = np.random.default_rng(size).standard_normal((size, 3, width, width), dtype=np.float32)
    return {"image": noise}


def allow_this_gpu(patch):
    """Let TensorRT-RTX build for GPUs that it does not list, where its portable engines run.

    An H100 is one. With no compute capability set, the engine is for all of them.
    """
    rtx = backends.BACKENDS["tensorrt_rtx"]
    here = [str(backends.local_compute_capability())]
    if find_spec("tensorrt") is None and not backends.lists(rtx, backends.load(rtx), here):
        rtx = dataclasses.replace(rtx, capability_targets=None)
        patch.setitem(backends.BACKENDS, "tensorrt_rtx", rtx)
