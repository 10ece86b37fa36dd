"""What the tests on a GPU ask."""

from __future__ import annotations

import numpy as np


def images(size, width=32):
    """Noise, another for each number of images."""
    noise = np.random.default_rng(size).standard_normal((size, 3, width, width), dtype=np.float32)
    return {"image": noise}
