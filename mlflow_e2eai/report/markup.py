"""HTML and SVG as strings that are escaped by construction.

Only `Markup` goes into a page as it is; any other text is escaped where it enters, so that a
hostile name can reach no tag. What is no text for people (control characters, halves of
surrogate pairs) is replaced, and folders of a machine are cut from sentences.
"""

from __future__ import annotations

import html
import math
import re
import sys
from collections.abc import Iterable
from pathlib import Path

_VOID = frozenset({"br", "input", "meta"})

# Among them the marks that turn the direction of writing, with which a name can pose as another.
_UNPRINTABLE = re.compile(
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]"
)

# A name such as `/features/conv1/Conv` is a node of a graph, so only what starts as a folder of a
# machine does is taken for one.
_HERE = {Path(place).absolute().as_posix().split("/")[1] for place in (sys.prefix, __file__)}
_ROOTS = "|".join(
    sorted(
        map(
            re.escape,
            {"home", "media", "mnt", "opt", "private", "root", "srv", "tmp", "usr", "var"}
            | {"Users", "Volumes", "workspace"}
            | (_HERE - {""}),
        )
    )
)
_FOLDERS = re.compile(
    rf"(?:file://)?(?<![\w:/.])/(?:{_ROOTS})/(?:[^\s'\"<>:;,()/]+/)*|\b[A-Za-z]:\\(?:[^\s'\"<>\\]+\\)*"
)


NONE = "\N{EN DASH}"
"""For a number that there is none of."""

TIMES, MINUS = "\N{MULTIPLICATION SIGN}", "\N{MINUS SIGN}"


class Markup(str):
    """Text that is HTML already."""

    __slots__ = ()


def clean(text: object) -> str:
    """Text without what cannot be shown."""
    return _UNPRINTABLE.sub("\ufffd", str(text))


def one_line(text: object) -> str:
    """The same in one line: in a command, a new line would be a new command."""
    return re.sub(r"[\n\t]", "\ufffd", clean(text))


def sentence(text: object) -> str:
    """A sentence that some program wrote, without the folders of the machine where it ran."""
    return _FOLDERS.sub("…/", clean(text))


def escape(value: object) -> Markup:
    """A value as markup; markup stays as it is."""
    return value if isinstance(value, Markup) else Markup(html.escape(clean(value)))


def join(parts: Iterable[object], between: str = "") -> Markup:
    """Parts in a row."""
    return Markup(between.join(map(escape, parts)))


def element(name: str, /, *children: object, **attributes: object) -> Markup:
    """An element with its children.

    Args:
        name: Its tag.
        *children: Markup, or text to escape; None is left out.
        **attributes: Names lose a trailing underscore and have hyphens for the others; None and
            False are left out, and True is an attribute without a value.
    """
    words = "".join(_attribute(key, value) for key, value in attributes.items())
    if name in _VOID:
        return Markup(f"<{name}{words}>")
    inner = "".join([escape(child) for child in children if child is not None])
    return Markup(f"<{name}{words}>{inner}</{name}>")


def _attribute(key: str, value: object) -> str:
    if value is None or value is False:
        return ""
    name = key.removesuffix("_").replace("_", "-")
    return f" {name}" if value is True else f' {name}="{escape(_short(value))}"'


def _short(value: object) -> object:
    """A coordinate with a tenth of a pixel: 500 variants make many of them."""
    return f"{value:.1f}".removesuffix(".0") if isinstance(value, float) else value


def error_text(value: float | None) -> str:
    """An error for people."""
    if value is None:
        return NONE
    if not math.isfinite(value):
        return "NaN" if math.isnan(value) else "infinite"
    return "0" if value == 0 else f"{value:.1e}"


def time_text(value: float | None) -> str:
    """Milliseconds, or a ratio, with three digits that count."""
    if value is None:
        return NONE
    if not math.isfinite(value) or value == 0:
        return f"{value:g}"
    digits = 2 - math.floor(math.log10(abs(value)))
    return f"{value:,.{min(max(digits, 0), 6)}f}"


def size_text(size_bytes: float) -> str:
    """A size in bytes for people."""
    for unit in ("B", "KB", "MB"):
        if size_bytes < 1000:  # noqa: PLR2004 - the step between two units
            return f"{size_bytes:.3g} {unit}"
        size_bytes /= 1000
    return f"{size_bytes:.3g} GB"
