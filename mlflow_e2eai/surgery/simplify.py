"""Generic simplification, by well-maintained libraries."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from mlflow_e2eai.artifacts import external_data as weights
from mlflow_e2eai.artifacts import graphs
from mlflow_e2eai.errors import SurgeryError
from mlflow_e2eai.surgery.node_edits import hand_over

if TYPE_CHECKING:
    import onnx
    import onnx_graphsurgeon as gs

_MAY_GROW_BYTES = 1 << 20
"""Folded constants may make the file this much larger."""

_WEIGHT_BYTES = 1 << 16
"""Smaller constants cost nothing to pass on, and may be sizes, indices and bounds."""

_WEIGHT_OF = {"Gather": 0, "MatMul": 1}
"""Input position of a weight whose values no simplification reads, by operator."""


def simplify(graph: gs.Graph) -> int:
    """Simplify with onnxsim, then with onnxslim.

    Neither does all that the other does: onnxsim folds shapes and makes Gemm of MatMul and Add,
    onnxslim drops nodes between two equal shapes. Where both together make the graph much larger (a
    giant tensor of equal values was written out), onnxslim runs alone, which has an option to leave
    such a tensor as it is; onnxsim has none that works.

    Both write and read the whole graph many times over, so tables and matrices, which are most of
    a transformer's bytes, are inputs meanwhile. They run until they find nothing: a table whose
    indices were folded is no longer set aside, and is folded too.

    Args:
        graph: The graph.

    Raises:
        SurgeryError: An output of the graph was lost or renamed.
    """
    saved_bytes = 0
    while saved := _simplify_once(graph):
        saved_bytes += saved
    return saved_bytes


def _simplify_once(graph: gs.Graph) -> int:
    import onnx_graphsurgeon as gs

    aside = _set_aside(graph)
    try:
        before = gs.export_onnx(graphs.sort(graph))
        weights.settle(before)
        after = _run_simplifier(before)
        saved = len(before.graph.node) - len(after.graph.node)
        if saved <= 0:
            return 0
        wanted = [value.name for value in before.graph.output]
        outputs = [value.name for value in after.graph.output]
        if wanted != outputs:
            msg = f"Simplification made the outputs {outputs} of {wanted}; leave out the rule."
            raise SurgeryError(msg)
        # onnxslim drops unread inputs, which callers still pass.
        del after.graph.input[:]
        after.graph.input.extend(before.graph.input)
        _take_over(graph, graphs.to_graph(after))
    finally:
        _put_back(graph, aside)
    return saved


def _run_simplifier(model: onnx.ModelProto) -> onnx.ModelProto:
    import onnxsim
    import onnxslim

    simplified, _ = onnxsim.simplify(model)
    # onnxsim makes Gemm of a MatMul of three dimensions too, with sizes and Reshapes around it.
    if len(simplified.graph.node) > len(model.graph.node):
        simplified = model
    slim: onnx.ModelProto = onnxslim.slim(simplified)
    if slim.ByteSize() > model.ByteSize() + _MAY_GROW_BYTES:
        slim = onnxslim.slim(model, size_threshold=_MAY_GROW_BYTES)
    return slim


def _set_aside(graph: gs.Graph) -> dict[str, gs.Constant]:
    """Turn the graph's weights into inputs; returns those weights, by name."""
    import onnx_graphsurgeon as gs

    aside = {
        name: tensor
        for name, tensor in graph.tensors().items()
        if isinstance(tensor, gs.Constant) and _is_weight(tensor)
    }
    for name, weight in aside.items():
        stand_in = gs.Variable(name, dtype=weight.dtype, shape=weight.shape)
        hand_over(weight, stand_in)
        graph.inputs.append(stand_in)
    return aside


def _put_back(graph: gs.Graph, aside: dict[str, gs.Constant]) -> None:
    for tensor in graph.inputs:
        if tensor.name in aside:
            hand_over(tensor, aside[tensor.name])
    graph.inputs = [tensor for tensor in graph.inputs if tensor.name not in aside]


def _is_weight(tensor: gs.Constant) -> bool:
    """Whether a constant is a large one that is only read where its values do not matter.

    onnxsim merges the three MatMuls of an attention whose input nothing else reads: their weights
    are passed to it.

    A weight in another file counts as such: the libraries would load it, and fold the parts that
    are read into the graph.
    """
    import onnx_graphsurgeon as gs

    if graphs.is_in_other_file(tensor):
        return True
    if not isinstance(tensor.dtype, type | np.dtype) or _bytes_of(tensor) < _WEIGHT_BYTES:
        return False
    for node in tensor.outputs:
        position = _WEIGHT_OF.get(node.op)
        others = [other for other in node.inputs if other is not tensor]
        alone = len(others) == 1 and not isinstance(others[0], gs.Constant)
        if position is None or not alone or node.inputs[position] is not tensor:
            return False
        if [reader.op for reader in others[0].outputs] == ["MatMul"] * 3:
            return False
    return True


def _bytes_of(tensor: gs.Constant) -> int:
    size: int = math.prod(tensor.shape) * np.dtype(tensor.dtype).itemsize
    return size


def _take_over(graph: gs.Graph, simplified: gs.Graph) -> None:
    graph.nodes, graph.inputs, graph.outputs = (
        simplified.nodes,
        simplified.inputs,
        simplified.outputs,
    )
    graph.functions, graph.opset, graph.import_domains = (
        simplified.functions,
        simplified.opset,
        simplified.import_domains,
    )
    graphs.name_nodes(graph)
