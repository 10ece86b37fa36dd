"""Weights of subgraphs, each in the file once.

GraphSurgeon writes a weight that branches read from the graph around them into every branch.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx


def share_weights(model: onnx.ModelProto) -> None:
    """Move a weight that several graphs of a model have alike into the main graph.

    One that differs from another of its name, or whose name is a value's elsewhere, stays.
    """
    everywhere = [model.graph, *_inner_graphs(model.graph)]
    if len(everywhere) == 1:
        return
    found: dict[str, list[tuple[onnx.GraphProto, onnx.TensorProto]]] = defaultdict(list)
    values: set[str] = set()
    for graph in everywhere:
        for weight in graph.initializer:
            found[weight.name].append((graph, weight))
        values |= {value.name for value in graph.input}
        values |= {name for node in graph.node for name in node.output}
    for name, places in found.items():
        (home, first), *others = places
        if name in values or not others or any(weight != first for _, weight in others):
            continue
        if home is not model.graph:
            model.graph.initializer.append(first)
            others = places
        for graph, weight in others:
            graph.initializer.remove(weight)


def subgraphs(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    """The graphs inside a node, such as the branches of an If; not those inside these."""
    for attribute in node.attribute:
        if attribute.HasField("g"):
            yield attribute.g
        yield from attribute.graphs


def _inner_graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    for node in graph.node:
        for inner in subgraphs(node):
            yield inner
            yield from _inner_graphs(inner)
