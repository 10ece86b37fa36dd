"""An ONNX file of another exporter, as a raw graph."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mlflow_e2eai.artifacts import external_data as weights
from mlflow_e2eai.artifacts import graphs
from mlflow_e2eai.artifacts.arrays import feed
from mlflow_e2eai.artifacts.axes import DynamicAxes, axes_of
from mlflow_e2eai.artifacts.example import GeneratedExample, assumptions_of, generate_example
from mlflow_e2eai.artifacts.repairs import read_repaired
from mlflow_e2eai.artifacts.sampler import with_samples
from mlflow_e2eai.artifacts.values import Array, Infer, OnnxArtifact, Tensors, TensorSpec
from mlflow_e2eai.errors import InvalidInputError, PrecisionError, RunnerError
from mlflow_e2eai.parity.samples import profile_samples
from mlflow_e2eai.precision.opsets import raise_opset
from mlflow_e2eai.pytorch import operators
from mlflow_e2eai.runtime.isolation import isolated_onnxruntime
from mlflow_e2eai.surgery.rules import drop_zipmaps

if TYPE_CHECKING:
    import onnx


_FIRST_OPSET, _RAISED_OPSET = 7, 13
"""ONNX Runtime runs operator sets from the first on; older graphs are raised to the second."""


def import_onnx(
    path: Path,
    *,
    out: Path,
    example: Mapping[str, Any] | None = None,
    dynamic_axes: DynamicAxes | None = None,
    samples_at: Sequence[Mapping[str, Any]] = (),
    operator_libraries: Sequence[Path] = (),
) -> tuple[OnnxArtifact, Tensors]:
    """Read an ONNX file as the raw graph of a lineage without a PyTorch model.

    The reference of its variants is the file itself, run by ONNX Runtime: it is run once at every
    corner of its profile. What it needs of repair (see `repairs.read_repaired`) is done first, and
    so is the rule `drop_zipmaps`.

    Args:
        path: The file, in fp32; its weights may lie in other files of its folder.
        out: The file to write.
        example: An array for each input. None generates them; see `generate_example`.
        dynamic_axes: An axis for every size that the file leaves open.
        samples_at: Further examples at other sizes of these axes.
        operator_libraries: Shared libraries that implement operators of it for ONNX Runtime.

    Returns:
        The graph, and the input example by name.

    Raises:
        ArtifactError: A file is missing or broken.
        InvalidInputError: The axes or the example do not fit the file, or it is not in fp32.
        RunnerError: ONNX Runtime cannot load it, or run it.
    """
    model = _read(path)
    libraries = operators.load_libraries(operator_libraries)
    _require_fp32(model, path)
    _name_axes(model, dynamic_axes or {})
    graphs.write(model, out)
    raw = graphs.describe(
        out,
        stage="export",
        precision="fp32",
        axes=axes_of(dynamic_axes or {}),
        parent_sha256=None,
        libraries=libraries,
    )
    with isolated_onnxruntime(raw.path, libraries=raw.libraries) as infer:
        given = _generate(raw, infer) if example is None else feed(example, raw.inputs)
        _require_numbers(given, raw)
        others = [feed(sample, raw.inputs) for sample in samples_at]
        example_at = with_samples(given, others, raw.inputs, raw.axes)
        for sample in (*profile_samples(example_at, raw).values(), *others):
            infer(sample)
    return replace(raw, assumptions=assumptions_of(given)), example_at


def _read(path: Path) -> onnx.ModelProto:
    """Read a file of any exporter; outputs that are lists of maps become tensors."""
    import onnx

    model = read_repaired(path)
    newest = onnx.defs.onnx_opset_version()
    if (opset := graphs.opset_of(model)) > newest:
        msg = (
            f"{path.name} uses opset {opset}, but the installed onnx supports {newest} and "
            "earlier; export it with an earlier opset, or upgrade onnx and onnxruntime."
        )
        raise InvalidInputError(msg)
    if 0 < opset < _FIRST_OPSET:
        try:
            model = raise_opset(model, _RAISED_OPSET, "ONNX Runtime")
        except PrecisionError as error:
            raise InvalidInputError(str(error)) from error
    zipmaps = {node.output[0]: node.input[0] for node in model.graph.node if _is_zipmap(node)}
    if not zipmaps:
        return model
    inferred = onnx.shape_inference.infer_shapes(model)
    types = {value.name: value.type for value in inferred.graph.value_info}
    for value in inferred.graph.output:
        if zipmaps.get(value.name) in types:
            value.type.CopyFrom(types[zipmaps[value.name]])  # GraphSurgeon knows tensors only
    graph = graphs.to_graph(inferred)
    drop_zipmaps(graph)
    return graphs.to_onnx(graph, like=model)


def _is_zipmap(node: onnx.NodeProto) -> bool:
    return bool(node.op_type == "ZipMap" and node.domain == "ai.onnx.ml")


def _require_fp32(model: onnx.ModelProto, path: Path) -> None:
    """Refuse a graph with values in a narrower type: it is the reference of all variants."""
    import onnx

    types = onnx.TensorProto
    narrow: dict[int, str] = {int(types.FLOAT16): "fp16", int(types.BFLOAT16): "bf16"}
    kinds: set[int] = {tensor.data_type for tensor in weights.tensors(model)}
    kinds |= {value.type.tensor_type.elem_type for value in model.graph.input}
    kinds |= {
        attribute.i
        for node in graphs.nodes(model)
        if node.op_type == "Cast"
        for attribute in node.attribute
        if attribute.name == "to"
    }
    if narrow_types := sorted(narrow[kind] for kind in kinds & narrow.keys()):
        msg = (
            f"{path.name} already computes in {narrow_types[0]}, and would be the reference for "
            "every later variant; export the model in fp32."
        )
        raise InvalidInputError(msg)


def _name_axes(model: onnx.ModelProto, dynamic_axes: DynamicAxes) -> None:
    """Name the open sizes of the inputs after their axes, in the outputs too."""
    renamed: dict[str, str] = {}
    inputs = {spec.name: spec for spec in graphs.interface(model)[0]}
    values = {value.name: value for value in model.graph.input}
    for name, positions in dynamic_axes.items():
        shape = inputs[name].shape if name in inputs else ()
        for position, axis in positions.items():
            if not 0 <= position < len(shape) or not isinstance(shape[position], str):
                msg = (
                    f"dynamic_axes names axis {position} of {name!r}, but the file leaves no such "
                    f"size open, its inputs are {_words(inputs)}; leave that axis out, or open it "
                    f"in the file, by onnx.tools.update_model_dims or a new export."
                )
                raise InvalidInputError(msg)
            dim = values[name].type.tensor_type.shape.dim[position]
            if dim.dim_param:
                renamed[dim.dim_param] = axis.name
            dim.dim_param = axis.name
    _require_named_axes(inputs, dynamic_axes)
    for value in (*model.graph.output, *model.graph.value_info):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param in renamed:
                dim.dim_param = renamed[dim.dim_param]


def _require_named_axes(inputs: dict[str, TensorSpec], dynamic_axes: DynamicAxes) -> None:
    for name, spec in inputs.items():
        for position, size in enumerate(spec.shape):
            if isinstance(size, str) and position not in dynamic_axes.get(name, {}):
                msg = (
                    f"The file leaves size {position} of {name!r} open; give its range, for "
                    f"example dynamic_axes={name}:{position}=N:1:8:64."
                )
                raise InvalidInputError(msg)


def _words(inputs: dict[str, TensorSpec]) -> str:
    return ", ".join(f"{name} {list(spec.shape)}" for name, spec in inputs.items())


def _require_numbers(example: Mapping[str, Array], graph: OnnxArtifact) -> None:
    """Refuse an example that is empty where other sizes are to be made of it."""
    for spec in graph.inputs:
        for size, there in zip(spec.shape, example[spec.name].shape, strict=True):
            if isinstance(size, str) and not there:
                msg = (
                    f"The example for {spec.name!r} is empty along axis {size!r}, so nothing can "
                    f"be run on it; give one with a size of at least 1."
                )
                raise InvalidInputError(msg)


def _generate(graph: OnnxArtifact, infer: Infer) -> GeneratedExample:
    """An input example for a graph, every axis at its opt."""
    opt = {axis.name: axis.opt for axis in graph.axes}

    def accepts(sample: Tensors) -> bool:
        try:
            infer(sample)
        except RunnerError:
            return False
        return True

    inputs = {
        spec.name: (
            tuple(size if isinstance(size, int) else opt[size] for size in spec.shape),
            np.dtype(spec.dtype),
        )
        for spec in graph.inputs
    }
    return generate_example(inputs, accepts)
