"""Weights that an ONNX file keeps in other files: where they lie, checked before one is opened."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from pathlib import Path, PureWindowsPath
from typing import TYPE_CHECKING

from mlflow_e2eai.errors import ArtifactError

if TYPE_CHECKING:
    import onnx

_LIMIT_BYTES = 2**31 - 1
"""Protobuf's limit for one message, which an ONNX file with its weights inside is."""


def fetch(model: onnx.ModelProto, path: Path) -> None:
    """Bring the weights that a model keeps in other files into it.

    An ONNX file may come from anywhere, so nothing outside its folder is read: a location is a
    relative path with no ``..`` in it, and no part of it is a symbolic link.

    Args:
        model: As it was read from `path`, without its weights.
        path: The ONNX file.

    Raises:
        ArtifactError: A file is outside the folder, missing, or shorter than what is to be read of
            it; an entry is of another length than the tensor's shape and type take; or all of it
            is over protobuf's 2 GiB.
    """
    from onnx.external_data_helper import load_external_data_for_model, uses_external_data

    external = [tensor for tensor in _tensors(model) if uses_external_data(tensor)]
    outside = sum(_check(tensor, path) for tensor in external)
    check_size(model.ByteSize() + outside)
    if external:
        load_external_data_for_model(model, str(path.parent))


def check_size(size_bytes: int) -> None:
    """Refuse what no single ONNX file holds.

    Raises:
        ArtifactError: It is over protobuf's 2 GiB.
    """
    if size_bytes > _LIMIT_BYTES:
        msg = (
            f"The graph takes {size_bytes / 2**30:.1f} GiB, but a single ONNX file holds 2 GiB at "
            f"most, and larger weights are not supported yet; use a smaller model."
        )
        raise ArtifactError(msg)


def _check(tensor: onnx.TensorProto, path: Path) -> int:
    """Check where a tensor's bytes lie, and say how many they are."""
    entries = {entry.key: entry.value for entry in tensor.external_data}
    location = entries.get("location", "")
    subject = f"{path.name} keeps weight {tensor.name!r} in {location!r}"
    file = _inside(location, path.parent, subject)
    try:
        offset = int(entries.get("offset", "0"))
        length = int(entries["length"]) if "length" in entries else file.stat().st_size - offset
    except ValueError as error:
        msg = f"{subject}, at a place that is no number; export the model again."
        raise ArtifactError(msg) from error
    if (wanted := _bytes_of(tensor)) != length or offset < 0:
        msg = (
            f"{subject}, {length} bytes from byte {offset} on, but its shape and type take "
            f"{wanted}; export the model again."
        )
        raise ArtifactError(msg)
    if offset + length > (size := file.stat().st_size):
        msg = (
            f"{subject} up to byte {offset + length}, but that file has {size} bytes: it was cut "
            f"off or is another's; copy or download it again."
        )
        raise ArtifactError(msg)
    return length


def _inside(location: str, folder: Path, subject: str) -> Path:
    """The file that a location names, which lies in the folder."""
    windows = PureWindowsPath(location)  # it knows both kinds of separator, and drives
    outside = bool(windows.anchor) or ".." in windows.parts
    steps = [folder.joinpath(*windows.parts[:end]) for end in range(1, len(windows.parts) + 1)]
    if not outside and any(step.is_symlink() for step in steps):
        msg = (
            f"{subject}, which is a symbolic link and may lead anywhere; put the file itself "
            f"beside {subject.partition(' ')[0]}."
        )
        raise ArtifactError(msg)
    if outside or not steps:
        msg = (
            f"{subject}, but only a file in the folder of the ONNX file is read; export the model "
            f"again, with its weights beside it."
        )
        raise ArtifactError(msg)
    if not steps[-1].is_file():
        msg = f"{subject}, but there is no such file; put it there."
        raise ArtifactError(msg)
    return steps[-1]


def _bytes_of(tensor: onnx.TensorProto) -> int:
    import onnx

    narrow = {"UINT4": 4, "INT4": 4, "FLOAT4E2M1": 4, "UINT2": 2, "INT2": 2}
    name = onnx.TensorProto.DataType.Name(tensor.data_type)
    own = narrow.get(name)
    bits = own or 8 * onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
    size: int = -(-math.prod(tensor.dims) * bits // 8)
    return size


def _tensors(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
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
            for sparse in (attribute.sparse_tensor, *attribute.sparse_tensors):
                yield from (sparse.values, sparse.indices)
            if attribute.HasField("g"):
                yield from _of_graph(attribute.g)
            for graph in attribute.graphs:
                yield from _of_graph(graph)
