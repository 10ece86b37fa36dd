"""Weights that an ONNX file keeps in other files: checked, written once, then linked.

Up to `EXTERNAL_BYTES` a graph is one file. Above that, in memory each large tensor only refers to
its bytes, by the absolute path of their file; on disk that file lies next to the graph, named by
its content (``<start of its sha256>.weights``). So graphs with the same weights share one file, and
a stage that leaves the weights alone passes them on by hard link.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import shutil
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mlflow_e2eai.artifacts import external_data
from mlflow_e2eai.artifacts.external_data import (
    bring_in,
    bytes_of,
    inside,
    inside_again,
    location_of,
    refer,
    references,
    size_of,
    tensors,
)
from mlflow_e2eai.artifacts.files import atomic_write, sha256_of, verify
from mlflow_e2eai.artifacts.values import OnnxArtifact, WeightFile
from mlflow_e2eai.errors import ArtifactError

if TYPE_CHECKING:
    import onnx
    import torch


_ALIGNED_TO = 1 << 16
"""Offsets are multiples of this, so that every system can map a tensor into memory; see ONNX's
ExternalData.md."""

_PIECE = 1 << 22
"""Numbers that are rounded at a time; the converter holds several copies of them."""

_STRING = 8
"""ONNX's number for texts, which cannot lie in another file."""


@contextmanager
def weights_linked(model: onnx.ModelProto, folder: Path) -> Iterator[None]:
    """Link the weight files of a model into a folder, so that it can be written there.

    Above `EXTERNAL_BYTES` the large tensors of the model are moved into a file, for good.
    """
    _round(model, folder.absolute())
    if size_of(model) <= external_data.EXTERNAL_BYTES:
        for tensor in list(references(model)):
            bring_in(tensor)
    elif size_of(model, inside=True) > external_data.EXTERNAL_BYTES:
        own = [
            tensor
            for tensor in tensors(model)
            if not tensor.external_data
            and bytes_of(tensor) >= external_data.SMALL_BYTES
            and tensor.data_type != _STRING
        ]
        with new_weight_file(folder.absolute()) as append:
            for tensor in own:
                append(tensor, [_own_bytes(tensor)])
    spots = [(tensor, *location_of(tensor)) for tensor in references(model)]
    names = {
        file: link(file, folder.absolute()) for file in dict.fromkeys(spot[1] for spot in spots)
    }
    try:
        for tensor, file, offset, length in spots:
            refer(tensor, Path(names[file]), offset, length)
        yield
    finally:
        for tensor, file, offset, length in spots:
            refer(tensor, file, offset, length)


def link(file: Path, folder: Path, *, copy: bool = False) -> str:
    """Link a weight file into a folder under the name of its content.

    Where the file system has no hard links, or is another, the file is copied.

    Returns:
        The name of the file.
    """
    sha256 = sha256_of_weights(file)
    name = name_of(sha256)
    path = folder / name
    if path.exists() and sha256_of_weights(path) == sha256:
        return name
    folder.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    if not copy and _try_hard_link(file, path):
        remember(path, sha256)
        return name
    with atomic_write(path) as temporary:
        shutil.copyfile(file, temporary)
    return name


def _try_hard_link(file: Path, path: Path) -> bool:
    """Make a hard link; returns False where the file system refuses it."""
    try:
        os.link(file, path)
    except OSError:
        return False
    return True


def is_large(module: torch.nn.Module) -> bool:
    """Whether a module's weights will lie outside the graph's file."""
    return weight_bytes(module) > external_data.EXTERNAL_BYTES


def weight_bytes(module: torch.nn.Module) -> int:
    """Bytes of a module's weights."""
    tensors = [*module.parameters(), *module.buffers()]
    return sum(each.numel() * each.element_size() for each in tensors)


