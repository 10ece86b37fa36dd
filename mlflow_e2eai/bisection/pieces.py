"""Which nodes of a graph can be cut out, and which values a run of them needs and gives."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mlflow_e2eai import graphs
from mlflow_e2eai.bisection.cutting import reads

if TYPE_CHECKING:
    import onnx


@dataclass(frozen=True, slots=True, kw_only=True)
class Pieces:
    """The nodes of a graph as pieces to take it apart by, in topological order.

    Attributes:
        nodes: Their names, as `graphs.node_names` gives them.
        makes: The values that each makes.
        needs: The values that each reads, or that the constants and sizes which go with it read.
        results: The values that the graph's outputs need, in the same sense.
    """

    nodes: tuple[str, ...]
    makes: tuple[frozenset[str], ...]
    needs: tuple[frozenset[str], ...]
    results: frozenset[str]

    def edges(self, first: int, end: int) -> tuple[list[str], list[str]]:
        """Where a run of nodes begins and ends.

        Args:
            first: Position of its first node.
            end: Position behind its last node.

        Returns:
            The values that come from before it, and those that are needed after it.
        """
        made = frozenset[str]().union(*self.makes[first:end])
        needed = frozenset[str]().union(*self.needs[first:end])
        later = self.results.union(*self.needs[end:])
        return sorted(needed - made), sorted(made & later)


def pieces_of(model: onnx.ModelProto) -> Pieces:
    """Take a graph apart.

    A node that is computed from constants and from the shapes of values alone goes with each node
    that reads it, and is none to cut out: an engine must know what it gives when it is built, and
    takes no size for an input.
    """
    weights = {weight.name for weight in model.graph.initializer}
    behind: dict[str, frozenset[str]] = {name: frozenset() for name in weights}
    sizes = set(weights)

    def needed(names: Iterable[str]) -> frozenset[str]:
        return frozenset[str]().union(*(behind.get(name, frozenset([name])) for name in names))

    nodes, makes, needs = [], [], []
    for node, name in zip(model.graph.node, graphs.node_names(model), strict=True):
        made = frozenset(filter(None, node.output))
        tells_size = node.op_type in ("Shape", "Size") and node.domain in ("", "ai.onnx")
        if tells_size or sizes.issuperset(reads(node)):
            sizes |= made
            behind |= dict.fromkeys(made, needed(reads(node)))
            continue
        nodes.append(name)
        makes.append(made)
        needs.append(needed(reads(node)))
    return Pieces(
        nodes=tuple(nodes),
        makes=tuple(makes),
        needs=tuple(needs),
        results=needed(value.name for value in model.graph.output),
    )
