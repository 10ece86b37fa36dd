"""Graphs whose values are rounded as a GPU rounds them, for ONNX Runtime on the CPU.

Written by hand, as ONNX Runtime has no such mode.
Of fp16 neighbours it computes in fp32 and rounds behind them, which hides an overflow; of bf16 it
has hardly a kernel. Its casts to both types are exact: to the nearest, ties to even.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from mlflow_e2eai.artifacts import external_data as weights
from mlflow_e2eai.artifacts import graphs
from mlflow_e2eai.artifacts.names import FreshNames
from mlflow_e2eai.artifacts.value_types import Types, write_types

if TYPE_CHECKING:
    import onnx


def emulate_rounding(path: Path) -> bytes:
    """Return a graph with a GPU's rounding; further outputs may follow those of `path`."""
    import onnx

    model = graphs.read(path)
    for tensor in weights.references(model):
        tensor.external_data[0].value = Path(tensor.external_data[0].value).name
    if _computes_in_bf16(model):
        _emulate_bf16(model)
    else:
        _output_fp16_values(onnx.shape_inference.infer_shapes(model), model)
    content: bytes = model.SerializeToString()
    return content


def _output_fp16_values(inferred: onnx.ModelProto, model: onnx.ModelProto) -> None:
    """Make every fp16 value an output, so that each is rounded."""
    import onnx

    known = {output.name for output in model.graph.output}
    model.graph.output.extend(
        value
        for value in inferred.graph.value_info
        if value.type.tensor_type.elem_type == onnx.TensorProto.FLOAT16 and value.name not in known
    )


def _computes_in_bf16(model: onnx.ModelProto) -> bool:
    import onnx

    narrow = onnx.TensorProto.BFLOAT16
    return any(tensor.data_type == narrow for tensor in weights.tensors(model)) or any(
        node.op_type == "Cast"
        and any(one.name == "to" and one.i == narrow for one in node.attribute)
        for node in graphs.nodes(model)
    )


def _emulate_bf16(model: onnx.ModelProto) -> None:
    """Compute bf16 nodes in fp32, and round the outputs of each to bf16 and back.

    A GPU does the same: it multiplies bf16, sums in fp32, and rounds the result.
    """
    _emulate_inside(model.graph, write_types(model), FreshNames.of_model(model))


def _emulate_inside(graph: onnx.GraphProto, types: Types, fresh: FreshNames) -> None:
    import onnx

    narrow, wide = onnx.TensorProto.BFLOAT16, onnx.TensorProto.FLOAT
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        for inner in graphs.subgraphs(node):
            _emulate_inside(inner, types.inside(inner), fresh)
        nodes.append(node)
        for attribute in node.attribute:
            if node.op_type == "Cast" and attribute.name == "to" and attribute.i == narrow:
                attribute.i = wide
            if attribute.HasField("t") and attribute.t.data_type == narrow:
                attribute.t.CopyFrom(_widen(attribute.t))
        for index, name in enumerate(node.output):
            if types.of(name) == narrow:
                node.output[index] = fresh(f"{name}_exact")
                nodes += _round_trip(node.output[index], fresh(f"{name}_rounded"), name)
    for weight in graph.initializer:
        if weight.data_type == narrow:
            weight.CopyFrom(_widen(weight))
    del graph.node[:], graph.value_info[:]
    graph.node.extend(nodes)


def _round_trip(source: str, between: str, name: str) -> Iterable[onnx.NodeProto]:
    import onnx

    yield onnx.helper.make_node("Cast", [source], [between], to=onnx.TensorProto.BFLOAT16)
    yield onnx.helper.make_node("Cast", [between], [name], to=onnx.TensorProto.FLOAT)


def _widen(weight: onnx.TensorProto) -> onnx.TensorProto:
    import numpy as np
    import onnx

    is_external = weights.is_reference(weight)
    array = weights.values(weight) if is_external else onnx.numpy_helper.to_array(weight)
    return onnx.numpy_helper.from_array(array.astype(np.float32), weight.name)
