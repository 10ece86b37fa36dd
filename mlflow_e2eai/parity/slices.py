"""Errors by slice: an output may hold values of several units, such as pixels beside scores.

The limits of an output are shares of its largest magnitude, so that an error in the small unit
drowns in the large one. A slice is what one index along one axis selects, all others whole; its
error is compared with its own magnitude, over all samples.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from mlflow_e2eai.artifacts.values import Array

MOST_SLICES = 512
"""Size of the longest axis along which slices are compared: units differ along short axes."""

MOST = 0.8
"""No slice may lose more than this, however few its elements. One that is lost loses 1."""

FLOOR = 1e-5
"""Slices whose largest magnitude is a smaller share of the output's are not compared: they are
zeros but for rounding, or probabilities of what never happened."""

FEW = 4
"""Slices of fewer different elements are not compared: one number is near zero by chance, and any
error large beside it; four seldom are."""

ITEMS = 16
"""Items that are remembered to see which are different, where a slice has few elements of each."""

SAME = 1e-3
"""Items that differ by a smaller share of the largest magnitude are one item, as a batch that was
filled up holds it many times."""


@dataclass(frozen=True, slots=True)
class SliceError:
    """The error of one slice.

    Attributes:
        axis: The axis, from 0.
        index: The index along it.
        noise_to_signal: Root mean square of the slice's error as a share of its own.
        limit: Limit on it.
    """

    axis: int
    index: int
    noise_to_signal: float
    limit: float


@dataclass(slots=True)
class _Axis:
    """Sums over the slices along one axis, an entry each; and elements in each slice."""

    signal: Array
    noise: Array
    peak: Array
    elements: int = 0


@dataclass(slots=True)
class SliceSums:
    """Running sums over the slices of one output, by axis and its size.

    The first axis counts items, or is taken to, and an axis that was seen at two sizes counts
    positions, such as the columns of images: there an index has no unit of its own, and its slice
    may be small beside the others for good reasons. The slices along both are not compared.
    """

    axes: dict[tuple[int, int], _Axis] = field(default_factory=dict)
    items: list[Array] = field(default_factory=list)

    def add(self, right: Array, given: Array) -> None:
        """Add an output, of any number of items.

        Args:
            right: The right output, of floating numbers.
            given: The output to compare, of the same shape. Elements that are not finite in either
                are left out.
        """
        chosen = [at for at in range(1, right.ndim) if 1 < right.shape[at] <= MOST_SLICES]
        if not chosen or not right.size:
            return
        with np.errstate(all="ignore"):
            difference = given - right
            peak = _peak(right)
            if not (math.isfinite(peak) and math.isfinite(_peak(difference))):
                finite = np.isfinite(difference)
                right, difference = np.where(finite, right, 0), np.where(finite, difference, 0)
                peak = _peak(right)
        if not peak:
            return
        different = self._count_different(right, SAME * peak)
        # As shares of the peak: squares of fp32's largest numbers overflow. The first axis goes
        # first, as what is left is small.
        unit = right.dtype.type(peak)
        shares, errors = right / unit, difference / unit
        signal, noise = (np.square(each, out=each).sum(0) for each in (shares, errors))
        magnitude = shares.max(0)
        for axis in chosen:
            size = right.shape[axis]
            sums = self.axes.setdefault((axis, size), _Axis(*np.zeros((3, size))))
            others = tuple(at for at in range(signal.ndim) if at != axis - 1)
            sums.signal += peak**2 * signal.sum(others, dtype=np.float64)
            sums.noise += peak**2 * noise.sum(others, dtype=np.float64)
            largest = peak * np.sqrt(magnitude.max(others).astype(np.float64))
            np.maximum(sums.peak, largest, out=sums.peak)
            sums.elements += different * (signal.size // size)

    def _count_different(self, array: Array, margin: float) -> int:
        """Number of items that no call had before; all of them, where each has many elements."""
        if array[0].size >= FEW * MOST_SLICES:
            return len(array)
        count = 0
        for item in array:
            if len(self.items) == ITEMS:
                return count
            known = (each for each in self.items if each.shape == item.shape)
            if all(np.abs(each - item).max() > margin for each in known):
                self.items.append(item.copy())
                count += 1
        return count

    def worst(self, limit: float) -> SliceError | None:
        """The slice that exceeds its limit most; None where there are no slices to compare.

        Args:
            limit: Limit on the root mean square of the error, as a share of the slice's own; wider
                for the largest of many slices of few elements, which scatters.
        """
        slices = self._worst_by_axis(limit)
        return max(slices, key=lambda each: each.noise_to_signal / each.limit, default=None)

    def _worst_by_axis(self, limit: float) -> Iterator[SliceError]:
        peak = max((float(sums.peak.max()) for sums in self.axes.values()), default=0.0)
        sizes_seen = Counter(axis for axis, _ in self.axes)
        for (axis, size), sums in self.axes.items():
            if sizes_seen[axis] > 1:
                continue
            compared = np.flatnonzero(sums.peak > FLOOR * peak)
            if not compared.size or sums.elements < FEW:
                continue
            ratios = np.sqrt(sums.noise[compared] / sums.signal[compared])
            scatter = 1 + math.sqrt(2 * math.log(size) / sums.elements)
            worst = int(ratios.argmax())
            yield SliceError(
                axis=axis,
                index=int(compared[worst]),
                noise_to_signal=float(ratios[worst]),
                limit=min(limit * scatter, max(limit, MOST)),
            )


def _peak(array: Array) -> float:
    """The largest magnitude; NaN where one is."""
    return max(abs(float(array.max())), abs(float(array.min())))
