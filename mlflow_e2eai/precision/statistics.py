"""A graph whose outputs are the ranges of its values, and not the values."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mlflow_e2eai.artifacts import graphs
from mlflow_e2eai.artifacts import weight_files as weights
from mlflow_e2eai.artifacts.libraries import loadable
from mlflow_e2eai.artifacts.names import FreshNames
from mlflow_e2eai.artifacts.value_types import infer_types
from mlflow_e2eai.artifacts.values import Array, Infer, Library, Tensors
from mlflow_e2eai.errors import RunnerError
from mlflow_e2eai.runtime.crashes import before_native, write_session
from mlflow_e2eai.runtime.ort import onnxruntime_runner

if TYPE_CHECKING:
    import onnx


STATISTICS = ("magnitude", "size", "highest", "least", "floor")
"""Statistics of a value, in order; see `ranges.Range`."""

_AXES_AS_INPUT = 18
"""Opset from which ReduceMax takes its axes as an input."""


@contextmanager
def ranges_runner(path: Path, mask: Masks, libraries: Sequence[Library] = ()) -> Iterator[Infer]:
    """Run a graph that reduces each of its values as soon as it is there.

    No value outlives its readers, so the memory is about that of the graph itself; the outputs are
    five numbers for each floating value that a node writes.

    Args:
        path: The graph, in a folder where another can be written.
        mask: The values with statistics other than their magnitude.
        libraries: Libraries with operators of the graph.

    Yields:
        A callable from the graph's inputs to `STATISTICS` by value.

    Raises:
        RunnerError: ONNX Runtime cannot load the graph.
    """
    model = graphs.read(path)
    values = floating_values(model, path.with_name("exposed.onnx"), libraries)
    outputs: list[tuple[str, int]] = []
    fresh = FreshNames.of_model(model)
    del model.graph.output[:]
    for name in values:
        for index, scalar in _reduce(model, name, fresh, mask):
            model.graph.output.append(scalar)
            outputs.append((name, index))
    reduced = path.with_name("reduced.onnx")
    write(model, reduced)
    del model
    with onnxruntime_runner(reduced, optimized=False, libraries=libraries) as infer:

        def ranges(tensors: Tensors) -> Tensors:
            rows: dict[str, Array] = {name: np.array([0, 0, np.inf, 0, -np.inf]) for name in values}
            for (name, index), scalar in zip(outputs, infer(tensors).values(), strict=True):
                rows[name][index] = scalar
            for row in rows.values():
                row[0] = max(row[0], 0.0)  # nothing finite in it gives minus infinity
            return rows

        yield ranges


def computes_in_fp32(model: onnx.ModelProto) -> bool:
    """Whether a node of the main graph writes a value in fp32, or of a type that is not known."""
    import onnx

    types = infer_types(model)
    values = (name for node in model.graph.node for name in node.output if name)
    return any(types.of(name) in (None, onnx.TensorProto.FLOAT) for name in values)


def floating_values(model: onnx.ModelProto, path: Path, libraries: Sequence[Library]) -> list[str]:
    """Float32 values that nodes of the main graph write, by ONNX Runtime's inference.

    ONNX's own inference does not know the types behind operators that are not ONNX's.
    """
    import onnx
    import onnxruntime

    exposed = onnx.ModelProto()
    exposed.CopyFrom(model)
    outputs = dict.fromkeys(name for node in model.graph.node for name in node.output if name)
    del exposed.graph.output[:]
    exposed.graph.output.extend(onnx.ValueInfoProto(name=name) for name in outputs)
    write(exposed, path)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    allowed = [*loadable(libraries)]
    for library in allowed:
        options.register_custom_ops_library(str(library))
    before_native(
        partial(
            write_session,
            graph=path,
            weights=path.parent,
            level="ORT_DISABLE_ALL",
            entries={},
            libraries=allowed,
            arguments={"providers": ["CPUExecutionProvider"]},
        )
    )
    try:
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's exceptions share no base class
        msg = f"ONNX Runtime cannot load the graph: {str(error).strip().partition(chr(10))[0]}"
        raise RunnerError(msg) from error
    return [one.name for one in session.get_outputs() if one.type == "tensor(float)"]


def write(model: onnx.ModelProto, path: Path) -> None:
    """Write a model that may have outputs without a type, which ONNX's checker refuses."""
    with weights.weights_linked(model, path.parent):
        path.write_bytes(model.SerializeToString())


