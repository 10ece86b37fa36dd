"""The content of a metric: the code that runs, and all values that it uses, as plain data.

Written by hand, as pickle and cloudpickle store a function that can be imported as its name.
"""

from __future__ import annotations

import builtins
import copyreg
import dis
import importlib.util
import itertools
import logging
import sys
import types
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from mlflow_e2eai.pytorch.module_code import code_parts, installed_version

_OUTSIDE = frozenset(
    {"_io", "glob", "http", "io", "os", "pathlib", "posix", "requests", "shutil", "socket"}
    | {"sqlite3", "subprocess", "sys", "tempfile", "urllib"}
)
"""Modules by which code reads what no digest of it can say."""

_READERS = ("open", "load", "read", "fromfile", "genfromtxt", "memmap")
"""Beginnings of the names by which code reads files: ``np.load``, ``pd.read_csv``."""

_DYNAMIC = frozenset(
    {"__import__", "compile", "eval", "exec", "globals", "input", "locals", "vars"}
)
"""Built-in functions that reach code or values which a function does not name."""

_NOT_CODE = frozenset(
    {"__annotations__", "__dict__", "__doc__", "__module__", "__weakref__"}
    | {"__firstlineno__", "__static_attributes__", "_abc_impl"}
)
"""Attributes of a class that do not change what it does."""


class UnknownContentError(TypeError):
    """A value whose content no digest can say."""


def content_of(metric: Any) -> Any:
    """The content of a metric, as plain values and arrays.

    That is the code objects that run, and not the file that they came from: their defaults,
    closures, attributes, and the globals and modules that they name, at any depth. Objects count by
    what pickle would store. Installed packages count by their version.

    Raises:
        UnknownContentError: It uses a value that pickle does not know, or names a function that
            reads files or code that it does not name.
    """
    try:
        return _Content().of(metric)
    except UnknownContentError:
        raise
    except Exception as error:  # attributes and pickle of a caller's objects may raise anything
        raise UnknownContentError(str(error)) from error


_CONSTANTS = (tuple, frozenset, types.CodeType, complex, type(Ellipsis), type(NotImplemented))
"""Kinds of values that code has in it, beside plain ones."""


