"""Surgery: its size, its rules, and the graph before and after as one list."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

from mlflow_e2eai.report.facts import Section
from mlflow_e2eai.report.formats import change_text, error_text, shorten, size_text
from mlflow_e2eai.surgery.outline import Outline, OutlineNode, State
from mlflow_e2eai.surgery.report import SurgeryReport

_MOST_OPERATORS = 4

_CONTEXT, _LONG = 3, 12
"""Unchanged rows in sight next to a change, and the longest stretch that is not folded."""

_BAR = 150
"""Length of the longest bar in pixels."""


def surgery_section(report: SurgeryReport, *, heading: str = "h3") -> Section:
    """The section of a surgery report.

    Args:
        report: The plan's result.
        heading: Level of the headings inside.
    """
    outline = report.outline
    context = {
        "report": report,
        "heading": heading,
        "summary": _summary(report),
        "operators": list(_operators(report)),
        "rows": [] if outline is None else _rows(outline),
        "stretches": [] if outline is None else list(_stretches(outline.nodes)),
        "beyond": "" if outline is None or not outline.beyond else _beyond(outline.beyond),
    }
    return Section("surgery", "Surgery", context)


def _summary(report: SurgeryReport) -> list[tuple[str, str, str]]:
    nodes = report.nodes_before, report.nodes_after
    sizes = report.size_before_bytes, report.size_after_bytes
    error = report.max_abs_error
    return [
        ("Nodes", f"{nodes[0]:,} → {nodes[1]:,}", change_text(*nodes)),
        ("File", f"{size_text(sizes[0])} → {size_text(sizes[1])}", change_text(*sizes)),
        (
            "Largest difference",
            "not checked" if error is None else error_text(error),
            "between the outputs before and after",
        ),
        *(("Note", note, "") for note in report.notes),
    ]


def _operators(report: SurgeryReport) -> Iterator[dict[str, object]]:
    """Counts of each operator, the most frequent first, and its bars' lengths."""
    before, after = report.operators_before, report.operators_after
    scale = _BAR / max([*before.values(), *after.values()], default=1)
    for name in sorted(before.keys() | after.keys(), key=lambda name: (-before.get(name, 0), name)):
        counts = before.get(name, 0), after.get(name, 0)
        yield {
            "name": name,
            "before": counts[0],
            "after": counts[1],
            "before_width": f"{counts[0] * scale:.1f}",
            "after_width": f"{counts[1] * scale:.1f}",
        }


def _rows(outline: Outline) -> list[dict[str, object]]:
    """Each node with its number and those of the nodes that it reads, before or after."""
    reads: list[set[int]] = [set() for _ in outline.nodes]
    for writer, reader in (*outline.kept, *outline.removed, *outline.added):
        # An edge that goes up is of swapped nodes, and is not shown.
        if 0 <= writer < reader < len(reads):
            reads[reader].add(writer)
    return [
        {"number": at, "node": node, "reads": ", ".join(str(row + 1) for row in sorted(rows))}
        for at, (node, rows) in enumerate(zip(outline.nodes, reads, strict=True), 1)
    ]


def _stretches(nodes: Sequence[OutlineNode]) -> Iterator[dict[str, object]]:
    """First row, row behind the last, and the operators of a stretch that is folded away."""
    at = 0
    while at < len(nodes):
        last = at
        while last < len(nodes) and nodes[last].state == nodes[at].state == "kept":
            last += 1
        last = max(last, at + 1)
        if last - at <= _LONG:
            yield {"first": at, "last": last, "operators": ""}
        else:
            start = at + (_CONTEXT if at else 0)
            end = last - (_CONTEXT if last < len(nodes) else 0)
            yield {"first": at, "last": start, "operators": ""}
            yield {"first": start, "last": end, "operators": _operator_names(nodes[start:end])}
            yield {"first": end, "last": last, "operators": ""}
        at = last


def _operator_names(nodes: Sequence[OutlineNode]) -> str:
    counts = Counter(node.operator for node in nodes).most_common()
    names = [f"{count} {shorten(name)}" for name, count in counts[:_MOST_OPERATORS]]
    return ", ".join(names) + (" and others" if len(counts) > _MOST_OPERATORS else "")


def _beyond(beyond: Mapping[State, int]) -> str:
    counts = ", ".join(f"{count:,} {state}" for state, count in beyond.items())
    return f"{sum(beyond.values()):,} nodes more that are not listed: {counts}."
