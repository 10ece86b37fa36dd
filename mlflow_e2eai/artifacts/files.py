"""Files: digests, writes that are whole or not at all, and frozen values as JSON."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias, TypeVar

from mlflow_e2eai.errors import ArtifactError

if TYPE_CHECKING:
    from pydantic import TypeAdapter

Value = TypeVar("Value")


def sha256_of(path: Path) -> str:
    """Hexadecimal sha256 of a file, read in pieces.

    Raises:
        ArtifactError: There is no such file.
    """
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        reason = reading_error(error)
        msg = f"Cannot read {path}: {reason}; check the path, or make the artifact again."
        raise ArtifactError(msg) from error


def reading_error(error: Exception) -> str:
    """The reason why a file cannot be read, on one line and without an error number."""
    if isinstance(error, UnicodeDecodeError):
        return "it is no text in UTF-8"
    reason = error.strerror if isinstance(error, OSError) else None
    return reason or " ".join(str(error).split())


def verify(path: Path, sha256: str) -> None:
    """Check that a file is the one that was recorded.

    Raises:
        ArtifactError: The file is missing or its digest differs.
    """
    if (digest := sha256_of(path)) != sha256:
        raise _changed_error(path, digest, sha256)


def _changed_error(path: Path, digest: str, recorded: str) -> ArtifactError:
    return ArtifactError(
        f"{path.name} has sha256 {digest[:12]}…, but {recorded[:12]}… was recorded: the file has "
        f"changed since it was made; download it again, or make it again."
    )


@contextmanager
def atomic_write(out: Path) -> Iterator[Path]:
    """Yield a temporary path in the folder of `out`; move it to `out` when the block ends well.

    A stage that is killed or fails leaves nothing that looks finished.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=out.parent, prefix=f".{out.name}.")
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        # mkstemp creates files with mode 0600, but artifacts get the folder's permissions.
        temporary.chmod(0o644)
        temporary.replace(out)
    finally:
        temporary.unlink(missing_ok=True)


_SEAL = re.compile(rb',\n  "sha256": "([0-9a-f]{64})"\n}\Z')


def seal(text: str) -> str:
    """Append the digest of a JSON object of `to_json` to it, as its last field."""
    seal = hashlib.sha256(text.encode()).hexdigest()
    return text.removesuffix("\n}") + f',\n  "sha256": "{seal}"\n}}'


def read_sealed(path: Path) -> bytes:
    """Read the JSON of a file that `seal` closed, after checking its digest.

    Raises:
        ArtifactError: It has changed since it was written, or has no digest.
    """
    text = path.read_bytes()
    if (seal := _SEAL.search(text, max(len(text) - 100, 0))) is None:
        msg = f"{path.name} ends with no digest of itself; make the artifact again."
        raise ArtifactError(msg)
    plain = text[: seal.start()] + b"\n}"
    if (digest := hashlib.sha256(plain).hexdigest()) != seal[1].decode():
        raise _changed_error(path, digest, seal[1].decode())
    return plain


class _AlsoNotFinite:
    """Has pydantic read the strings NaN, Infinity and -Infinity as a float, which JSON lacks."""

    def __get_pydantic_core_schema__(self, source: type, handler: Any) -> Any:
        from pydantic_core import core_schema

        words = core_schema.literal_schema(["NaN", "Infinity", "-Infinity"])
        as_float = core_schema.no_info_after_validator_function(float, words)
        return core_schema.union_schema([handler(source), as_float])


Real: TypeAlias = Annotated[float, _AlsoNotFinite()]
"""A float of a value that is stored as JSON: it may be NaN or infinite."""


def to_json(value: object) -> str:
    """Write a frozen value as JSON; numbers that JSON lacks (NaN, infinities) become strings."""
    from pydantic_core import to_json as dump

    if not dataclasses.is_dataclass(value) or isinstance(value, type):
        msg = f"{type(value).__name__} is not a dataclass instance."
        raise TypeError(msg)
    return dump(value, indent=2, inf_nan_mode="strings").decode()


def from_json(kind: type[Value], text: str | bytes) -> Value:
    """Read a frozen value that `to_json` wrote, with every field checked against its type.

    Raises:
        ArtifactError: The text is not JSON, or not a value of this kind.
    """
    from pydantic import ValidationError

    try:
        value: Value = _reader(kind).validate_json(text, strict=True)  # type: ignore[arg-type]  # it has a hash
    except ValidationError as error:
        first = error.errors()[0]
        if first["type"] == "json_invalid":
            msg = f"The text is not JSON ({first['ctx']['error']}); a {kind.__name__} was wanted."
            raise ArtifactError(msg) from error
        path = ".".join(str(part) for part in first["loc"]) or "the whole"
        msg = f"This is not a {kind.__name__}: at {path}, {first['msg']}."
        raise ArtifactError(msg) from error
    return value


@functools.cache
def _reader(kind: type[Any]) -> TypeAdapter[Any]:
    """Cached, as making one takes longer than its use: 40 ms for a `Manifest`."""
    from pydantic import TypeAdapter

    return TypeAdapter(kind)
