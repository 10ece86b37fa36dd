"""Names as MLflow takes them: what it refuses is mapped, or told early."""

from __future__ import annotations

import re

from mlflow_e2eai.errors import InvalidInputError, brief, shown
from mlflow_e2eai.tracking.versions import literal

_LONGEST = 250
"""Characters of a metric's name at most, MLflow's own limit."""


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
            validate(text)
            literal(text)  # it is searched for later
        except MlflowException as error:
            msg = f"MLflow does not take {argument}={shown(text)}: {brief(error)}"
            raise InvalidInputError(msg) from error
