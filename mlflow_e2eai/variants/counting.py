"""How often a loaded model was asked for each size: what buckets are chosen from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

from mlflow_e2eai.artifacts import Axis, Infer, Tensors, TensorSpec

Sizes: TypeAlias = dict[str, dict[int, int]]
"""By the name of a dynamic axis: by size, the number of calls."""


def counted(
    infer: Infer,
    inputs: Sequence[TensorSpec],
    axes: Sequence[Axis],
    *,
    into: Sizes | None = None,
) -> tuple[Infer, Sizes]:
    """Have the sizes of a callable's calls counted.

    It takes no lock: of threads that call at the very same moment with one size, one count may be
    lost.

    Args:
        infer: The callable.
        inputs: Its inputs.
        axes: Its dynamic axes.
        into: What was counted of another way to ask the same; by default nothing was.

    Returns:
        The callable to call instead, and the numbers, which grow as it is called.
    """
    sizes: Sizes = {axis.name: {} for axis in axes} if into is None else into
    # An axis has one size in all inputs: the first tells it.
    places = {
        size: (spec.name, at)
        for spec in reversed(inputs)
        for at, size in reversed([*enumerate(spec.shape)])
        if isinstance(size, str) and size in sizes
    }
    told = [(*place, sizes[axis]) for axis, place in places.items()]
    if not told:
        return infer, sizes

    def answer(tensors: Tensors) -> Tensors:
        for name, at, counts in told:
            size = tensors[name].shape[at]
            counts[size] = counts.get(size, 0) + 1
        return infer(tensors)

    return answer, sizes
