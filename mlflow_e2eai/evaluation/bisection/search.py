"""Nodes and an oracle -> the smallest set, or the shortest run, that explains a failure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from mlflow_e2eai.artifacts.files import Summary, Table
from mlflow_e2eai.errors import InvalidInputError

Fails: TypeAlias = Callable[[frozenset[str]], bool]
"""Whether the variant still fails when these nodes stay as they were."""


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Bisection(Summary):
    """Result of a search for the nodes that explain a failure.

    Attributes:
        nodes: Names of the nodes, in the graph's order. Keeping them makes the variant pass; for a
            failure of fp16 they are what `convert` takes as `keep_fp32`. For an engine, the piece
            that is wrong when it is built by itself. Empty when the variant did not fail, or when a
            surgery rule fails as a whole.
        minimal: Whether each of them is needed: without any one of them the variant fails; for an
            engine, the piece is right without its first and without its last. False when the
            evaluations ran out first.
        suspects: Number of nodes that were searched.
        evaluations: Number of variants that were made and compared.
        rule: For surgery, the step that broke the graph, as ``rule`` or ``rule #2``; else None.
        sentence: The result, for people.
    """

    nodes: tuple[str, ...]
    minimal: bool
    suspects: int
    evaluations: int
    rule: str | None = None
    sentence: str

    def _line(self) -> str:
        return self.sentence

    def _table(self) -> Table:
        return _Node, [_Node(name) for name in self.nodes]


@dataclass(frozen=True, slots=True)
class _Node:
    """A row about one node."""

    node: str


def search(nodes: Sequence[str], fails: Fails, *, max_evaluations: int | None = None) -> Bisection:
    """Find a smallest set of nodes that makes the failure go away when it is kept.

    The shortest prefix of the sequence that passes when it is kept ends with a node that is
    needed; it is found by halving, and the search goes on among the nodes before it, with that one
    kept, until those found are enough: the dichotomic search of Hemery, Lecoutre, Sais and
    Boussemart, "Extracting MUCs from Constraint Networks", ECAI 2006. At last each one is left out
    once, and stays out where that passes too.

    Guaranteed, as long as the same nodes always get the same verdict: the result passes, and fails
    without any one of its nodes. Where keeping more never makes a variant worse, no smaller
    part of the result passes either, and k nodes among n take at most k·(⌈log2 n⌉ + 2) + 1
    evaluations. Rounding errors may cancel, so that keeping more can be worse. Then the result
    still passes and needs each of its nodes, but two of them may be dispensable together, and
    leaving out may take up to k² evaluations more. Of several smallest sets, one is found.

    Args:
        nodes: Names, each once, in topological order.
        fails: Whether the variant fails with these kept; called once for each set.
        max_evaluations: Evaluations at most. After them the result is the last set that passed,
            which is not minimal.

    Raises:
        InvalidInputError: A name is there twice, `max_evaluations` is under 2, or the variant
            fails even with every node kept.
    """
    state = _SetSearch(nodes, fails, max_evaluations)
    if state.passes(frozenset()):
        return Bisection(
            nodes=(),
            minimal=True,
            suspects=len(nodes),
            evaluations=state.count,
            sentence="The variant passes as it is: there is nothing to bisect.",
        )
    if not state.passes(frozenset(nodes)):
        msg = (
            f"The variant fails even with all {len(nodes)} nodes kept as they were, so no set of "
            "them explains it; check the stage before, the runner and the reference."
        )
        raise InvalidInputError(msg)
    try:
        _reduce(state)
        _thin_out(state)
    except _SpentError:
        return state.result(minimal=False)
    return state.result(minimal=True)


@dataclass(slots=True)
class _SetSearch:
    """The verdicts so far, and the smallest set that passed: `needed` and `rest` together."""

    nodes: Sequence[str]
    fails: Fails
    limit: int | None
    needed: frozenset[str] = frozenset()
    rest: Sequence[str] = ()
    verdicts: dict[frozenset[str], bool] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.rest = tuple(self.nodes)
        if len(set(self.nodes)) != len(self.nodes):
            msg = "Two nodes have one name; give each its own (graphs.node_names does)."
            raise InvalidInputError(msg)
        if self.limit is not None and self.limit < 2:  # noqa: PLR2004 - nothing kept, all kept
            msg = f"max_evaluations={self.limit}; give at least 2, or None."
            raise InvalidInputError(msg)

    @property
    def count(self) -> int:
        return len(self.verdicts)

    def passes(self, keep: frozenset[str]) -> bool:
        if keep not in self.verdicts:
            if self.limit is not None and self.count >= self.limit:
                raise _SpentError
            self.verdicts[keep] = not self.fails(keep)
        return self.verdicts[keep]

    def result(self, *, minimal: bool) -> Bisection:
        failing = self.needed.union(self.rest)
        names = tuple(name for name in self.nodes if name in failing)
        shown = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")  # noqa: PLR2004 - what fits a line
        why = (
            "without any one of them it fails"
            if minimal
            else "fewer may be enough, but the limit of evaluations was reached"
        )
        return Bisection(
            nodes=names,
            minimal=minimal,
            suspects=len(self.nodes),
            evaluations=self.count,
            sentence=(
                f"The variant passes when {len(names)} of {len(self.nodes)} nodes are kept as they "
                f"were ({shown}); {why}. Evaluations: {self.count}."
            ),
        )


class _SpentError(Exception):
    """There are no evaluations left; caught in this file."""


def _reduce(state: _SetSearch) -> None:
    """Find the needed nodes from the last to the first; `needed` and `rest` pass throughout."""
    while not state.passes(state.needed):
        low = 0  # this many of the rest are not enough
        while len(state.rest) - low > 1:
            middle = (low + len(state.rest)) // 2
            if state.passes(state.needed.union(state.rest[:middle])):
                state.rest = state.rest[:middle]
            else:
                low = middle
        state.needed |= {state.rest[-1]}
        state.rest = state.rest[:-1]
    state.rest = ()


def _thin_out(state: _SetSearch) -> None:
    """Leave out unneeded nodes until each one is needed."""
    while spare := next(
        (
            name
            for name in state.nodes
            if name in state.needed and state.passes(state.needed - {name})
        ),
        None,
    ):
        state.needed -= {spare}


# The search for a run of neighbours: their number and an oracle -> the shortest run.


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """Neighbours among a sequence that fail together.

    Attributes:
        first: Position of the first of them.
        end: Position behind the last of them; equal to `first` where nothing fails.
        minimal: Whether it passes without the first, and without the last of them.
        evaluations: Number of calls of the oracle.
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

    Guaranteed, as long as the same run always gets the same verdict: the result fails, and passes
    without its first and without its last. Where every run that holds a failing one fails
    too, no shorter part of it fails, and it takes at most 2·⌈log2 count⌉ + 4 evaluations; a single
    one that fails by itself takes at most 2·⌈log2 count⌉ + 1. Where an error is lost again further
    on, the guarantee of the result still holds, for more evaluations. Of several shortest runs,
    one is found.

    Args:
        count: Length of the sequence.
        fails: Whether the run from one position up to another fails; called once for each.
        max_evaluations: Evaluations at most. After them the result is the last run that failed,
            which is not minimal.

    Raises:
        InvalidInputError: `max_evaluations` is under 1.
    """
    state = _RunSearch(fails, max_evaluations, end=count)
    if not state.fails_from(0, count):
        return Run(first=0, end=0, minimal=True, evaluations=state.count)
    try:
        _halve(state)
        _draw_in(state)
        _trim(state)
    except _SpentError:
        return state.result(minimal=False)
    return state.result(minimal=True)


@dataclass(slots=True)
class _RunSearch:
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


def _halve(state: _RunSearch) -> None:
    while state.length > 1:
        middle = (state.first + state.end) // 2
        if not (state.fails_from(state.first, middle) or state.fails_from(middle, state.end)):
            return


def _draw_in(state: _RunSearch) -> None:
    """Move the end, then the start, towards the middle that neither half could do without."""
    middle = (state.first + state.end) // 2
    low = middle  # up to here it passes
    while state.end - low > 1:
        at = (low + state.end) // 2
        if not state.fails_from(state.first, at):
            low = at
    high = middle  # from here on it passes
    while high - state.first > 1:
        at = (state.first + high) // 2
        if not state.fails_from(at, state.end):
            high = at


def _trim(state: _RunSearch) -> None:
    """Leave out the last or the first for as long as the rest fails."""
    while state.length > 1 and (
        state.fails_from(state.first, state.end - 1) or state.fails_from(state.first + 1, state.end)
    ):
        pass
