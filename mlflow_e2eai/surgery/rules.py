"""The rules: each takes a graph, changes it in place and returns its number of edits.

A rule preserves the graph's interface unless it declares a change of it, and finds nothing to do
the second time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from mlflow_e2eai.artifacts.graphs import operator_name
from mlflow_e2eai.errors import SurgeryError
from mlflow_e2eai.surgery.deduplication import merge_duplicates, merge_reshapes, merge_transposes
from mlflow_e2eai.surgery.extraction import break_fusion, expose, extract
from mlflow_e2eai.surgery.interface import changes, loses_outputs
from mlflow_e2eai.surgery.interface_rules import convert_input, fix_axis, rename
from mlflow_e2eai.surgery.node_edits import bypass_node, can_vanish, is_output, nodes_of
from mlflow_e2eai.surgery.pattern import replace
from mlflow_e2eai.surgery.simplify import fold_constants, simplify

if TYPE_CHECKING:
    import onnx_graphsurgeon as gs

Rule: TypeAlias = Callable[..., int]


def bypass(graph: gs.Graph, *, op_type: str, domain: str | None = None) -> int:
    """Remove nodes: readers of their first output read their first input instead.

    A graph output keeps its name. Where that takes a node of its own (the input is itself an input
    or output of the graph, or a constant), the node becomes an Identity.

    Args:
        graph: The graph.
        op_type: Operator of the nodes, for example ``FooOp``.
        domain: Domain of the operator; None for any.
    """
    nodes = nodes_of(graph, op_type, domain)
    for node in nodes:
        if not node.inputs or len(node.outputs) != 1:
            msg = (
                f"Node {node.name!r} ({op_type}) has {len(node.inputs)} inputs and "
                f"{len(node.outputs)} outputs, but bypass needs an input and exactly one output."
            )
            raise SurgeryError(msg)
    return sum(bypass_node(graph, node) for node in nodes)


@changes(loses_outputs)
def remove(graph: gs.Graph, *, op_type: str, domain: str | None = None) -> int:
    """Delete nodes together with the graph outputs that they feed, and all that only they used.

    Args:
        graph: The graph.
        op_type: Operator of the nodes, for example ``ArgMax``.
        domain: Domain of the operator; None for any.

    Raises:
        SurgeryError: Another node still reads one of them, or no output would be left.
    """
    nodes = nodes_of(graph, op_type, domain)
    doomed = {id(node) for node in nodes}
    for node in nodes:
        for tensor in node.outputs:
            readers = [reader for reader in tensor.outputs if id(reader) not in doomed]
            if readers:
                msg = (
                    f"Node {node.name!r} ({op_type}) cannot be removed: {readers[0].name!r} reads "
                    f"its output {tensor.name!r}; bypass it instead."
                )
                raise SurgeryError(msg)
    fed = {id(tensor) for node in nodes for tensor in node.outputs}
    outputs = [tensor for tensor in graph.outputs if id(tensor) not in fed]
    if nodes and not outputs:
        msg = f"Removing all {op_type} nodes would leave no output; bypass them instead."
        raise SurgeryError(msg)
    graph.outputs = outputs
    for node in nodes:
        node.outputs.clear()
        node.inputs.clear()
    graph.cleanup()
    return len(nodes)


def drop_identities(graph: gs.Graph) -> int:
    """Bypass nodes whose output is their input.

    These are Identity, Dropout as inference runs it, and Cast to the type of its input.
    """
    edits = 0
    # The type of a Cast's input may be known only once an Identity before it is removed.
    while dropped := sum(
        bypass_node(graph, node)
        for node in list(graph.nodes)
        if _is_identity(graph, node) and can_vanish(graph, node)
    ):
        edits += dropped
    return edits


def drop_zipmaps(graph: gs.Graph) -> int:
    """Make each output that is a list of maps the tensor of which ZipMap makes them.

    Scikit-learn's converter writes such: a map from class to score for each row. The tensor has a
    column for each class, in the order of the classes.
    """
    edits = 0
    for node in nodes_of(graph, "ZipMap", "ai.onnx.ml"):
        (result,), (source,) = node.outputs, node.inputs
        if is_output(graph, result):
            result.dtype, result.shape, result.type = source.dtype, source.shape, source.type
            node.op, node.domain, node.attrs = "Identity", None, {}
            edits += 1
    return edits


def drop_unused(graph: gs.Graph) -> int:
    """Delete nodes that no output depends on. Inputs of the graph stay, used or not."""
    before = len(graph.nodes)
    graph.cleanup(remove_unused_graph_inputs=False)
    return before - len(graph.nodes)


RULES: Mapping[str, Rule] = {
    rule.__name__: rule
    for rule in (
        bypass,
        remove,
        replace,
        drop_identities,
        drop_zipmaps,
        fold_constants,
        simplify,
        drop_unused,
        merge_duplicates,
        merge_transposes,
        merge_reshapes,
        rename,
        fix_axis,
        convert_input,
        expose,
        break_fusion,
        extract,
    )
}


def _is_false(tensor: gs.Tensor) -> bool:
    import onnx_graphsurgeon as gs

    if tensor.is_empty():
        return True
    return isinstance(tensor, gs.Constant) and not bool(tensor.values)


def _is_identity(graph: gs.Graph, node: gs.Node) -> bool:
    match operator_name(node.domain, node.op):
        case "Identity":
            return True
        case "Dropout":
            return not _is_active_dropout(graph, node)
        case "Cast":
            return _casts_to_the_same(node)
    return False


def _is_active_dropout(graph: gs.Graph, node: gs.Node) -> bool:
    """Whether a Dropout has an effect: it trains, or its mask is read."""
    mask_is_used = any(tensor.outputs or is_output(graph, tensor) for tensor in node.outputs[1:])
    return mask_is_used or (len(node.inputs) > 2 and not _is_false(node.inputs[2]))  # noqa: PLR2004 - ONNX Dropout's training_mode


def _casts_to_the_same(node: gs.Node) -> bool:
    import onnx

    dtype = node.inputs[0].dtype
    if not isinstance(dtype, type | np.dtype):
        return False  # unknown, or one that numpy lacks
    return bool(int(onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype))) == node.attrs["to"])
