"""The code of a module as a digest: of every file of Python that it can be seen to use."""

from __future__ import annotations

import hashlib
import sys
import sysconfig
import types
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

_INSTALLED = tuple(
    {
        str(Path(path).resolve())
        for key in ("stdlib", "platstdlib", "purelib", "platlib")
        if (path := sysconfig.get_path(key))
    }
)


def module_code_digest(module: Any) -> str | None:
    """Digest of the code of a PyTorch module; None where a part of it has no file.

    These are the files of the classes of all of its parts, and of all that these files import, as
    far as it is not installed. What is installed counts by its version. The methods count as they
    run too: a file may have changed since it was imported.
    """
    kinds = {base for part in module.modules() for base in type(part).__mro__}
    files = _digest_of({kind.__module__ for kind in kinds})
    methods = sorted(
        f"{kind.__module__}:{kind.__qualname__} {code_parts(method.__code__)}"
        for kind in kinds
        if installed_version(kind.__module__) is None
        for method in vars(kind).values()
        if isinstance(method, types.FunctionType)
    )
    return files and hashlib.sha256("\n".join([files, *methods]).encode()).hexdigest()


def code_parts(value: Any) -> Any:
    """A code object as plain values, without the lines and files that it came from.

    So are the constants in it, of which each has its kind.
    """
    match value:
        case types.CodeType():
            return (
                *("code", value.co_code, value.co_exceptiontable, value.co_flags),
                *(value.co_argcount, value.co_posonlyargcount, value.co_kwonlyargcount),
                *(value.co_names, value.co_varnames, value.co_freevars, value.co_cellvars),
                [code_parts(each) for each in value.co_consts],
            )
        case tuple():
            return ["tuple", *map(code_parts, value)]
        case frozenset():  # its order is another in each process
            return ["frozenset", *sorted(repr(code_parts(each)) for each in value)]
    return f"{type(value).__name__} {hex(value) if isinstance(value, int) else repr(value)}"


def installed_version(module: str) -> str | None:
    """The version of the package that a module is of; None for a module of the caller's.

    The code of this package is in every key, and counts as installed.
    """
    package = module.partition(".")[0]
    if package == __package__.partition(".")[0]:
        return "this package"
    if module in sys.builtin_module_names:
        return sys.version
    file = getattr(sys.modules.get(module), "__file__", None)
    if module == "__main__" or file is None or not _is_installed(file):
        return None
    return _version(package)


def _digest_of(names: set[str]) -> str | None:
    digest, seen, todo = hashlib.sha256(), set(names), sorted(names)
    parts = set()
    while todo:
        found = sys.modules.get(name := todo.pop())
        if name in sys.builtin_module_names:
            continue
        file = getattr(found, "__file__", None)
        if found is None or file is None or not Path(file).is_file():
            return None
        if _is_installed(file):
            parts.add(f"{name.partition('.')[0]} {_version(name.partition('.')[0])}")
            continue
        parts.add(f"{name} {hashlib.sha256(Path(file).read_bytes()).hexdigest()}")
        new = set(_used_by(found)) - seen
        seen |= new
        todo += sorted(new)
    digest.update("\n".join(sorted(parts)).encode())
    return digest.hexdigest()


def _is_installed(file: str) -> bool:
    return str(Path(file).resolve()).startswith(_INSTALLED)


def _used_by(module: types.ModuleType) -> Iterator[str]:
    """Names of the modules that a module has imported, or whose parts it has."""
    for value in list(vars(module).values()):
        name = value.__name__ if isinstance(value, types.ModuleType) else None
        name = name or getattr(value, "__module__", None)
        if isinstance(name, str) and name in sys.modules:
            yield name


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return str(getattr(sys.modules.get(package), "__version__", sys.version))
