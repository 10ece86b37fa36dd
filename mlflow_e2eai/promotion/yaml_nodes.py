"""YAML of a user -> plain values, and the line of each of them.

PyYAML's own nodes know where they began. Aliases are refused, as a few lines of them can stand for
more values than fit in memory, and a key that is written twice is an error here, where PyYAML
takes the last.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import yaml

from mlflow_e2eai.artifacts.files import reading_error
from mlflow_e2eai.errors import InvalidInputError

MOST_CHARACTERS = 1 << 18
"""Of a file that people write; a thousand times as long as the usual ones."""

MOST_DEPTH = 20
"""Lists and mappings in each other."""


def compose(text: str, source: str) -> yaml.Node | None:
    """The nodes of a YAML text; None where it is empty.

    Args:
        text: The text.
        source: Name of the file, for errors.

    Raises:
        InvalidInputError: It is no YAML, is too long or too deep, or has an alias.
    """
    if len(text) > MOST_CHARACTERS:
        msg = f"{source} has {len(text)} characters, and {MOST_CHARACTERS} at most are read."
        raise InvalidInputError(msg)
    try:
        _check_events(text, source)
        node: yaml.Node | None = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.YAMLError as error:
        mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None)
        line = "" if mark is None else f", line {mark.line + 1}"
        msg = f"{source}{line}: this is no YAML ({problem or reading_error(error)}); correct it."
        raise InvalidInputError(msg) from error
    _check_keys(node, source)
    return node


def _check_events(text: str, source: str) -> None:
    """Refuse aliases, and lists in lists that nobody writes."""
    depth = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        line = event.start_mark and event.start_mark.line + 1
        if isinstance(event, yaml.AliasEvent):
            msg = f"{source}, line {line}: an alias (*{event.anchor}); write the values out."
            raise InvalidInputError(msg)
        depth += isinstance(event, yaml.CollectionStartEvent)
        depth -= isinstance(event, yaml.CollectionEndEvent)
        if depth > MOST_DEPTH:
            msg = f"{source}, line {line}: lists in lists too deep to read; write them flat."
            raise InvalidInputError(msg)


def _check_keys(node: yaml.Node | None, source: str) -> None:
    """Refuse a mapping that has a key twice."""
    pending = [] if node is None else [node]
    while pending:
        each = pending.pop()
        if isinstance(each, yaml.SequenceNode):
            pending += each.value
        elif isinstance(each, yaml.MappingNode):
            first: dict[Any, int] = {}
            for key, value in each.value:
                line = key.start_mark.line + 1
                if isinstance(key, yaml.ScalarNode):
                    if key.value in first:
                        msg = (
                            f"{source}, line {line}: {key.value!r} is there twice, first in line "
                            f"{first[key.value]}; leave one."
                        )
                        raise InvalidInputError(msg)
                    first[key.value] = line
                pending.append(value)


def plain(node: yaml.Node | None) -> Any:
    """The plain values of a node."""
    if node is None:
        return None
    loader = yaml.SafeLoader("")
    try:
        return loader.construct_document(node)
    except (yaml.YAMLError, ValueError, TypeError) as error:
        msg = f"The YAML holds no plain values: {reading_error(error)}; write numbers and text."
        raise InvalidInputError(msg) from error
    finally:
        loader.dispose()


def line_of(node: yaml.Node | None, path: Sequence[str | int]) -> int:
    """Line of the value at a path of keys and positions, or of the nearest around it, from 1."""
    if node is None:
        return 1
    line = node.start_mark.line + 1
    for step in path:
        found = None
        if isinstance(node, yaml.MappingNode):
            entries = [(k, v) for k, v in node.value if getattr(k, "value", None) == str(step)]
            found = entries[0] if entries else None
        elif isinstance(node, yaml.SequenceNode) and isinstance(step, int):
            found = (node.value[step], node.value[step]) if step < len(node.value) else None
        if found is None:
            break
        line, node = found[0].start_mark.line + 1, found[1]
    return line
