"""The search for a run of neighbours: how many there are and an oracle -> the shortest run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from mlflow_e2eai.errors import InvalidInputError


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """Neighbours among a sequence that fail together.

    Attributes:
        first: Position of the first of them.
        end: Position behind the last of them; equal to `first` where nothing fails.
        minimal: Whether it passes without the first, and without the last of them.
        evaluations: How often the oracle was asked.
    """

    first: int
    end: int
    minimal: bool
    evaluations: int


def narrow(
    count: int, fails: Callable[[int, int], bool], *, max_evaluations: int | None = None
) -> Run:
    """Find a shortest run of neighbours that fails by itself.

    It is halved for as long as one half fails by itself, the earlier half first. Where neither does
    and both together do, the end is drawn in, by halving again, for as long as the run fails, and
    then the start.

    What is promised, as long as the same run always gets the same verdict: the result fails, and
    passes without its first and without its last. Where every run that holds a failing one fails
    too, no shorter part of it fails, and it takes at most 2·⌈log2 count⌉ + 4 evaluations; a single
    one that fails by itself takes at most 2·⌈log2 count⌉ + 1. Where an error is lost again further
    on, the promise about the result still holds, for more evaluations. Of several shortest runs,
    one is found.

    Args:
        count: Length of the sequence.
        fails: Whether the run from one position up to another fails; asked once for each.
        max_evaluations: When to stop. The last run that failed is the result then, and not minimal.

    Raises:
        InvalidInputError: `max_evaluations` is under 1.
    """
    asked = _Asked(fails, max_evaluations, end=count)
    if not asked.fails_from(0, count):
        return Run(first=0, end=0, minimal=True, evaluations=asked.count)
    try:
        _halve(asked)
        _draw_in(asked)
        _trim(asked)
    except _SpentError:
        return asked.result(minimal=False)
    return asked.result(minimal=True)


class _SpentError(Exception):
    """There are no evaluations left; it never leaves this file."""


@dataclass(slots=True)
class _Asked:
    """The verdicts so far, and the shortest run that failed, from `first` up to `end`."""

    fails: Callable[[int, int], bool]
    limit: int | None
    end: int
    first: int = 0
    verdicts: dict[tuple[int, int], bool] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.limit is not None and self.limit < 1:
            msg = f"max_evaluations={self.limit}; give at least 1, or None."
            raise InvalidInputError(msg)

    @property
    def count(self) -> int:
        return len(self.verdicts)

    @property
    def length(self) -> int:
        return self.end - self.first

    def fails_from(self, first: int, end: int) -> bool:
        """Whether a run fails; if so, it is the shortest so far."""
        if (first, end) not in self.verdicts:
            if self.limit is not None and self.count >= self.limit:
                raise _SpentError
            self.verdicts[first, end] = self.fails(first, end)
        if self.verdicts[first, end]:
            self.first, self.end = first, end
        return self.verdicts[first, end]

    def result(self, *, minimal: bool) -> Run:
        return Run(first=self.first, end=self.end, minimal=minimal, evaluations=self.count)


def _halve(asked: _Asked) -> None:
    while asked.length > 1:
        middle = (asked.first + asked.end) // 2
        if not (asked.fails_from(asked.first, middle) or asked.fails_from(middle, asked.end)):
            return


def _draw_in(asked: _Asked) -> None:
    """Move the end, then the start, towards the middle that neither half could do without."""
    middle = (asked.first + asked.end) // 2
    low = middle  # up to here it passes
    while asked.end - low > 1:
        at = (low + asked.end) // 2
        if not asked.fails_from(asked.first, at):
            low = at
    high = middle  # from here on it passes
    while high - asked.first > 1:
        at = (asked.first + high) // 2
        if not asked.fails_from(at, asked.end):
            high = at


def _trim(asked: _Asked) -> None:
    """Leave out the last or the first for as long as the rest fails."""
    while asked.length > 1 and (
        asked.fails_from(asked.first, asked.end - 1) or asked.fails_from(asked.first + 1, asked.end)
    ):
        pass
