"""What comparing costs, against NumPy over the same arrays: writes its section of BENCHMARKS.md.

The outputs are those of a sentence encoder, 384 floats a sample, in calls of one item and of 64.
All ways ask the same two callables for the same answers, in turns within one process, so that a
busy machine slows all of them; what is told is the median of the ratios of the turns, with the
smallest and the largest. A bare pass is NumPy as one writes it, one call of the candidate at a
time, without copies, places of what is wrong, infinities or repeats:

- "the same statistics" has what the report has: largest and mean error, absolute, as a share of the
  largest magnitude and of each element's own; root mean square, cosine, signal-to-noise, share
  outside the tolerance, agreement of the largest, and what is not finite on both sides;
- "four numbers" has largest and mean error, its root mean square, and the cosine;
- "the largest error" has no more than that.
"""

from __future__ import annotations

import resource
import statistics
import sys
import time
import tracemalloc
from collections.abc import Callable, Iterator

import numpy as np
import page

from mlflow_e2eai.artifacts.values import Array, Infer, Tensors
from mlflow_e2eai.parity.comparison import REPEATS, compare
from mlflow_e2eai.parity.tolerances import FLOOR, TOLERANCES

SAMPLES, WIDTH, TURNS = int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000, 384, 10
HELD = 6400
"""Answers that exist; they are asked for again and again."""

Pass = Callable[[Array, Array], object]


def same_statistics(right: Array, given: Array) -> list[object]:
    """What the report says of one output."""
    error, magnitude = np.abs(given - right), np.abs(right)
    scale, largest = magnitude.max(), error.max()
    relative = error / (magnitude + FLOOR * scale)
    squares = [np.square(array).sum() for array in (right, given, error)]
    return [
        *(largest, largest / scale, error.mean(), relative.max(), relative.mean()),
        *(np.sqrt(squares[2] / error.size), 10 * np.log10(squares[0] / squares[2])),
        (right * given).sum() / np.sqrt(squares[0] * squares[1]),
        np.count_nonzero(error > TOLERANCES["fp32"] * scale),
        np.count_nonzero(right.argmax(axis=-1) == given.argmax(axis=-1)),
        *(np.count_nonzero(~np.isfinite(array)) for array in (right, given)),
    ]


def four_numbers(right: Array, given: Array) -> list[object]:
    """Largest and mean error, its root mean square, and the cosine."""
    error = np.abs(given - right)
    cosine = (right * given).sum() / np.linalg.norm(right) / np.linalg.norm(given)
    return [error.max(), error.mean(), np.sqrt(np.square(error).mean()), cosine]


def largest_error(right: Array, given: Array) -> object:
    """The least that one can ask."""
    return np.abs(given - right).max()


BARE: dict[str, Pass] = {
    "the same statistics": same_statistics,
    "four numbers": four_numbers,
    "the largest error": largest_error,
}


def sides(items: int) -> tuple[Infer, Infer]:
    """A reference and a candidate that answer with arrays of `items` rows, by number."""
    rng = np.random.default_rng(0)
    right = rng.standard_normal((HELD // items, items, WIDTH)).astype(np.float32)
    given = right * np.float32(1 + 1e-6)

    def answering(answers: Array) -> Infer:
        return lambda sample: {"y": answers[int(sample["at"])]}

    return answering(right), answering(given)


def numbers(items: int, samples: int) -> Iterator[Tensors]:
    """Which answer to give, for so many samples."""
    return ({"at": np.array(call % (HELD // items))} for call in range(samples // items))


def seconds(way: Callable[[], object]) -> float:
    """How long it takes."""
    started = time.perf_counter()
    way()
    return time.perf_counter() - started


def ratios(items: int, repeats: int, samples: int) -> str:
    """One line: how many times as long as each bare pass comparing takes."""
    reference, candidate = sides(items)

    def ours() -> None:
        report = compare(
            reference, candidate, numbers(items, samples // repeats), repeats=repeats, threads=1
        )
        assert report.passed  # noqa: S101

    def bare(measure: Pass) -> Callable[[], None]:
        def way() -> None:
            for sample in numbers(items, samples):
                measure(reference(sample)["y"], candidate(sample)["y"])

        return way

    taken = [
        (seconds(ours), *(seconds(bare(measure)) for measure in BARE.values()))
        for _ in range(TURNS)
    ]
    cells = []
    for at in range(1, len(BARE) + 1):
        shares = [turn[0] / turn[at] for turn in taken]
        cells.append(f"{statistics.median(shares):.2f} ({min(shares):.2f} to {max(shares):.2f})")
    cost = statistics.median(turn[0] for turn in taken) / (samples / items) * 1e6
    return f"| {items} | {repeats} | {cost:.0f} | {' | '.join(cells)} |"


def memory(items: int) -> str:
    """One line: by how much the process grows from a tenth of the samples to all of them."""
    reference, candidate = sides(items)
    peaks, resident = [], []
    tracemalloc.start()
    for samples in (SAMPLES // 10, SAMPLES):
        tracemalloc.reset_peak()
        before, _ = tracemalloc.get_traced_memory()
        compare(reference, candidate, numbers(items, samples), repeats=1)
        peaks.append(tracemalloc.get_traced_memory()[1] - before)
        resident.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
    tracemalloc.stop()
    megabytes = (
        f"{peaks[0] / 1e6:.2f} | {peaks[1] / 1e6:.2f} | {(resident[1] - resident[0]) / 1024:.1f}"
    )
    return f"| {items} | {SAMPLES // 10:,} to {SAMPLES:,} | {megabytes} |"


def main() -> None:
    """Measure and write both tables."""
    # A process that has freed a large array once keeps its memory for the next: as any does that
    # has loaded a model. Without it the system takes memory back after each temporary of NumPy's,
    # which slows the bare passes most.
    np.ones(4_000_000).sum()
    titles = " | ".join(BARE)
    lines = [
        f"{SAMPLES:,} samples of {WIDTH} float32, as `compare` takes them from a stream (repeats",
        f"1) and as it asks again and again (repeats {REPEATS}); median of {TURNS} turns (smallest",
        "to largest). What each bare pass holds is told in benchmarks/parity.py.",
        "",
        f"| items a call | repeats | µs a call | times as long as {titles} |",
        "|---|---|---|---|---|---|",
        *(ratios(n, repeats, SAMPLES // TURNS) for n in (1, 64) for repeats in (1, REPEATS)),
        "",
        "| items a call | samples | peak MB, a tenth | peak MB, all | resident grew by MB |",
        "|---|---|---|---|---|",
        *(memory(items) for items in (1, 64)),
    ]
    page.write("parity", "What comparing costs, against NumPy", "\n".join(lines))


if __name__ == "__main__":
    main()
