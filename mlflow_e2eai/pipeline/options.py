"""Arguments as text, for the command line and MLproject.

An `Option` has the names, the text form, the default and one line of help. The fields of
`mlflow_e2eai.pipeline.settings.Settings` have theirs as metadata; `options_of` reads them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlflow_e2eai.artifacts import yaml_nodes
from mlflow_e2eai.artifacts.build_settings import DEFAULT_BUILD, BuildSettings
from mlflow_e2eai.artifacts.values import precision_of
from mlflow_e2eai.errors import InvalidInputError, brief, nearest, shown
from mlflow_e2eai.surgery.plan import DEFAULT_PLAN, Step, plan_from

_OPTION = "option"


@dataclass(frozen=True, slots=True, kw_only=True)
class Option:
    """One argument of a step in its text form.

    Attributes:
        name: Its name in MLproject; on the command line with ``--`` and hyphens.
        argument: Name of the Python argument that takes the value; by default `name`.
        parse: Text to value; raises `InvalidInputError`.
        help: One line about it, without the default.
        default: The text where none is given; None for a required option.
        metavar: The form of the text.
        choices: All valid texts, where they can be listed.
        is_flag: Whether the option alone means ``yes`` on the command line.
    """

    name: str = ""
    argument: str = ""
    parse: Callable[[str], Any]
    help: str
    default: str | None = None
    metavar: str = "TEXT"
    choices: tuple[str, ...] = ()
    is_flag: bool = False

    def __post_init__(self) -> None:
        if not self.argument:
            object.__setattr__(self, "argument", self.name)


def option(
    default: Any, parse: Callable[[str], Any], *, text: str | None = None, **fields: Any
) -> Any:
    """Declare a field of a dataclass that can be given as text too.

    Args:
        default: Its default.
        parse: Text to value.
        text: The text form of the default; by default that of its type.
        **fields: Further fields of `Option`; its name is by default the field's.
    """
    declared = Option(
        parse=parse,
        default=_text_of(default) if text is None else text,
        is_flag=isinstance(default, bool),
        **fields,
    )
    return dataclasses.field(default=default, metadata={_OPTION: declared})


def options_of(value: type) -> dict[str, Option]:
    """The options that a dataclass declares with `option`, by field."""
    return {
        field.name: dataclasses.replace(
            field.metadata[_OPTION],
            name=field.metadata[_OPTION].name or field.name,
            argument=field.name,
        )
        for field in dataclasses.fields(value)
        if _OPTION in field.metadata
    }


def _text_of(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, tuple):
        return ",".join(map(str, value)) or "none"
    return str(value)


_MOST_DIGITS = 100
"""Python reads no number of more than 4300 digits, and no setting needs so many. A choice."""


def parse_whole(text: str) -> int:
    """Read a whole number of at least 1."""
    is_whole = text.isascii() and text.isdigit() and len(text) <= _MOST_DIGITS
    if not is_whole or int(text) < 1:
        limit = f" of at most {_MOST_DIGITS} digits" if len(text) > _MOST_DIGITS else ""
        msg = f"must be a positive integer{limit}, got {shown(text)}"
        raise InvalidInputError(msg)
    return int(text)


def parse_days(text: str) -> int:
    """Read a whole number of days; 0 is less than any age."""
    return 0 if text == "0" else parse_whole(text)


def parse_yes(text: str) -> bool:
    """Read ``yes`` or ``no``."""
    if text not in ("yes", "no"):
        msg = f"must be yes or no, got {text!r}"
        raise InvalidInputError(msg)
    return text == "yes"


def parse_names(text: str) -> list[str]:
    """Read names with commas between; none for ``none``."""
    return [] if text == "none" else [part.strip() for part in text.split(",")]


def parse_paths(text: str) -> list[Path]:
    """Read paths with commas between; none for ``none``."""
    return [Path(name) for name in parse_names(text)]


def parse_sizes(text: str) -> list[int]:
    """Read whole numbers with commas between; none for ``none``."""
    return [parse_whole(part) for part in parse_names(text)]


def parse_choice(choices: Collection[str]) -> Callable[[str], str]:
    """Return a function that reads one of a few words."""

    def parse(text: str) -> str:
        if text not in choices:
            msg = f"must be one of {', '.join(choices)}, got {text!r}"
            if (near := nearest(text, choices)) is not None:
                msg += f"; did you mean {near}?"
            raise InvalidInputError(msg)
        return text

    return parse


def parse_or(word: str, parse: Callable[[str], Any]) -> Callable[[str], Any]:
    """Return a function that reads a word as None, and any other text with `parse`."""

    def parse_other(text: str) -> Any:
        return None if text == word else parse(text)

    return parse_other


def parse_precisions(text: str) -> list[str]:
    """Read precisions with commas between; ``none`` is fp32 alone, which is always made."""
    return [precision_of(part) for part in parse_names(text)] or ["fp32"]


def parse_targets(text: str) -> list[str]:
    """Read targets with commas between; none for ``none``."""
    from mlflow_e2eai.engine.targets import canonical

    return [canonical(target) for target in parse_names(text)]


def parse_nodes(text: str) -> list[str]:
    """Read names of nodes with commas between, or a JSON file with them; none for ``none``.

    Raises:
        E2EAIError: See `mlflow_e2eai.tracking.models.fetch_nodes`.
    """
    from mlflow_e2eai.tracking.models import fetch_nodes

    return fetch_nodes(text) if text.endswith(".json") else parse_names(text)


def parse_plan(text: str) -> tuple[Step, ...]:
    """Read a surgery plan: ``default``, a YAML file, or the URI of one on a run.

    Raises:
        E2EAIError: There is no such file, or it holds something else.
    """
    return DEFAULT_PLAN if text == "default" else plan_from(_read_yaml(text, "a list of rules"))


def parse_build_settings(text: str) -> BuildSettings:
    """Read ``default``, ``name=value`` with commas between, or a YAML file with these names.

    Raises:
        E2EAIError: There is no such file, it holds something else, or a setting is wrong.
    """
    if text == "default":
        return DEFAULT_BUILD
    if not text.endswith((".yaml", ".yml")):
        return BuildSettings.parse(text)
    wanted = "settings as optimization_level: 5"
    settings = _read_yaml(text, wanted)
    if not isinstance(settings, dict):
        msg = f"{text} has no settings by name; give {wanted}."
        raise InvalidInputError(msg)
    return BuildSettings.of(settings)


def _read_yaml(uri: str, wanted: str) -> Any:
    """Read a YAML file from a path, or from the URI of an artifact."""
    from mlflow_e2eai.tracking.downloads import fetch_text

    try:
        content = yaml_nodes.load(fetch_text(uri), uri)
    except InvalidInputError as error:
        msg = f"{brief(error).rstrip('.')}; give a file with {wanted}."
        raise InvalidInputError(msg) from error
    if content is None:
        msg = f"{uri} is empty; give a file with {wanted}."
        raise InvalidInputError(msg)
    return content
