"""Keyword arguments that several functions take: each is a field of a frozen value.

Such a function has ``**arguments``, typed by a `TypedDict` of the fields; `shows` puts them into
its signature, and `parted` sorts what it was given.
"""

from __future__ import annotations

import dataclasses
import difflib
import inspect
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

Function = TypeVar("Function", bound=Callable[..., Any])


def shows(*values: type) -> Callable[[Function], Function]:
    """Have a function's signature show the fields of dataclasses in place of ``**arguments``.

    Args:
        values: Dataclasses of which no field is another's.
    """

    def decorate(function: Function) -> Function:
        signature = inspect.signature(function)
        own = [it for it in signature.parameters.values() if it.kind is not it.VAR_KEYWORD]
        shown = [
            inspect.Parameter(
                field.name,
                inspect.Parameter.KEYWORD_ONLY,
                default=field.default,
                annotation=field.type,
            )
            for value in values
            for field in dataclasses.fields(value)
        ]
        signature = signature.replace(parameters=[*own, *shown])
        function.__signature__ = signature  # type: ignore[attr-defined]  # inspect looks for it
        return function

    return decorate


def parted(arguments: Mapping[str, Any], *values: type) -> list[dict[str, Any]]:
    """The arguments of each dataclass, in its order.

    Args:
        arguments: Arguments by name.
        values: As `shows` takes them.

    Raises:
        TypeError: One is no field of any.
    """
    names = [[field.name for field in dataclasses.fields(value)] for value in values]
    if strange := set(arguments).difference(*names):
        near = difflib.get_close_matches(min(strange), [name for own in names for name in own], n=1)
        hint = f"; did you mean {near[0]}?" if near else "."
        msg = f"There is no argument {min(strange)!r}{hint}"
        raise TypeError(msg)
    return [{name: arguments[name] for name in own if name in arguments} for own in names]
