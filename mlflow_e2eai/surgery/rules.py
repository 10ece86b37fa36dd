"""The rules: each takes a graph, changes it in place and returns its number of edits.

A rule keeps the graph's interface unless changing it is its business, and finds nothing left to do
the second time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, TypeAlias

from mlflow_e2eai.errors import SurgeryError
from mlflow_e2eai.graphs import operator_name
from mlflow_e2eai.surgery.simplify import simplify

if TYPE_CHECKING:
    import onnx_graphsurgeon as gs

Rule: TypeAlias = Callable[..., int]


def bypass(graph: gs.Graph, *, op_type: str, domain: str | None = None) -> int:
    """Take nodes out of the way: whoever read their first output reads their first input instead.

    A graph output keeps its name. Where that takes a node of its own (the input is itself an input
    or output of the graph, or a constant), the node becomes an Identity.

    Args:
        graph: The graph.
        op_type: Operator of the nodes, for example ``FooOp``.
        domain: Domain of the operator; None for any.
    """
    nodes = _matching(graph, op_type, domain)
    for node in nodes:
        if not node.inputs or len(node.outputs) != 1:
            msg = (
                f"Node {node.name!r} ({op_type}) has {len(node.inputs)} inputs and "
                f"{len(node.outputs)} outputs, but bypass needs an input and exactly one output."
            )
            raise SurgeryError(msg)
    return sum(_bypass(graph, node) for node in nodes)


def remove(graph: gs.Graph, *, op_type: str, domain: str | None = None) -> int:
    """Delete nodes together with the graph outputs that they feed, and whatever only they used.

    Args:
        graph: The graph.
        op_type: Operator of the nodes, for example ``ArgMax``.
        domain: Domain of the operator; None for any.

    Raises:
        SurgeryError: Another node still reads one of them, or no output would be left.
    """
    nodes = _matching(graph, op_type, domain)
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
    kept = [tensor for tensor in graph.outputs if id(tensor) not in fed]
    if nodes and not kept:
        msg = f"Removing all {op_type} nodes would leave no output; bypass them instead."
        raise SurgeryError(msg)
    graph.outputs = kept
    for node in nodes:
        node.outputs.clear()
        node.inputs.clear()
    graph.cleanup()
    return len(nodes)


def drop_identities(graph: gs.Graph) -> int:
    """Bypass nodes that hand on what they get: Identity, and Dropout as inference runs it."""
    edits = 0
    for node in [*_matching(graph, "Identity", None), *_matching(graph, "Dropout", None)]:
        mask_is_used = any(
            tensor.outputs or _is_output(graph, tensor) for tensor in node.outputs[1:]
        )
        trains = len(node.inputs) > 2 and not _is_false(node.inputs[2])  # noqa: PLR2004 - ONNX Dropout's training_mode
        if mask_is_used or trains or not _can_vanish(graph, node):
            continue
        while len(node.outputs) > 1:
            node.outputs.pop()
        edits += _bypass(graph, node)
    return edits


def fold_constants(graph: gs.Graph) -> int:
    """Compute what depends on constants only, once and for all, with ONNX Runtime."""
    before = len(graph.nodes)
    graph.fold_constants()
    graph.cleanup()
    return before - len(graph.nodes)


def drop_unused(graph: gs.Graph) -> int:
    """Delete nodes that no output depends on. Inputs of the graph stay, used or not."""
    before = len(graph.nodes)
    graph.cleanup(remove_unused_graph_inputs=False)
    return before - len(graph.nodes)


def rename(
    graph: gs.Graph,
    *,
    inputs: Mapping[str, str] | None = None,
    outputs: Mapping[str, str] | None = None,
) -> int:
    """Rename inputs and outputs of the graph.

    Args:
        graph: The graph.
        inputs: New name by old. Names that the graph's inputs do not have are an error, unless
            they were renamed already.
        outputs: The same for outputs.

    Raises:
        SurgeryError: There is no such input or output, or the new name is taken.
    """
    taken = set(graph.tensors())
    return _rename(graph.inputs, inputs or {}, taken, "input") + _rename(
        graph.outputs, outputs or {}, taken, "output"
    )


RULES: Mapping[str, Rule] = {
    rule.__name__: rule
    for rule in (bypass, remove, drop_identities, fold_constants, simplify, drop_unused, rename)
}


def _matching(graph: gs.Graph, op_type: str, domain: str | None) -> list[gs.Node]:
    wanted = None if domain is None else operator_name(domain, op_type)
    return [
        node
        for node in graph.nodes
        if node.op == op_type and wanted in (None, operator_name(node.domain, node.op))
    ]


def _bypass(graph: gs.Graph, node: gs.Node) -> int:
    """Take one node out of the way; 1 when something changed."""
    source, result = node.inputs[0], node.outputs[0]
    if not _is_output(graph, result):
        for reader in list(result.outputs):
            reader.inputs = [source if tensor is result else tensor for tensor in reader.inputs]
    elif _can_take_name(graph, source):
        # The output's name belongs to the caller, so its tensor stays and the inner one goes.
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


def _can_vanish(graph: gs.Graph, node: gs.Node) -> bool:
    return not _is_output(graph, node.outputs[0]) or _can_take_name(graph, node.inputs[0])


def _can_take_name(graph: gs.Graph, tensor: gs.Tensor) -> bool:
    """Whether a tensor is an inner one: made by one node of this graph and no output itself."""
    made_here = len(tensor.inputs) == 1 and any(tensor.inputs[0] is node for node in graph.nodes)
    return made_here and not _is_output(graph, tensor)


def _is_output(graph: gs.Graph, tensor: gs.Tensor) -> bool:
    return any(tensor is output for output in graph.outputs)


def _is_false(tensor: gs.Tensor) -> bool:
    import onnx_graphsurgeon as gs

    if tensor.is_empty():
        return True
    return isinstance(tensor, gs.Constant) and not bool(tensor.values)


def _rename(tensors: list[gs.Tensor], names: Mapping[str, str], taken: set[str], kind: str) -> int:
    found = {tensor.name: tensor for tensor in tensors}
    edits = 0
    for old, new in names.items():
        if old not in found and new in found:
            continue
        if old not in found:
            msg = f"There is no {kind} {old!r} to rename; the {kind}s are {sorted(found)}."
            raise SurgeryError(msg)
        if new in taken:
            msg = f"{kind.capitalize()} {old!r} cannot be named {new!r}: that name is taken."
            raise SurgeryError(msg)
        found[old].name = new
        taken.add(new)
        edits += 1
    return edits
