"""Weights in other files, checked before one is opened."""

from __future__ import annotations

from pathlib import Path, PureWindowsPath
from typing import TYPE_CHECKING, Any

from mlflow_e2eai.errors import ArtifactError
from mlflow_e2eai.weights import places
from mlflow_e2eai.weights.places import (
    bytes_of,
    inside_again,
    is_reference,
    place_of,
    refer,
    references,
    size_of,
)

if TYPE_CHECKING:
    import onnx


def fetch(model: onnx.ModelProto, path: Path) -> None:
    """Make a model's weights that lie in other files available.

    Up to `EXTERNAL_BYTES` they are brought into the model. Of more, the large tensors refer to
    their files by absolute path, which `beside` and `values` understand.

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
    large = size_of(model) > places.EXTERNAL_BYTES
    for tensor in external:
        if not large or bytes_of(tensor) < places.SMALL_BYTES:
            bring_in(tensor)


def skeleton(model: onnx.ModelProto) -> onnx.ModelProto:
    """A model whose large weights are inputs, for ONNX's checker.

    The checker looks at the values of small constants only, and would be handed a copy of all
    bytes. It would also open other files, and refuses those with several hard links, which is how
    one copy of the weights serves several graphs.
    """
    import onnx

    bare: onnx.ModelProto = _without(model, "graph")
    bare.graph.CopyFrom(_without(model.graph, "initializer"))
    listed = {value.name for value in model.graph.input}
    for tensor in model.graph.initializer:
        if not is_reference(tensor) and len(tensor.raw_data) < places.SMALL_BYTES:
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
    """Take the bytes that a tensor refers to into it."""
    path, offset, length = place_of(tensor)
    with path.open("rb") as file:
        file.seek(offset)
        data = file.read(length)
    inside_again(tensor)
    tensor.raw_data = data


def check(tensor: onnx.TensorProto, path: Path) -> tuple[Path, int, int]:
    """Check where a tensor's bytes lie: in which file, from which byte, and how many."""
    entries = {entry.key: entry.value for entry in tensor.external_data}
    location = entries.get("location", "")
    subject = f"{path.name} keeps weight {tensor.name!r} in {location!r}"
    file = inside(location, path.parent, subject)
    try:
        offset = int(entries.get("offset", "0"))
        length = int(entries["length"]) if "length" in entries else file.stat().st_size - offset
    except ValueError as error:
        msg = f"{subject}, at a place that is no number; export the model again."
        raise ArtifactError(msg) from error
    if (wanted := bytes_of(tensor)) != length or offset < 0:
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
    return file, offset, length


def inside(location: str, folder: Path, subject: str) -> Path:
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
