"""Nested inputs and outputs of Python <-> named leaves and a tree that is plain data.

Everything downstream of the export works with named arrays. The tree has the position of each:
in mappings, lists, tuples, dataclasses, named tuples and Hugging Face's ModelOutput, at any depth.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from mlflow_e2eai.errors import InvalidInputError

Kind: TypeAlias = Literal[
    "leaf", "None", "bool", "int", "float", "str", "mapping", "list", "tuple", "object"
]

_CONSTANTS: Mapping[str, Callable[[str], Any]] = {
    "None": lambda _: None,
    "bool": lambda text: text == "True",
    "int": int,
    "float": float,
    "str": str,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Tree:
    """Positions of leaves in a Python value.

    Attributes:
        kind: A leaf, a constant of this type, or a container.
        text: Name of a leaf; a constant as text; the class of an object as ``module:name``.
        keys: Keys of a mapping or fields of an object, in order.
        parts: The items of a container, in order.
    """

    kind: Kind
    text: str = ""
    keys: tuple[str | int, ...] = ()
    parts: tuple[Tree, ...] = ()

    @property
    def is_plain(self) -> bool:
        """Whether the tree is a mapping of names to leaves of these names, as in stages."""
        return self.kind == "mapping" and all(
            (part.kind, part.text) == ("leaf", key)
            for key, part in zip(self.keys, self.parts, strict=True)
        )


def flatten(value: Any, *, root: str = "output") -> tuple[Tree, dict[str, Any]]:
    """Flatten a value into named leaves.

    A leaf is named by its path, joined with dots: ``tokens.ids``. At the top, an item of a tuple or
    list is ``<root>_0``, ``<root>_1``, …, and a lone leaf is ``<root>``.

    Returns:
        The tree, and the leaves by name: all that is no container or constant (None, bool, int,
        float, str).

    Raises:
        InvalidInputError: Two leaves get one name, the key of a mapping is no string or integer,
            or a container holds itself.
    """
    leaves: dict[str, Any] = {}
    try:
        return _taken_apart(value, (), root, leaves), leaves
    except RecursionError as error:
        msg = (
            f"A {type(value).__name__} holds itself, or is nested too deeply; give tensors or "
            "arrays in plain containers."
        )
        raise InvalidInputError(msg) from error


def _taken_apart(part: Any, path: tuple[str, ...], root: str, leaves: dict[str, Any]) -> Tree:
    kind, items = _kind_and_items(part)
    if items is not None:
        top = f"{root}_" if not path and kind in ("list", "tuple") else ""
        inner = tuple(
            _taken_apart(item, (*path, f"{top}{key}"), root, leaves) for key, item in items
        )
        if kind in ("list", "tuple"):
            return Tree(kind=kind, parts=inner)
        text = f"{type(part).__module__}:{type(part).__qualname__}" if kind == "object" else ""
        return Tree(kind=kind, text=text, keys=tuple(key for key, _ in items), parts=inner)
    if kind != "leaf":
        return Tree(kind=kind, text="" if part is None else str(part))
    name = ".".join(path) or root
    if name in leaves:
        msg = f"Two tensors would be named {name!r}; rename one of the keys that lead to them."
        raise InvalidInputError(msg)
    leaves[name] = part
    return Tree(kind="leaf", text=name)


def unflatten(tree: Tree, leaves: Mapping[str, Any]) -> Any:
    """Rebuild a value from its leaves.

    An object gets its class where the program has imported it, else it is a dict: nothing is
    imported because a file names it. A missing leaf, such as an output that surgery removed, is
    None.
    """
    if tree.kind == "leaf":
        return leaves.get(tree.text)
    if tree.kind in _CONSTANTS:
        return _CONSTANTS[tree.kind](tree.text)
    inner = [unflatten(part, leaves) for part in tree.parts]
    if tree.kind in ("list", "tuple"):
        return inner if tree.kind == "list" else tuple(inner)
    items = dict(zip(tree.keys, inner, strict=True))
    known = class_of(tree) if tree.kind == "object" else None
    return items if known is None else known(**{str(key): item for key, item in items.items()})


def select(tree: Tree, value: Any, *, path: str = "") -> dict[str, Any]:
    """Leaves of a value in a tree's shape; any value at the position of a leaf is one.

    Constants may be left out.

    Raises:
        InvalidInputError: A container has another shape, or a constant another value.
    """
    if tree.kind == "leaf":
        return {tree.text: value}
    if tree.kind in _CONSTANTS:
        fixed = unflatten(tree, {})
        if type(value) is not type(fixed) or (value != fixed and str(value) != tree.text):
            msg = f"{path} is fixed at {fixed!r}, but {value!r} is given; leave it out."
            raise InvalidInputError(msg)
        return {}
    kind, items = _kind_and_items(value)
    by_key = dict(items or ())
    keys = tree.keys or tuple(range(len(tree.parts)))
    selected: dict[str, Any] = {}
    for key, part in zip(keys, tree.parts, strict=True):
        at = f"{path}.{key}" if path else str(key)
        if key in by_key:
            selected |= select(part, by_key.pop(key), path=at)
        elif names(part):
            msg = f"{at} is missing; the inputs are {', '.join(names(tree))}."
            raise InvalidInputError(msg)
    if by_key or (items is None and tree.parts):
        unknown = sorted(map(str, by_key)) or kind
        msg = f"{path or 'The input'} has {unknown}; its parts are {list(keys)}."
        raise InvalidInputError(msg)
    return selected


def names(tree: Tree) -> list[str]:
    """The names of a tree's leaves, in order."""
    return [part.text for part in _walk(tree) if part.kind == "leaf"]


