"""Files: digests, writes that are whole or not at all, and frozen values as JSON and tables."""

from __future__ import annotations

import dataclasses
import errno
import functools
import hashlib
import io
import os
import re
import stat
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from html import escape
from pathlib import Path, PureWindowsPath
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias, TypeVar

from mlflow_e2eai.errors import ArtifactError

if TYPE_CHECKING:
    import pandas as pd
    from pydantic_core import SchemaValidator

Value = TypeVar("Value")

TEXT_BYTES = 32 << 20
"""Of a file of text or JSON: pydantic reads as many in about six seconds."""


def open_file(path: Path) -> io.BufferedReader:
    """Open a file of data for reading; a pipe or a device, which may have no end, is refused.

    Raises:
        OSError: It cannot be opened, or is no file.
        ValueError: The path holds a NUL.
    """
    # Without O_NONBLOCK, a pipe would wait for its writer.
    file = os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb")
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise OSError(errno.EINVAL, "it is no regular file", str(path))
    return file


def read_bytes(path: Path, *, advice: str = "check the path.") -> bytes:
    """Read a file of text or JSON.

    Args:
        path: The file.
        advice: Ends the message of an error.

    Raises:
        ArtifactError: It cannot be read, or is longer than such a file is.
    """
    try:
        with open_file(path) as file:
            data = file.read(TEXT_BYTES + 1)
    except (OSError, ValueError) as error:
        msg = f"Cannot read {path}: {reading_error(error)}; {advice}"
        raise ArtifactError(msg) from error
    if len(data) > TEXT_BYTES:
        msg = f"{path} has more than {TEXT_BYTES >> 20} MiB, which no such file has; {advice}"
        raise ArtifactError(msg)
    return data


def read_text(path: Path, *, advice: str = "check the path.") -> str:
    """Read a file of UTF-8 text; see `read_bytes`."""
    try:
        return read_bytes(path, advice=advice).decode()
    except UnicodeDecodeError as error:
        msg = f"Cannot read {path}: {reading_error(error)}; {advice}"
        raise ArtifactError(msg) from error


def sha256_of(path: Path) -> str:
    """Hexadecimal sha256 of a file, read in pieces.

    Raises:
        ArtifactError: There is no such file.
    """
    try:
        with open_file(path) as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except (OSError, ValueError) as error:
        reason = reading_error(error)
        msg = f"Cannot read {path}: {reason}; check the path, or make the artifact again."
        raise ArtifactError(msg) from error


def reading_error(error: Exception) -> str:
    """The reason why a file cannot be read, on one line and without an error number."""
    if isinstance(error, UnicodeDecodeError):
        return "it is not UTF-8 text"
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
    text = read_bytes(path)
    if (seal := _SEAL.search(text, max(len(text) - 100, 0))) is None:
        msg = f"{path.name} does not end with its own digest; make the artifact again."
        raise ArtifactError(msg)
    plain = text[: seal.start()] + b"\n}"
    if (digest := hashlib.sha256(plain).hexdigest()) != seal[1].decode():
        raise _changed_error(path, digest, seal[1].decode())
    return plain


def require_inside(name: str | Path, subject: str) -> None:
    """Check that a name, relative to some folder, leads to nothing outside of it.

    Raises:
        ArtifactError: It does; the message begins with `subject`.
    """
    if not is_name(str(name)):
        msg = f"{subject[:300]}, which is no name of a file; do not trust it."
        raise ArtifactError(msg)
    path = PureWindowsPath(name)  # handles both separators, and drives
    if path.anchor or ".." in path.parts:
        msg = f"{subject}, which is outside the model; do not trust it."
        raise ArtifactError(msg)


_LONGEST_NAME = 255
"""Bytes of a file's name that file systems take."""


def is_name(path: str) -> bool:
    """Whether a path is of names that a file can have, on one line."""
    parts = path.replace("\\", "/").split("/")
    sizes = [len(part.encode(errors="replace")) for part in parts]
    return path.isprintable() and max(sizes) <= _LONGEST_NAME


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
            msg = f"The text is not JSON ({first['ctx']['error']}); a {kind.__name__} was expected."
            raise ArtifactError(msg) from error
        path = ".".join(str(part) for part in first["loc"]) or "the whole"
        msg = f"This is not a {kind.__name__}: at {path}, {first['msg']}."
        raise ArtifactError(msg) from error
    return value


def parse_json(text: str | bytes) -> Any:
    """Parse JSON; unlike by `json.loads`, what is too deep is an error of the text.

    Raises:
        ValueError: It is no JSON.
    """
    from pydantic_core import from_json as parse

    return parse(text)


@functools.cache
def _reader(kind: type[Any]) -> SchemaValidator:
    """Cached, as making one takes longer than its use: 40 ms for a `Manifest`."""
    from pydantic import TypeAdapter
    from pydantic_core import SchemaValidator

    return SchemaValidator(_with_limits(TypeAdapter(kind).core_schema))


_LIMITS: Mapping[str, Mapping[str, Any]] = {
    "int": {"ge": -(2**63), "le": 2**63 - 1},
    **{kind: {"fail_fast": True} for kind in ("dict", "list", "tuple")},
}
"""Limits of integers that arrays, DataFrames and floats take; errors of millions take gigabytes."""


