"""Samples at other sizes than the example's: in range, in order, and without ties."""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from mlflow_e2eai.artifacts.axes import corners, label_of, resize
from mlflow_e2eai.artifacts.example import SizedExample, others_of
from mlflow_e2eai.artifacts.values import Array, Axis, Tensors, TensorSpec
from mlflow_e2eai.errors import InvalidInputError

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

    Of a `SizedExample` the smallest one that is as large along every axis is cut, and the one that
    has these sizes is taken as it is. The result depends on the arguments alone.

    Args:
        tensors: One array for each spec.
        specs: Where the dynamic axes are.
        sizes: Wanted size by axis name; axes that it does not name stay as they are.
    """
    if others := others_of(tensors):
        sizes = {**_sizes_of(tensors, specs), **sizes}
        large = [each for each in (tensors, *others) if _is_as_large(each, specs, sizes)]
        tensors = min(
            large, key=lambda each: math.prod(_sizes_of(each, specs).values()), default=tensors
        )
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


def given_sizes(
    example: Tensors, specs: tuple[TensorSpec, ...], axes: tuple[Axis, ...]
) -> dict[str, dict[str, int]]:
    """Sizes of the others of a `SizedExample` that are no corner, under a label such as ``N=3``."""
    known = list(corners(axes).values())
    given = [_sizes_of(each, specs) for each in others_of(example)]
    ordered = [{axis.name: sizes[axis.name] for axis in axes} for sizes in given]
    return {label_of(sizes): sizes for sizes in ordered if sizes not in known}


def is_given(example: Tensors, specs: tuple[TensorSpec, ...], sizes: Mapping[str, int]) -> bool:
    """Whether a `SizedExample` has one of exactly these sizes among its others."""
    return any(_sizes_of(each, specs) == sizes for each in others_of(example))


def with_samples(
    example: Tensors,
    others: Sequence[Tensors],
    specs: tuple[TensorSpec, ...],
    axes: tuple[Axis, ...],
) -> Tensors:
    """An input example with others at sizes of the caller's choosing.

    Args:
        example: One array for each spec.
        others: The others: the same inputs, in any order.
        specs: The inputs, and where the dynamic axes are.
        axes: The dynamic axes.

    Returns:
        A `SizedExample`; the example itself where there are no others.

    Raises:
        InvalidInputError: No axis is dynamic; one of the others has other inputs, dtypes, ranks or
            fixed sizes, or a size that its axis does not admit; or two have the same sizes.
    """
    if others and not axes:
        msg = (
            "samples_at has examples at other sizes, but no axis is dynamic; give dynamic_axes, "
            "or leave samples_at out."
        )
        raise InvalidInputError(msg)
    seen: list[dict[str, int]] = []
    for at, each in enumerate(others):
        where = f"samples_at[{at}]"
        _check_inputs(each, specs, where)
        sizes = _check_sizes(each, specs, axes, where)
        if sizes in seen:
            msg = (
                f"{where} has the sizes of samples_at[{seen.index(sizes)}], {label_of(sizes)}; "
                f"give one example for each."
            )
            raise InvalidInputError(msg)
        seen.append(sizes)
    ordered = [{spec.name: each[spec.name] for spec in specs} for each in others]
    return SizedExample(example, ordered) if ordered else example


def _check_inputs(tensors: Tensors, specs: tuple[TensorSpec, ...], where: str) -> None:
    """Refuse other names, dtypes, ranks and fixed sizes."""
    names = [spec.name for spec in specs]
    if set(tensors) != set(names):
        msg = f"{where} has the inputs {list(tensors)}, but the input example has {names}."
        raise InvalidInputError(msg)
    for spec in specs:
        array = tensors[spec.name]
        if array.dtype.name != spec.dtype:
            msg = (
                f"{where} has {array.dtype.name} for {spec.name!r}, but the input example has "
                f"{spec.dtype}; convert it."
            )
            raise InvalidInputError(msg)
        fixed = [isinstance(size, int) for size in spec.shape]
        if array.ndim != len(fixed) or any(
            is_fixed and have != want
            for is_fixed, have, want in zip(fixed, array.shape, spec.shape, strict=True)
        ):
            msg = (
                f"{where} has the shape {list(array.shape)} for {spec.name!r}, but "
                f"{list(spec.shape)} is expected; only dynamic axes may differ from the input "
                "example."
            )
            raise InvalidInputError(msg)


def _check_sizes(
    tensors: Tensors, specs: tuple[TensorSpec, ...], axes: tuple[Axis, ...], where: str
) -> dict[str, int]:
    """The sizes of the dynamic axes, each of which its axis admits, the same in all inputs."""
    by_name = {axis.name: axis for axis in axes}
    sizes: dict[str, int] = {}
    for spec in specs:
        for position, name in _dynamic(spec):
            size = tensors[spec.name].shape[position]
            if not by_name[name].admits(size):
                msg = (
                    f"{where} has {size} on axis {name!r} of {spec.name!r}, which may have "
                    f"{by_name[name]}; cut it, or widen the axis."
                )
                raise InvalidInputError(msg)
            if sizes.setdefault(name, size) != size:
                msg = (
                    f"{where} has {size} on axis {name!r} of {spec.name!r}, but {sizes[name]} in "
                    f"another input; give inputs that share it."
                )
                raise InvalidInputError(msg)
    return sizes


def _sizes_of(tensors: Tensors, specs: tuple[TensorSpec, ...]) -> dict[str, int]:
    """Sizes of the dynamic axes, by name."""
    return {
        name: tensors[spec.name].shape[position]
        for spec in specs
        for position, name in _dynamic(spec)
    }


def _is_as_large(tensors: Tensors, specs: tuple[TensorSpec, ...], sizes: Mapping[str, int]) -> bool:
    return all(size >= sizes[name] for name, size in _sizes_of(tensors, specs).items())


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
