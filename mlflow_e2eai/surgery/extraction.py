"""Rules that make inner tensors inputs or outputs of the graph."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from mlflow_e2eai.errors import SurgeryError, nearest
from mlflow_e2eai.surgery.interface import adds_outputs, changes, extracts
from mlflow_e2eai.surgery.node_edits import is_output, nodes_of

if TYPE_CHECKING:
    import onnx_graphsurgeon as gs


@changes(adds_outputs)
def expose(graph: gs.Graph, *, tensors: Sequence[str]) -> int:
    """Make inner tensors outputs of the graph too, after those that it has.

    Args:
        graph: The graph.
        tensors: Their names, which become the names of the outputs.

    Raises:
        SurgeryError: No node of the main graph writes such a tensor, or its type is not known.
    """
    return _as_outputs(graph, [_inner_tensor(graph, name, "expose") for name in tensors])


@changes(adds_outputs)
def break_fusion(graph: gs.Graph, *, first: str, then: str) -> int:
    """Prevent a runtime from fusing two operators: the tensor between them becomes an output.

    Args:
        graph: The graph.
        first: Operator of the node that writes the tensor, for example ``Conv``.
        then: Operator of a node that reads the tensor, for example ``Relu``.
    """
    between = [
        tensor
        for node in nodes_of(graph, first, None)
        for tensor in node.outputs
        if any(reader.op == then for reader in tensor.outputs)
    ]
    return _as_outputs(graph, between)


@changes(extracts)
def extract(
    graph: gs.Graph, *, inputs: Sequence[str] | None = None, outputs: Sequence[str] | None = None
) -> int:
    """Reduce the graph to the nodes between named tensors.

    Args:
        graph: The graph.
        inputs: Tensors that become the inputs, all that the outputs need; None for its inputs.
        outputs: Tensors that become the outputs; None for its outputs.

    Raises:
        SurgeryError: There is no such tensor, its type is not known, or the outputs need more than
            these inputs.
    """
    known = {tensor.name: tensor for tensor in graph.inputs}
    begin = [
        known.get(name) or _inner_tensor(graph, name, "begin at") for name in _or(inputs, known)
    ]
    known = {tensor.name: tensor for tensor in graph.outputs}
    end = [known.get(name) or _inner_tensor(graph, name, "end at") for name in _or(outputs, known)]
    if _same(begin, graph.inputs) and _same(end, graph.outputs):
        return 0
    _infer_types(graph, [*begin, *end])
    before = len(graph.nodes)
    for tensor in begin:
        tensor.inputs.clear()
    graph.inputs, graph.outputs = begin, end
    graph.cleanup(remove_unused_graph_inputs=False)
    _require_computable(graph)
    return max(1, before - len(graph.nodes))


def _or(given: Sequence[str] | None, known: dict[str, gs.Tensor]) -> Sequence[str]:
    return list(known) if given is None else given


def _same(some: Sequence[gs.Tensor], others: Sequence[gs.Tensor]) -> bool:
    return [id(tensor) for tensor in some] == [id(tensor) for tensor in others]


def _inner_tensor(graph: gs.Graph, name: str, verb: str) -> gs.Tensor:
    """A tensor that a node of the main graph writes."""
    tensors = {tensor.name: tensor for node in graph.nodes for tensor in node.outputs}
    if name not in tensors:
        near = nearest(name, tensors)
        hint = f"did you mean {near!r}?" if near else "`mlflow_e2eai show` shows their names."
        msg = f"No node makes a tensor {name!r} to {verb}; {hint}"
        raise SurgeryError(msg)
    return tensors[name]


def _as_outputs(graph: gs.Graph, tensors: Sequence[gs.Tensor]) -> int:
    new = {id(tensor): tensor for tensor in tensors if not is_output(graph, tensor)}
    _infer_types(graph, [*new.values()])
    graph.outputs = [*graph.outputs, *new.values()]
    return len(new)


def _infer_types(graph: gs.Graph, tensors: Sequence[gs.Tensor]) -> None:
    """Infer missing types and shapes by ONNX; refuse a tensor without a type."""
    import onnx
    import onnx_graphsurgeon as gs

    unknown = [tensor for tensor in tensors if tensor.dtype is None or tensor.shape is None]
    if not unknown:
        return
    inferred = onnx.shape_inference.infer_shapes(gs.export_onnx(graph), data_prop=True).graph
    values = {value.name: value for value in inferred.value_info}
    for tensor in unknown:
        value = values.get(tensor.name)
        if value is None or not value.type.tensor_type.elem_type:
            msg = (
                f"The type of {tensor.name!r} is unknown, so it cannot be an input or output; take "
                "one that a standard ONNX operator writes."
            )
            raise SurgeryError(msg)
        imported = gs.importers.onnx_importer.OnnxImporter.import_tensor(value)
        tensor.dtype, tensor.shape = imported.dtype, imported.shape


def _require_computable(graph: gs.Graph) -> None:
    import onnx_graphsurgeon as gs

    given = {id(tensor) for tensor in graph.inputs}
    for tensor in graph.tensors().values():
        is_known = tensor.inputs or id(tensor) in given or tensor.is_empty()
        if not is_known and not isinstance(tensor, gs.Constant):
            msg = (
                f"Between {[t.name for t in graph.inputs]} and {[t.name for t in graph.outputs]} "
                f"{tensor.name!r} is needed too; add it to the inputs."
            )
            raise SurgeryError(msg)
