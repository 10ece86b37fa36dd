"""Rules that merge nodes and constants that compute the same as another.

onnx_ir's `CommonSubexpressionEliminationPass` (1.1.0) was tried and is not used: it merges two
draws of Bernoulli or of an operator that it does not know, which changes the numbers, and its
`DeduplicateInitializersPass` reads every weight, those in files of their own too.
"""

from __future__ import annotations

import hashlib
from collections.abc import Hashable
from typing import TYPE_CHECKING

import numpy as np

from mlflow_e2eai.artifacts.external_data import is_reference
from mlflow_e2eai.artifacts.graphs import operator_name, sort
from mlflow_e2eai.surgery.node_edits import bypass_node, hand_over, is_output, nodes_of

if TYPE_CHECKING:
    import onnx_graphsurgeon as gs

_RANDOM = frozenset(
    (
        "Bernoulli",
        "Dropout",
        "Multinomial",
        "RandomNormal",
        "RandomNormalLike",
        "RandomUniform",
        "RandomUniformLike",
    )
)
"""Operators of ONNX whose outputs may differ between calls on the same inputs."""


def merge_duplicates(graph: gs.Graph) -> int:
    """Merge equal nodes and equal constants (common subexpression elimination).

    Nodes are equal when their operator, attributes and inputs are. Only operators of ONNX itself
    are merged, as others may have side effects, and none that draws random numbers or holds a
    subgraph. Two nodes that both feed outputs of the graph stay, for the names. Constants
    are equal when type, shape and bytes are; those of types that numpy lacks stay as they are.
    """
    edits = _merge_constants(graph)
    # Where the later of two stays, the keys of its readers are out of date.
    while merged := _merge_nodes(graph):
        edits += merged
    return edits


def merge_transposes(graph: gs.Graph) -> int:
    """Merge two Transposes in a row into one; into none where the second undoes the first."""
    sort(graph)
    edits = 0
    for node in nodes_of(graph, "Transpose", ""):
        before = _writer(node, "Transpose")
        perm = node.attrs.get("perm")
        if before is not None and perm is not None and before.attrs.get("perm") is not None:
            perm = node.attrs["perm"] = [before.attrs["perm"][axis] for axis in perm]
            _read_past(graph, node, before)
            edits += 1
        if perm is not None and list(perm) == list(range(len(perm))):
            edits += bypass_node(graph, node)
    return edits


def merge_reshapes(graph: gs.Graph) -> int:
    """Make a Reshape after a Reshape read the input of the first.

    Its shape must be a constant without a 0, which would copy a size of its input.
    """
    import onnx_graphsurgeon as gs

    sort(graph)
    edits = 0
    for node in nodes_of(graph, "Reshape", ""):
        before, shape = _writer(node, "Reshape"), node.inputs[1]
        if before is not None and isinstance(shape, gs.Constant) and 0 not in shape.values:
            _read_past(graph, node, before)
            edits += 1
    return edits


def _merge_constants(graph: gs.Graph) -> int:
    import onnx_graphsurgeon as gs

    seen: dict[Hashable, gs.Constant] = {}
    edits = 0
    named = {tensor.name for tensor in (*graph.inputs, *graph.outputs)}
    for tensor in graph.tensors().values():
        # GraphSurgeon writes types that numpy lacks wrongly once their values were looked at.
        if not isinstance(tensor, gs.Constant) or tensor.name in named or not _is_plain(tensor):
            continue
        key = _bytes_key(tensor)
        first = seen.setdefault(key, tensor)
        if first is not tensor:
            hand_over(tensor, first)
            edits += 1
    return edits


def _bytes_key(tensor: gs.Constant) -> Hashable:
    """Type, shape and bytes; of a weight in another file, the location instead: it stays there."""
    import onnx_graphsurgeon as gs

    lazy = tensor._values  # noqa: SLF001 - looking at its values would load them
    if isinstance(lazy, gs.ir.tensor.LazyValues) and is_reference(lazy.tensor):
        location = tuple(entry.value for entry in lazy.tensor.external_data)
        return lazy.tensor.data_type, tuple(lazy.shape), location
    values = np.ascontiguousarray(tensor.values)
    return values.dtype.str, tensor.values.shape, hashlib.sha256(values.data).digest()


def _is_plain(tensor: gs.Constant) -> bool:
    import onnx_graphsurgeon as gs

    sparse = isinstance(tensor._values, gs.ir.tensor.SparseValues)  # noqa: SLF001 - there is no public way
    dtype = tensor.export_dtype
    known = isinstance(dtype, type | np.dtype) and np.dtype(dtype).isbuiltin == 1
    return known and not sparse and np.dtype(dtype).kind in "biuf"


def _merge_nodes(graph: gs.Graph) -> int:
    sort(graph)
    seen: dict[Hashable, gs.Node] = {}
    edits = 0
    for node in list(graph.nodes):
        key = _node_key(node)
        first = node if key is None else seen.setdefault(key, node)
        if first is node:
            continue
        retained, duplicate = first, node
        if _feeds_output(graph, duplicate):
            retained, duplicate = duplicate, retained
        if _feeds_output(graph, duplicate):
            continue
        seen[key] = retained
        for old, new in zip(duplicate.outputs, retained.outputs, strict=True):
            hand_over(old, new)
        _delete(graph, duplicate)
        edits += 1
    return edits


def _node_key(node: gs.Node) -> Hashable:
    """Key of the computation of a node; None where it is unknown."""
    if operator_name(node.domain, node.op) != node.op or node.op in _RANDOM:
        return None
    plain = (int, float, str, bytes, list)
    if not all(isinstance(value, plain) for value in node.attrs.values()):
        return None  # a graph, or a tensor: fold_constants makes constants of those
    return (
        node.op,
        repr(sorted(node.attrs.items())),
        tuple(tensor.name for tensor in node.inputs),
        tuple(tensor.is_empty() for tensor in node.outputs),
    )


def _feeds_output(graph: gs.Graph, node: gs.Node) -> bool:
    return any(is_output(graph, tensor) for tensor in node.outputs)


def _writer(node: gs.Node, op_type: str) -> gs.Node | None:
    """The node that writes the first input of a node, if it has that operator; else None."""
    writers = node.inputs[0].inputs
    if len(writers) != 1 or operator_name(writers[0].domain, writers[0].op) != op_type:
        return None
    return writers[0]


def _read_past(graph: gs.Graph, node: gs.Node, before: gs.Node) -> None:
    """Make a node read the input of the one before it, and delete that one if it is unread."""
    node.inputs[0] = before.inputs[0]
    if not before.outputs[0].outputs and not _feeds_output(graph, before):
        _delete(graph, before)


def _delete(graph: gs.Graph, node: gs.Node) -> None:
    node.inputs.clear()
    node.outputs.clear()
    graph.nodes.remove(node)
