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
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from mlflow_e2eai.latency.ratios import Ratio
from mlflow_e2eai.report.facts import OUTCOMES, Outcome

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


# Tables that a screen reader can walk, and that stay usable with 500 rows.


Section: TypeAlias = tuple[str, str, Markup]
"""Id, heading and content of a part of the page."""


_MANY = 60
"""Rows from which a table scrolls by itself; a scroll within a scroll is a nuisance for fewer."""


@dataclass(frozen=True, slots=True)
class Column:
    """A heading, and whether numbers are below it."""

    name: object
    number: bool = False


def table(
    key: str,
    caption: object,
    columns: Sequence[Column],
    bodies: Iterable[Markup],
    *,
    kind: str = "",
) -> Markup:
    """A table in a region that scrolls sideways, and where there are many rows also down.

    Args:
        key: Id of the caption, which names table and region.
        caption: What the table shows.
        columns: The headings.
        bodies: Rows, or groups of them.
        kind: A class; the page's script lets people sort a table that is ``sortable``.
    """
    heads = (
        element("th", column.name, scope="col", class_="number" if column.number else None)
        for column in columns
    )
    inner = element(
        "table",
        element("caption", caption, id=key),
        element("thead", element("tr", *heads)),
        join(bodies, "\n"),
        class_=kind or None,
    )
    # Who has no mouse scrolls with the arrow keys, which a region takes when it can have focus.
    tall = " tall" if inner.count("<tr>") > _MANY else ""
    return element(
        "div", inner, class_=f"scroll{tall}", role="region", aria_labelledby=key, tabindex=0
    )


def cell(content: object, *, kind: str = "", span: int | None = None) -> Markup:
    """One cell."""
    return element("td", content, class_=kind or None, colspan=span)


def number(content: object, *, value: float | None = None) -> Markup:
    """One cell with a number, or a dash where there is none.

    Args:
        content: The number as it is shown.
        value: The number by which its row is sorted; None has no place among numbers.
    """
    said = None if value is None else f"{value:.9g}"
    return element("td", content, class_="number", data_value=said)


def stack(content: object, *below: object) -> Markup:
    """Small lines below something; None is left out."""
    return join((content, *(element("small", line) for line in below if line is not None)))


def ratio(found: Ratio | None) -> Markup | str:
    """A ratio and its interval, or a dash where there is none."""
    return NONE if found is None else stack(factor_text(found.value), bounds_text(found))


def factor_text(value: float) -> str:
    """A ratio for people."""
    return f"{time_text(value)} {TIMES}"


def bounds_text(found: Ratio) -> str:
    """A ratio's interval for people."""
    text = f"{time_text(found.low)} to {time_text(found.high)}"
    return f"{text}, equal" if found.equal else text


def facts(entries: Iterable[tuple[str, object, object]]) -> Markup:
    """A few numbers that say how it stands: name, number and a note for each."""
    items = (
        element(
            "div", element("dt", name), element("dd", value), element("dd", note, class_="note")
        )
        for name, value, note in entries
    )
    return element("dl", *items, class_="facts")


def head(content: object, *, rows: int = 1) -> Markup:
    """The heading of a row, or of a group of rows."""
    if rows == 1:
        return element("th", content, scope="row")
    return element("th", content, scope="rowgroup", rowspan=rows)


def group(variant: str, rows: Iterable[Sequence[Markup]]) -> Markup:
    """A variant's rows, which the filter shows or hides together."""
    return element("tbody", *(element("tr", *row) for row in rows), data_variant=variant)


def body(rows: Iterable[Sequence[Markup]]) -> Markup:
    """Rows that the filter leaves alone."""
    return element("tbody", *(element("tr", *row) for row in rows))


def icon(kind: str) -> Markup:
    """A small sign; the word beside it says the same."""
    use = element("use", href=f"#icon-{kind}")
    return element("svg", use, class_=f"icon {kind}", viewBox="0 0 16 16", aria_hidden="true")


_ICONS = {
    "reference": "none",
    "unsteady": "failed",
    "passed": "passed",
    "failed": "failed",
    "unmeasured": "open",
}


def outcome(kind: Outcome) -> Markup:
    """What a variant came to, as a sign and in words."""
    return element("span", icon(_ICONS[kind]), OUTCOMES[kind], class_=f"outcome {kind}")


def verdict(*, passed: bool, advisory: bool = False) -> Markup:
    """Passed or failed, as a sign and in words; what is advisory does not fail.

    Args:
        passed: Which of both.
        advisory: Whether it is shown only, and decides nothing.
    """
    if advisory and not passed:
        said = element("span", icon("open"), "differs", class_="outcome advisory")
        return stack(said, "does not decide")
    return outcome("passed" if passed else "failed")


def icons() -> Markup:
    """The signs' shapes, drawn once."""
    shapes = {
        "passed": element("path", d="M3 8.5l3.2 3.3L13 4.6"),
        "failed": element("path", d="M4 4l8 8m0-8l-8 8"),
        "open": element("circle", cx=8, cy=8, r=4.5, stroke_dasharray="2 2.7"),
        "none": element("path", d="M4 8h8"),
        "doubt": element("path", d="M8 2.2L14.3 13.4H1.7ZM8 6.4v3.2m0 1.7v.2"),
    }
    symbols = (
        element("symbol", shape, id=f"icon-{name}", viewBox="0 0 16 16")
        for name, shape in shapes.items()
    )
    return element("svg", *symbols, class_="icons", aria_hidden="true")
