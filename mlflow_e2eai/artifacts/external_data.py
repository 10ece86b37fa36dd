"""Tensors whose bytes lie in other files: references, checks and loading."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from pathlib import Path, PureWindowsPath
from typing import TYPE_CHECKING, Any

import numpy as np

from mlflow_e2eai.artifacts.files import is_name
from mlflow_e2eai.errors import ArtifactError

if TYPE_CHECKING:
    import onnx


EXTERNAL_BYTES = 1 << 30
"""Weights above this lie outside the graph's file. Protobuf's limit is 2 GiB for one message, and
what a stage adds to a graph (copies of weights, their casts) must fit too."""

SMALL_BYTES = 1 << 16
"""A tensor below this stays in the graph: shape inference reads the small ones (shapes, axes)."""

_BLOCK = 512
"""Bytes of a block, as `os.stat` counts them on Linux."""

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

    file, offset, _ = location_of(tensor)
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


def location_of(tensor: onnx.TensorProto) -> tuple[Path, int, int]:
    """File, offset and length of a tensor that `_refer` wrote."""
    entries = {entry.key: entry.value for entry in tensor.external_data}
    return Path(entries["location"]), int(entries["offset"]), int(entries["length"])


def refer(tensor: onnx.TensorProto, file: Path, offset: int, length: int) -> None:
    """Make a tensor refer to bytes of a file."""
    import onnx

    for name in ("raw_data", "external_data", *_TYPED):
        tensor.ClearField(name)
    tensor.data_location = onnx.TensorProto.EXTERNAL
    for key, value in (("location", file), ("offset", offset), ("length", length)):
        tensor.external_data.add(key=key, value=str(value))


def inside_again(tensor: onnx.TensorProto) -> None:
    """Make a tensor refer to no file."""
    tensor.ClearField("external_data")
    tensor.ClearField("data_location")


def settle(model: onnx.ModelProto) -> None:
    """Clear the references of GraphSurgeon's tensors whose numbers are in the model.

    It leaves the fields of a reference on them.
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


# Weights in other files, checked before one is opened.


def fetch(model: onnx.ModelProto, path: Path) -> None:
    """Make a model's weights that lie in other files available.

    Up to `EXTERNAL_BYTES` they are brought into the model. Of more, the large tensors refer to
    their files by absolute path; see `values`.

    An ONNX file may come from anywhere, so nothing outside its folder is read: a location is a
    relative path with no ``..`` in it, and no part of it is a symbolic link.

    Args:
        model: As it was read from `path`, without its weights.
        path: The ONNX file.

    Raises:
        ArtifactError: A file is outside the folder, missing, or shorter than what is to be read of
            it; or an entry is of another length than the tensor's shape and type take.
    """
    external = list(references(model))
    for tensor in external:
        file, offset, length = check(tensor, path)
        refer(tensor, file.absolute(), offset, length)
    large = size_of(model) > EXTERNAL_BYTES
    for tensor in external:
        if not large or bytes_of(tensor) < SMALL_BYTES:
            bring_in(tensor)


def skeleton(model: onnx.ModelProto) -> onnx.ModelProto:
    """A model whose large weights are inputs, for ONNX's checker.

    The checker looks at the values of small constants only, and would receive a copy of all
    bytes. It would also open other files, and refuses those with several hard links, which is how
    one copy of the weights serves several graphs.
    """
    import onnx

    bare: onnx.ModelProto = _without(model, "graph")
    bare.graph.CopyFrom(_without(model.graph, "initializer"))
    listed = {value.name for value in model.graph.input}
    for tensor in model.graph.initializer:
        if not is_reference(tensor) and len(tensor.raw_data) < SMALL_BYTES:
            bare.graph.initializer.append(tensor)
        elif tensor.name not in listed:
            value = onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
            bare.graph.input.append(value)
    for tensor in references(bare):  # of subgraphs and attributes
        tensor.dims[:] = [0]
        inside_again(tensor)
    return bare