class _Content:
    def __init__(self) -> None:
        self._seen: dict[int, tuple[int, Any]] = {}
        # How a value of each kind is taken apart that pickle would know by its name, or not.
        self._kinds: Mapping[type, Callable[[Any], Any]] = {
            types.FunctionType: self._of_function,
            types.MethodType: lambda value: [self.of(value.__func__), self.of(value.__self__)],
            types.ModuleType: self._of_module,
            types.MappingProxyType: lambda value: self.of(dict(value)),
            type: self._of_class,
            staticmethod: lambda value: self.of(value.__func__),
            classmethod: lambda value: self.of(value.__func__),
            property: lambda value: [self.of(each) for each in (value.fget, value.fset)],
            logging.Logger: lambda value: value.name,
        }

    def of(self, value: Any) -> Any:
        is_array = isinstance(value, np.ndarray) and not value.dtype.hasobject
        if is_array or type(value) in (type(None), bool, int, float, str, bytes):
            return value
        if type(value) in _CONSTANTS:
            # Equal ones may be one object, or not, and alone they are no cycle.
            return self._of_constant(value)
        if (named := _installed_name(value)) is not None:
            return named
        if id(value) in self._seen:
            return ("again", self._seen[id(value)][0])
        self._seen[id(value)] = len(self._seen), value  # kept, so that its id stays its own
        for kind, parts_of in self._kinds.items():
            if isinstance(value, kind):
                return (type(value).__name__, parts_of(value))
        return (type(value).__name__, self._of_object(value))

    def _of_constant(self, value: Any) -> Any:
        if isinstance(value, tuple):
            return ("tuple", [self.of(each) for each in value])
        if isinstance(value, frozenset):
            return ("frozenset", self._of_set(value))
        return code_parts(value)

    def _of_set(self, value: Iterable[Any]) -> list[str]:
        """The parts of a set in an order that is the same in each process."""
        return sorted(repr(self.of(each)) for each in value)

    def _of_function(self, function: types.FunctionType) -> Any:
        code = function.__code__
        own = (code, function.__defaults__, function.__kwdefaults__, vars(function))
        parts = [self.of(each) for each in own]
        for cell in function.__closure__ or ():
            try:
                parts.append(self.of(cell.cell_contents))
            except ValueError:  # not filled yet
                parts.append("empty")
        if (version := installed_version(str(function.__globals__.get("__name__")))) is not None:
            return [version, parts]
        return [parts, self._of_names(code, function.__globals__)]

    def _of_names(self, code: types.CodeType, surroundings: Mapping[str, Any]) -> list[Any]:
        """The globals and modules that code and the code within it names."""
        if any(name.startswith(_READERS) for name in code.co_names):
            raise UnknownContentError(code.co_name)
        parts: list[Any] = []
        steps = list(dis.get_instructions(code))
        for position, step in enumerate(steps):
            if step.opname in ("LOAD_GLOBAL", "LOAD_NAME"):
                parts.append((step.argval, self._of_global(step.argval, surroundings)))
            elif step.opname == "IMPORT_NAME":
                level = steps[position - 2].argval
                package = surroundings.get("__package__")
                name = importlib.util.resolve_name("." * level + step.argval, package)
                heads = itertools.accumulate(name.split("."), "{}.{}".format)
                parts += [self.of(importlib.import_module(head)) for head in heads]
        inner = (each for each in code.co_consts if isinstance(each, types.CodeType))
        return [*parts, *(self._of_names(each, surroundings) for each in inner)]

    def _of_global(self, name: str, surroundings: Mapping[str, Any]) -> Any:
        if name in surroundings:
            return self.of(surroundings[name])
        if name in _DYNAMIC:
            raise UnknownContentError(name)
        return self.of(getattr(builtins, name, None))

    def _of_module(self, module: types.ModuleType) -> Any:
        """Everything in a module of the caller's: what of it is used cannot be told."""
        file = getattr(module, "__file__", None)
        if file is None:
            raise UnknownContentError(module.__name__)
        parts = {key: each for key, each in vars(module).items() if not key.startswith("__")}
        return [(key, self.of(each)) for key, each in parts.items()]

    def _of_class(self, kind: type) -> Any:
        parts = {key: each for key, each in vars(kind).items() if key not in _NOT_CODE}
        bases = [self.of(base) for base in kind.__bases__]
        return [kind.__qualname__, bases, [(key, self.of(each)) for key, each in parts.items()]]

    def _of_object(self, value: Any) -> Any:
        if hasattr(value, "detach"):  # a tensor: pickle would store addresses too
            return [str(value.dtype), value.detach().cpu().numpy()]
        if type(value) is list:
            return [self.of(each) for each in value]
        if type(value) is set:
            return self._of_set(value)
        if type(value) is dict:
            return [(self.of(key), self.of(each)) for key, each in value.items()]
        reduce = copyreg.dispatch_table.get(type(value))
        stored = value.__reduce_ex__(4) if reduce is None else reduce(value)
        if isinstance(stored, str):  # a name, of what is in no package
            raise UnknownContentError(stored)
        return [self.of(list(each) if isinstance(each, Iterator) else each) for each in stored]


def _installed_name(value: Any) -> str | None:
    """The name and version of what an installed package has under that name; None for all else."""
    module: Any
    path: Any
    if isinstance(value, types.ModuleType):
        module, path = value.__name__, ""
    else:
        module = getattr(value, "__module__", None)
        path = getattr(value, "__qualname__", None) or getattr(value, "__name__", None)
    if not isinstance(module, str) or not isinstance(path, str):
        return None
    found: Any = sys.modules.get(module)
    for part in path.split(".") if path else ():
        found = getattr(found, part, None)
    version = installed_version(module)
    if found is not value or version is None:
        return None
    if module.partition(".")[0] in _OUTSIDE or path.startswith(_READERS):
        raise UnknownContentError(module)
    return f"{module}:{path} {version}"
