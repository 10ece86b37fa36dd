"""Tables that a screen reader can walk, and that stay usable with 500 rows."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from mlflow_e2eai.latency import Ratio
from mlflow_e2eai.report.facts import OUTCOMES, Outcome
from mlflow_e2eai.report.markup import NONE, TIMES, Markup, element, join, time_text

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
