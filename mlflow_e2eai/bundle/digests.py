"""The digests of all files of a folder, as ``sha256sum --check SHA256SUMS`` reads them."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path

from mlflow_e2eai.artifacts.files import read_text, require_inside, sha256_of, verify
from mlflow_e2eai.errors import ArtifactError, InvalidInputError

DIGESTS = "SHA256SUMS"

CACHE = "__pycache__"
"""Python's folder of compiled code, which MLflow removes before it logs a model."""

_LINE = re.compile(r"([0-9a-f]{64})  (.+)")


def write_digests(folder: Path) -> str:
    """List the digests of all files of a folder in its file ``SHA256SUMS``.

    Returns:
        The digest of the list.

    Raises:
        InvalidInputError: A file has a name that the list cannot hold.
    """
    names = sorted(name for name in _files(folder) - {DIGESTS} if CACHE not in Path(name).parts)
    check_names(names)
    lines = [f"{sha256_of(folder / name)}  {name}\n" for name in names]
    (folder / DIGESTS).write_text("".join(lines), encoding="utf-8")
    return sha256_of(folder / DIGESTS)


def check_names(names: Iterable[str]) -> None:
    """Refuse names of files that the list cannot hold, or that `read_digests` would refuse.

    Raises:
        InvalidInputError: There is one.
    """
    for name in names:
        if not _is_listable(name):
            msg = (
                f"A model cannot have a file {name[:300]!r}: its name has a line break, a "
                "backslash, a drive or a character that is not printed, or is too long; rename it."
            )
            raise InvalidInputError(msg)


def _is_listable(name: str) -> bool:
    try:
        require_inside(name, "")
    except ArtifactError:
        return False
    return "\\" not in name


def verify_digests(folder: Path, sha256: str, *, unlisted: Collection[str] = ()) -> None:
    """Check that a folder holds what was listed, and nothing else.

    Args:
        folder: The folder.
        sha256: The digest of its list.
        unlisted: Names of files that may be there without being listed.

    Raises:
        ArtifactError: A file is missing, has changed, or is not in the list.
    """
    verify_listed(folder, read_digests(folder, sha256), unlisted=(DIGESTS, *unlisted))


def read_digests(folder: Path, sha256: str) -> dict[str, str]:
    """The digests of a folder's files by name, from the list in it.

    Raises:
        ArtifactError: The list is missing or has changed.
    """
    verify(folder / DIGESTS, sha256)
    listed = {}
    text = read_text(folder / DIGESTS, advice="download the model again.")
    for line in text.removesuffix("\n").split("\n") if text else ():
        if (found := _LINE.fullmatch(line)) is None:
            msg = f"{DIGESTS} has the line {line[:80]!r}, which is not a digest and a file name."
            raise ArtifactError(msg)
        require_inside(found[2], f"{DIGESTS} names {found[2]!r}")
        listed[found[2]] = found[1]
    return listed


def verify_listed(
    folder: Path, listed: Mapping[str, str], *, below: str = "", unlisted: Collection[str] = ()
) -> None:
    """Check that a folder, or one below it, holds what was listed there, and nothing else.

    Args:
        folder: The folder.
        listed: Digests by name; see `read_digests`.
        below: Begins the names that are looked at.
        unlisted: Names of files that may be there without being listed.

    Raises:
        ArtifactError: A file is missing, is a link, has changed, or is not in the list.
    """
    present = {name for name in _files(folder) - {*unlisted} if name.startswith(below)}
    names = {name for name in listed if name.startswith(below)}
    if missing := sorted(names - present):
        msg = (
            f"{missing[0]}, which was in the model when it was made, is missing; log the model "
            "again."
        )
        raise ArtifactError(msg)
    if extra := sorted(present - names):
        msg = f"{extra[0]} was not in the model when it was made; remove it, or log it again."
        raise ArtifactError(msg)
    refuse_links(folder, [*names, *unlisted])
    for name in sorted(names):
        verify(folder / name, listed[name])


def refuse_links(folder: Path, names: Iterable[str]) -> None:
    """Refuse a named file, or a folder on its way, that is a link, wherever it leads to.

    Raises:
        ArtifactError: One is.
    """
    steps = {step for name in names for step in (Path(name), *Path(name).parents)}
    for step in sorted(steps):
        if step.parts and (folder / step).is_symlink():
            msg = (
                f"{step} in {folder} is a symbolic link, and may lead anywhere; download the model "
                "again."
            )
            raise ArtifactError(msg)


def _files(folder: Path) -> set[str]:
    """Names of all files below a folder, and of links, whatever they lead to."""
    return {
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.is_symlink() or not path.is_dir()
    }
