"""Weight files are known by their content."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from mlflow_e2eai.artifacts import OnnxArtifact, WeightFile
from mlflow_e2eai.errors import ArtifactError
from mlflow_e2eai.files import sha256_of, verify
from mlflow_e2eai.weights.places import place_of, references
from mlflow_e2eai.weights.reading import inside

if TYPE_CHECKING:
    import onnx

_SUFFIX = ".weights"

_digests: dict[tuple[int, int, int, int], str] = {}
"""Digests of weight files by device, inode, size and time of change: hard links share them."""


def files_of(model: onnx.ModelProto) -> tuple[WeightFile, ...]:
    """The files that a model of `fetch` refers to."""
    files = {place_of(tensor)[0] for tensor in references(model)}
    return tuple(
        WeightFile(
            path=Path(file.name), sha256=sha256_of_weights(file), size_bytes=file.stat().st_size
        )
        for file in sorted(files)
    )


def lie_beside(path: Path) -> bool:
    """Whether an ONNX file that this package wrote keeps weights in other files."""
    if not any(path.parent.glob(f"*{_SUFFIX}")):
        return False  # a large file need not be read for that, nor onnx be imported
    import onnx

    return any(references(onnx.load(path, load_external_data=False)))


def digest(path: Path, files: Iterable[WeightFile]) -> str:
    """What identifies an ONNX file with its weights.

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
        graph: What was recorded.
        sha256: Its digest as somebody else recorded it; by default `graph`'s own.

    Raises:
        ArtifactError: One is missing or has changed, or a weight file is outside the folder.
    """
    for file in graph.weights:
        location = file.path.as_posix()
        subject = f"{graph.path.name} keeps weights in {location!r}"
        place = inside(location, graph.path.parent, subject)
        if sha256_of_weights(place) != file.sha256:
            verify(place, file.sha256)
    if not graph.weights:
        verify(graph.path, sha256 or graph.sha256)
    elif digest(graph.path, graph.weights) != (sha256 or graph.sha256):
        msg = (
            f"{graph.path.name} has changed since its digest was recorded; download it again, or "
            f"make it again."
        )
        raise ArtifactError(msg)


def name_of(sha256: str) -> str:
    """What a weight file is called."""
    return f"{sha256[:16]}{_SUFFIX}"


def sha256_of_weights(file: Path) -> str:
    """The digest of a weight file, read once in this process as long as it does not change."""
    if (key := _key(file)) not in _digests:
        _digests[key] = sha256_of(file)
    return _digests[key]


def remember(file: Path, sha256: str) -> None:
    """Say the digest of a weight file that was just written."""
    _digests[_key(file)] = sha256


def _key(file: Path) -> tuple[int, int, int, int]:
    said = file.stat()
    return said.st_dev, said.st_ino, said.st_size, said.st_mtime_ns