def _with_limits(schema: Any) -> Any:
    """A schema of pydantic's with the `_LIMITS` of its types."""
    if isinstance(schema, dict):
        limits = _LIMITS.get(str(schema.get("type")), {})
        return {**{key: _with_limits(value) for key, value in schema.items()}, **limits}
    if isinstance(schema, list | tuple):
        return type(schema)(map(_with_limits, schema))
    return schema


# Frozen values at a prompt, in a notebook and as a DataFrame.

_DTYPES = {
    "bool": "boolean",
    "int": "Int64",
    "int | None": "Int64",
    "float": "float64",
    "Real": "float64",
    "Real | None": "float64",
}
"""Dtype of a column of a DataFrame by the annotation of its field; of others it is ``string``."""

_TEXTS = (
    "str",
    "Precision",
    "Literal",
    "Kind",
    "FindingKind",
    "Reason",
    "Severity",
    "MoveKind",
    "Standing",
    "Answer",
)
"""Beginnings of annotations whose values are text."""

_MOST_COLUMNS, _MOST_ROWS = 10, 60
"""Size of a table in a notebook; `Summary.to_pandas` gives all of it."""

Table: TypeAlias = tuple[type, Sequence[Any]]
"""The kind of a table's rows, which are dataclasses, and the rows."""


class Summary:
    """A value that is a line at a prompt, a table in a notebook and a DataFrame in pandas.

    A subclass has `_line` and `_table`. A dataclass is one with ``repr=False``, as it would write
    out all of its fields.
    """

    __slots__ = ()

    def _line(self) -> str:
        """The value in a sentence."""
        raise NotImplementedError

    def _table(self) -> Table:
        """The parts of the value."""
        raise NotImplementedError

    def __repr__(self) -> str:
        """The value in one line, for a prompt."""
        return f"{type(self).__name__}: {' '.join(self._line().split())}"

    def _repr_html_(self) -> str:
        """The line and the table's first columns, for a notebook."""
        return html_table(repr(self), *self._table())

    def to_pandas(self) -> pd.DataFrame:
        """The value as a DataFrame, a row for each of its parts.

        Numbers are ``float64`` or ``Int64``, texts ``string``, the same whatever is missing.
        """
        return frame(*self._table())


def not_default(value: Any) -> dict[str, Any]:
    """The fields of a dataclass that are neither empty nor at their default, by name."""
    return {
        each.name: own
        for each in dataclasses.fields(value)
        if (own := getattr(value, each.name)) != each.default and own != {}
    }


def short_repr(value: Any) -> str:
    """A dataclass as it is written, with the fields of `not_default`."""
    given = [f"{name}={own!r}" for name, own in not_default(value).items()]
    return f"{type(value).__name__}({', '.join(given)})"


def frame(kind: type, values: Sequence[Any]) -> pd.DataFrame:
    """Values of one dataclass as a DataFrame, a column for each field that is a number or text."""
    import pandas as pd

    dtypes, rows = _columns(kind, values)
    return pd.DataFrame(rows, columns=list(dtypes)).astype(dtypes)


def html_table(line: str, kind: type, values: Sequence[Any]) -> str:
    """A sentence and the first columns of a table in HTML; columns without a value are left out."""
    dtypes, rows = _columns(kind, values)
    shown = [at for at in dtypes if any(row.get(at) is not None for row in rows)][:_MOST_COLUMNS]
    head = "".join(f"<th>{escape(name.replace('_', ' '))}</th>" for name in shown)
    body = "".join(
        f"<tr>{''.join(f'<td>{escape(_cell(row.get(name)))}</td>' for name in shown)}</tr>"
        for row in rows[:_MOST_ROWS]
    )
    table = f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>" if body else ""
    more = len(rows) - _MOST_ROWS
    rest = f"<p>{more} more rows: see to_pandas()</p>" if more > 0 else ""
    return f"<div><p>{escape(line)}</p>{table}{rest}</div>"


def _columns(kind: type, values: Sequence[Any]) -> tuple[dict[str, str], list[dict[str, Any]]]:
    """Dtypes by column, and a row for each value, of the fields that are numbers or text.

    A mapping of numbers has a column for each of its names.
    """
    dtypes: dict[str, str] = {}
    rows: list[dict[str, Any]] = [{} for _ in values]
    for each in dataclasses.fields(kind):
        name, annotation = each.name, str(each.type)
        cells = [getattr(value, name) for value in values]
        if annotation == "Mapping[str, Real]":
            for key in sorted({key for cell in cells for key in cell}):
                dtypes[f"{name}/{key}"] = "float64"
                for row, cell in zip(rows, cells, strict=True):
                    row[f"{name}/{key}"] = cell.get(key)
        elif annotation in _DTYPES or annotation.startswith(_TEXTS):
            dtypes[name] = _DTYPES.get(annotation, "string")
            for row, cell in zip(rows, cells, strict=True):
                row[name] = cell
    return dtypes, rows


def _cell(value: object) -> str:
    if value is None:
        return ""
    return f"{value:.4g}".replace("nan", "NaN") if isinstance(value, float) else str(value)
