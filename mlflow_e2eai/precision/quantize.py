"""ONNX -> ONNX that multiplies in int8 or fp8, by QuantizeLinear and DequantizeLinear.

ONNX Runtime's own writer (onnxruntime.quantization 1.31) was tried and is not used: it gives one
weight that two products read along two axes the scales of one of them (a thousand times too coarse
for some channels of the other), leaves the weight of a Constant node in fp32 with one scale for
all, calibrates fp8 by standard deviation only, and infers shapes on a copy of the whole model on
disk, with weights that lie in files of their own.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from mlflow_e2eai.artifacts import external_data as weights
from mlflow_e2eai.artifacts import graphs
from mlflow_e2eai.artifacts.names import FreshNames
from mlflow_e2eai.artifacts.values import Array, Library, Precision, Tensors
from mlflow_e2eai.errors import InvalidInputError, PrecisionError
from mlflow_e2eai.precision.calibration import Calibration, Calibrator, calibrate, limits_of
from mlflow_e2eai.precision.opsets import raise_opset
from mlflow_e2eai.precision.ranges import Fp32Node

if TYPE_CHECKING:
    import onnx


@dataclass(frozen=True, slots=True)
class _QuantizedType:
    """Numbers of a quantised type.

    Attributes:
        onnx_type: Name of the member of ``TensorProto``.
        highest: Its largest number that is used. Of int8 -128 is left out, so that zero is zero:
            TensorRT takes symmetric ranges only.
        opset: The first whose QuantizeLinear has it, with a scale for each channel.
        calibrator: How its ranges are chosen. fp8's steps grow with the number, so clipping gains
            nothing.
    """

    onnx_type: str
    highest: float
    opset: int
    calibrator: Calibrator


TYPES: Mapping[str, _QuantizedType] = {
    "int8": _QuantizedType("INT8", 127.0, 13, "mse"),
    "fp8": _QuantizedType("FLOAT8E4M3FN", 448.0, 19, "max"),
}

_PRODUCTS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
"""Operators that TensorRT computes in int8 and fp8, where their second input is a constant: the
loss of a product of two activations, as in attention, is seldom worth it, and no file is smaller.
"""


def check_calibrated(precisions: Iterable[str], data: object | None) -> None:
    """Refuse to quantise without data to calibrate on; one example is too few.

    Raises:
        InvalidInputError: int8 or fp8 is among the precisions, and the data is None.
    """
    wanted = [precision for precision in precisions if precision in TYPES]
    if wanted and data is None:
        msg = (
            f"{wanted[0]} is calibrated on evaluation data, for which the input example is not "
            "enough; log the model with evaluation_data, with or without labels, or leave "
            f"{wanted[0]} out."
        )
        raise InvalidInputError(msg)


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantizedGraph:
    """A graph with its products quantised.

    Attributes:
        model: The graph.
        calibration: Where the ranges come from.
        kept: The products that stay in fp32, in the graph's order.
        quantized: Number of quantised products.
        pairs: Pairs of QuantizeLinear and DequantizeLinear; a weight is stored quantised, and its
            DequantizeLinear counts as one.
    """

    model: onnx.ModelProto
    calibration: Calibration
    kept: tuple[Fp32Node, ...]
    quantized: int
    pairs: int


def quantize(
    model: onnx.ModelProto,
    precision: Precision,
    samples: Iterable[Tensors],
    *,
    keep_fp32: Collection[str] = (),
    libraries: Sequence[Library] = (),
) -> QuantizedGraph:
    """Quantise the products of a graph with constants.

    Both factors of a product get a symmetric range: a weight one for each output channel, stored
    quantised; an activation one for the whole, from calibration. Bias, and all that is no product,
    stays in fp32. It is what TensorRT reads as int8 and fp8 layers, and ONNX Runtime runs it.

    Args:
        model: A graph in fp32 without model-local functions, which is not changed.
        precision: ``int8`` or ``fp8`` (E4M3).
        samples: Inputs to calibrate on; read once.
        keep_fp32: Names of nodes that stay in fp32, as `graphs.node_names` gives them.
        libraries: Libraries with operators of the graph.

    Raises:
        PrecisionError: There is no sample, or nothing to quantise, or the graph's operator set
            cannot be raised to one that has the type.
        RunnerError: ONNX Runtime cannot run the graph on a sample.
    """
    form = TYPES[precision]
    named = type(model)()
    named.CopyFrom(model)
    for node, name in zip(named.graph.node, graphs.node_names(model), strict=True):
        node.name = name
    converted = raise_opset(named, form.opset, precision)
    constants = _constants(converted)
    names = graphs.node_names(converted)
    products = [
        (node, name)
        for node, name in zip(converted.graph.node, names, strict=True)
        if node.op_type in _PRODUCTS
        and node.domain in ("", "ai.onnx")
        and node.input[1] in constants
        and node.input[0] not in constants
    ]
    wanted = [(node, name) for node, name in products if name not in keep_fp32]
    if not wanted:
        msg = (
            f"The graph has no {', '.join(sorted(_PRODUCTS))} with a constant weight that "
            f"{precision} may hold; keep it in fp32."
        )
        raise PrecisionError(msg)
    values = list(dict.fromkeys(node.input[0] for node, _ in wanted))
    calibration = calibrate(
        converted,
        values,
        samples,
        calibrator=form.calibrator,
        steps=int(form.highest),
        libraries=libraries,
    )
    if not calibration.samples:
        msg = (
            f"{precision} is calibrated on evaluation data; give evaluation_data, with or without "
            "labels."
        )
        raise PrecisionError(msg)
    limits = limits_of(calibration)
    in_fp32 = tuple(_fp32_node(node, name, keep_fp32, limits) for node, name in products)
    chosen = [node for node, name in wanted if limits[node.input[0]] > 0]
    if not chosen:
        msg = "All inputs of the graph's matrix products are zero on the samples; give other data."
        raise PrecisionError(msg)
    pairs = _Pairs(converted, form, constants, limits)
    for node in chosen:
        node.input[1] = pairs.weight(node)
        node.input[0] = pairs.activation(node.input[0])
    count = pairs.insert()
    return QuantizedGraph(
        model=converted,
        calibration=calibration,
        kept=tuple(one for one in in_fp32 if one is not None),
        quantized=len(chosen),
        pairs=count,
    )


def _fp32_node(
    node: onnx.NodeProto, name: str, keep_fp32: Collection[str], limits: Mapping[str, float]
) -> Fp32Node | None:
    if name in keep_fp32:
        return Fp32Node(node=name, operator=node.op_type, reason="asked for")
    if limits[node.input[0]] > 0:
        return None
    value = node.input[0]
    return Fp32Node(node=name, operator=node.op_type, reason="all zero", value=value, magnitude=0.0)


def _constants(model: onnx.ModelProto) -> dict[str, onnx.TensorProto]:
    """The constants of the main graph in fp32, by name."""
    import onnx

    tensors = {weight.name: weight for weight in model.graph.initializer}
    tensors |= {
        node.output[0]: node.attribute[0].t
        for node in model.graph.node
        if node.op_type == "Constant" and node.attribute[0].name == "value"
    }
    return {
        name: tensor
        for name, tensor in tensors.items()
        if tensor.data_type == onnx.TensorProto.FLOAT and len(tensor.dims) > 1
    }


class _Pairs:
    """The nodes that quantise, one pair for each value however many read it."""

    def __init__(
        self,
        model: onnx.ModelProto,
        form: _QuantizedType,
        constants: Mapping[str, onnx.TensorProto],
        limits: Mapping[str, float],
    ) -> None:
        self._model = model
        self._graph = model.graph
        self._form = form
        self._constants = constants
        self._limits = limits
        self._fresh = FreshNames.of_model(model)
        self._activations: dict[str, list[onnx.NodeProto]] = {}
        self._weights: dict[tuple[str, int | None], onnx.NodeProto] = {}

    def activation(self, name: str) -> str:
        """Name of the quantised and dequantised value."""
        import onnx

        if name not in self._activations:
            scale = self._add(f"{name}_scale", np.float32(self._limits[name] / self._form.highest))
            zero = self._zero(f"{name}_zero", ())
            rounded, back = self._fresh(f"{name}_quantized"), self._fresh(f"{name}_dequantized")
            first, second = self._fresh(f"{name}_quantize"), self._fresh(f"{name}_dequantize")
            self._activations[name] = [
                onnx.helper.make_node("QuantizeLinear", [name, scale, zero], [rounded], first),
                onnx.helper.make_node("DequantizeLinear", [rounded, scale, zero], [back], second),
            ]
        return str(self._activations[name][-1].output[0])

    def weight(self, node: onnx.NodeProto) -> str:
        """Name of a node's weight, stored quantised, after its DequantizeLinear."""
        import onnx

        name = node.input[1]
        axis = _channel_axis(node, len(self._constants[name].dims))
        key = (name, axis)
        if key not in self._weights:
            numbers = _numbers(self._constants[name])
            stem = name if axis in (None, 0) else f"{name}_{axis}"
            others = None if axis is None else tuple(a for a in range(numbers.ndim) if a != axis)
            largest = np.max(np.abs(numbers), axis=others, keepdims=True, initial=0)
            scales = np.where(largest > 0, largest / self._form.highest, 1.0).astype(np.float32)
            stored = self._tensor(f"{stem}_quantized", numbers / scales)
            self._graph.initializer.append(stored)
            scale = self._add(f"{stem}_scale", scales.reshape(() if axis is None else (-1,)))
            zero = self._zero(f"{stem}_zero", () if axis is None else (scales.size,))
            attributes: dict[str, Any] = {} if axis is None else {"axis": axis}
            self._weights[key] = onnx.helper.make_node(
                "DequantizeLinear",
                [stored.name, scale, zero],
                [self._fresh(f"{stem}_dequantized")],
                name=self._fresh(f"{stem}_dequantize"),
                **attributes,
            )
        return str(self._weights[key].output[0])

    def insert(self) -> int:
        """Insert the nodes after their inputs, drop unread weights; returns the number of pairs."""
        nodes = list(self._graph.node)
        del self._graph.node[:]
        self._graph.node.extend(self._weights.values())
        waiting = dict(self._activations)
        for value in self._graph.input:
            self._graph.node.extend(waiting.pop(value.name, ()))
        for node in nodes:
            self._graph.node.append(node)
            for name in node.output:
                self._graph.node.extend(waiting.pop(name, ()))
        self._drop_unread()
        return len(self._activations) + len(self._weights)

    def _drop_unread(self) -> None:
        read = {name for node in graphs.nodes(self._model) for name in node.input}
        read |= {value.name for value in self._graph.output}
        unread = {name for name, _ in self._weights} - read
        for weight in [one for one in self._graph.initializer if one.name in unread]:
            self._graph.initializer.remove(weight)
        for node in [one for one in self._graph.node if set(one.output) & unread]:
            self._graph.node.remove(node)

    def _tensor(self, name: str, numbers: Array) -> onnx.TensorProto:
        import onnx

        kind = getattr(onnx.TensorProto, self._form.onnx_type)
        dtype = onnx.helper.tensor_dtype_to_np_dtype(kind)
        ends = np.clip(numbers, -self._form.highest, self._form.highest)
        rounded = np.rint(ends) if self._form.onnx_type == "INT8" else ends
        return onnx.numpy_helper.from_array(rounded.astype(dtype), self._fresh(name))

    def _zero(self, name: str, shape: tuple[int, ...]) -> str:
        zero = self._tensor(name, np.zeros(shape, np.float32))
        self._graph.initializer.append(zero)
        return str(zero.name)

    def _add(self, name: str, numbers: Array | np.float32) -> str:
        import onnx

        tensor = onnx.numpy_helper.from_array(np.asarray(numbers), self._fresh(name))
        self._graph.initializer.append(tensor)
        return str(tensor.name)


def _numbers(tensor: onnx.TensorProto) -> Array:
    import onnx

    if weights.is_reference(tensor):
        return weights.values(tensor)
    array: Array = onnx.numpy_helper.to_array(tensor)
    return array


def _channel_axis(node: onnx.NodeProto, rank: int) -> int | None:
    """The axis of a product's weight along which its output channels lie; None for none."""
    attributes = {one.name: one.i for one in node.attribute}
    if node.op_type == "Conv":
        return 0
    if node.op_type == "ConvTranspose":
        # Of several groups, each has its own channels on one axis.
        return 1 if attributes.get("group", 1) == 1 else None
    if node.op_type == "Gemm":
        return 0 if attributes.get("transB", 0) else 1
    return 1 if rank == 2 else None  # noqa: PLR2004 - a matrix
