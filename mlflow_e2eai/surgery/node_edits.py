"""Nodes and tensors of a GraphSurgeon graph: queries, and the removal of a node."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Self

from mlflow_e2eai.artifacts.graphs import operator_name

if TYPE_CHECKING:
    import onnx_graphsurgeon as gs


class Edits(int):
    """A rule's number of edits, with remarks for the report.

    Attributes:
        notes: Sentences on what the rule could not do.
    """

    notes: tuple[str, ...]

    def __new__(cls, count: int, notes: Iterable[str] = ()) -> Self:
        """Make a number with remarks."""
        edits = super().__new__(cls, count)
        edits.notes = tuple(notes)
        return edits


def nodes_of(graph: gs.Graph, op_type: str, domain: str | None) -> list[gs.Node]:
    """The nodes of an operator; domain None for any."""
    wanted = None if domain is None else operator_name(domain, op_type)
    return [
        node
        for node in graph.nodes
        if node.op == op_type and wanted in (None, operator_name(node.domain, node.op))
    ]


def bypass_node(graph: gs.Graph, node: gs.Node) -> int:
    """Remove one node, and make its readers read its input; 1 when something changed."""
    source, result = node.inputs[0], node.outputs[0]
    if not is_output(graph, result):
        hand_over(result, source)
    elif can_take_name(graph, source):
        # The output's name belongs to the caller, so its tensor stays and the inner one is removed.
        (producer,) = source.inputs
        for reader in list(source.outputs):
            if reader is not node:
                reader.inputs = [result if tensor is source else tensor for tensor in reader.inputs]
        node.outputs.clear()
        producer.outputs = [result if tensor is source else tensor for tensor in producer.outputs]
    elif node.op == "Identity":
        return 0
    else:
        node.op, node.domain, node.attrs = "Identity", None, {}
        node.inputs = [source]
        return 1
    node.inputs.clear()
    node.outputs.clear()
    graph.nodes.remove(node)
    return 1


def can_vanish(graph: gs.Graph, node: gs.Node) -> bool:
    """Whether a node can be bypassed without leaving an Identity."""
    return not is_output(graph, node.outputs[0]) or can_take_name(graph, node.inputs[0])


def can_take_name(graph: gs.Graph, tensor: gs.Tensor) -> bool:
    """Whether a tensor is an inner one: written by one node of this graph and no output."""
    is_output_of_node = len(tensor.inputs) == 1 and any(
        tensor.inputs[0] is node for node in graph.nodes
    )
    return is_output_of_node and not is_output(graph, tensor)


def is_output(graph: gs.Graph, tensor: gs.Tensor) -> bool:
    """Whether a tensor is an output of this graph."""
    return any(tensor is output for output in graph.outputs)


def hand_over(old: gs.Tensor, new: gs.Tensor) -> None:
    """Make all readers of one tensor read another."""
    for reader in list(old.outputs):
        reader.inputs = [new if tensor is old else tensor for tensor in reader.inputs]
