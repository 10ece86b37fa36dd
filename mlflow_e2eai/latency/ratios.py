"""Two callables that took turns -> how many times as long one takes, and how sure that is."""

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
"""Rounds of each order that an interval takes, and blocks that it draws; with fewer the bootstrap
is sure of anything."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ratio:
    """Ratio of the latencies of two callables, with a confidence interval.

    Attributes:
        value: The typical ratio of a round.
        low: Lower bound of its 99 % bootstrap interval.
        high: Upper bound.
    """

    value: Real
    low: Real
    high: Real

    @property
    def equal(self) -> bool:
        """Whether the two cannot be told apart: the interval holds 1."""
        return self.low <= 1 <= self.high


@functools.lru_cache(maxsize=8)
def turns(size: int) -> tuple[tuple[int, ...], ...]:
    """The orders in which so many callables are called, a round each, over and over.

    Whoever follows a large model finds its caches empty. So every callable has every place equally
    often and follows every other equally often: a Williams design (E. J. Williams, Experimental
    designs balanced for the estimation of residual effects of treatments, 1949), which for an even
    number takes as many rounds as there are callables, for an odd number twice as many.
    """
    zigzag = [(at + 1) // 2 if at % 2 else -(at // 2) % size for at in range(size)]
    rows = tuple(tuple((first + step) % size for step in zigzag) for first in range(size))
    return rows if size % 2 == 0 else rows + tuple(row[::-1] for row in rows)


def paired_ratio(
    times_ms: Sequence[float], baseline_ms: Sequence[float], *, places: tuple[int, int], size: int
) -> Ratio:
    """Ratio of the latencies of two callables, from rounds in which both were called.

    What the machine does in a round falls on both, so it is the rounds' ratios that are looked at.
    Their median is taken apart for the rounds in which the one went first and those in which the
    other did, for going first may cost something; the estimate is the geometric mean of the two.

    The interval is a percentile bootstrap (Efron and Tibshirani, An Introduction to the Bootstrap,
    1993, chapter 13) of a fixed seed. Noise comes in bursts that outlast a round, so that it draws
    blocks of neighbouring rounds (the circular block bootstrap of Politis and Romano, 1992), of a
    length that grows as the cube root of their number (Hall, Horowitz and Jing, On blocking rules
    for the bootstrap with dependent data, 1995).

    What it is sure of are these two callables. A file that is opened again lies elsewhere in
    memory, and on a CPU was seen to differ from itself by some per cent (benchmarks/aa.py).

    Args:
        times_ms: The calls of the one in question, a round each, in the orders of `turns`.
        baseline_ms: Those of the one that it is divided by.
        places: At what places the two stand among the callables.
        size: How many callables took turns.

    Returns:
        The ratio. Of fewer than ten rounds nothing can be said: the interval is 0 to infinity.
    """
    if places[0] == places[1]:
        return Ratio(value=1.0, low=1.0, high=1.0)
    logs = _log_ratios(np.asarray(times_ms, float), np.asarray(baseline_ms, float))
    orders = turns(size)[: logs.size]
    went_first = [order.index(places[0]) < order.index(places[1]) for order in orders]
    first = np.resize(went_first, logs.size)
    count = int(min(first.sum(), (~first).sum()))
    if count < _FEWEST:
        return Ratio(value=math.exp(np.median(logs)), low=0.0, high=math.inf)
    # [2, count]: rounds in which it went first, and beside each one near it in which it did not.
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
    """Logarithms of the ratios; a time of 0 counts as the shortest that the clock could tell."""
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
