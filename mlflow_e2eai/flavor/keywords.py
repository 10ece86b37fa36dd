"""A misspelt argument is refused with the nearest one."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from mlflow_e2eai.errors import nearest

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")


def suggest_keywords(
    **others: str,
) -> Callable[[Callable[Parameters, Result]], Callable[Parameters, Result]]:
    """Make a function name the keyword that a misspelt one is most like; a decorator.

    Args:
        **others: Names that an argument has elsewhere, with the one that it has here.
    """

    def decorate(function: Callable[Parameters, Result]) -> Callable[Parameters, Result]:
        known = [*inspect.signature(function).parameters]

        @functools.wraps(function)
        def call(*args: Parameters.args, **named: Parameters.kwargs) -> Result:
            for word in named:
                if word not in known:
                    near = others.get(word) or nearest(word, known)
                    hint = f"did you mean {near}?" if near else "see its documentation."
                    msg = f"{function.__name__}() has no argument {word!r}; {hint}"
                    raise TypeError(msg)
            return function(*args, **named)

        return call

    return decorate
