"""Values that only tell a Softmax what to leave out: how far below zero they are is no matter."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mlflow_e2eai import graphs

if TYPE_CHECKING:
    import onnx

_DATA_INPUTS: Mapping[str, slice] = {
    "Add": slice(None),
    "Concat": slice(None),
    "Where": slice(1, None),
    **dict.fromkeys(("Expand", "Gather", "GatherND", "Identity", "Reshape"), slice(1)),
    **dict.fromkeys(("Slice", "Squeeze", "Tile", "Transpose", "Unsqueeze"), slice(1)),
}
"""Operators that hand a large negative number on as one, and the inputs that they take it from."""

_ROWWISE = 13
"""Opset from which Softmax goes along one axis; before, it flattened all behind the axis."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Masks:
    """The values that only Softmaxes read in the end.

    Attributes:
        leads: The inputs of Softmaxes that each such value or weight leads to.
        axes: The axis of each of those Softmaxes, by its input.
        products: Products of a constant with another value, by the constant.
    """

    leads: Mapping[str, frozenset[str]]
    axes: Mapping[str, int]
    products: Mapping[str, frozenset[str]]


def masks(model: onnx.ModelProto) -> Masks:
    """Find the values of the main graph that only Softmaxes read in the end."""
    if graphs.opset_of(model) < _ROWWISE:
        return Masks(leads={}, axes={}, products={})
    graph = model.graph
    weights = {weight.name for weight in graph.initializer}
    weights |= {node.output[0] for node in graph.node if node.op_type == "Constant"}
    readers: dict[str, list[onnx.NodeProto]] = defaultdict(list)
    for node in graph.node:
        for name in dict.fromkeys(node.input):
            readers[name].append(node)
    main = {id(node) for node in graph.node}
    seen_elsewhere = {value.name for value in graph.output} | {
        name for node in graphs.nodes(model) if id(node) not in main for name in node.input
    }
    leads: dict[str, frozenset[str]] = {}
    axes: dict[str, int] = {}
    products: dict[str, frozenset[str]] = {}
    # Nodes stand in the order of their use: backwards, a value's readers are known before it is.
    made = [name for node in reversed(graph.node) for name in node.output]
    for name in dict.fromkeys([*made, *sorted(weights)]):
        ends: set[str] = set()
        for reader in readers[name]:
            if reader.domain not in ("", "ai.onnx"):
                break
            if reader.op_type == "Softmax":
                axes[name] = next((one.i for one in reader.attribute if one.name == "axis"), -1)
                ends.add(name)
            elif reader.output[0] in leads and (
                name not in _others(reader) or (reader.op_type == "Mul" and name in weights)
            ):
                ends |= leads[reader.output[0]]
            else:
                break
        else:
            if ends and name not in seen_elsewhere:
                leads[name] = frozenset(ends)
                products[name] = frozenset(
                    reader.output[0] for reader in readers[name] if reader.op_type == "Mul"
                )
    return Masks(leads=leads, axes=axes, products=products)


def _others(reader: onnx.NodeProto) -> set[str]:
    """The inputs from which a node hands no large negative number on."""
    if reader.op_type not in _DATA_INPUTS:
        return set(reader.input)
    data = set(range(len(reader.input))[_DATA_INPUTS[reader.op_type]])
    return {name for position, name in enumerate(reader.input) if position not in data}
