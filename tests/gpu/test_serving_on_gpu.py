"""A loaded model under load, and held against all that could have run instead of it."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import numpy as np
import pytest
import torch
from images import images

from mlflow_e2eai import benchmark, load_model

pytestmark = pytest.mark.gpu

THREADS = 16
SIZES = (1, 2, 3, 8, 20, 64, 67)

SPREAD = 1e-3
"""Of the largest number: what rounding to fp16 in another kernel may differ by, and a mixed-up
answer more."""

GROWTH_BYTES = 64 * 2**20
"""A context for one more thread may still be made after the warm-up; a leak of one answer a call
would be gigabytes."""

SLOWER = 1.02


@pytest.mark.parametrize(
    "seconds", [5, pytest.param(60, marks=pytest.mark.slow)], ids=["short", "long"]
)
def test_sixteen_threads_of_mixed_sizes_and_kinds_get_what_one_thread_gets(seconds, saved):
    asked = [images(size)["image"] for size in SIZES]
    with load_model(str(saved), split=True) as model:
        wanted = [model(image)["output"] for image in asked]

        def ask(number):
            """Count of right answers, and of all."""
            random, right, count = np.random.default_rng(number), 0, 0
            while time.monotonic() < deadline:
                at = int(random.integers(len(asked)))
                image = torch.from_numpy(asked[at])
                given = image.cuda() if number % 2 and SIZES[at] <= 64 else asked[at]
                answer = model(given)["output"]
                host = answer.cpu().numpy() if isinstance(answer, torch.Tensor) else answer
                scale = np.abs(wanted[at]).max()
                right += host.shape == wanted[at].shape and bool(
                    np.abs(host - wanted[at]).max() <= SPREAD * scale
                )
                count += 1
            return right, count

        deadline = time.monotonic() + 1
        with ThreadPoolExecutor(THREADS) as threads:
            list(threads.map(ask, range(THREADS)))
        free_before, _ = torch.cuda.mem_get_info()
        deadline = time.monotonic() + seconds
        with ThreadPoolExecutor(THREADS) as threads:
            counts = list(threads.map(ask, range(THREADS)))
        free_after, _ = torch.cuda.mem_get_info()

    assert all(right == count > 0 for right, count in counts), counts
    assert free_before - free_after <= GROWTH_BYTES


@pytest.mark.parametrize("items", [1, 8, 64])
def test_nothing_that_passed_is_faster_than_what_was_chosen(items, saved):
    """All of them in turns, on this GPU and now, not by the evidence that chose."""
    sample = images(items)
    with ExitStack() as stack:
        chosen = stack.enter_context(load_model(str(saved), goal=f"latency@{items}"))
        passed = {entry.variant for entry in chosen.manifest.evidence if entry.passed}
        names = {each.variant for each in chosen.explain().others} & passed
        others = {
            name: stack.enter_context(load_model(str(saved), variant=name))
            for name in sorted(names)
        }
        report = benchmark({chosen.variant: chosen, **others}, sample)
    ratios = {name: report.ratio(chosen.variant, name) for name in others}
    assert {name: ratio for name, ratio in ratios.items() if ratio.low > SLOWER} == {}
