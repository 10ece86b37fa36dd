"""The evidence as one table for the terminal, and as Markdown for a version's description."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from mlflow_e2eai.bundle.manifest import Manifest
from mlflow_e2eai.report.facts import (
    OUTCOMES,
    Row,
    refused_conversions,
    rows_of,
    task_names,
    tuned_sizes,
)
from mlflow_e2eai.report.formats import NOISY_TEXT

_LONGEST_RULE = 120
"""Characters of a rule: a last column of sentences may be longer."""


def table(manifest: Manifest) -> str:
    """One line a variant: largest error, task metrics, median latency, outcome.

    A precision that was refused has its line too, and below the table its reason. A time that was
    measured on a busy machine is left out, as the table is what others quote.
    """
    cells = _cells(manifest)
    return "\n".join([align(cells, range(1, len(cells[0]) - 1)), *_reasons(manifest)])


def markdown(manifest: Manifest) -> str:
    """The table as Markdown, numbers to the right, without the engines that nothing has run."""
    unmeasured = OUTCOMES["unmeasured"]
    head, *rows = (row for row in _cells(manifest) if row[-1] != unmeasured)
    names = 2 if "machine" in head else 1
    rules = ["---"] * names + ["---:"] * (len(head) - names - 1) + ["---"]
    lines = [f"| {' | '.join(row)} |" for row in (head, rules, *rows)]
    return "\n".join([*lines, *(part for reason in _reasons(manifest) for part in ("", reason))])


def _reasons(manifest: Manifest) -> list[str]:
    return [f"{one.precision} was refused: {one.refused}" for one in refused_conversions(manifest)]


def _cells(manifest: Manifest) -> list[tuple[str, ...]]:
    tasks = task_names(manifest)
    report = tuned_sizes(manifest)
    batch = "" if report is None else f" at {report.items}"
    machine = ("machine",) if manifest.elsewhere else ()
    lines = [("variant", *machine, "max abs error", *tasks, f"p50 ms{batch}", "decision")]
    lines += [
        (
            row.variant,
            *([there.machine] if machine else []),
            "-" if row.max_abs_error is None else f"{row.max_abs_error:.1e}",
            *(f"{row.task[name]:.4f}" if name in row.task else "-" for name in tasks),
            _time(row),
            OUTCOMES[row.outcome] + ("" if row.in_bundle else " (not shipped)"),
        )
        for there in manifest.by_machine
        for row in rows_of(there)
    ]
    nothing = ("-",) * (len(lines[0]) - 2)
    lines += [(one.precision, *nothing, "refused") for one in refused_conversions(manifest)]
    return lines


def _time(row: Row) -> str:
    if row.p50_ms is None:
        return "-"
    return NOISY_TEXT if row.busy else f"{row.p50_ms:.3f}"


def align(rows: Sequence[Sequence[str]], numbers: Collection[int] = ()) -> str:
    """Lines of a table for the terminal, with a rule below the head.

    Args:
        rows: The cells of each line, the head's first.
        numbers: Positions of columns that end at one edge, as numbers do; others begin at one.
    """
    widths = [max(len(row[at]) for row in rows) for at in range(len(rows[0]))]
    lines = [
        "  ".join(
            cell.rjust(width) if at in numbers else cell.ljust(width)
            for at, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
    return "\n".join([lines[0], "-" * min(max(map(len, lines)), _LONGEST_RULE), *lines[1:]])
