"""Two callables that took turns -> the ratio of their latencies, with an interval."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from mlflow_e2eai.artifacts.files import Real
from mlflow_e2eai.artifacts.values import Array

_CONFIDENCE = 0.99
_RESAMPLES = 2000

_FEWEST = 5
"""Rounds of each order that an interval takes, and blocks that it draws; with fewer the bootstrap's
intervals are far too short."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ratio:
    """Ratio of the latencies of two callables, with a confidence interval.

    Attributes:
        value: The typical ratio of a round.
        low: Lower bound of its 99 % bootstrap interval.
        high: Upper bound.

    All three are NaN, which passes no bound, where the times are too noisy to tell; see `NOISY`.
    """

    value: Real
    low: Real
    high: Real

    @property
    def equal(self) -> bool:
        """Whether the two are indistinguishable: the interval contains 1, or nothing is known."""
        return self.noisy or self.low <= 1 <= self.high

    @property
    def noisy(self) -> bool:
        """Whether the times are too noisy to tell."""
        return math.isnan(self.value)


_FEWEST_BLOCKS = 8
"""Blocks whose medians bound a median: the largest of eight is below it in one of 256 cases."""


NOISY = Ratio(value=math.nan, low=math.nan, high=math.nan)
"""Ratio of two callables of which one was measured on a busy machine: no number of it means
anything, and no interval of its rounds covers what was not there in any of them."""


