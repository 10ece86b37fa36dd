"""Which sizes deserve a profile of their own, by how often each was seen."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from itertools import accumulate

from mlflow_e2eai.errors import InvalidInputError


def choose_buckets(
    seen: Mapping[int, int] | Iterable[int],
    count: int,
    *,
    cost: Callable[[int], float] = float,
) -> tuple[int, ...]:
    """Choose the buckets for which filling calls up to the next bucket costs least in all.

    The choice is exact, by dynamic programming: the best `count` buckets for the sizes up to one
    end in that size, and are the best ``count - 1`` for the sizes up to some smaller one before.
    Only sizes that were seen come into question, as a bucket between two of them costs no less than
    the smaller. It takes time in the order of `count` times the square of the number of different
    sizes. Source: Bellman, On the approximation of curves by line segments using dynamic
    programming, Communications of the ACM 4(6), 1961.

    Args:
        seen: How often each size was asked for, as a loaded model's `sizes` say for each of its
            axes; or the sizes themselves.
        count: How many buckets, at most. Each is a profile of the engine.
        cost: What a call of a size costs; it must not fall with the size. By default the size
            itself; latencies that were measured tell more.

    Returns:
        The buckets in order, for `Axis`; the last is the largest size that was seen.

    Raises:
        InvalidInputError: Nothing was seen, a size or number of times is no whole number of at
            least 1, or fewer than one bucket is wanted.
    """
    often = dict(seen) if isinstance(seen, Mapping) else Counter(seen)
    sizes = sorted(often)
    if not sizes or sizes[0] < 1 or min(often.values()) < 1:
        msg = f"Buckets are chosen from sizes that were seen, but {often or 'none'} are given."
        raise InvalidInputError(msg)
    if count < 1:
        msg = f"count is {count}, but at least one bucket is wanted."
        raise InvalidInputError(msg)
    # Calls of all sizes before each, so that those from one to another are a difference.
    before = [0, *accumulate(often[size] for size in sizes)]
    costs = [cost(size) for size in sizes]
    # By the number of sizes that are covered: what it costs, and with which buckets.
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
