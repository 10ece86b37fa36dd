"""Names of models: what MLflow refuses is told early, or mapped."""

from __future__ import annotations

import re

from mlflow_e2eai.errors import InvalidInputError


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
                msg = f"{argument}={text!r} is no name; give a text without blanks at its ends."
                raise InvalidInputError(msg)
            validate(text)
        except MlflowException as error:
            msg = f"MLflow does not take {argument}={text!r}: {error.message}"
            raise InvalidInputError(msg) from error