@contextmanager
def staging_path(out: Path) -> Iterator[Path]:
    """Yield a path for an ONNX file in a temporary folder next to `out`.

    When the block ends well, the file moves to `out`, and its weight files next to it. A stage that
    is killed or fails leaves nothing that looks finished.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as folder:
        temporary = Path(folder, out.name)
        yield temporary
        for name in weight_names(temporary):
            link(Path(folder, name), out.parent)
        temporary.chmod(0o644)
        temporary.replace(out)


@contextmanager
def new_weight_file(
    folder: Path,
) -> Iterator[Callable[[onnx.TensorProto, Iterable[np.ndarray]], None]]:
    """Write one new weight file into a folder, piece by piece.

    Yields:
        A function that appends pieces, and has a tensor refer to them; its type and shape are the
        caller's to set.
    """
    folder.mkdir(parents=True, exist_ok=True)
    sha256 = hashlib.sha256()
    spots: list[tuple[onnx.TensorProto, int, int]] = []
    with atomic_write(folder / "new.weights") as temporary, temporary.open("wb") as file:

        def append(tensor: onnx.TensorProto, pieces: Iterable[np.ndarray]) -> None:
            padding = np.zeros(-file.tell() % _ALIGNED_TO, np.uint8)
            offset = file.tell() + padding.size
            for piece in itertools.chain([padding], pieces):
                plain = np.ascontiguousarray(piece).reshape(-1).view(np.uint8)
                sha256.update(plain.data)
                file.write(plain.data)
            spots.append((tensor, offset, file.tell() - offset))
            refer(tensor, temporary, offset, file.tell() - offset)

        yield append
    final = (folder / "new.weights").rename(folder / name_of(sha256.hexdigest()))
    remember(final, sha256.hexdigest())
    for tensor, offset, length in spots:
        refer(tensor, final, offset, length)


def _round(model: onnx.ModelProto, folder: Path) -> None:
    """Round the bytes of tensors whose type is fp16 and whose file holds fp32.

    That is what the conversion to fp16 leaves of them: it changes the type, and the bytes only
    where they are in the model. A piece at a time, as the whole is large.
    """
    fp16 = [t for t in references(model) if location_of(t)[2] == 2 * bytes_of(t)]
    if fp16 and size_of(model) <= external_data.EXTERNAL_BYTES:
        for tensor in fp16:
            data = b"".join(piece.tobytes() for piece in _round_to_fp16(tensor))
            inside_again(tensor)
            tensor.raw_data = data
    elif fp16:
        with new_weight_file(folder) as append:
            for tensor in fp16:
                append(tensor, _round_to_fp16(tensor))


def _round_to_fp16(tensor: onnx.TensorProto) -> Iterator[np.ndarray]:
    from onnxruntime.transformers.float16 import convert_np_to_float16

    file, offset, length = location_of(tensor)
    values = np.memmap(file, np.float32, mode="r", offset=offset, shape=(length // 4,))
    for start in range(0, values.size, _PIECE):
        yield convert_np_to_float16(values[start : start + _PIECE])


def weight_names(graph: Path | bytes) -> set[str]:
    """The weight files that an ONNX file of this package names, or its bytes."""
    import onnx

    if isinstance(graph, bytes):
        model = onnx.ModelProto.FromString(graph)
    elif any(graph.parent.glob("*.weights")):
        model = onnx.load(graph, load_external_data=False)
    else:
        return set()  # the graph may be large, and need not be read
    return {entry.value for tensor in references(model) for entry in tensor.external_data[:1]}


def _own_bytes(tensor: onnx.TensorProto) -> np.ndarray:
    import onnx

    if tensor.HasField("raw_data"):
        return np.frombuffer(tensor.raw_data, np.uint8)
    packed = onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(tensor))
    return np.frombuffer(packed.raw_data, np.uint8)


_SUFFIX = ".weights"

_digests: dict[tuple[int, ...], str] = {}
"""Digests of weight files by device, inode, size and times of change: hard links share them."""


def files_of(model: onnx.ModelProto) -> tuple[WeightFile, ...]:
    """The files that a model of `fetch` refers to."""
    files = {location_of(tensor)[0] for tensor in references(model)}
    return tuple(
        WeightFile(
            path=Path(file.name), sha256=sha256_of_weights(file), size_bytes=file.stat().st_size
        )
        for file in sorted(files)
    )


def has_weight_files(path: Path) -> bool:
    """Whether an ONNX file that this package wrote keeps weights in other files."""
    if not any(path.parent.glob(f"*{_SUFFIX}")):
        return False  # a large file need not be read for that, nor onnx be imported
    import onnx

    return any(references(onnx.load(path, load_external_data=False)))


def bytes_beside(path: Path) -> int:
    """Bytes of an ONNX file that this package wrote, and of all weight files beside it."""
    files = (path, *path.parent.glob(f"*{_SUFFIX}"))
    return sum(each.stat().st_size for each in files if each.is_file())


def digest(path: Path, files: Iterable[WeightFile]) -> str:
    """Digest of an ONNX file together with its weight files.

    Without weight files it is the sha256 of the file. With some it is the sha256 of the lines
    ``<sha256 of the file>`` and, for each weight file in order, ``<its sha256>  <its name>``.
    """
    lines = [sha256_of(path), *(f"{file.sha256}  {file.path.as_posix()}" for file in files)]
    if len(lines) == 1:
        return lines[0]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def verify_graph(graph: OnnxArtifact, sha256: str | None = None) -> None:
    """Check that an ONNX file and its weight files are those that were recorded.

    Args:
        graph: The recorded file.
        sha256: The expected digest; by default `graph`'s own.

    Raises:
        ArtifactError: One is missing or has changed, or a weight file is outside the folder.
    """
    for file in graph.weights:
        location = file.path.as_posix()
        subject = f"{graph.path.name} keeps weights in {location!r}"
        path = inside(location, graph.path.parent, subject)
        if sha256_of_weights(path) != file.sha256:
            verify(path, file.sha256)
    if not graph.weights:
        verify(graph.path, sha256 or graph.sha256)
    elif digest(graph.path, graph.weights) != (sha256 or graph.sha256):
        msg = (
            f"{graph.path.name} has changed since its digest was recorded; download it again, or "
            f"make it again."
        )
        raise ArtifactError(msg)


def name_of(sha256: str) -> str:
    """File name of a weight file with this digest."""
    return f"{sha256[:16]}{_SUFFIX}"


def sha256_of_weights(file: Path) -> str:
    """The digest of a weight file, cached in this process until the file changes."""
    if (key := _key(file)) not in _digests:
        _digests[key] = sha256_of(file)
    return _digests[key]


def remember(file: Path, sha256: str) -> None:
    """Cache the digest of a weight file that was just written."""
    _digests[_key(file)] = sha256


def _key(file: Path) -> tuple[int, ...]:
    """Anybody can set the first time; the system sets the second one, also for each new link."""
    status = file.stat()
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


# Weights of subgraphs, each in the file once: GraphSurgeon writes a weight that branches read from
# the graph around them into every branch.


def share_weights(model: onnx.ModelProto) -> None:
    """Move a weight that several graphs of a model have alike into the main graph.

    One that differs from another of its name, or whose name is a value's elsewhere, stays.
    """
    everywhere = [model.graph, *_inner_graphs(model.graph)]
    if len(everywhere) == 1:
        return
    found: dict[str, list[tuple[onnx.GraphProto, onnx.TensorProto]]] = defaultdict(list)
    values: set[str] = set()
    for graph in everywhere:
        for weight in graph.initializer:
            found[weight.name].append((graph, weight))
        values |= {value.name for value in graph.input}
        values |= {name for node in graph.node for name in node.output}
    for name, places in found.items():
        (home, first), *others = places
        if name in values or not others or any(weight != first for _, weight in others):
            continue
        if home is not model.graph:
            model.graph.initializer.append(first)
            others = places
        for graph, weight in others:
            graph.initializer.remove(weight)


def subgraphs(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    """The graphs inside a node, such as the branches of an If; not those inside these."""
    for attribute in node.attribute:
        if attribute.HasField("g"):
            yield attribute.g
        yield from attribute.graphs


def _inner_graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    for node in graph.node:
        for inner in subgraphs(node):
            yield inner
            yield from _inner_graphs(inner)
