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
    far as it is not installed. What is installed counts by its version.
    """
    names = {base.__module__ for part in module.modules() for base in type(part).__mro__}
    return _digest_of(names)


def function_code_digest(function: Any) -> str | None:
    """Digest of the code of a plain function; None where it holds values, or has no file."""
    is_plain = isinstance(function, types.FunctionType) and function.__closure__ is None
    if not is_plain or function.__defaults__ or function.__kwdefaults__:
        return None
    name = f"{function.__module__}:{function.__qualname__}"
    code = _digest_of({function.__module__})
    return None if code is None else f"{name} {code}"


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
        if str(Path(file).resolve()).startswith(_INSTALLED):
            parts.add(f"{name.partition('.')[0]} {_version(name.partition('.')[0])}")
            continue
        parts.add(f"{name} {hashlib.sha256(Path(file).read_bytes()).hexdigest()}")
        new = set(_used_by(found)) - seen
        seen |= new
        todo += sorted(new)
    digest.update("\n".join(sorted(parts)).encode())
    return digest.hexdigest()


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
