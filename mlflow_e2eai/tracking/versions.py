"""Names of registered versions, as people write them -> MLflow's versions."""

from __future__ import annotations

import contextlib
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

from mlflow_e2eai.errors import InvalidInputError, TrackingError, brief, shown, suggestion
from mlflow_e2eai.tracking.server import failure_reason, is_missing

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion
    from mlflow.exceptions import MlflowException

LATEST = "latest"
"""The text that stands for the newest model or version; in a URI and beside a name the highest
number, as in MLflow's own URIs."""

_PREFIX = "models:/"

MODEL_ID = re.compile(r"m-[0-9a-f]{32}")

_PATHS = (".onnx", ".pt", ".pth", ".pt2", ".py")
"""Ends of texts that are paths, also where there is no such file."""


def is_model_id(text: str) -> bool:
    """Whether a text is the id of a LoggedModel."""
    return MODEL_ID.fullmatch(text) is not None


def uri_of(text: str | Path) -> str:
    """The URI of the model that a text names; unchanged where it is a path, or another URI.

    ``digits`` is the newest version of a registered model, and ``digits/2``, ``digits/latest`` and
    ``digits@champion`` are others; but a file or folder of such a name comes first.
    """
    path = str(text).removeprefix(_PREFIX)
    if ":" in path or (path == str(text) and os.path.exists(path)):  # noqa: PTH110 - of any text
        return str(text)
    if is_model_id(path):
        return f"{_PREFIX}{path}"
    name, version = split_version(path) or (path, LATEST)
    if version.startswith("@"):
        return f"{_PREFIX}{name}{version}"
    is_version = version.isdecimal() or version.lower() == LATEST
    is_name = bool(name) and not name.startswith(".") and not name.endswith(_PATHS)
    if is_version and is_name and not {"/", "@", os.sep} & {*name}:
        return f"{_PREFIX}{name}/{version}"
    return str(text)


def split_version(text: str) -> tuple[str, str] | None:
    """The name and the version that a text names, with or without ``models:/`` before them.

    Returns:
        The name, and a number, ``latest`` or ``@alias``; None where the text names neither.
    """
    path = text.removeprefix(_PREFIX)
    if ":" in path:
        return None
    name, at, alias = path.rpartition("@")
    if at and name and alias and "/" not in path:
        return name, f"@{alias}"
    name, slash, version = path.partition("/")
    return (name, version) if slash and name and version and "/" not in version else None


def literal(text: str) -> str:
    """A text as it stands in a filter of MLflow, which knows no escapes: in other quotes.

    Raises:
        InvalidInputError: It has both kinds of quotes.
    """
    if "'" in text and '"' in text:
        msg = f"MLflow cannot search for {shown(text)}: leave out one of the two kinds of quotes."
        raise InvalidInputError(msg)
    quote = '"' if "'" in text else "'"
    return f"{quote}{text}{quote}"


def name_filter(name: str) -> str:
    """MLflow's filter for the versions of a registered model."""
    return f"name = {literal(name)}"


def registered_version(name: str, version: int | str) -> ModelVersion:
    """Find a version of a registered model.

    Args:
        name: The registered model.
        version: Its number, ``latest`` or ``@alias``.

    Raises:
        InvalidInputError: It is none of these.
        TrackingError: The registered model has no version.
        MlflowException: There is no such version, or the registry does not respond.
    """
    from mlflow import MlflowClient

    text, client = str(version), MlflowClient()
    if text.startswith("@"):
        return client.get_model_version_by_alias(name, text[1:])
    if text.lower() == LATEST:
        found = client.search_model_versions(name_filter(name), 1, ["version_number DESC"])
        if not found:
            client.get_registered_model(name)  # raises where it is not there either
            msg = f"The registered model {shown(name)} has no version; register one first."
            raise TrackingError(msg)
        return found[0]
    if not (text.isascii() and text.isdecimal()):
        msg = f"{shown(text)} is no version of {shown(name)}; give a number, 'latest' or '@alias'."
        raise InvalidInputError(msg)
    return client.get_model_version(name, text)


def all_versions(name: str) -> list[ModelVersion]:
    """All versions of a registered model, the newest first.

    Raises:
        MlflowException: The registry does not respond.
    """
    from mlflow import MlflowClient

    found = MlflowClient().search_model_versions(name_filter(name))
    return sorted(found, key=lambda each: int(each.version), reverse=True)


def find_version(name: str, version: int | str) -> ModelVersion:
    """Find a version of a registered model, as `registered_version` does.

    Raises:
        InvalidInputError: It is no number, ``latest`` or ``@alias``.
        TrackingError: There is none.
    """
    from mlflow.exceptions import MlflowException

    try:
        return registered_version(name, version)
    except MlflowException as error:
        if is_missing(error):
            _check_alias(name, str(version), error)
            number = version if str(version).isdecimal() else shown(version)
            msg = (
                f"There is no version {number} of {shown(name)}: {brief(error).rstrip('.')}; see "
                "the registry."
            )
        else:
            reason = failure_reason(error)
            msg = f"Version {version} of {name!r} cannot be read: {reason}; call this again later."
        raise TrackingError(msg) from error


def _check_alias(name: str, version: str, error: MlflowException) -> None:
    """Say which alias may be meant, where a registered model has none of a name.

    Raises:
        TrackingError: It has not.
    """
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    if not version.startswith("@"):
        return
    with contextlib.suppress(MlflowException):  # there is no such model either
        aliases = [f"@{each}" for each in sorted(MlflowClient().get_registered_model(name).aliases)]
        hint = suggestion(version, aliases) if aliases else "it has no alias."
        msg = f"There is no version {shown(version)} of {shown(name)}; {hint}"
        raise TrackingError(msg) from error


def existing_version(name: str, number: str) -> ModelVersion | None:
    """A version of a registered model by its number; None where it was deleted.

    Raises:
        MlflowException: The registry does not respond.
    """
    from mlflow.exceptions import MlflowException

    try:
        return registered_version(name, number)
    except MlflowException as error:
        if is_missing(error):
            return None
        raise


def version_at(uri: str) -> ModelVersion:
    """Find the version of a registered model that a URI names.

    Args:
        uri: ``models:/name/version``, ``models:/name/latest`` or ``models:/name@alias``; the prefix
            may be left out. See `uri_of`.

    Raises:
        InvalidInputError: It names none.
        TrackingError: There is no such version.
    """
    if (names := split_version(uri_of(uri))) is None:
        msg = (
            f"{shown(uri)} does not name a version; "
            "give models:/name/version or models:/name@alias."
        )
        raise InvalidInputError(msg)
    return find_version(*names)