def rename_leaves(tree: Tree, new: Mapping[str, str]) -> Tree:
    """The same tree with leaves under new names."""
    if tree.kind == "leaf":
        return dataclasses.replace(tree, text=new.get(tree.text, tree.text))
    return dataclasses.replace(tree, parts=tuple(rename_leaves(part, new) for part in tree.parts))


def plain(leaves: Iterable[str]) -> Tree:
    """The tree of a mapping of names to leaves."""
    keys = tuple(leaves)
    parts = tuple(Tree(kind="leaf", text=name) for name in keys)
    return Tree(kind="mapping", keys=keys, parts=parts)


def constants(
    tree: Tree, *, root: str = "output", path: tuple[str, ...] = ()
) -> Iterator[tuple[str, Tree]]:
    """The constants in a tree, each with the name that `flatten` would give a leaf in its path."""
    if tree.kind in _CONSTANTS:
        yield ".".join(path) or root, tree
    top = f"{root}_" if not path and tree.kind in ("list", "tuple") else ""
    for key, part in zip(tree.keys or range(len(tree.parts)), tree.parts, strict=True):
        yield from constants(part, root=root, path=(*path, f"{top}{key}"))


def objects(tree: Tree) -> Iterator[Tree]:
    """The objects in a tree."""
    return (part for part in _walk(tree) if part.kind == "object")


def is_object(value: Any) -> bool:
    """Whether a value is a dataclass or a named tuple."""
    return _has_fields(type(value))


def class_of(tree: Tree) -> type | None:
    """The class of an object, if the program has imported it and it holds fields only."""
    module, _, name = tree.text.partition(":")
    value: Any = sys.modules.get(module)
    for part in name.split("."):
        value = getattr(value, part, None)
    return value if isinstance(value, type) and _has_fields(value) else None


def _walk(tree: Tree) -> Iterator[Tree]:
    yield tree
    for part in tree.parts:
        yield from _walk(part)


def _has_fields(kind: type) -> bool:
    return dataclasses.is_dataclass(kind) or (issubclass(kind, tuple) and hasattr(kind, "_fields"))


def _kind_and_items(value: Any) -> tuple[Kind, list[tuple[Any, Any]] | None]:
    """Kind of a value, and its items where it is a container."""
    constant = "None" if value is None else type(value).__name__
    if constant in _CONSTANTS and type(value).__module__ == "builtins":
        return constant, None  # type: ignore[return-value]  # a key of _CONSTANTS is a Kind
    if _has_fields(type(value)):
        return "object", _fields(value)
    if isinstance(value, Mapping):
        items = list(value.items())
        for key, _ in items:
            if type(key) not in (str, int):
                msg = f"A mapping has the key {key!r}; give strings or integers as keys."
                raise InvalidInputError(msg)
        return "mapping", items
    if isinstance(value, list | tuple):
        return ("list" if isinstance(value, list) else "tuple"), list(enumerate(value))
    return "leaf", None


def _fields(value: Any) -> list[tuple[Any, Any]]:
    if isinstance(value, Mapping):  # a ModelOutput: a field that is None is no item
        return list(value.items())
    if isinstance(value, tuple):
        return list(zip(value._fields, value, strict=True))  # type: ignore[attr-defined]
    given = [field.name for field in dataclasses.fields(value) if field.init]
    return [(name, getattr(value, name)) for name in given]
