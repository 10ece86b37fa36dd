"""The search itself: an ordered sequence of nodes and an oracle -> Bisection."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from mlflow_e2eai.errors import InvalidInputError

Fails: TypeAlias = Callable[[frozenset[str]], bool]
"""Whether the variant still fails when these nodes are kept as they were."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bisection:
    """Which nodes explain a failure.

    Attributes:
        nodes: Names of the nodes, in the graph's order. Keeping them makes the variant pass; for a
            failure of fp16 they are what `convert` takes as `keep_fp32`. For an engine, the piece
            that is wrong when it is built by itself. Empty when the variant did not fail, or when a
            surgery rule is to blame as a whole.
        minimal: Whether each of them is needed: without any one of them the variant fails; for an
            engine, the piece is right without its first and without its last. False when the
            evaluations ran out first.
        suspects: Number of nodes among which was searched.
        evaluations: Number of variants that were made and judged.
        rule: For surgery, the step that broke the graph, as ``rule`` or ``rule #2``; else None.
        sentence: All this for people.
    """

    nodes: tuple[str, ...]
    minimal: bool
    suspects: int
    evaluations: int
    rule: str | None = None
    sentence: str


def search(nodes: Sequence[str], fails: Fails, *, max_evaluations: int | None = None) -> Bisection:
    """Find a smallest set of nodes that makes the failure go away when it is kept.

    The shortest beginning of the sequence that passes when it is kept ends with a node that is
    needed; it is found by halving, and the search goes on among the nodes before it, with that one
    kept, until those found are enough: the dichotomic search of Hemery, Lecoutre, Sais and
    Boussemart, "Extracting MUCs from Constraint Networks", ECAI 2006. At last each one is left out
    once, and stays out where that passes too.

    What is promised, as long as the same nodes always get the same verdict: the result passes, and
    fails without any one of its nodes. Where keeping more never makes a variant worse, no smaller
    part of the result passes either, and k nodes among n take at most k·(⌈log2 n⌉ + 2) + 1
    evaluations. Rounding errors may cancel, so that keeping more can be worse. Then the result
    still passes and needs each of its nodes, but two of them may be dispensable together, and
    leaving out may take up to k² evaluations more. Of several smallest sets, one is found.

    Args:
        nodes: Names, each once, in topological order.
        fails: Whether the variant fails with these kept; asked once for each set.
        max_evaluations: When to stop. What passed last is the result then, and is not minimal.

    Raises:
        InvalidInputError: A name is there twice, `max_evaluations` is under 2, or the variant
            fails even with every node kept.
    """
    asked = _Asked(nodes, fails, max_evaluations)
    if asked.passes(frozenset()):
        return Bisection(
            nodes=(),
            minimal=True,
            suspects=len(nodes),
            evaluations=asked.count,
            sentence="The variant passes as it is: there is nothing to explain.",
        )
    if not asked.passes(frozenset(nodes)):
        msg = (
            f"The variant fails even with all {len(nodes)} nodes kept as they were, so no set of "
            f"them explains it; look at the stage before, at the runner or at the reference."
        )
        raise InvalidInputError(msg)
    try:
        _shorten(asked)
        _thin_out(asked)
    except _SpentError:
        return asked.result(minimal=False)
    return asked.result(minimal=True)


@dataclass(slots=True)
class _Asked:
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
            msg = "A node is there twice; give each a name of its own (graphs.node_names does)."
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
        found = self.needed.union(self.rest)
        names = tuple(name for name in self.nodes if name in found)
        shown = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")  # noqa: PLR2004 - what fits a line
        why = (
            "without any one of them it fails"
            if minimal
            else "fewer may do, but the evaluations ran out"
        )
        return Bisection(
            nodes=names,
            minimal=minimal,
            suspects=len(self.nodes),
            evaluations=self.count,
            sentence=(
                f"The variant passes when {len(names)} of {len(self.nodes)} nodes are kept as they "
                f"were ({shown}); {why}. Seen in {self.count} evaluations."
            ),
        )


class _SpentError(Exception):
    """There are no evaluations left; it never leaves this file."""


def _shorten(asked: _Asked) -> None:
    """Find the needed nodes from the last to the first; `needed` and `rest` pass throughout."""
    while not asked.passes(asked.needed):
        low = 0  # so many of the rest are not enough
        while len(asked.rest) - low > 1:
            middle = (low + len(asked.rest)) // 2
            if asked.passes(asked.needed.union(asked.rest[:middle])):
                asked.rest = asked.rest[:middle]
            else:
                low = middle
        asked.needed |= {asked.rest[-1]}
        asked.rest = asked.rest[:-1]
    asked.rest = ()


def _thin_out(asked: _Asked) -> None:
    """Leave out what is not needed after all, until each one is."""
    while spare := next(
        (
            name
            for name in asked.nodes
            if name in asked.needed and asked.passes(asked.needed - {name})
        ),
        None,
    ):
        asked.needed -= {spare}
