"""The digests of all files of a folder, as ``sha256sum --check SHA256SUMS`` reads them."""

from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import Path

from mlflow_e2eai.artifacts.files import reading_error, sha256_of, verify
from mlflow_e2eai.errors import ArtifactError, InvalidInputError

DIGESTS = "SHA256SUMS"

_CACHE = "__pycache__"
"""Python's folder of compiled code, which MLflow removes before it logs a model."""

_LINE = re.compile(r"([0-9a-f]{64})  (.+)")


def write_digests(folder: Path) -> str:
    """List the digests of all files of a folder in its file ``SHA256SUMS``.

    Returns:
        The digest of the list.

    Raises:
        InvalidInputError: A file has a name that the list cannot hold.
    """
    names = sorted(name for name in _files(folder) - {DIGESTS} if _CACHE not in Path(name).parts)
    if odd := [name for name in names if "\n" in name or "\\" in name]:
        msg = f"The name {odd[0]!r} has a line break or a backslash; rename the file."
        raise InvalidInputError(msg)
    lines = [f"{sha256_of(folder / name)}  {name}\n" for name in names]
    (folder / DIGESTS).write_text("".join(lines), encoding="utf-8")
    return sha256_of(folder / DIGESTS)


def verify_digests(folder: Path, sha256: str, *, unlisted: Collection[str] = ()) -> None:
    """Check that a folder holds what was listed, and nothing else.

    Args:
        folder: The folder.
        sha256: The digest of its list.
        unlisted: Names of files that may be there without being listed.

    Raises:
        ArtifactError: A file is missing, has changed, or is not in the list.
    """
    verify(folder / DIGESTS, sha256)
    try:
        lines = (folder / DIGESTS).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        msg = f"Cannot read {DIGESTS}: {reading_error(error)}; download the model again."
        raise ArtifactError(msg) from error
    listed = {}
    for line in lines:
        if (found := _LINE.fullmatch(line)) is None or not _is_inside(found[2]):
            msg = f"{DIGESTS} has the line {line[:80]!r}, which is not a digest and a file name."
            raise ArtifactError(msg)
        listed[found[2]] = found[1]
    present = _files(folder) - {DIGESTS, *unlisted}
    if missing := sorted(listed.keys() - present):
        msg = (
            f"{missing[0]}, which was in the model when it was made, is missing; log the model "
            "again."
        )
        raise ArtifactError(msg)
    if extra := sorted(present - listed.keys()):
        msg = f"{extra[0]} was not in the model when it was made; remove it, or log it again."
        raise ArtifactError(msg)
    for name, digest in listed.items():
        verify(folder / name, digest)


def _files(folder: Path) -> set[str]:
    """Names of all files below a folder, and of links, whatever they lead to."""
    return {
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.is_symlink() or not path.is_dir()
    }


def _is_inside(name: str) -> bool:
    return not Path(name).is_absolute() and ".." not in Path(name).parts
