"""Which tensors a model has, and where their bytes lie."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import onnx

EXTERNAL_BYTES = 1 << 30
"""Weights above this lie outside the graph's file. Protobuf's limit is 2 GiB for one message, and
what a stage adds to a graph (copies of weights, their casts) must fit too."""

SMALL_BYTES = 1 << 16
"""A tensor below this stays in the graph: shape inference reads the small ones (shapes, axes)."""

_TYPED = ("float_data", "int32_data", "int64_data", "double_data", "uint64_data")
"""Fields in which a tensor may hold its numbers instead of as bytes."""


def references(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """The tensors whose bytes lie in other files."""
    return (tensor for tensor in tensors(model) if is_reference(tensor))


def is_reference(tensor: onnx.TensorProto) -> bool:
    """Whether a tensor's bytes lie in another file."""
    from onnx.external_data_helper import uses_external_data

    return bool(uses_external_data(tensor))


def values(tensor: onnx.TensorProto) -> np.ndarray:
    """The bytes that a tensor of `fetch` refers to, as an array mapped into memory.

    What is written to it stays in memory.
    """
    import onnx

    file, offset, _ = place_of(tensor)
    dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
    return np.memmap(file, dtype, mode="c", offset=offset, shape=tuple(tensor.dims))


def size_of(model: onnx.ModelProto, *, inside: bool = False) -> int:
    """Bytes of the weights; `inside` counts only those that do not lie in other files."""
    return sum(
        bytes_of(tensor) for tensor in tensors(model) if not (inside and tensor.external_data)
    )


def bytes_of(tensor: onnx.TensorProto) -> int:
    """Bytes that a tensor's shape and type take."""
    import onnx

    types = onnx.TensorProto.DataType
    if tensor.data_type not in types.values() or tensor.data_type == types.UNDEFINED:
        return 0
    narrow = {"UINT4": 4, "INT4": 4, "FLOAT4E2M1": 4, "UINT2": 2, "INT2": 2}
    own = narrow.get(types.Name(tensor.data_type))
    bits = own or 8 * onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
    size: int = -(-math.prod(tensor.dims) * bits // 8)
    return size


def place_of(tensor: onnx.TensorProto) -> tuple[Path, int, int]:
    """File, offset and length of a tensor that `_refer` wrote."""
    entries = {entry.key: entry.value for entry in tensor.external_data}
    return Path(entries["location"]), int(entries["offset"]), int(entries["length"])


def refer(tensor: onnx.TensorProto, file: Path, offset: int, length: int) -> None:
    """Have a tensor refer to bytes of a file."""
    import onnx

    for name in ("raw_data", "external_data", *_TYPED):
        tensor.ClearField(name)
    tensor.data_location = onnx.TensorProto.EXTERNAL
    for key, value in (("location", file), ("offset", offset), ("length", length)):
        tensor.external_data.add(key=key, value=str(value))


def inside_again(tensor: onnx.TensorProto) -> None:
    """Have a tensor refer to no file."""
    tensor.ClearField("external_data")
    tensor.ClearField("data_location")


def settle(model: onnx.ModelProto) -> None:
    """Have GraphSurgeon's tensors refer to no file once their numbers are in the model.

    It leaves the mark of one that does on them.
    """
    for tensor in tensors(model):
        if not tensor.external_data:
            tensor.ClearField("data_location")


def tensors(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """Every tensor of a model, those of subgraphs and functions included."""
    yield from _of_graph(model.graph)
    for function in model.functions:
        yield from _of_nodes(function.node)


def _of_graph(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    yield from _of_nodes(graph.node)


def _of_nodes(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.TensorProto]:
    for node in nodes:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors
            own = [attribute.sparse_tensor] if attribute.HasField("sparse_tensor") else []
            for sparse in (*own, *attribute.sparse_tensors):
                yield from (sparse.values, sparse.indices)
            if attribute.HasField("g"):
                yield from _of_graph(attribute.g)
            for graph in attribute.graphs:
                yield from _of_graph(graph)
