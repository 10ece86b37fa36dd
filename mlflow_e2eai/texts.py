"""Texts, as a command line has them -> values."""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlflow_e2eai.artifacts import PRECISIONS, Axis
from mlflow_e2eai.building import DEFAULT_BUILD, BuildSettings
from mlflow_e2eai.errors import InvalidInputError
from mlflow_e2eai.files import why_unread

if TYPE_CHECKING:
    from mlflow_e2eai.modules import DynamicAxes
    from mlflow_e2eai.surgery import Step


def dynamic_axes(text: str) -> DynamicAxes | None:
    """Read ``input:position=name:min:opt:max``, with commas between several.

    A fifth part, ``:multiple``, may follow, and buckets, as ``@1+8+32``.

    Returns:
        The axes; none for ``none``, and None for ``auto``.

    Raises:
        InvalidInputError: It is something else, or an axis has its sizes out of order.
    """
    if text == "auto":
        return None
    found: dict[str, dict[int, Axis]] = {}
    for part in [] if text == "none" else text.split(","):
        try:
            place, sizes = part.split("=")
            name, position = place.rsplit(":", 1)
            sizes, _, buckets = sizes.partition("@")
            axis, *numbers = sizes.split(":")
            low, best, high, *others = (int(number) for number in numbers)
            (multiple,) = others or [1]
            index = int(position)
            tuned = tuple(int(size) for size in buckets.split("+")) if buckets else ()
        except ValueError as error:
            msg = (
                f"{part!r} is no dynamic axis; write input:position=name:min:opt:max (x:0=N:1:8:64)"
            )
            raise InvalidInputError(msg) from error
        sizes_of = Axis(axis, min=low, opt=best, max=high, multiple=multiple, buckets=tuned)
        found.setdefault(name.strip(), {})[index] = sizes_of
    return found


def plan(text: str) -> tuple[Step, ...]:
    """Read a surgery plan: ``default``, a YAML file, or the URI of one that a run kept.

    Raises:
        E2EAIError: There is no such file, or it holds something else.
    """
    from mlflow_e2eai.surgery import DEFAULT_PLAN, plan_from

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

    from mlflow_e2eai.tracking import fetch_text

    try:
        found = yaml.safe_load(fetch_text(text))
    except (ValueError, yaml.YAMLError) as error:
        msg = f"{text} is not YAML ({why_unread(error)}); give a file with {wanted}."
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
    from mlflow_e2eai.fleet import EXECUTORS

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


def seen(text: str) -> dict[int, int]:
    """Read sizes that were seen, each as ``size`` or ``size:times``, or a JSON file of them.

    Raises:
        InvalidInputError: It is something else, or there is no such file.
    """
    wanted = 'write 1,8:120,32 or give a JSON file as {"8": 120}'
    try:
        if text.endswith(".json"):
            given = [*json.loads(Path(text).read_text(encoding="utf-8")).items()]
        else:
            parts = (part.partition(":") for part in text.split(","))
            given = [(size, times or "1") for size, _, times in parts]
        found: dict[int, int] = {}
        for size, times in given:
            found[int(size)] = found.get(int(size), 0) + int(times)
    except (OSError, UnicodeDecodeError) as error:
        msg = f"Cannot read {text}: {why_unread(error)}; {wanted}"
        raise InvalidInputError(msg) from error
    except (AttributeError, TypeError, ValueError) as error:
        msg = f"{text!r} holds no sizes; {wanted}"
        raise InvalidInputError(msg) from error
    return found


def nodes(text: str) -> list[str]:
    """Read names of nodes with commas between, or a JSON file that holds them; none for ``none``.

    Raises:
        E2EAIError: See `tracking.fetch_nodes`.
    """
    from mlflow_e2eai.tracking import fetch_nodes

    return fetch_nodes(text) if text.endswith(".json") else _listed(text)


def precision(text: str) -> str:
    """Read a precision."""
    from mlflow_e2eai.precision import check_precision

    check_precision(text)
    return text


def precision_of_engine(text: str) -> str | None:
    """Read a precision; None for ``auto``."""
    return None if text == "auto" else precision(text)
