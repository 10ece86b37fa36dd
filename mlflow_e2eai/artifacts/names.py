"""Fresh names for what a stage adds to a graph, and names of sizes as people read them.

A value that a stage adds (a scale, a cast, a statistic) is named after one of the graph's own, and
the graph may have that name too: a node then reads, or overwrites, a value of the user's.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx
    import onnx_graphsurgeon as gs


class FreshNames:
    """Gives out names that a graph does not have, each once.

    Args:
        taken: The names that the graph has.
    """

    def __init__(self, taken: Iterable[str]) -> None:
        self._taken = set(taken)
        self._numbers: dict[str, int] = {}

    def __call__(self, wanted: str) -> str:
        """The name itself where it is free, else the first free one of ``<name>_2``, ``_3``..."""
        name = wanted
        while name in self._taken:
            self._numbers[wanted] = self._numbers.get(wanted, 1) + 1
            name = f"{wanted}_{self._numbers[wanted]}"
        self._taken.add(name)
        return name

    @classmethod
    def of_model(cls, model: onnx.ModelProto) -> FreshNames:
        """Names that are fresh in every graph of a model, for values and nodes alike."""
        return cls(_names_in(model.graph))

    @classmethod
    def of_graph(cls, graph: gs.Graph) -> FreshNames:
        """Names that are fresh in a GraphSurgeon graph and in its subgraphs."""
        return cls(names_of(graph))


def names_of(graph: gs.Graph) -> set[str]:
    """The names of all values and nodes of a GraphSurgeon graph and of its subgraphs."""
    names: set[str] = set()
    for each in (graph, *graph.subgraphs(recursive=True)):
        names |= {tensor.name for tensor in (*each.inputs, *each.outputs)} | {*each.tensors()}
        names |= {node.name for node in each.nodes}
    return names


def _names_in(graph: onnx.GraphProto) -> Iterator[str]:
    for value in (*graph.input, *graph.output, *graph.value_info, *graph.initializer):
        yield value.name
    yield from (sparse.values.name for sparse in graph.sparse_initializer)
    for node in graph.node:
        yield from (node.name, *node.input, *node.output)
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                yield from _names_in(inner)


_NESTED = re.compile(r"\(\(([^()]*)\)\)")


def shape_text(shape: Sequence[int | str]) -> str:
    """A shape for people; a name is an axis that varies, and ``4*((H//4))`` is ``4*(H//4)``."""
    sizes, before = ", ".join(map(str, shape)), ""
    while sizes != before:
        before, sizes = sizes, _NESTED.sub(r"(\1)", sizes)
    return f"[{sizes}]"
