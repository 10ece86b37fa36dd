"""Arguments of the rules of this package, checked against their annotations.

A plan comes as YAML from anywhere: a value of another type would fail somewhere inside its rule.
"""

from __future__ import annotations

import types
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from mlflow_e2eai.errors import InvalidInputError, shown

_WORDS = {
    str: "text",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    types.NoneType: "nothing",
    Any: "a value",
}
"""Annotations in words."""


def check_arguments(name: str, rule: Callable[..., int], arguments: Mapping[str, Any]) -> None:
    """Refuse arguments of other types than a rule is annotated with.

    Args:
        name: The rule's name.
        rule: A rule of this package.
        arguments: Its arguments, all of which it takes.

    Raises:
        InvalidInputError: One is of another type, or is a text that UTF-8 cannot write.
    """
    kinds = typing.get_type_hints(rule, localns={"gs": types.SimpleNamespace(Graph=object)})
    for argument, value in arguments.items():
        if not _fits(value, kinds[argument]):
            msg = (
                f"Rule {name!r} has {argument}: {shown(value)}, of the type "
                f"{type(value).__name__}; {_words(kinds[argument])} is expected."
            )
            raise InvalidInputError(msg)


def _fits(value: Any, kind: Any) -> bool:
    inner = typing.get_args(kind)
    match typing.get_origin(kind):
        case types.UnionType | typing.Union:
            return any(_fits(value, each) for each in inner)
        case origin if origin is Mapping:
            return isinstance(value, Mapping) and all(
                _fits(key, inner[0]) and _fits(each, inner[1]) for key, each in value.items()
            )
        case None:
            return kind is Any or _is_plain(value, kind)
    is_list = isinstance(value, Sequence) and not isinstance(value, str | bytes)
    return is_list and all(_fits(each, inner[0]) for each in value)


def _is_plain(value: Any, kind: type) -> bool:
    if isinstance(value, bool):
        return kind is bool
    if isinstance(value, str):
        # A lone surrogate, as JSON can write one, is no text that a graph can hold.
        return kind is str and value == value.encode(errors="replace").decode()
    return isinstance(value, (int, float) if kind is float else kind)


def _words(kind: Any) -> str:
    inner = typing.get_args(kind)
    match typing.get_origin(kind):
        case None:
            return _WORDS[kind]
        case types.UnionType | typing.Union:
            return " or ".join(dict.fromkeys(_words(each) for each in inner))
        case origin if origin is Mapping:
            return f"a mapping of {_words(inner[0])} to {_words(inner[1])}"
    return f"a list, each of it {_words(inner[0])},"
