"""What surgery did: how much, by which rules, and the graph before and after."""

from __future__ import annotations

from typing import Literal

from mlflow_e2eai.report import html
from mlflow_e2eai.report.figures import bars
from mlflow_e2eai.report.graph import graph
from mlflow_e2eai.report.html import (
    MINUS,
    Column,
    Markup,
    cell,
    element,
    error_text,
    head,
    number,
    size_text,
    time_text,
)
from mlflow_e2eai.surgery.stage import SurgeryReport


def surgery_part(report: SurgeryReport, *, heading: Literal["h2", "h3"] = "h3") -> Markup:
    """All that is known of a surgery.

    Args:
        report: What the plan did.
        heading: Level of the headings inside.
    """
    outline = report.outline
    drawn = (
        ()
        if outline is None or not outline.nodes
        else (
            element(heading, "The graph before and after", id="graph-heading"),
            _legend(),
            graph(outline, named_by="graph-heading"),
        )
    )
    return element("div", _facts(report), _edits(report), *drawn, _operators(report))


def _facts(report: SurgeryReport) -> Markup:
    error = report.max_abs_error
    sizes = report.size_before_bytes, report.size_after_bytes
    facts = (
        (
            "Nodes",
            f"{report.nodes_before:,} → {report.nodes_after:,}",
            _change(report.nodes_before, report.nodes_after),
        ),
        ("File", f"{size_text(sizes[0])} → {size_text(sizes[1])}", _change(*sizes)),
        (
            "Largest difference",
            "not checked" if error is None else error_text(error),
            "between the answers before and after",
        ),
    )
    return html.facts(facts)


def _change(before: int, after: int) -> str:
    if not before or before == after:
        return "unchanged" if before == after else ""
    percent = 100 * (after - before) / before
    form = "+.0f" if abs(percent) >= 1 else "+.1g"
    return f"{percent:{form}} %".replace("-", MINUS)


def _legend() -> Markup:
    return element(
        "p",
        "Each row is a node, and each line a tensor on its way to those that read it. What was ",
        element("strong", "removed", class_="removed"),
        " is struck through, and its lines are dashed; what was ",
        element("strong", "added", class_="added"),
        " or ",
        element("strong", "changed", class_="changed"),
        " says so.",
        class_="legend",
    )


def _edits(report: SurgeryReport) -> Markup | None:
    if not report.edits:
        return None
    rows = [
        [head(element("code", rule)), number(f"{count:,}")] for rule, count in report.edits.items()
    ]
    columns = [Column("Rule"), Column("Edits", number=True)]
    if report.seconds:
        columns.append(Column("Time, ms", number=True))
        for row, rule in zip(rows, report.edits, strict=True):
            row.append(number(time_text(1000 * report.seconds[rule])))
    return html.table(
        "edits",
        "Edits by each rule, in the plan's order",
        columns,
        [html.body(rows)],
        kind="narrow",
    )


def _operators(report: SurgeryReport) -> Markup | None:
    before, after = report.operators_before, report.operators_after
    names = sorted(before.keys() | after.keys(), key=lambda name: (-before.get(name, 0), name))
    if not names:
        return None
    most = max([*before.values(), *after.values()])
    rows = (
        (
            head(element("code", name)),
            number(f"{before.get(name, 0):,}"),
            number(f"{after.get(name, 0):,}"),
            cell(bars(before.get(name, 0), after.get(name, 0), most), kind="glyphs"),
        )
        for name in names
    )
    columns = [
        Column("Operator"),
        Column("Before", number=True),
        Column("After", number=True),
        Column(element("span", "Picture", class_="unseen")),
    ]
    caption = "Nodes of each operator; the upper bar is before, the lower one after"
    return html.table("operators", caption, columns, [html.body(rows)], kind="narrow")
