"""Shared libraries with operators that ONNX has not: native code, loaded only when allowed.

Loading a library runs its code. So one that came with a model is loaded only where the caller has
named it, and only if its digest is the one that was recorded.
"""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from os import PathLike
from pathlib import Path

from mlflow_e2eai.artifacts.files import atomic_write, sha256_of, verify
from mlflow_e2eai.artifacts.values import Library
from mlflow_e2eai.errors import ArtifactError, InvalidInputError, RunnerError, require_several

FOLDER = "libraries"
"""Folder of libraries, next to the model that needs them."""

_ALLOWED: ContextVar[frozenset[str]] = ContextVar("_ALLOWED", default=frozenset())


def require_file_names(names: Collection[str]) -> tuple[str, ...]:
    """Refuse names of libraries that are to be allowed, and are none.

    Raises:
        InvalidInputError: It is no list of names, or one is a path.
    """
    several = require_several("allow_native", names, str, "a list of file names")
    if any("/" in name for name in several):
        msg = f"allow_native is {names!r}; give a list of file names, without folders."
        raise InvalidInputError(msg)
    return several


@contextmanager
def native_allowed(names: Collection[str]) -> Iterator[None]:
    """Allow loading the named libraries of fetched models inside the block.

    Args:
        names: File names, for example ``libortextensions.so``.

    Raises:
        InvalidInputError: See `require_file_names`.
    """
    token = _ALLOWED.set(_ALLOWED.get() | frozenset(require_file_names(names)))
    try:
        yield
    finally:
        _ALLOWED.reset(token)


def allowed_names() -> frozenset[str]:
    """The names that `native_allowed` allows now, to hand on to another process."""
    return _ALLOWED.get()


def describe_libraries(paths: Iterable[str | Path]) -> tuple[Library, ...]:
    """Describe the libraries at these paths, which the caller thereby allows.

    Raises:
        InvalidInputError: One is not there, or two have one name.
    """
    libraries: dict[str, Library] = {}
    for given in require_several("libraries", paths, (str, PathLike), "paths, as a list"):
        path = Path(given).absolute()
        if not path.is_file():
            msg = f"There is no library {path}; give the path of a shared library."
            raise InvalidInputError(msg)
        library = Library(path=path, sha256=sha256_of(path), allowed=True)
        if libraries.setdefault(path.name, library).sha256 != library.sha256:
            msg = (
                f"Two libraries are named {path.name}; rename one, because libraries are allowed "
                "by name."
            )
            raise InvalidInputError(msg)
    return tuple(libraries.values())


def copy_libraries(libraries: Iterable[Library], directory: Path) -> tuple[Library, ...]:
    """Copy libraries next to a model; the result has paths relative to its directory.

    Raises:
        ArtifactError: A library has changed since it was recorded.
        InvalidInputError: Another one of that name is there.
    """
    copies = []
    for library in libraries:
        path = Path(FOLDER, library.path.name)
        if not (directory / path).is_file():
            verify(library.path, library.sha256)
            with atomic_write(directory / path) as temporary:
                shutil.copyfile(library.path, temporary)
        elif sha256_of(directory / path) != library.sha256:
            msg = (
                f"Two libraries are named {path.name}; rename one, because libraries are allowed "
                "by name."
            )
            raise InvalidInputError(msg)
        copies.append(Library(path=path, sha256=library.sha256))
    return tuple(copies)


def resolve_libraries(libraries: Iterable[Library], directory: Path) -> tuple[Library, ...]:
    """The libraries next to a fetched model, allowed where `native_allowed` names them.

    Raises:
        ArtifactError: A library lies elsewhere.
    """
    resolved = []
    for library in libraries:
        if library.path.is_absolute() or ".." in library.path.parts:
            msg = (
                f"The model names the library {library.path}, which is outside it; do not trust it."
            )
            raise ArtifactError(msg)
        is_allowed = library.path.name in _ALLOWED.get()
        resolved.append(
            dataclasses.replace(library, path=directory / library.path, allowed=is_allowed)
        )
    return tuple(resolved)


def loadable(libraries: Sequence[Library]) -> tuple[Path, ...]:
    """Paths of libraries, checked for loading them now.

    Raises:
        RunnerError: The caller has not allowed one; the message says how to.
        ArtifactError: One is missing, or has changed since it was recorded.
    """
    for library in libraries:
        name = library.path.name
        if not library.allowed:
            msg = (
                f"The model needs the library {name} (sha256 {library.sha256}), native code that "
                f"came with it; if you trust it, allow it by name: allow_native=[{name!r}], or "
                f"allow_native={name} on the command line."
            )
            raise RunnerError(msg)
        verify(library.path, library.sha256)
    return tuple(library.path for library in libraries)
