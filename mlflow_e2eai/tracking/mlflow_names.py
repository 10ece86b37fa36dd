"""Names as MLflow takes them: what it refuses is mapped, or told early."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from mlflow_e2eai.errors import InvalidInputError, brief, require_kind, shown
from mlflow_e2eai.tracking.versions import literal

_LONGEST = 250
"""Characters of a metric's name at most, MLflow's own limit; also of a tag's and a run's."""

_LARGEST_STEP = 2**63 - 1
"""Of a column of SQL."""

_NUL = re.compile(r"(?<!\\)(?:\\\\)*\\u0000")
"""In a text as JSON writes it."""


def metric_name(name: str) -> str:
    """A name as MLflow takes it for a metric, which names a path on its side.

    Characters that it refuses, and parts that lead nowhere or elsewhere, become underscores.
    """
    safe = re.sub(r"[^A-Za-z0-9_. :/-]", "_", name)
    parts = [part if part.strip(".") else "_" for part in safe.split("/")]
    return "/".join(parts)[:_LONGEST].rstrip("/")


def model_name(name: str) -> str:
    """A name as MLflow takes it for a LoggedModel; what it refuses becomes an underscore."""
    return re.sub(r"[/:.%\"']", "_", name) or "model"


def check_names(name: str | None, registered_model_name: str | None = None) -> None:
    """Check the names of a model that is to be logged, before anything is made.

    Raises:
        InvalidInputError: MLflow would refuse one.
    """
    from mlflow.exceptions import MlflowException

    from mlflow_e2eai.tracking import _mlflow

    given = {
        "name": (name, _mlflow.validate_logged_model_name),
        "registered_model_name": (registered_model_name, _mlflow.validate_registered_model_name),
    }
    for argument, (text, validate) in given.items():
        if text is None:
            continue
        try:
            if not isinstance(text, str) or text != text.strip():
                msg = (
                    f"{argument}={shown(text)} is not a name; give one without spaces at its ends."
                )
                raise InvalidInputError(msg)
            _check_name(argument, text)
            validate(text)
            literal(text)  # it is searched for later
        except MlflowException as error:
            msg = f"MLflow does not take {argument}={shown(text)}: {brief(error)}"
            raise InvalidInputError(msg) from error


def check_storable(*, step: int = 0, model_type: str | None = None, **values: Any) -> None:
    """Check what the caller has MLflow store of a model, before anything is made.

    Args:
        step: The step of the model in its run.
        model_type: Its type.
        **values: Further arguments: mappings of names to values; None for none.

    Raises:
        InvalidInputError: One is of another kind, or a server cannot store a name or a value: it
            is endless, has no order, or is a text with NUL or of no Unicode.
    """
    if abs(require_kind("step", step, int, "a whole number")) > _LARGEST_STEP:
        msg = f"step has more than 64 bits, and at most {_LARGEST_STEP} is expected; lower it."
        raise InvalidInputError(msg)
    if model_type is not None:
        _check_value("model_type", require_kind("model_type", model_type, str, "a text"))
    for argument, mapping in values.items():
        if mapping is None:
            continue
        for name, value in require_kind(
            argument, mapping, Mapping, "a mapping of names to values"
        ).items():
            _check_name(f"a name of {argument}", str(name))
            _check_value(f"{argument}[{shown(name)}]", value)


def _check_name(place: str, name: str) -> None:
    _check_value(f"{place}, {shown(name)}", name)
    if len(name) > _LONGEST:
        msg = (
            f"{place}, {shown(name)}, has {len(name)} characters, but at most {_LONGEST} are "
            "expected; shorten it."
        )
        raise InvalidInputError(msg)


def _check_value(place: str, value: Any) -> None:
    try:
        written = json.dumps(value, default=_text_of, ensure_ascii=False)
        written.encode()
    except (TypeError, ValueError, RecursionError) as error:
        reason = brief(error)
    else:
        reason = "it has the character NUL" if _NUL.search(written) else ""
    if reason:
        msg = f"MLflow cannot store {place}: {reason}; give a text, a number, or a list of them."
        raise InvalidInputError(msg)


def _text_of(value: Any) -> str:
    """The text of a value that JSON does not know."""
    if isinstance(value, set | frozenset):
        msg = "a set has no order"
        raise TypeError(msg)
    return str(value)
