"""Dynamic axes: their corners, the input specs of an example, and their text form."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Mapping
from numbers import Integral
from typing import TypeAlias

import numpy as np

from mlflow_e2eai.artifacts.arrays import check_bytes
from mlflow_e2eai.artifacts.values import Axis, Tensors, TensorSpec
from mlflow_e2eai.errors import InvalidInputError, require_kind, shown_all


def corners(axes: tuple[Axis, ...]) -> dict[str, dict[str, int]]:
    """Sizes at the corners of a profile: each axis at min, opt and max, and at its buckets.

    Returns:
        Sizes by axis name, under a label. Two axes give ``min``, ``opt``, ``max`` and the mixed
        corners; a bucket gives ``N=32``, with the other axes at opt; a profile with no axes gives
        ``static``.
    """
    if not axes:
        return {"static": {}}
    labelled: dict[str, dict[str, int]] = {
        bound: {axis.name: getattr(axis, bound) for axis in axes} for bound in ("opt", "min", "max")
    }
    for axis in axes:
        if len(axes) > 1:
            labelled[f"max {axis.name}, min others"] = {**labelled["min"], axis.name: axis.max}
        for size in axis.buckets:
            labelled[f"{axis.name}={size}"] = {**labelled["opt"], axis.name: size}
    unique: dict[str, dict[str, int]] = {}
    for label, sizes in labelled.items():
        if sizes not in unique.values():
            unique[label] = sizes
    return unique


FEW = 4
"""Size of the axes where other values are tried: enough for an order and for duplicates."""


def few_sizes(axes: tuple[Axis, ...]) -> dict[str, int]:
    """The smallest size of each axis that is at least `FEW`, but no more than its opt."""
    least = {axis: -(-max(axis.min, FEW) // axis.multiple) * axis.multiple for axis in axes}
    return {axis.name: min(size, axis.opt) for axis, size in least.items()}


MOST_INNER = 10
"""Sizes between the corners at most, for each axis."""


def inner_sizes(axes: tuple[Axis, ...]) -> dict[str, dict[str, int]]:
    """Sizes between the corners of a profile, where a branch on a size shows.

    Each axis has the sizes next to min, max and its buckets, an odd one and a prime, or all where
    its range is short. All axes change together, so that there are as many samples as one axis has
    sizes; a seed of the axis chooses among odd sizes and primes.

    Returns:
        Sizes by axis name, under a label such as ``N=3, T=7``.
    """
    choices = {axis.name: list(itertools.islice(_inner(axis), MOST_INNER)) for axis in axes}
    most = max(map(len, choices.values()), default=0)
    labelled: dict[str, dict[str, int]] = {}
    for at in range(most):
        sizes = {
            axis.name: inner[at % len(inner)] if (inner := choices[axis.name]) else axis.opt
            for axis in axes
        }
        labelled[label_of(sizes)] = sizes
    return labelled


def label_of(sizes: Mapping[str, int]) -> str:
    """Sizes by axis name as text."""
    return ", ".join(f"{name}={size}" for name, size in sizes.items())


def _inner(axis: Axis) -> Iterator[int]:
    """Sizes of an axis that are no corner, the most telling first, each once."""
    step = axis.multiple
    seen = {axis.min, axis.opt, axis.max, *axis.buckets}
    chosen = random.Random(f"{axis.name} {axis}")  # noqa: S311 - no secret
    near = range(axis.min, min(axis.max, max(2 * axis.opt, 16 * step)) + 1, step)
    odd = [size for size in near if (size // step) % 2 and size not in seen]
    primes = [size for size in near if _is_prime(size // step) and size not in seen]
    every = range(axis.min, axis.max + 1, step)
    telling = [axis.min + step, axis.max - step, *(every if len(every) <= MOST_INNER else ())]
    telling += [chosen.choice(sizes) for sizes in (odd, primes) if sizes]
    telling += [size + way * step for size in (*axis.buckets, axis.opt) for way in (-1, 1)]
    for size in telling:
        if size not in seen and axis.admits(size):
            seen.add(size)
            yield size


def _is_prime(number: int) -> bool:
    return number > 1 and all(number % by for by in range(2, int(number**0.5) + 1))


def resize(tensors: Tensors, specs: tuple[TensorSpec, ...], sizes: Mapping[str, int]) -> Tensors:
    """Repeat or cut arrays along their dynamic axes until they have the requested sizes.

    Repeating the caller's own data keeps its range, which random data would not.

    Args:
        tensors: One array for each spec.
        specs: Where the dynamic axes are.
        sizes: Wanted size by axis name; axes that it does not name stay as they are.
    """
    resized = {}
    for spec in specs:
        array = tensors[spec.name]
        shape = [
            sizes.get(size, now) if isinstance(size, str) else now
            for size, now in zip(spec.shape, array.shape, strict=True)
        ]
        check_bytes(spec.name, shape, array.dtype.itemsize, "lower the max of its axes")
        for position, size in enumerate(spec.shape):
            if isinstance(size, str) and size in sizes:
                index = np.arange(sizes[size]) % array.shape[position]
                array = np.take(array, index, axis=position)
        resized[spec.name] = np.asarray(array, order="C")
    return resized


DynamicAxes: TypeAlias = Mapping[str, Mapping[int, Axis]]
"""Dynamic axes by input name and position."""


def input_specs(example: Tensors, dynamic_axes: DynamicAxes) -> tuple[TensorSpec, ...]:
    """The inputs of an example, with its dynamic axes named.

    Raises:
        InvalidInputError: `dynamic_axes` names an input or position that the example lacks, or
            where it is empty, or one name stands for two different sets of sizes.
    """
    axes_of(dynamic_axes)
    if unknown := set(dynamic_axes) - set(example):
        msg = (
            f"dynamic_axes names {shown_all(unknown)}, but the inputs are {list(example)}; use the "
            f"names of the input example."
        )
        raise InvalidInputError(msg)
    specs = []
    for name, array in example.items():
        shape: list[int | str] = list(array.shape)
        for position, axis in dynamic_axes.get(name, {}).items():
            if not 0 <= position < array.ndim:
                msg = (
                    f"dynamic_axes names axis {position} of {name!r}, which has {array.ndim} axes; "
                    f"count from 0."
                )
                raise InvalidInputError(msg)
            if not array.shape[position]:
                msg = (
                    f"Input {name!r} of the example has no items on axis {position}, the dynamic "
                    f"axis {axis.name!r}; give at least one."
                )
                raise InvalidInputError(msg)
            shape[position] = axis.name
        specs.append(TensorSpec(name=name, dtype=array.dtype.name, shape=tuple(shape)))
    return tuple(specs)


_FORM = "axes by input and position, as {'x': {0: Axis('N', min=1, opt=8, max=64)}}"


def axes_of(dynamic_axes: DynamicAxes) -> tuple[Axis, ...]:
    """The different axes of a request, in order.

    Raises:
        InvalidInputError: Something is not an Axis, or one name stands for two different sets of
            sizes.
    """
    require_kind("dynamic_axes", dynamic_axes, Mapping, _FORM)
    axes: dict[str, Axis] = {}
    for name, positions in dynamic_axes.items():
        require_kind(f"dynamic_axes[{name!r}]", positions, Mapping, _FORM)
        for position, axis in positions.items():
            require_kind(f"dynamic_axes[{name!r}] has the position that", position, Integral, _FORM)
            if not isinstance(axis, Axis):
                msg = f"dynamic_axes[{name!r}] is {axis!r}; give an Axis('N', min=, opt=, max=)."
                raise InvalidInputError(msg)
            if axes.setdefault(axis.name, axis) != axis:
                msg = f"Axis {axis.name!r} is given twice with different sizes; rename one of them."
                raise InvalidInputError(msg)
    return tuple(axes.values())


def parse_axes(text: str) -> DynamicAxes | None:
    """Read ``input:position=name:min:opt:max``, with commas between several.

    A fifth part, ``:multiple``, may follow, and buckets, as ``@1+8+32``.

    Returns:
        The axes; none for ``none``, and None for ``auto``.

    Raises:
        InvalidInputError: It is something else, or an axis has its sizes out of order.
    """
    if text == "auto":
        return None
    parsed: dict[str, dict[int, Axis]] = {}
    for part in [] if text == "none" else text.split(","):
        try:
            location, sizes = part.split("=")
            name, position = location.rsplit(":", 1)
            sizes, _, buckets = sizes.partition("@")
            axis, *numbers = sizes.split(":")
            low, best, high, *others = (int(number) for number in numbers)
            (multiple,) = others or [1]
            index = int(position)
            tuned = tuple(int(size) for size in buckets.split("+")) if buckets else ()
        except ValueError as error:
            msg = (
                f"{part!r} is not a dynamic axis; write input:position=name:min:opt:max "
                "(x:0=N:1:8:64)"
            )
            raise InvalidInputError(msg) from error
        sizes_of = Axis(axis, min=low, opt=best, max=high, multiple=multiple, buckets=tuned)
        parsed.setdefault(name.strip(), {})[index] = sizes_of
    return parsed
