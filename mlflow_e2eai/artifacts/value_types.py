"""Types of the values of a graph, by ONNX's inference and by the definitions of operators.

ONNX's inference stops at an operator that it does not know. What the next operators read alongside,
their weights for example, says of which type that operator's outputs must be.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mlflow_e2eai.artifacts import external_data, graphs

if TYPE_CHECKING:
    import onnx


@dataclass(frozen=True, slots=True)
class Types:
    """Types of the values that a graph sees, as numbers of ``TensorProto.DataType``.

    Attributes:
        known: The types by name, of those around it too.
        opset: The operator set.
    """

    known: Mapping[str, int]
    opset: int

    def of(self, name: str) -> int | None:
        """The type of a value; None where it is not known."""
        return self.known.get(name) or None

    def inside(self, graph: onnx.GraphProto) -> Types:
        """The types that a graph inside this one sees."""
        return _types_in(graph, self.known, self.opset)


def infer_types(model: onnx.ModelProto) -> Types:
    """The types of the values of a model without functions."""
    return _types_in(_infer_by_onnx(model), {}, graphs.opset_of(model))


def write_types(model: onnx.ModelProto) -> Types:
    """The types of the values of a model without functions, and of the graphs inside.

    What ONNX's inference finds is written into the model.
    """
    _write(_infer_by_onnx(model), model.graph)
    return _types_in(model.graph, {}, graphs.opset_of(model))


def _infer_by_onnx(model: onnx.ModelProto) -> onnx.GraphProto:
    import onnx

    try:
        inferred = onnx.shape_inference.infer_shapes(external_data.skeleton(model)).graph
    except onnx.shape_inference.InferenceError:
        return model.graph  # the definitions of its operators still tell some
    return inferred


def _write(source: onnx.GraphProto, target: onnx.GraphProto) -> None:
    """Copy what inference found into a graph and the graphs inside."""
    del target.value_info[:]
    target.value_info.extend(source.value_info)
    for node, like in zip(target.node, source.node, strict=True):
        for inner, found in zip(graphs.subgraphs(node), graphs.subgraphs(like), strict=True):
            _write(found, inner)


def _types_in(graph: onnx.GraphProto, around: Mapping[str, int], opset: int) -> Types:
    known = dict(around)
    for value in (*graph.input, *graph.value_info, *graph.output):
        if kind := value.type.tensor_type.elem_type:
            known[value.name] = int(kind)
    known |= {weight.name: int(weight.data_type) for weight in graph.initializer}
    _spread(graph.node, known, opset)
    return Types(known, opset)


def _spread(nodes: Iterable[onnx.NodeProto], known: dict[str, int], opset: int) -> None:
    """Find types by the definitions of operators: forwards, backwards, until none is found."""
    pending = [
        node
        for node in nodes
        if any(name and name not in known for name in (*node.input, *node.output))
    ]
    count = -1
    while count != len(known):
        count = len(known)
        for node in pending:
            _spread_in(node, known, opset)
        pending.reverse()


def _spread_in(node: onnx.NodeProto, known: dict[str, int], opset: int) -> None:
    schema = schema_of(node, opset)
    if schema is None:
        return
    alike: dict[str, list[str]] = {}
    for names, formal in ((node.input, schema.inputs), (node.output, schema.outputs)):
        for position, name in enumerate(names):
            kind = formal[min(position, len(formal) - 1)]
            if name and kind.is_homogeneous:
                alike.setdefault(kind.type_str, []).append(name)
    for type_name, values in alike.items():
        found = _only_type(type_name) or next((known[name] for name in values if name in known), 0)
        if found:
            known.update((name, found) for name in values if name not in known)
    if node.op_type == "Cast":
        known.update(dict.fromkeys(node.output, _to(node)))


def _to(node: onnx.NodeProto) -> int:
    return next(int(one.i) for one in node.attribute if one.name == "to")


@functools.cache
def _only_type(kind: str) -> int:
    """The type of a parameter that has one alone, such as ``tensor(int64)``; else 0."""
    import onnx

    return {
        "tensor(float)": int(onnx.TensorProto.FLOAT),
        "tensor(double)": int(onnx.TensorProto.DOUBLE),
        "tensor(int64)": int(onnx.TensorProto.INT64),
        "tensor(int32)": int(onnx.TensorProto.INT32),
        "tensor(bool)": int(onnx.TensorProto.BOOL),
        "tensor(string)": int(onnx.TensorProto.STRING),
    }.get(kind, 0)


def schema_of(node: onnx.NodeProto, opset: int) -> onnx.defs.OpSchema | None:
    """ONNX's definition of a node's operator; None for an operator that ONNX does not define."""
    if node.domain not in ("", "ai.onnx"):
        return None
    return _schema(node.op_type, opset)


@functools.cache
def _schema(operator: str, opset: int) -> onnx.defs.OpSchema | None:
    import onnx

    try:
        return onnx.defs.get_schema(operator, opset)
    except onnx.defs.SchemaError:
        return None
