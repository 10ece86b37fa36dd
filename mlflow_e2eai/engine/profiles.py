"""Optimisation profiles: a static one for each bucket, and a dynamic one for all sizes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product
from typing import TypeAlias

from mlflow_e2eai.artifacts import Axis, EngineArtifact, Tensors, TensorSpec

Profile: TypeAlias = Mapping[str, tuple[int, int, int]]
"""min, opt and max by the name of an axis."""


def profiles(axes: tuple[Axis, ...]) -> tuple[Profile, ...]:
    """The profiles that an engine is built with, in its order.

    Those before the last have each axis with buckets at one of them. Where several axes have
    buckets, there is one for every combination. A static profile ran 1.1 to 1.9 times faster than
    the dynamic one at its own size on an H100, and the engine holds its weights once for all of
    them. The last is the dynamic one, for all sizes: of two profiles whose opt is as near to a
    request, Triton takes the first, which is to be the static one (see `triton.nearest`).
    """
    dynamic = {axis.name: (axis.min, axis.opt, axis.max) for axis in axes}
    fixed = [[(axis.name, (size,) * 3) for size in axis.buckets] for axis in axes if axis.buckets]
    static = [{**dynamic, **dict(sizes)} for sizes in product(*fixed)] if fixed else []
    return (*static, dynamic)


def profiles_of(engine: EngineArtifact) -> tuple[Profile, ...]:
    """The profiles that an engine has, in its order."""
    *static, dynamic = profiles(engine.axes)
    return (*static, dynamic) if engine.dynamic_last else (dynamic, *static)


def shape_at(spec: TensorSpec, sizes: Profile, bound: int) -> tuple[int, ...]:
    """The shape of an input at the min (0), opt (1) or max (2) of a profile."""
    return tuple(size if isinstance(size, int) else sizes[size][bound] for size in spec.shape)


def admits(bounds: Profile, sizes: Mapping[str, int]) -> bool:
    """Whether a profile is for some sizes, by the name of an axis."""
    return all(low <= sizes[name] <= high for name, (low, _, high) in bounds.items())


def profile_of(every: Sequence[Profile], sizes: Mapping[str, int]) -> int:
    """Which profile a call takes: the exact bucket's, else the dynamic one.

    Args:
        every: The engine's profiles, in its order.
        sizes: The call's, by the name of an axis.

    Returns:
        Its place among them. Sizes that no profile has are the dynamic one's to refuse.
    """
    fitting = [at for at, bounds in enumerate(every) if admits(bounds, sizes)]
    return min(fitting, key=lambda at: _width(every[at]), default=dynamic_of(every))


def dynamic_of(every: Sequence[Profile]) -> int:
    """The place of the dynamic profile among an engine's: it is the widest."""
    return max(range(len(every)), key=lambda at: _width(every[at]))


def _width(bounds: Profile) -> int:
    return sum(high - low for low, _, high in bounds.values())


def sizes_of(inputs: tuple[TensorSpec, ...], tensors: Tensors) -> dict[str, int]:
    """The sizes of a call's dynamic axes, by name."""
    return {
        name: size
        for spec in inputs
        for name, size in zip(spec.shape, tensors[spec.name].shape, strict=False)
        if isinstance(name, str)
    }
