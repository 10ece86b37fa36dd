"""Types and shapes of the values inside a graph, by running it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from mlflow_e2eai.artifacts import graphs
from mlflow_e2eai.artifacts.names import FreshNames
from mlflow_e2eai.artifacts.values import Axis, OnnxArtifact, Tensors
from mlflow_e2eai.artifacts.weight_files import weights_linked
from mlflow_e2eai.parity.samples import profile_samples
from mlflow_e2eai.runtime.ort import onnxruntime_runner

if TYPE_CHECKING:
    import onnx


@dataclass(frozen=True, slots=True, kw_only=True)
class Observed:
    """The values of a graph, to cut it at any of them.

    Attributes:
        values: Type and shape of each value, the graph's inputs among them, in the graph's order.
        axes: Dynamic axes inside the graph that are no axes of its inputs: sizes that vary with
            those, under generated names.
    """

    values: Mapping[str, onnx.ValueInfoProto]
    axes: tuple[Axis, ...]


def observe(source: OnnxArtifact, samples: Sequence[Tensors]) -> Observed:
    """Find the type and shape of every value of a graph, at the corners of its profile.

    ONNX infers no shapes after an unknown operator, or where a size is computed. So ONNX Runtime
    runs the graph, with the shape of each value as one more output; values of unknown type are
    outputs themselves.

    A size that is the same at every corner and in every sample is fixed; one that ONNX knows by the
    name of an axis of the graph keeps that name; any other becomes an axis of its own, from its
    least to its largest, and its size at the profile's opt.

    Args:
        source: The graph; its file is not changed.
        samples: Named inputs, at least one; the first is resized to the corners.

    Raises:
        RunnerError: ONNX Runtime cannot run the graph.
    """
    model = graphs.read(source.path)
    known = infer_values(model)
    # Lists and optional values have no single shape, and the graph is not cut at them.
    names = [
        name
        for name in _values(model)
        if name not in known or known[name].type.HasField("tensor_type")
    ]
    untyped = {n for n in names if n not in known or not known[n].type.tensor_type.elem_type}
    fresh = FreshNames.of_model(model)
    shapes = {name: fresh(f"shape of {name}") for name in names}
    inputs = [*profile_samples(samples[0], source).values(), *samples]
    with TemporaryDirectory() as folder:
        path = Path(folder, "observed.onnx")
        telling = _with_outputs(model, shapes, untyped)
        with weights_linked(telling, path.parent):
            path.write_bytes(telling.SerializeToString())
        opened = onnxruntime_runner(path, precision=source.precision, libraries=source.libraries)
        with opened as run:
            outputs = [run(sample) for sample in inputs]
    return _describe_values(source, shapes, known, outputs)


def infer_values(model: onnx.ModelProto) -> dict[str, onnx.ValueInfoProto]:
    """Values of the main graph by name, with the types and shapes that ONNX infers."""
    import onnx

    graph = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
    return {value.name: value for value in [*graph.input, *graph.value_info, *graph.output]}


def _values(model: onnx.ModelProto) -> list[str]:
    weights = {weight.name for weight in model.graph.initializer}
    outputs = [name for node in model.graph.node for name in node.output if name]
    return [*(v.name for v in model.graph.input if v.name not in weights), *outputs]


def _with_outputs(
    model: onnx.ModelProto, shapes: Mapping[str, str], untyped: set[str]
) -> onnx.ModelProto:
    """The graph with shapes of values, and values of unknown type, as its outputs."""
    import onnx

    telling = onnx.ModelProto()
    telling.CopyFrom(model)
    graph = telling.graph
    del graph.output[:]
    for name, shape in shapes.items():
        graph.node.append(onnx.helper.make_node("Shape", [name], [shape]))
        graph.output.append(
            onnx.helper.make_tensor_value_info(shape, onnx.TensorProto.INT64, [None])
        )
    graph.output.extend(onnx.ValueInfoProto(name=name) for name in shapes if name in untyped)
    return telling


def _describe_values(
    source: OnnxArtifact,
    shapes: Mapping[str, str],
    known: Mapping[str, onnx.ValueInfoProto],
    outputs: Sequence[Tensors],
) -> Observed:
    import onnx

    own = {axis.name for axis in source.axes}
    fresh = FreshNames(own)
    values: dict[str, onnx.ValueInfoProto] = {}
    axes: list[Axis] = []
    for number, (name, shape_output) in enumerate(shapes.items()):
        kind = known[name].type.tensor_type if name in known else onnx.TypeProto.Tensor()
        dims = list(kind.shape.dim)
        shape: list[int | str] = []
        for position, sizes in enumerate(zip(*(a[shape_output] for a in outputs), strict=True)):
            parameter = dims[position].dim_param if position < len(dims) else ""
            if parameter in own or len(set(sizes)) == 1:
                shape.append(parameter if parameter in own else int(sizes[0]))
                continue
            axis = Axis(
                fresh(f"size_{number}_{position}"),
                min=max(int(min(sizes)), 1),
                opt=max(int(sizes[0]), 1),  # the profile's opt is the first sample
                max=max(int(max(sizes)), 1),
            )
            axes.append(axis)
            shape.append(axis.name)
        values[name] = onnx.helper.make_tensor_value_info(
            name,
            kind.elem_type or onnx.helper.np_dtype_to_tensor_dtype(outputs[0][name].dtype),
            shape,
        )
    return Observed(values=values, axes=tuple(axes))
