"""A graph that answers with the ranges of its values, and keeps none of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mlflow_e2eai import graphs, weights
from mlflow_e2eai.artifacts import Array, Infer, Library, Tensors
from mlflow_e2eai.errors import RunnerError
from mlflow_e2eai.libraries import loadable
from mlflow_e2eai.precision.masks import Masks
from mlflow_e2eai.runners import onnxruntime_runner

if TYPE_CHECKING:
    import onnx

STATISTICS = ("magnitude", "size", "highest", "least", "floor")
"""What is asked of a value, in order; see `ranges.Range`."""

_AXES_AS_INPUT = 18
"""Opset from which ReduceMax takes its axes as an input."""


@contextmanager
def ranges_runner(path: Path, mask: Masks, libraries: Sequence[Library] = ()) -> Iterator[Infer]:
    """Run a graph that reduces each of its values as soon as it is there.

    No value outlives its readers, so the memory is about that of the graph itself; what is handed
    out is five numbers for each floating value that a node makes.

    Args:
        path: The graph, in a folder where another can be put.
        mask: The values of which more is asked than their magnitude.
        libraries: Libraries with operators of the graph.

    Yields:
        A callable from the graph's inputs to `STATISTICS` by value.

    Raises:
        RunnerError: ONNX Runtime cannot load the graph.
    """
    model = graphs.read(path)
    values = floating_values(model, path.with_name("exposed.onnx"), libraries)
    outputs: list[tuple[str, int]] = []
    del model.graph.output[:]
    for position, name in enumerate(values):
        for place, scalar in _reduce(model, name, f"range_{position}", mask):
            model.graph.output.append(scalar)
            outputs.append((name, place))
    reduced = path.with_name("reduced.onnx")
    write(model, reduced)
    del model
    with onnxruntime_runner(reduced, libraries=libraries) as infer:

        def ranges(tensors: Tensors) -> Tensors:
            found: dict[str, Array] = {
                name: np.array([0, 0, np.inf, 0, -np.inf]) for name in values
            }
            for (name, place), scalar in zip(outputs, infer(tensors).values(), strict=True):
                found[name][place] = scalar
            for row in found.values():
                row[0] = max(row[0], 0.0)  # nothing finite in it gives minus infinity
            return found

        yield ranges


def floating_values(model: onnx.ModelProto, path: Path, libraries: Sequence[Library]) -> list[str]:
    """What the nodes of the main graph make in float32, as ONNX Runtime has it.

    ONNX's own inference does not know the types behind operators that are not ONNX's.
    """
    import onnx
    import onnxruntime

    exposed = onnx.ModelProto()
    exposed.CopyFrom(model)
    made = dict.fromkeys(name for node in model.graph.node for name in node.output if name)
    del exposed.graph.output[:]
    exposed.graph.output.extend(onnx.ValueInfoProto(name=name) for name in made)
    write(exposed, path)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    for library in loadable(libraries):
        options.register_custom_ops_library(str(library))
    try:
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's exceptions share no base class
        msg = f"ONNX Runtime cannot load the graph: {str(error).strip().partition(chr(10))[0]}"
        raise RunnerError(msg) from error
    return [one.name for one in session.get_outputs() if one.type == "tensor(float)"]


def write(model: onnx.ModelProto, path: Path) -> None:
    """Write a model that may have outputs without a type, which ONNX's checker refuses."""
    with weights.beside(model, path.parent):
        path.write_bytes(model.SerializeToString())


def _reduce(
    model: onnx.ModelProto, name: str, prefix: str, mask: Masks
) -> list[tuple[int, onnx.ValueInfoProto]]:
    """Add what reduces a value; the place of each result in `STATISTICS`, and the result."""
    import onnx

    graph = model.graph
    found: list[tuple[int, onnx.ValueInfoProto]] = []

    def add(operator: str, *inputs: str, to: str, **attributes: Any) -> str:
        made = f"{prefix}_{to}"
        graph.node.append(onnx.helper.make_node(operator, [*inputs], [made], **attributes))
        return made

    def constant(number: float, to: str) -> str:
        tensor = onnx.numpy_helper.from_array(np.array(number, np.float32), f"{prefix}_{to}")
        graph.initializer.append(tensor)
        return str(tensor.name)

    def found_as(statistic: str, made: str) -> None:
        kind = onnx.TensorProto.INT64 if statistic == "size" else onnx.TensorProto.FLOAT
        value = onnx.helper.make_tensor_value_info(made, kind, [])
        found.append((STATISTICS.index(statistic), value))

    magnitudes, infinity = add("Abs", name, to="abs"), constant(np.inf, "infinity")
    finite, lowest = add("Less", magnitudes, infinity, to="finite"), constant(-np.inf, "lowest")
    counted = add("Where", finite, magnitudes, lowest, to="counted")
    found_as("magnitude", add("ReduceMax", counted, to="magnitude", keepdims=0))
    found_as("size", add("Size", name, to="size"))
    if name not in mask.leads:
        return found
    numbers = add("Where", finite, name, lowest, to="numbers")
    found_as("highest", add("ReduceMax", numbers, to="highest", keepdims=0))
    some = add("Greater", magnitudes, constant(0.0, "zero"), to="some")
    not_zero = add("Where", some, magnitudes, infinity, to="not_zero")
    found_as("least", add("ReduceMin", not_zero, to="least", keepdims=0))
    if name in mask.axes:
        axis = [mask.axes[name]]
        if graphs.opset_of(model) >= _AXES_AS_INPUT:
            along = onnx.numpy_helper.from_array(np.array(axis, np.int64), f"{prefix}_axis")
            graph.initializer.append(along)
            rows = add("ReduceMax", name, along.name, to="rows", keepdims=0)
        else:
            rows = add("ReduceMax", name, to="rows", keepdims=0, axes=axis)
        found_as("floor", add("ReduceMin", rows, to="floor", keepdims=0))
    return found
