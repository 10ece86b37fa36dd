"""Optimisation profiles: a static one for each bucket, and a dynamic one for all sizes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import accumulate, product
from pathlib import Path
from typing import TypeAlias

from mlflow_e2eai.artifacts.files import parse_json, read_text
from mlflow_e2eai.artifacts.values import Axis, Tensors, TensorSpec
from mlflow_e2eai.errors import ArtifactError, InvalidInputError, require_kind, require_several

Profile: TypeAlias = Mapping[str, tuple[int, int, int]]
"""min, opt and max by the name of an axis."""


def profiles(axes: tuple[Axis, ...]) -> tuple[Profile, ...]:
    """The profiles that an engine is built with, in its order.

    Those before the last have each axis with buckets at one of them. Where several axes have
    buckets, there is one for every combination. A static profile ran 1.1 to 1.9 times faster than
    the dynamic one at its own size on an H100, and the engine holds its weights once for all of
    them. The last is the dynamic one, for all sizes: of two profiles whose opt is as near to a
    request, Triton takes the first, which is to be the static one (see `bundle.triton.models`).
    """
    dynamic = {axis.name: (axis.min, axis.opt, axis.max) for axis in axes}
    fixed = [[(axis.name, (size,) * 3) for size in axis.buckets] for axis in axes if axis.buckets]
    static = [{**dynamic, **dict(sizes)} for sizes in product(*fixed)] if fixed else []
    return (*static, dynamic)


def shape_at(spec: TensorSpec, sizes: Profile, bound: int) -> tuple[int, ...]:
    """The shape of an input at the min (0), opt (1) or max (2) of a profile."""
    return tuple(size if isinstance(size, int) else sizes[size][bound] for size in spec.shape)


def admits(bounds: Profile, sizes: Mapping[str, int]) -> bool:
    """Whether a profile is for some sizes, by the name of an axis."""
    return all(low <= sizes[name] <= high for name, (low, _, high) in bounds.items())


def profile_of(every: Sequence[Profile], sizes: Mapping[str, int]) -> int:
    """Index of the profile of a call: the exact bucket's, else the dynamic one.

    Args:
        every: The engine's profiles, in its order.
        sizes: The sizes of the call, by the name of an axis.

    Returns:
        Its index. For sizes that no profile covers, the dynamic one's, which refuses them.
    """
    fitting = [at for at, bounds in enumerate(every) if admits(bounds, sizes)]
    return min(fitting, key=lambda at: _width(every[at]), default=dynamic_of(every))


def dynamic_of(every: Sequence[Profile]) -> int:
    """Index of the dynamic profile of an engine: the widest."""
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


# The sizes that get a profile of their own, by how often each was seen.


def choose_buckets(
    seen: Mapping[int, int] | Iterable[int],
    count: int,
    *,
    cost: Callable[[int], float] = float,
) -> tuple[int, ...]:
    """Choose the buckets for which filling calls up to the next bucket costs least in all.

    The choice is exact, by dynamic programming: the best `count` buckets for the sizes up to one
    end in that size, and are the best ``count - 1`` for the sizes up to some smaller one before.
    Only sizes that were seen are candidates, as a bucket between two of them costs no less than
    the smaller. It takes time in the order of `count` times the square of the number of different
    sizes. Source: Bellman, On the approximation of curves by line segments using dynamic
    programming, Communications of the ACM 4(6), 1961.

    Args:
        seen: Number of calls of each size, as in a loaded model's `sizes` for each of its axes;
            or the sizes themselves.
        count: Number of buckets at most. Each is a profile of the engine.
        cost: Cost of a call of a size; it must not fall with the size. By default the size itself;
            measured latencies are better.

    Returns:
        The buckets in order, for `Axis`; the last is the largest size that was seen.

    Raises:
        InvalidInputError: Nothing was seen, a size or number of times is no whole number of at
            least 1, or fewer than one bucket is wanted.

    Examples:
        >>> mlflow_e2eai.choose_buckets({3: 900, 8: 50, 60: 50}, 2)
        (3, 60)
    """
    sizes_of_calls = require_several(
        "seen", [*seen] if isinstance(seen, Mapping) else seen, int, "sizes of calls"
    )
    often = dict(seen) if isinstance(seen, Mapping) else Counter(sizes_of_calls)
    require_several("seen", often.values(), int, "numbers of calls by size")
    count = require_kind("count", count, int, "a number of buckets")
    if not callable(cost):
        require_kind("cost", cost, (), "a function of a size")
    sizes = sorted(often)
    if not sizes or sizes[0] < 1 or min(often.values()) < 1:
        msg = f"Buckets are chosen from the sizes of real calls, but {often or 'none'} was given."
        raise InvalidInputError(msg)
    if count < 1:
        msg = f"count is {count}, but at least one bucket is expected."
        raise InvalidInputError(msg)
    # Calls of all sizes before each, so that those from one to another are a difference.
    before = [0, *accumulate(often[size] for size in sizes)]
    costs = [cost(size) for size in sizes]
    # By the number of sizes that are covered: the cost, and the buckets.
    best: list[tuple[float, tuple[int, ...]]] = [(0.0, ())]
    best += [(price * before[at + 1], (sizes[at],)) for at, price in enumerate(costs)]
    for _ in range(min(count, len(sizes)) - 1):
        longer = best[:1]
        for at, price in enumerate(costs):
            spent, start = min(
                (best[start][0] + price * (before[at + 1] - before[start]), start)
                for start in range(at + 1)
            )
            longer.append((spent, (*best[start][1], sizes[at])))
        best = longer
    return best[-1][1]


def parse_seen(text: str) -> dict[int, int]:
    """Read sizes of calls, each as ``size`` or ``size:times``, or a JSON file of them.

    Raises:
        InvalidInputError: It is something else, or there is no such file.
    """
    wanted = 'write 1,8:120,32 or give a JSON file as {"8": 120}'
    try:
        if text.endswith(".json"):
            given = [*parse_json(read_text(Path(text), advice=wanted)).items()]
        else:
            parts = (part.partition(":") for part in text.split(","))
            given = [(size, times or "1") for size, _, times in parts]
        counts: dict[int, int] = {}
        for size, times in given:
            counts[int(size)] = counts.get(int(size), 0) + int(times)
    except ArtifactError as error:
        raise InvalidInputError(str(error)) from error
    except (AttributeError, TypeError, ValueError) as error:
        msg = f"{text!r} has no sizes; {wanted}"
        raise InvalidInputError(msg) from error
    return counts
