"""Named callables and a sample -> LatencyReport.

The callables take turns, one call each a round, so that whatever else the machine does falls on all
of them alike; the order rotates, so that none always follows the same neighbour. Two callables are
compared round by round.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from mlflow_e2eai.artifacts import Infer, Tensors
from mlflow_e2eai.errors import InvalidInputError

WARMUP = 10
"""Calls of each callable at most that are not counted: lazy initialisation and cold caches end
there. A slow callable gets fewer, but never fewer than `MIN_WARMUP`."""

MIN_WARMUP = 2
"""Such calls at least: the first builds what the second uses."""

ROUNDS = 100
"""Rounds at most; the 99th percentile of fewer would be the maximum."""

MIN_ROUNDS = 10
"""Rounds at least, however slow the callables are."""

BUDGET_S = 5.0
"""Seconds after which no further round starts, once there are `MIN_ROUNDS`. A fifth of it is what
the warm-up of one callable may take, once there are `MIN_WARMUP` calls."""

_CONFIDENCE = 0.99
_RESAMPLES = 2000


@dataclass(frozen=True, slots=True, kw_only=True)
class Latency:
    """How long the calls of one callable took, on the host's clock, copies included.

    Attributes:
        name: The callable.
        p50_ms: Median.
        p90_ms: 90th percentile.
        p95_ms: 95th percentile.
        p99_ms: 99th percentile.
        mean_ms: Mean.
        std_ms: Standard deviation.
        throughput_items_per_s: Items a second that one caller gets.
        rounds_ms: Every call, in order; no outlier is dropped.
    """

    name: str
    p50_ms: float
    p90_ms: float
    p95_ms: float
    p99_ms: float
    mean_ms: float
    std_ms: float
    throughput_items_per_s: float
    rounds_ms: tuple[float, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Ratio:
    """How many times as long one callable takes as another.

    Attributes:
        value: Median over the rounds.
        low: Lower bound of its 99 % bootstrap interval.
        high: Upper bound.
    """

    value: float
    low: float
    high: float

    @property
    def equal(self) -> bool:
        """Whether the two cannot be told apart: the interval holds 1."""
        return self.low <= 1 <= self.high


@dataclass(frozen=True, slots=True, kw_only=True)
class LatencyReport:
    """What a benchmark saw.

    Attributes:
        items: Items in one call.
        warmup: Calls of each at most before the first that counted.
        variants: One entry for each callable, in the order given.
    """

    items: int
    warmup: int
    variants: tuple[Latency, ...]

    def __getitem__(self, name: str) -> Latency:
        """The entry of one callable."""
        for variant in self.variants:
            if variant.name == name:
                return variant
        raise KeyError(name)

    def ratio(self, name: str, baseline: str) -> Ratio:
        """Compare two callables round by round.

        Args:
            name: The one in question.
            baseline: What it is divided by.

        Returns:
            The median of the rounds' ratios with its percentile-bootstrap interval (Efron and
            Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13), of a fixed seed.
        """
        pairs = np.divide(self[name].rounds_ms, self[baseline].rounds_ms)
        drawn = np.random.default_rng(0).choice(pairs, size=(_RESAMPLES, pairs.size))
        medians = np.median(drawn, axis=1)
        tail = 50 * (1 - _CONFIDENCE)
        low, high = np.percentile(medians, [tail, 100 - tail])
        return Ratio(value=float(np.median(pairs)), low=float(low), high=float(high))


def benchmark(
    candidates: Mapping[str, Infer],
    sample: Tensors,
    *,
    items: int | None = None,
    warmup: int = WARMUP,
    rounds: int = ROUNDS,
    budget_s: float = BUDGET_S,
    clock: Callable[[], float] = time.perf_counter,
) -> LatencyReport:
    """Measure callables against each other on one sample.

    Args:
        candidates: The callables, by name. Each must return only when its answer is there.
        sample: What they are asked.
        items: Items in the sample; by default the leading size of its first array.
        warmup: Calls of each at most that are not counted.
        rounds: Rounds at most.
        budget_s: Seconds for the rounds, and five times the seconds for each warm-up; see
            `BUDGET_S`.
        clock: Seconds that only grow; another one than the machine's makes tests exact.

    Returns:
        The report.

    Raises:
        InvalidInputError: There is nothing to measure, a count is not positive, or the clock went
            backwards.
    """
    if not candidates or rounds < 1 or warmup < 0:
        msg = (
            f"There are {len(candidates)} callables, {warmup} warm-up calls and {rounds} rounds; "
            f"give at least one callable and one round."
        )
        raise InvalidInputError(msg)
    if items is None:
        if not sample:
            msg = "The sample holds no array to count items in; give items."
            raise InvalidInputError(msg)
        shape = np.shape(next(iter(sample.values())))
        items = int(shape[0]) if shape else 1
    names = list(candidates)
    for name in names:
        _warm_up(candidates[name], sample, warmup, budget_s / 5, clock)
    taken_ms: dict[str, list[float]] = {name: [] for name in names}
    started = clock()
    for number in range(rounds):
        if number >= MIN_ROUNDS and clock() - started > budget_s:
            break
        first = number % len(names)
        for name in names[first:] + names[:first]:
            before = clock()
            candidates[name](sample)
            taken_ms[name].append(1e3 * (clock() - before))
    if any(value < 0 for values in taken_ms.values() for value in values):
        msg = "The clock went backwards while it measured; give one that only grows."
        raise InvalidInputError(msg)
    variants = tuple(_latency(name, values, items) for name, values in taken_ms.items())
    return LatencyReport(items=items, warmup=warmup, variants=variants)


def _warm_up(
    infer: Infer, sample: Tensors, calls: int, budget_s: float, clock: Callable[[], float]
) -> None:
    started = clock()
    for number in range(calls):
        if number >= MIN_WARMUP and clock() - started > budget_s:
            break
        infer(sample)


def _latency(name: str, values_ms: list[float], items: int) -> Latency:
    p50, p90, p95, p99 = (float(p) for p in np.percentile(values_ms, [50, 90, 95, 99]))
    mean = float(np.mean(values_ms))
    return Latency(
        name=name,
        p50_ms=p50,
        p90_ms=p90,
        p95_ms=p95,
        p99_ms=p99,
        mean_ms=mean,
        std_ms=float(np.std(values_ms)),
        throughput_items_per_s=1e3 * items / mean if mean else float("inf"),
        rounds_ms=tuple(values_ms),
    )