def _reduce(
    model: onnx.ModelProto, name: str, fresh: FreshNames, mask: Masks
) -> list[tuple[int, onnx.ValueInfoProto]]:
    """Add nodes that reduce a value; returns index in `STATISTICS` and name of each result."""
    import onnx

    graph = model.graph
    reduced: list[tuple[int, onnx.ValueInfoProto]] = []

    def add(operator: str, *inputs: str, to: str, **attributes: Any) -> str:
        output = fresh(f"{name}_{to}")
        graph.node.append(onnx.helper.make_node(operator, [*inputs], [output], **attributes))
        return output

    def constant(number: float, to: str) -> str:
        tensor = onnx.numpy_helper.from_array(np.array(number, np.float32), fresh(f"{name}_{to}"))
        graph.initializer.append(tensor)
        return str(tensor.name)

    def add_result(statistic: str, output: str) -> None:
        kind = onnx.TensorProto.INT64 if statistic == "size" else onnx.TensorProto.FLOAT
        value = onnx.helper.make_tensor_value_info(output, kind, [])
        reduced.append((STATISTICS.index(statistic), value))

    magnitudes, infinity = add("Abs", name, to="abs"), constant(np.inf, "infinity")
    finite, lowest = add("Less", magnitudes, infinity, to="finite"), constant(-np.inf, "lowest")
    counted = add("Where", finite, magnitudes, lowest, to="counted")
    add_result("magnitude", add("ReduceMax", counted, to="magnitude", keepdims=0))
    add_result("size", add("Size", name, to="size"))
    if name not in mask.leads:
        return reduced
    numbers = add("Where", finite, name, lowest, to="numbers")
    add_result("highest", add("ReduceMax", numbers, to="highest", keepdims=0))
    some = add("Greater", magnitudes, constant(0.0, "zero"), to="some")
    not_zero = add("Where", some, magnitudes, infinity, to="not_zero")
    add_result("least", add("ReduceMin", not_zero, to="least", keepdims=0))
    if name in mask.axes:
        axis = [mask.axes[name]]
        if graphs.opset_of(model) >= _AXES_AS_INPUT:
            along = onnx.numpy_helper.from_array(np.array(axis, np.int64), fresh(f"{name}_axis"))
            graph.initializer.append(along)
            rows = add("ReduceMax", name, along.name, to="rows", keepdims=0)
        else:
            rows = add("ReduceMax", name, to="rows", keepdims=0, axes=axis)
        add_result("floor", add("ReduceMin", rows, to="floor", keepdims=0))
    return reduced


# Values that only mask inputs of a Softmax: how far below zero they are does not matter.


_DATA_INPUTS: Mapping[str, slice] = {
    "Add": slice(None),
    "Concat": slice(None),
    "Where": slice(1, None),
    **dict.fromkeys(("Expand", "Gather", "GatherND", "Identity", "Reshape"), slice(1)),
    **dict.fromkeys(("Slice", "Squeeze", "Tile", "Transpose", "Unsqueeze"), slice(1)),
}
"""Operators that pass on a large negative number, and the inputs that they take it from."""

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
    used_outside = {value.name for value in graph.output} | {
        name for node in graphs.nodes(model) if id(node) not in main for name in node.input
    }
    leads: dict[str, frozenset[str]] = {}
    axes: dict[str, int] = {}
    products: dict[str, frozenset[str]] = {}
    # Nodes stand in the order of their use: backwards, a value's readers are known before it is.
    outputs = [name for node in reversed(graph.node) for name in node.output]
    for name in dict.fromkeys([*outputs, *sorted(weights)]):
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
            if ends and name not in used_outside:
                leads[name] = frozenset(ends)
                products[name] = frozenset(
                    reader.output[0] for reader in readers[name] if reader.op_type == "Mul"
                )
    return Masks(leads=leads, axes=axes, products=products)


def _others(reader: onnx.NodeProto) -> set[str]:
    """The inputs from which a node passes on no large negative number."""
    if reader.op_type not in _DATA_INPUTS:
        return set(reader.input)
    data = set(range(len(reader.input))[_DATA_INPUTS[reader.op_type]])
    return {name for position, name in enumerate(reader.input) if position not in data}
