"""Texts, as a command line has them -> values."""

from __future__ import annotations

import argparse
import dataclasses
import difflib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from mlflow_e2eai.artifacts.build_settings import DEFAULT_BUILD, BuildSettings
from mlflow_e2eai.artifacts.files import reading_error
from mlflow_e2eai.artifacts.values import PRECISIONS
from mlflow_e2eai.errors import InvalidInputError

if TYPE_CHECKING:
    from mlflow_e2eai.surgery.plan import Step


def plan(text: str) -> tuple[Step, ...]:
    """Read a surgery plan: ``default``, a YAML file, or the URI of one that a run kept.

    Raises:
        E2EAIError: There is no such file, or it holds something else.
    """
    from mlflow_e2eai.surgery.plan import DEFAULT_PLAN, plan_from

    return DEFAULT_PLAN if text == "default" else plan_from(_yaml(text, "a list of rules"))


def build_settings(text: str) -> BuildSettings:
    """Read how TensorRT builds: ``default``, ``name=value`` with commas between, or a YAML file.

    Raises:
        E2EAIError: There is no such file, it holds something else, or a setting is wrong.
    """
    if text == "default":
        return DEFAULT_BUILD
    wanted = "settings as optimization_level: 5"
    if text.endswith((".yaml", ".yml")):
        given = _yaml(text, wanted)
    else:
        given = dict(_pair(part, wanted) for part in text.split(","))
    if not isinstance(given, dict):
        msg = f"{text} holds no settings by name; give {wanted}."
        raise InvalidInputError(msg)
    known = [field.name for field in dataclasses.fields(BuildSettings)]
    for name in given:
        if name not in known:
            near = difflib.get_close_matches(str(name), known, n=1)
            hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(known)}."
            msg = f"There is no build setting {name!r}; {hint}"
            raise InvalidInputError(msg)
    return BuildSettings(**given)


def _pair(text: str, wanted: str) -> tuple[str, Any]:
    """A name and its value, read as YAML reads it."""
    import yaml

    name, separator, value = text.partition("=")
    try:
        if separator:
            return name.strip(), yaml.safe_load(value)
    except yaml.YAMLError:
        pass
    msg = f"{text!r} is no build setting; write name=value, or a YAML file with {wanted}."
    raise InvalidInputError(msg)


def _yaml(text: str, wanted: str) -> Any:
    """What a YAML file holds: a path, or the URI of one that a run kept."""
    import yaml

    from mlflow_e2eai.tracking.downloads import fetch_text

    try:
        found = yaml.safe_load(fetch_text(text))
    except (ValueError, yaml.YAMLError) as error:
        msg = f"{text} is not YAML ({reading_error(error)}); give a file with {wanted}."
        raise InvalidInputError(msg) from error
    if found is None:
        msg = f"{text} is empty; give a file with {wanted}."
        raise InvalidInputError(msg)
    return found


def typed(read: Callable[[str], Any]) -> Callable[[str], Any]:
    """Hand over what an error says, which argparse swallows."""

    def reader(text: str) -> Any:
        try:
            return read(text)
        except InvalidInputError as error:
            raise argparse.ArgumentTypeError(str(error)) from error

    return reader


def whole(text: str) -> int:
    """Read a whole number of at least 1."""
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        msg = f"{text!r} is no whole number of at least 1"
        raise InvalidInputError(msg)
    return int(text)


def yes_or_no(text: str) -> bool:
    """Read ``yes`` or ``no``."""
    if text not in ("yes", "no"):
        msg = f"{text!r} is neither yes nor no"
        raise InvalidInputError(msg)
    return text == "yes"


def executor(text: str) -> str | None:
    """Read an executor; None for ``none``."""
    from mlflow_e2eai.fleet.job import EXECUTORS

    if text not in (*EXECUTORS, "none"):
        msg = f"{text!r} is none of {', '.join(EXECUTORS)} and 'none'"
        raise InvalidInputError(msg)
    return None if text == "none" else text


def whole_or_auto(text: str) -> int | None:
    """Read a whole number of at least 1; None for ``auto``."""
    return None if text == "auto" else whole(text)


def names(text: str) -> list[str]:
    """Read names with commas between; none for ``none``."""
    return _listed(text)


def _listed(text: str) -> list[str]:
    return [] if text == "none" else [part.strip() for part in text.split(",")]


def targets(text: str) -> list[str]:
    """Read targets with commas between; none for ``none``."""
    from mlflow_e2eai.engine.targets import check_target

    for target in _listed(text):
        check_target(target)
    return _listed(text)


def precisions(text: str) -> list[str]:
    """Read precisions with commas between."""
    return [precision(part) for part in _listed(text)] or list(PRECISIONS[:1])


def batch_sizes(text: str) -> list[int]:
    """Read batch sizes with commas between; none for ``none``."""
    return [whole(part) for part in _listed(text)]


def nodes(text: str) -> list[str]:
    """Read names of nodes with commas between, or a JSON file that holds them; none for ``none``.

    Raises:
        E2EAIError: See `tracking.fetch_nodes`.
    """
    from mlflow_e2eai.tracking.models import fetch_nodes

    return fetch_nodes(text) if text.endswith(".json") else _listed(text)


def precision(text: str) -> str:
    """Read a precision."""
    from mlflow_e2eai.precision.stage import check_precision

    check_precision(text)
    return text


def precision_of_engine(text: str) -> str | None:
    """Read a precision; None for ``auto``."""
    return None if text == "auto" else precision(text)
