"""A bundle compared with its manifest, before any of its files is opened."""

from __future__ import annotations

import dataclasses
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from mlflow_e2eai.artifacts import libraries
from mlflow_e2eai.artifacts.external_data import inside
from mlflow_e2eai.artifacts.files import verify
from mlflow_e2eai.artifacts.values import EngineArtifact, OnnxArtifact
from mlflow_e2eai.artifacts.weight_files import digest
from mlflow_e2eai.bundle.digests import refuse_links
from mlflow_e2eai.bundle.manifest import EXAMPLE, MANIFEST, Manifest, read
from mlflow_e2eai.errors import ArtifactError

Artifact = TypeVar("Artifact", OnnxArtifact, EngineArtifact)


def audit(directory: Path, *, sha256: str | None = None, whole: bool = True) -> Manifest:
    """Check a bundle in this order: schema, paths, digests, sizes, extra files.

    Args:
        directory: The bundle.
        sha256: The digest of its manifest, where somebody else has it.
        whole: Check the digests and sizes of all files. If False, files may be missing, as they are
            downloaded when they are needed, and the digest of each is checked when it is opened.

    Returns:
        The manifest with absolute paths of its files; the libraries in `libraries.native_allowed`
        are allowed.

    Raises:
        ArtifactError: The bundle is not as its manifest has it.
    """
    manifest = read(directory)
    if sha256 is not None:
        verify(directory / MANIFEST, sha256)
    _check_distinct(manifest, directory)
    names = {path.as_posix() for path in _paths(manifest)}
    refuse_links(directory, {*names, EXAMPLE})
    if whole:
        for name in sorted(names):
            inside(name, directory, f"The manifest of {directory} names {name!r}", advice=_ADVICE)
        for item in manifest.files:
            _check_digest(item, directory)
        for item in manifest.files:
            _check_size(item, directory)
    _check_extra(directory, {*names, MANIFEST, EXAMPLE})
    return dataclasses.replace(
        manifest,
        graphs=tuple(_locate(graph, directory) for graph in manifest.graphs),
        engines=tuple(_locate(engine, directory) for engine in manifest.engines),
    )


_ADVICE = "download the model again"


def _paths(manifest: Manifest) -> Iterator[Path]:
    for item in manifest.files:
        yield item.path
        yield from (library.path for library in item.libraries)
        if isinstance(item, OnnxArtifact):
            yield from (item.path.parent / file.path for file in item.weights)


def _check_distinct(manifest: Manifest, directory: Path) -> None:
    """Refuse two graphs or engines in one file; weights and libraries may be of several."""
    paths = Counter([MANIFEST, EXAMPLE, *(item.path.as_posix() for item in manifest.files)])
    for path, count in paths.items():
        if count > 1:
            msg = f"The manifest of {directory} names {path!r} twice; {_ADVICE}."
            raise ArtifactError(msg)


def _entries(directory: Path) -> Iterator[os.DirEntry[str]]:
    """All files below a folder, and links, which are not followed."""
    with os.scandir(directory) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                yield from _entries(Path(entry.path))
            else:
                yield entry


def _check_digest(item: OnnxArtifact | EngineArtifact, directory: Path) -> None:
    path = directory / item.path
    if isinstance(item, EngineArtifact) or not item.weights:
        verify(path, item.sha256)
    else:
        for file in item.weights:
            verify(path.parent / file.path, file.sha256)
        if digest(path, item.weights) != item.sha256:
            msg = f"{path.name} has changed since its digest was recorded; {_ADVICE}."
            raise ArtifactError(msg)
    for library in item.libraries:
        verify(directory / library.path, library.sha256)


def _check_size(item: OnnxArtifact | EngineArtifact, directory: Path) -> None:
    """Compare the recorded size, which pages and gates show, with the files."""
    paths = [directory / item.path]
    if isinstance(item, OnnxArtifact):
        paths += [paths[0].parent / file.path for file in item.weights]
    size = sum(path.stat().st_size for path in paths)
    if item.size_bytes not in (None, size):
        msg = (
            f"{item.path} has {size} bytes, but its manifest says {item.size_bytes}; log the model "
            "again."
        )
        raise ArtifactError(msg)


def _check_extra(directory: Path, names: set[str]) -> None:
    found = {Path(entry.path).relative_to(directory).as_posix() for entry in _entries(directory)}
    if extra := sorted(found - names):
        msg = (
            f"{extra[0]!r} in {directory} is named by no manifest; remove it, or download the "
            "model again."
        )
        raise ArtifactError(msg)


def _locate(artifact: Artifact, directory: Path) -> Artifact:
    resolved = libraries.resolve_libraries(artifact.libraries, directory)
    return dataclasses.replace(artifact, path=directory / artifact.path, libraries=resolved)


# Files while they are opened.


@contextmanager
def refuse_changes(paths: Iterable[Path]) -> Iterator[None]:
    """Refuse files that change during the block, in which they are checked and opened.

    Raises:
        ArtifactError: One has changed.
    """
    before = {path: _state(path) for path in paths}
    yield
    for path, state in before.items():
        if _state(path) != state:
            msg = f"{path.name} was changed while it was opened; download it again."
            raise ArtifactError(msg)


def _state(path: Path) -> tuple[int, ...] | None:
    """Identity, size and times of a file; the system sets the last one at every change."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns
