"""Code that a file of PyTorch's runs as it is loaded: found without running it, and allowed.

A pickle imports and calls whatever it names. A ``.pt2`` file is data where it is as `torch.export`
writes it, but it can hold pickles, shared libraries, and expressions that PyTorch evaluates: each
part that is no plain data is a reason to refuse it. TorchScript has neither.
"""

from __future__ import annotations

import ast
import io
import pickle
import pickletools
import re
import zipfile
from collections import Counter
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import IO, Any, Literal, TypeAlias

from mlflow_e2eai.artifacts.files import parse_json, sha256_of
from mlflow_e2eai.errors import InvalidInputError, brief

Consent: TypeAlias = bool | Collection[str]
"""Whether files that run code may be loaded, or the digests of those that may."""

Form: TypeAlias = Literal["TorchScript", "a .pt2 file", "weights", "a pickle"]

_PICKLE_BYTES = 64 << 20
"""Of a pickle that is read for its names; the numbers of a model lie outside of it."""

_PICKLES = 5
"""Pickles at the beginning of a file that is no archive; the numbers follow."""

_UNREADABLE = (ValueError, RuntimeError, EOFError, KeyError, TypeError, zipfile.BadZipFile)
"""Errors of those who read a broken file."""

_MOST_NAMES = 6

_ARCHIVE = b"PK\3\4"
"""Begins the file of an archive."""

_permitted: set[str] = set()
"""Digests of files that this process wrote itself, or was allowed to load before."""


def require_consent(path: Path, *, allow_pickle: Consent) -> Form:
    """Check that a file may be loaded: it runs no code, or the caller allows that.

    Args:
        path: A file that PyTorch wrote.
        allow_pickle: Whether it may run code.

    Returns:
        The form in which PyTorch takes it: weights where it is a pickle that runs no code.

    Raises:
        InvalidInputError: It would run code; the message has the names that it asks for. Or it
            cannot be read.
        ArtifactError: There is no such file.
    """
    sha256 = sha256_of(path)
    form = form_of(path)
    names = [] if form == "TorchScript" else code_in(path, form)
    if not names:
        return "weights" if form == "a pickle" else form
    if sha256 in _permitted:
        return form
    if allow_pickle is True or (not isinstance(allow_pickle, bool) and sha256 in allow_pickle):
        _permitted.add(sha256)
        return form
    shown = ", ".join(names[:_MOST_NAMES]) + (", …" if len(names) > _MOST_NAMES else "")
    msg = (
        f"{path.name} is {form} that runs code as it is loaded: it names {shown}; if you trust its "
        "author, allow it with allow_pickle=True (--allow-pickle on the command line), else save "
        "the model as pt2, safetensors, TorchScript or ONNX."
    )
    raise InvalidInputError(msg)


def permit(path: Path) -> None:
    """Permit a file that this process has just written to be loaded again."""
    _permitted.add(sha256_of(path))


def permitted_digests() -> list[str]:
    """The digests of all files that this process may load, for a process that works for it."""
    return sorted(_permitted)


def form_of(path: Path) -> Form:
    """The form in which PyTorch takes a file."""
    try:
        names = [name.partition("/")[2] for name in _members(path)] if _is_archive(path) else []
    except (zipfile.BadZipFile, RuntimeError):
        names = []
    if "constants.pkl" in names:
        return "TorchScript"
    is_program = {"archive_format", "serialized_exported_program.json"} & {*names}
    return "a .pt2 file" if is_program or path.suffix == ".pt2" else "a pickle"


def _is_archive(path: Path) -> bool:
    """Whether `torch.load` takes a file for an archive: it decides by the first bytes."""
    with path.open("rb") as file:
        return file.read(4) == _ARCHIVE


def _members(path: Path) -> list[str]:
    """Names of the files in an archive, as PyTorch's own reader and Python's both find them."""
    import torch

    found = torch._C.PyTorchFileReader(str(path)).get_all_records()  # noqa: SLF001 - `torch.load`'s
    with zipfile.ZipFile(path) as archive:
        names = [name for name in archive.namelist() if not name.endswith("/")]
    if Counter(name.partition("/")[2] for name in names) != Counter(found):
        msg = "two readers find other files in it"
        raise zipfile.BadZipFile(msg)
    return names


def code_in(path: Path, form: Form) -> list[str]:
    """The names that a file imports or runs as it is loaded; none where it is plain data.

    Raises:
        InvalidInputError: It cannot be read, so that nobody knows.
    """
    try:
        return [*dict.fromkeys(_of_program(path) if form == "a .pt2 file" else _of_pickle(path))]
    except _UNREADABLE as error:
        msg = f"{path} is not a model that PyTorch can read: {brief(error)}; save it again."
        raise InvalidInputError(msg) from error


# Pickles.


def _of_pickle(path: Path) -> Iterator[str]:
    if _is_archive(path):
        _members(path)
        with zipfile.ZipFile(path) as archive:
            yield from _of_checkpoint(archive)
    else:
        with path.open("rb") as file:
            yield from _unsafe_globals(file)


def _of_checkpoint(archive: zipfile.ZipFile) -> Iterator[str]:
    """The names in all pickles of an archive of `torch.save`."""
    pickles = [each for each in archive.infolist() if each.filename.endswith(".pkl")]
    if not pickles:
        yield "no data.pkl"
    for each in pickles:
        with archive.open(each) as file:
            yield from _unsafe_globals(file)


def _unsafe_globals(file: IO[bytes]) -> Iterator[str]:
    """Names in the pickles of a file, but for those that PyTorch takes for plain data."""
    from torch import _weights_only_unpickler

    safe = _weights_only_unpickler._get_allowed_globals()  # noqa: SLF001 - `torch.load`'s own list
    content = file.read(_PICKLE_BYTES)
    data = io.BytesIO(content)
    for _ in range(_PICKLES):
        yield from (name for name, is_exact in _globals(data) if not (is_exact and name in safe))
        if content[data.tell() : data.tell() + 1] != pickle.PROTO:
            return


def _globals(data: IO[bytes]) -> Iterator[tuple[str, bool]]:
    """Names that one pickle imports, and whether it can import no other in their place.

    A name that is put together on its stack is followed through its strings and its memo, and may
    be another one; `torch.save` writes none.
    """
    texts: list[str] = []
    at: dict[int, str] = {}
    for opcode, value, _ in pickletools.genops(data):
        if opcode.name in ("GLOBAL", "INST"):
            yield str(value).replace(" ", ".").replace("__builtin__.", "builtins."), True
        elif opcode.name == "STACK_GLOBAL":
            yield ".".join(texts[-2:]) or "a name that it computes", False
        elif opcode.name in ("EXT1", "EXT2", "EXT4"):
            yield f"extension {value}", False
        elif "UNICODE" in opcode.name or "STRING" in opcode.name:
            texts.append(str(value))
        elif opcode.name == "MEMOIZE":
            at[len(at)] = texts[-1] if texts else ""
        elif "PUT" in opcode.name:
            at[int(str(value))] = texts[-1] if texts else ""
        elif "GET" in opcode.name and int(str(value)) in at:
            texts.append(at[int(str(value))])


# Files of torch.export.

_RAW = re.compile("(weight|tensor)_")
_TEXT = re.compile(rb"[\w.-]{0,64}\s?")
_TARGET = re.compile(r"torch\.ops\.(?!load|import)[a-z]\w*\.\w+(\.\w+)?|torch\.sym_\w+")
_WORD = re.compile(r"[A-Za-z][\w.]*|-?[0-9.]*(e[+-]?[0-9]+)?")
_SYMBOL = re.compile(r"[a-z]{1,2}\d+|L|args|inf|nan|math|torch|true|false")
_ATTRIBUTES = re.compile(
    "size|shape|stride|storage_offset|dim|isnan|inf|nan|_?sym_[a-z]+|"
    "floor|ceil|trunc|sqrt|exp|log|log2|a?(sin|cos|tan)h?"
)
_FUNCTIONS = {
    *("Symbol", "Integer", "Rational", "Float", "Add", "Mul", "Pow", "Max", "Min", "Abs"),
    *("floor", "ceiling", "Eq", "Ne", "Lt", "Le", "Gt", "Ge", "And", "Or", "Not", "oo"),
    *("Equality", "Unequality", "StrictLessThan", "LessThan", "StrictGreaterThan"),
    *("GreaterThan", "Half", "NegativeOne", "One", "Zero", "Infinity", "NegativeInfinity"),
    *("int_oo", "IntInfinity", "NegativeIntInfinity"),
    *("abs", "float", "int", "max", "min", "round"),
}
_NODES = (
    *(ast.Expression, ast.BinOp, ast.UnaryOp, ast.BoolOp, ast.Compare, ast.Call, ast.keyword),
    *(ast.Name, ast.Constant, ast.Subscript, ast.Attribute, ast.expr_context),
    *(ast.operator, ast.unaryop, ast.boolop, ast.cmpop),
)


def _of_program(path: Path) -> Iterator[str]:
    names = _members(path)
    with zipfile.ZipFile(path) as archive:
        numbers = set(_numbers(archive, names))
        for name in names:
            if name in numbers:
                continue
            content = archive.read(name)
            if _TEXT.fullmatch(content):
                continue
            if content[:1] in (b"{", b"["):
                yield from _of_json(parse_json(content))
            elif content[:4] == _ARCHIVE:
                with zipfile.ZipFile(io.BytesIO(content)) as inner:
                    yield from _of_checkpoint(inner)
            else:
                yield f"the file {name} in it"


def _numbers(archive: zipfile.ZipFile, names: list[str]) -> Iterator[str]:
    """The files in an archive that are read as the bytes of tensors, and never unpickled."""
    pickled: set[str] = set()
    raw: set[str] = set()
    for name in names:
        folder, _, file = name.rpartition("/")
        if not file.endswith("_config.json"):
            continue
        for entry in parse_json(archive.read(name))["config"].values():
            is_raw = entry["use_pickle"] is False and _RAW.match(entry["path_name"])
            (raw if is_raw else pickled).add(f"{folder}/{entry['path_name']}")
    yield from raw - pickled


def _of_json(value: Any, key: str = "") -> Iterator[str]:
    """Texts of a program that PyTorch evaluates or resolves, and that are not as it writes them."""
    pending = [(key, value)]
    while pending:
        key, value = pending.pop()
        if isinstance(value, dict):
            pending += value.items()
            pending += ((key, each) for each in value)
        elif isinstance(value, list):
            pending += ((key, each) for each in value)
        elif isinstance(value, str) and not _is_plain(key, value):
            yield repr(value[:80])


def _is_plain(key: str, text: str) -> bool:
    if key in ("expr_str", "guards_code"):
        return _is_arithmetic(text)
    if key == "target" and text.startswith(("torch", "_operator", "math")):
        return bool(_TARGET.fullmatch(text) or re.fullmatch(r"(_operator|math)\.[a-z]\w*", text))
    # Of a tree of arguments: a class that is imported by its name.
    return not any(word in text for word in ("__enum__", "default_factory_module", "\\u"))


def _is_arithmetic(text: str) -> bool:
    """Whether a text that PyTorch evaluates has names and functions of sizes only."""
    from torch.utils._sympy import functions

    if any(sign in text for sign in "\n\r\\#"):
        return False
    try:
        nodes = [*ast.walk(ast.parse(text, mode="eval"))]
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    known = _FUNCTIONS | {*functions.__all__}
    return all(
        isinstance(node, _NODES)
        and (not isinstance(node, ast.Attribute) or _ATTRIBUTES.fullmatch(node.attr))
        and (not isinstance(node, ast.Name) or node.id in known or _SYMBOL.fullmatch(node.id))
        and not (isinstance(node, ast.Constant) and isinstance(node.value, bytes))
        and not (
            isinstance(node, ast.Constant)
            and isinstance(node.value, str)
            and not _WORD.fullmatch(node.value)
        )
        for node in nodes
    )