def _without(message: Any, left: str) -> Any:
    """A copy of a protobuf message that lacks a field, which may be too large to be copied."""
    copied = type(message)()
    for field, value in message.ListFields():
        if field.name == left:
            continue
        if isinstance(value, str | bytes | int | float):
            setattr(copied, field.name, value)
        else:
            getattr(copied, field.name).MergeFrom(value)
    return copied


def bring_in(tensor: onnx.TensorProto) -> None:
    """Load the bytes that a tensor refers to into the tensor."""
    path, offset, length = location_of(tensor)
    with path.open("rb") as file:
        file.seek(offset)
        data = file.read(length)
    inside_again(tensor)
    tensor.raw_data = data


def check(tensor: onnx.TensorProto, path: Path) -> tuple[Path, int, int]:
    """Check the reference of a tensor to bytes in another file.

    Returns:
        The file, the offset and the length in bytes.
    """
    entries = {entry.key: entry.value for entry in tensor.external_data}
    location = entries.get("location", "")
    subject = f"{path.name} keeps weight {tensor.name!r} in {location!r}"
    file = inside(location, path.parent, subject)
    try:
        offset = int(entries.get("offset", "0"))
        length = int(entries["length"]) if "length" in entries else file.stat().st_size - offset
    except ValueError as error:
        msg = f"{subject}, at an offset that is not a number; export the model again."
        raise ArtifactError(msg) from error
    if (wanted := bytes_of(tensor)) != length or offset < 0:
        msg = (
            f"{subject}, {length} bytes from byte {offset} on, but its shape and type take "
            f"{wanted}; export the model again."
        )
        raise ArtifactError(msg)
    if offset + length > (size := file.stat().st_size):
        msg = (
            f"{subject} up to byte {offset + length}, but that file has {size} bytes: it is "
            "truncated or belongs to another model; copy or download it again."
        )
        raise ArtifactError(msg)
    _check_holes(file, subject)
    return file, offset, length


def _check_holes(file: Path, subject: str) -> None:
    """Refuse a large file most of which is not on disk, as a download that broke off leaves it.

    Raises:
        ArtifactError: It is one.
    """
    status = file.stat()
    if status.st_size > EXTERNAL_BYTES and status.st_blocks * _BLOCK * 8 < status.st_size:
        msg = (
            f"{subject}, of whose {status.st_size} bytes only {status.st_blocks * _BLOCK} are on "
            "disk: it was not written whole; copy or download it again."
        )
        raise ArtifactError(msg)


def inside(
    location: str,
    folder: Path,
    subject: str,
    *,
    advice: str = "export the model again, with its weights next to it",
) -> Path:
    """Resolve a location to a file in the folder; an error for any other.

    Args:
        location: The name of the file, with those of folders before it.
        folder: The folder.
        subject: Begins the sentence of an error.
        advice: Ends it.

    Raises:
        ArtifactError: It leads out of the folder, over a link, or to no file.
    """
    if not is_name(location):
        msg = f"{subject[:200]}, which is no name of a file; {advice}."
        raise ArtifactError(msg)
    windows = PureWindowsPath(location)  # handles both separators, and drives
    outside = bool(windows.anchor) or ".." in windows.parts
    steps = [folder.joinpath(*windows.parts[:end]) for end in range(1, len(windows.parts) + 1)]
    if not outside and any(step.is_symlink() for step in steps):
        msg = (
            f"{subject}, which is a symbolic link and may lead anywhere; put the file itself "
            f"next to {subject.partition(' ')[0]}."
        )
        raise ArtifactError(msg)
    if outside or not steps:
        msg = f"{subject}, but only a file in its own folder is read; {advice}."
        raise ArtifactError(msg)
    if not steps[-1].is_file():
        msg = f"{subject}, which does not exist; put it there."
        raise ArtifactError(msg)
    return steps[-1]
