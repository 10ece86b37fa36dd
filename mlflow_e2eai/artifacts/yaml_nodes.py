"""YAML from outside -> plain values, and the line of each of them.

PyYAML's own nodes know where they began. A few lines of aliases can stand for more values than fit
in memory, so that they are refused, or few. A key that is written twice is an error here, where
PyYAML takes the last.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import yaml
from yaml.constructor import ConstructorError

from mlflow_e2eai.artifacts.files import reading_error
from mlflow_e2eai.errors import InvalidInputError, shown

MOST_CHARACTERS = 1 << 18
"""Of a file that people write; a thousand times as long as the usual ones."""

MOST_DEPTH = 20
"""Lists and mappings in each other."""

FEW_ALIASES = 16
"""Of a file that a program wrote, which names what it repeats: they stand for 400 values at most
for each that is written."""

MOST_DIGITS = 400
"""Of a number; those of a base of 60 take time that grows as their square."""

# libyaml reads ten times as fast; a wheel of PyYAML has it.
_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def load(text: str, source: str, *, most: int = MOST_CHARACTERS) -> Any:
    """The plain values of a YAML text, which may have a few aliases; see `compose`."""
    return plain(compose(text, source, aliases=FEW_ALIASES, most=most))


def compose(
    text: str, source: str, *, aliases: int = 0, most: int = MOST_CHARACTERS
) -> yaml.Node | None:
    """The nodes of a YAML text; None where it is empty.

    Args:
        text: The text.
        source: Name of the file, for errors.
        aliases: Aliases that it may have.
        most: Characters that it may have.

    Raises:
        InvalidInputError: It is no YAML, is too long or too deep, or has more aliases.
    """
    if len(text) > most:
        msg = f"{source} has {len(text)} characters, and {most} at most are read."
        raise InvalidInputError(msg)
    try:
        _check_events(text, source, aliases)
        node: yaml.Node | None = yaml.compose(text, Loader=_Loader)
    except (yaml.YAMLError, UnicodeError) as error:
        mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None)
        line = "" if mark is None else f", line {mark.line + 1}"
        msg = f"{source}{line}: this is not YAML ({problem or reading_error(error)}); correct it."
        raise InvalidInputError(msg) from error
    _check_nodes(node, source, most)
    return node


def _check_events(text: str, source: str, aliases: int) -> None:
    """Refuse aliases, and lists in lists that nobody writes."""
    depth = 0
    for event in yaml.parse(text, Loader=_Loader):
        line = event.start_mark and event.start_mark.line + 1
        if isinstance(event, yaml.AliasEvent) and (aliases := aliases - 1) < 0:
            msg = f"{source}, line {line}: an alias (*{event.anchor}); write the values out."
            raise InvalidInputError(msg)
        depth += isinstance(event, yaml.CollectionStartEvent)
        depth -= isinstance(event, yaml.CollectionEndEvent)
        if depth > MOST_DEPTH:
            msg = f"{source}, line {line}: lists in lists too deep to read; write them flat."
            raise InvalidInputError(msg)


def _check_nodes(node: yaml.Node | None, source: str, most: int) -> None:
    """Refuse more values than characters may be, a key that is there twice, and long numbers.

    Without aliases no text has as many values; an alias inside its own list stands for endless
    ones.
    """
    pending = [] if node is None else [node]
    count = 0
    while pending:
        count += 1
        if count + len(pending) > most:
            msg = f"{source}: its aliases stand for more than {most} values; write the values out."
            raise InvalidInputError(msg)
        each = pending.pop()
        if isinstance(each, yaml.ScalarNode):
            is_number = each.tag.endswith((":int", ":float"))
            if is_number and len(each.value) > MOST_DIGITS:
                line = each.start_mark.line + 1
                msg = f"{source}, line {line}: a number of {len(each.value)} digits; shorten it."
                raise InvalidInputError(msg)
        elif isinstance(each, yaml.SequenceNode):
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
                pending += [key, value]


class _PlainLoader(yaml.SafeLoader):
    """Names the value that does not fit its tag, for which PyYAML raises errors of many kinds."""

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:  # noqa: FBT001, FBT002
        """Make the value of a node."""
        try:
            return super().construct_object(node, deep)
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
            tag = node.tag.replace("tag:yaml.org,2002:", "!!")
            problem = f"{shown(node.value)} is no {tag}"
            raise ConstructorError(None, None, problem, node.start_mark) from error


def plain(node: yaml.Node | None) -> Any:
    """The plain values of a node."""
    if node is None:
        return None
    loader = _PlainLoader("")
    try:
        return loader.construct_document(node)
    except yaml.YAMLError as error:
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