@functools.lru_cache(maxsize=8)
def turns(size: int) -> tuple[tuple[int, ...], ...]:
    """The orders in which so many callables are called, a round each, over and over.

    The call after a large model finds the caches empty. So every callable has every position as
    often and follows every other equally often: a Williams design (E. J. Williams, Experimental
    designs balanced for the estimation of residual effects of treatments, 1949), which for an even
    number takes as many rounds as there are callables, for an odd number twice as many.
    """
    zigzag = [(at + 1) // 2 if at % 2 else -(at // 2) % size for at in range(size)]
    rows = tuple(tuple((first + step) % size for step in zigzag) for first in range(size))
    return rows if size % 2 == 0 else rows + tuple(row[::-1] for row in rows)


def paired_ratio(
    times_ms: Sequence[float],
    baseline_ms: Sequence[float],
    *,
    positions: tuple[int, int],
    size: int,
) -> Ratio:
    """Ratio of the latencies of two callables, from rounds in which both were called.

    Other load of the machine in a round falls on both, so the ratio is taken for each round. The
    median is taken separately for the rounds in which the one went first and those in which the
    other did, for going first may cost something; the estimate is the geometric mean of the two.

    The interval is a percentile bootstrap (Efron and Tibshirani, An Introduction to the Bootstrap,
    1993, chapter 13) of a fixed seed. Noise comes in bursts that outlast a round, so that it draws
    blocks of neighbouring rounds (the circular block bootstrap of Politis and Romano, 1992), of a
    length that grows as the cube root of their number (Hall, Horowitz and Jing, On blocking rules
    for the bootstrap with dependent data, 1995).

    The interval is of these two callables only. A file that is opened again lies elsewhere in
    memory, and on a CPU was seen to differ from itself by some per cent (benchmarks/aa.py).

    Args:
        times_ms: The calls of the candidate, one each round, in the orders of `turns`.
        baseline_ms: Those of the callable that it is divided by.
        positions: Positions of the two among the callables.
        size: Number of callables that took turns.

    Returns:
        The ratio. With fewer than ten rounds the interval is 0 to infinity.
    """
    if positions[0] == positions[1]:
        return Ratio(value=1.0, low=1.0, high=1.0)
    logs = _log_ratios(np.asarray(times_ms, float), np.asarray(baseline_ms, float))
    orders = turns(size)[: logs.size]
    went_first = [order.index(positions[0]) < order.index(positions[1]) for order in orders]
    first = np.resize(went_first, logs.size)
    count = int(min(first.sum(), (~first).sum()))
    if count < _FEWEST:
        return Ratio(value=math.exp(np.median(logs)), low=0.0, high=math.inf)
    # [2, count]: rounds in which it went first, each with a near one in which it did not.
    rows = np.stack([logs[first][:count], logs[~first][:count]])
    value = float(np.median(rows, axis=1).mean())
    length = min(math.ceil(2 * count ** (1 / 3)), count // _FEWEST)
    means = np.median(rows[:, _blocks(count, length)], axis=2).mean(axis=0)
    tail = 50 * (1 - _CONFIDENCE)
    low, high = np.percentile(means, [tail, 100 - tail]) - value
    wider = _student_factor(count / length)
    # Ten rounds or more that all lie on one side of the truth are rarer than the interval's error.
    least, most = float(logs.min()), float(logs.max())
    return Ratio(
        value=math.exp(value),
        low=math.exp(max(value + wider * min(low, 0), least)),
        high=math.exp(min(value + wider * max(high, 0), most)),
    )


def separate_bound(times_ms: Sequence[float], baseline_ms: Sequence[float]) -> float:
    """Upper bound of the ratio of two medians that were measured at different times.

    Nothing pairs the rounds, so that the largest median which the one may have is divided by the
    smallest of the other. Each is a distribution-free bound of 99.5 %: an order statistic of the
    medians of blocks of neighbouring rounds, of which half lie on each side of the truth (the sign
    test's interval; W. J. Conover, Practical Nonparametric Statistics, 1999, section 3.2), so that
    the ratio exceeds it in one of a hundred cases at most (Bonferroni). Blocks, and their length,
    are those of `paired_ratio`.

    The bound covers the noise within both measurements. What differed between them, such as a
    neighbour's load or a file's place in memory, no number of either measurement tells.

    Returns:
        The bound; infinity with fewer than eight rounds of either.
    """
    largest, smallest = _median_bounds(times_ms)[1], _median_bounds(baseline_ms)[0]
    return largest / smallest if smallest > 0 else math.inf


def _median_bounds(times_ms: Sequence[float]) -> tuple[float, float]:
    """Bounds of 99.5 %, each alone, of the median of rounds; see `separate_bound`."""
    times = np.asarray(times_ms, float)
    most = min(times.size // math.ceil(2 * max(times.size, 1) ** (1 / 3)), times.size)
    count = max(most, min(times.size, _FEWEST_BLOCKS))
    if count < _FEWEST_BLOCKS:
        return 0.0, math.inf
    medians = sorted(float(np.median(block)) for block in np.array_split(times, count))
    # No more than `rank` of them lie on one side of the truth in one of two hundred cases at most.
    below = np.cumsum([math.comb(count, k) for k in range(count + 1)]) / 2.0**count
    rank = int(np.searchsorted(below, (1 - _CONFIDENCE) / 2, side="right")) - 1
    return medians[rank], medians[-1 - rank]


def _student_factor(blocks: float) -> float:
    """Factor by which a percentile interval of so many blocks is too short.

    This is the expanded percentile interval of T. Hesterberg, What Teachers Should Know About the
    Bootstrap, 2015, as a factor; Student's quantile is the expansion 26.7.5 of Abramowitz and
    Stegun, Handbook of Mathematical Functions, 1964.
    """
    z, freedom = NormalDist().inv_cdf(0.5 + _CONFIDENCE / 2), blocks - 1
    first, second = (z**3 + z) / 4, (5 * z**5 + 16 * z**3 + 3 * z) / 96
    student = z + first / freedom + second / freedom**2
    return math.sqrt(blocks / freedom) * student / z


def _log_ratios(times: Array, baseline: Array) -> Array:
    """Logarithms of the ratios; a time of 0 counts as the clock's resolution."""
    both = np.concatenate([times, baseline])
    tick = both[both > 0].min(initial=np.inf)
    if not math.isfinite(tick):
        return np.zeros(times.size)
    ratios: Array = np.log(np.maximum(times, tick) / np.maximum(baseline, tick))
    return ratios


@functools.lru_cache(maxsize=8)
def _blocks(count: int, length: int) -> Array:
    """Positions that each resample draws, [resamples, count]: circular blocks of neighbours."""
    size = (_RESAMPLES, math.ceil(count / length), 1)
    starts = np.random.default_rng(0).integers(count, size=size)
    drawn: Array = (starts + np.arange(length)).reshape(_RESAMPLES, -1)[:, :count] % count
    return drawn
