"""How a wrong answer came to be wrong, where its numbers tell."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from mlflow_e2eai.artifacts import Array
from mlflow_e2eai.parity.answers import Answer, Circumstances
from mlflow_e2eai.parity.measure import measure
from mlflow_e2eai.parity.values import Kind


def _close(one: Answer, other: Answer, limit: float) -> bool:
    return one.fits(other) and measure(one.array, other.array, limit).right


def reasons(
    rights: Mapping[str, Answer],
    name: str,
    given: Mapping[str, Answer],
    around: Circumstances,
    limit: float,
) -> Iterator[tuple[Kind, str]]:
    """Kinds of finding, each with what to say.

    Args:
        rights: The right answers by output.
        name: The output that is wrong.
        given: The candidate's answers by output.
        around: What surrounded the call.
        limit: Largest difference between numbers that are called the same, as a share of the
            largest magnitude.
    """
    right, answer = rights[name], given[name]
    if around.threads > 1:
        yield "threads", f"wrong when {around.threads} threads ask at once"
    if name in around.before and _close(around.before[name], answer, limit):
        yield "stale", "the answer to the question before"
    if name in around.poisoned and _holds_poison(answer.array, right.array):
        yield "unwritten", "elements of a buffer that it uses again were not written"
    for other, value in rights.items():
        if other != name and _close(value, answer, limit):
            yield "swapped", f"the numbers of output {other!r}"
    if right.items is None and answer.items is None and right.array.ndim == answer.array.ndim:
        for one, two in itertools.combinations(range(right.array.ndim), 2):
            if _close(Answer(right.array.swapaxes(one, two), None), answer, limit):
                yield "transposed", f"axes {one} and {two} change places"


def poison(array: Array) -> Any:
    """What an output buffer is filled with: NaN, or the largest integer."""
    if array.dtype.kind in "fc":
        return np.nan
    return np.iinfo(array.dtype).max if array.dtype.kind in "iu" else True


def _holds_poison(given: Array, right: Array) -> bool:
    """Whether elements are poison that are not in the right answer; shapes that differ count."""
    if given.dtype.kind == "f":
        bad = np.isnan(given)
        return bool(bad.any()) and (
            given.shape != right.shape or bool((bad & ~np.isnan(right)).any())
        )
    bad = given == poison(given)
    return bool(bad.any()) and (given.shape != right.shape or bool((bad & (right != given)).any()))
