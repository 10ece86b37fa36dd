"""Logarithmic scales, which the pictures and the page's small signs share."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

_MOST_TICKS = 9
_MOST_DECADES = 305
"""Decades on either side of one that a float can hold."""


@dataclass(frozen=True, slots=True)
class LogScale:
    """A range of positive numbers, a decade as long as any other.

    Attributes:
        low: The number at its start.
        high: The number at its end.
    """

    low: float
    high: float

    def position(self, value: float) -> float:
        """Position of a number, from 0 to 1; one beyond an end is at the end."""
        low, high = math.log10(self.low), math.log10(self.high)
        return (math.log10(min(max(value, self.low), self.high)) - low) / (high - low)

    def number(self, position: float) -> float:
        """The number at a position; it may lie beyond either end."""
        low, high = math.log10(self.low), math.log10(self.high)
        return 10 ** min(max(low + position * (high - low), -_MOST_DECADES), _MOST_DECADES)

    def ticks(self) -> list[float]:
        """Round numbers within the scale, not too many."""
        first, last = math.floor(math.log10(self.low)), math.ceil(math.log10(self.high))
        for digits in ((1, 1.5, 2, 3, 5, 7), (1, 2, 5), (1, 3), (1,)):
            round_ = [float(f"{d}e{power}") for power in range(first, last + 1) for d in digits]
            inside = [number for number in round_ if self.low <= number <= self.high]
            if len(inside) <= _MOST_TICKS:
                break
        return inside[:: math.ceil(len(inside) / _MOST_TICKS) or 1]


def log_scale(values: Iterable[float]) -> LogScale | None:
    """A scale that holds all finite positive numbers with some air; None when there are none."""
    logarithms = [math.log10(value) for value in values if drawable(value)]
    if not logarithms:
        return None
    low, high = min(logarithms), max(logarithms)
    # At least half a decade, else noise looks like a difference.
    air = max(0.06 * (high - low), (0.5 - (high - low)) / 2, 0.05)
    return LogScale(10 ** max(low - air, -300), 10 ** min(high + air, 300))


def drawable(value: float | None) -> bool:
    """Whether a number can be shown on a logarithmic scale."""
    return value is not None and math.isfinite(value) and 1e-290 < value < 1e290  # noqa: PLR2004
