"""Weights of graphs in a half precision."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from mlflow_e2eai.artifacts import external_data as weights
from mlflow_e2eai.artifacts import graphs

if TYPE_CHECKING:
    import onnx

    from mlflow_e2eai.artifacts.values import Array


def round_weight(weight: onnx.TensorProto, name: str, precision: str) -> onnx.TensorProto:
    """A weight in fp16 or bf16, under a name of its own."""
    import onnx

    if weights.is_reference(weight) and precision == "fp16":
        # Its type says what it is to be; its file is rounded piece by piece when it is written.
        rounded = onnx.TensorProto()
        rounded.CopyFrom(weight)
        rounded.name, rounded.data_type = name, onnx.TensorProto.FLOAT16
        return rounded
    is_there = weights.is_reference(weight)
    array = weights.values(weight) if is_there else onnx.numpy_helper.to_array(weight)
    return onnx.numpy_helper.from_array(_round(array, precision), name)


def _round(array: Array, precision: str) -> Array:
    """Numbers in a half type; what is finite stays finite, and what is not zero stays so."""
    if precision == "bf16":
        import ml_dtypes

        return array.astype(ml_dtypes.bfloat16)
    from onnxruntime.transformers.float16 import convert_np_to_float16

    rounded: Array = convert_np_to_float16(array.reshape(-1)).reshape(array.shape)
    return rounded


def move_constants(graph: onnx.GraphProto) -> None:
    """Make weights of the float constants that are nodes, so that both come in either type."""
    nodes = []
    for node in graph.node:
        tensor = _float_constant(node)
        if tensor is None:
            nodes.append(node)
            continue
        weight = graph.initializer.add()
        weight.CopyFrom(tensor)
        weight.name = node.output[0]
        for value in graph.value_info:
            if value.name == weight.name:
                graph.value_info.remove(value)
                break
    del graph.node[:]
    graph.node.extend(nodes)


def _float_constant(node: onnx.NodeProto) -> onnx.TensorProto | None:
    import onnx

    if node.op_type != "Constant" or node.domain not in ("", "ai.onnx") or not node.attribute:
        return None
    value = node.attribute[0]
    if value.name in ("value_float", "value_floats"):
        numbers = np.asarray(onnx.helper.get_attribute_value(value), np.float32)
        return onnx.numpy_helper.from_array(numbers)
    is_float = value.name == "value" and value.t.data_type == onnx.TensorProto.FLOAT
    return value.t if is_float else None


def drop_unread(model: onnx.ModelProto) -> None:
    """Drop the weights that nothing reads any more, of the graph and of its subgraphs."""
    inner = [each for node in graphs.nodes(model) for each in graphs.subgraphs(node)]
    read = {name for node in graphs.nodes(model) for name in node.input}
    read |= {value.name for each in (model.graph, *inner) for value in each.output}
    for each in (model.graph, *inner):
        used = [weight for weight in each.initializer if weight.name in read]
        del each.initializer[:]
        each.initializer.extend(used)
