"""What comparing costs, against NumPy over the same arrays: prints a line of Markdown for each.

1 million rows of 384 floats, as of a sentence encoder, in chunks of 1000, both sides at once and in
turns, so that a busy machine slows both.
"""

from __future__ import annotations

import resource
import statistics
import sys
import time
from collections.abc import Callable

import numpy as np

from mlflow_e2eai.artifacts import Tensors
from mlflow_e2eai.parity import compare

ROWS, WIDTH, CHUNK = int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000, 384, 1000


def bare(right: np.ndarray, given: np.ndarray, dtype: type) -> list[float]:
    """Largest and mean error, its root mean square, and the cosine, as one writes them."""
    right, given = right.astype(dtype, copy=False), given.astype(dtype, copy=False)
    difference = np.abs(right - given)
    dot = (right * given).sum() / np.linalg.norm(right) / np.linalg.norm(given)
    return [difference.max(), difference.mean(), np.sqrt(np.square(difference).mean()), dot]


def main() -> None:
    """Take turns over the chunks, a hundred at a time."""
    rng = np.random.default_rng(0)
    right = rng.standard_normal((100, CHUNK, WIDTH)).astype(np.float32)
    given = right * np.float32(1 + 1e-6)
    samples: list[Tensors] = [{"at": np.array(at)} for at in range(len(right))]

    def ours() -> None:
        report = compare(
            lambda sample: {"y": right[sample["at"]]},
            lambda sample: {"y": given[sample["at"]]},
            samples,
            repeats=1,
        )
        assert report.passed  # noqa: S101

    def pass_in(dtype: type) -> Callable[[], object]:
        return lambda: [bare(a, b, dtype) for a, b in zip(right, given, strict=True)]

    ways = {"compare": ours, "float32": pass_in(np.float32), "float64": pass_in(np.float64)}
    taken: dict[str, list[float]] = {name: [] for name in ways}
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in range(max(ROWS // (100 * CHUNK), 1)):
        for name, way in ways.items():
            started = time.perf_counter()
            way()
            taken[name].append(time.perf_counter() - started)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    for name in ("float32", "float64"):
        ratio = statistics.median(a / b for a, b in zip(taken["compare"], taken[name], strict=True))
        print(f"| compare takes, of a bare pass in {name} | {ratio:.2f} |")
    print(f"| seconds for {ROWS:,} rows | {sum(taken['compare']):.1f} |")
    print(f"| memory it grew by, all three, MB | {grown:.0f} |")


if __name__ == "__main__":
    main()
