"""Samples at other sizes than the example's: in range, in order, and without ties."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np

from mlflow_e2eai.artifacts.axes import resize
from mlflow_e2eai.artifacts.values import Array, Tensors, TensorSpec

NOISE = 0.05
"""Standard deviation of the noise on a repeated number, as a share of the input's own: of two equal
numbers a top-k may take either, and of two that differ by this it takes the same in any order of
sums, while the input keeps its distribution."""

MOST_SEEN = 4096
"""Numbers of an input that decide whether it is continuous."""


class _Resized(NamedTuple):
    """A dynamic axis: its size in the example, and its new one."""

    old: int
    new: int


def resample(tensors: Tensors, specs: tuple[TensorSpec, ...], sizes: Mapping[str, int]) -> Tensors:
    """Repeat or cut arrays as `resize` does, then make the result one that a model may take.

    - Continuous numbers that were repeated get `NOISE`, so that no two are equal.
    - Integers that may index another input stay below its new size, and lengths up to it.
    - Numbers that were in order along an axis are so again.

    The result depends on the arguments alone.

    Args:
        tensors: One array for each spec.
        specs: Where the dynamic axes are.
        sizes: Wanted size by axis name; axes that it does not name stay as they are.
    """
    resized = resize(tensors, specs, sizes)
    changed = {
        axis: _Resized(tensors[spec.name].shape[position], sizes[axis])
        for spec in specs
        for position, axis in _dynamic(spec)
        if axis in sizes and tensors[spec.name].shape[position] != sizes[axis]
    }
    if not changed:
        return resized
    return {
        spec.name: _repair(spec, tensors[spec.name], resized[spec.name], changed) for spec in specs
    }


def _dynamic(spec: TensorSpec) -> Iterator[tuple[int, str]]:
    return ((at, size) for at, size in enumerate(spec.shape) if isinstance(size, str))


def _repair(
    spec: TensorSpec, before: Array, array: Array, changed: Mapping[str, _Resized]
) -> Array:
    """An array that `resize` returned, in range, in order and without ties."""
    if before.dtype.kind == "f":
        fixed = _separate(spec.name, before, array)
    elif before.dtype.kind in "iu" and before.size:
        fixed = _bound(spec, before, array, changed)
    else:
        return array
    if fixed is not array:
        for position in range(before.ndim):
            fixed = _in_order(before, fixed, position)
    return fixed


def _separate(name: str, before: Array, array: Array) -> Array:
    """Add noise to the numbers that are repeated."""
    grown = [at for at in range(array.ndim) if array.shape[at] > before.shape[at]]
    if not grown or not _is_continuous(before):
        return array
    repeated = np.zeros(array.shape, bool)
    for position in grown:
        repeated[(slice(None),) * position + (slice(before.shape[position], None),)] = True
    finite = before[np.isfinite(before)].astype(np.float64)
    low, high = finite.min(), finite.max()
    random = np.random.default_rng([zlib.crc32(name.encode()), *array.shape])
    noise = np.clip(random.standard_normal(int(repeated.sum())), -3, 3) * NOISE * finite.std()
    fresh = array.copy()
    old = array[repeated].astype(np.float64)
    outside = (old + noise < low) | (old + noise > high)
    fresh[repeated] = np.where(outside, old - noise, old + noise).astype(array.dtype)
    return fresh


def _is_continuous(array: Array) -> bool:
    """Whether most numbers differ, and some are no integers: no mask, label or one-hot code."""
    seen = array.ravel()[:MOST_SEEN]
    seen = seen[np.isfinite(seen)]
    if seen.size < 2 or bool((seen == np.rint(seen)).all()):  # noqa: PLR2004 - one has no spread
        return False
    return bool(np.unique(seen).size > seen.size / 2)


def _bound(spec: TensorSpec, before: Array, array: Array, changed: Mapping[str, _Resized]) -> Array:
    """Integers that index an axis below its new size, and lengths up to it."""
    low, high = int(before.min()), int(before.max())
    if low < 0 or (before.size > 1 and high <= 1):  # a mask, or one kind of token beside another
        return array
    own = {axis for _, axis in _dynamic(spec)}
    others = [size for axis, size in changed.items() if axis not in own]
    # An input may index its own last axis; a tight range shows it.
    last = changed.get(str(spec.shape[-1])) if spec.shape else None
    tight = [last] if last is not None and high == last.old - 1 else []
    lengths = [size for size in others if 1 < high == size.old]
    for old, new in lengths[:1]:
        return np.where(array >= min(old, new), new, array).astype(array.dtype)
    for old, new in others or tight:
        if new <= high < old:
            limited = np.minimum(array, new - 1) if before.size == 1 else array % new
            return np.asarray(limited, array.dtype)
    return array.copy()


def _in_order(before: Array, array: Array, position: int) -> Array:
    """Sort along an axis where the example is sorted."""
    few = 2 if before.dtype.kind in "iu" else 4
    if before.shape[position] < few or (before.ndim > 1 and before.dtype.kind in "iu"):
        return array
    steps = np.diff(before.astype(np.float64), axis=position)
    if (steps >= 0).all() and (steps > 0).any():
        return np.sort(array, axis=position)
    if (steps <= 0).all() and (steps < 0).any():
        return np.flip(np.sort(array, axis=position), axis=position).copy()
    return array
