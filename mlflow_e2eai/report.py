"""A bundle's evidence for people: one table, for the terminal and as Markdown."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mlflow_e2eai.bundle import Manifest


def table(manifest: Manifest) -> str:
    """One line a variant: largest error, task metrics, median latency, what it came to."""
    return _aligned(_rows(manifest))


def markdown(manifest: Manifest) -> str:
    """The same as Markdown, which MLflow shows as a version's description."""
    head, *rows = (f"| {' | '.join(row)} |" for row in _rows(manifest))
    return "\n".join([head, "|---" * head.count(" | ") + "|---|", *rows])


def _rows(manifest: Manifest) -> list[tuple[str, ...]]:
    tasks = sorted({name for entry in manifest.evidence for name in entry.task})
    report = manifest.latency.get("opt") or manifest.latency.get("static")
    times = {} if report is None else {entry.name: entry.p50_ms for entry in report.variants}
    batch = "" if report is None else f" at {report.items}"
    head = ("variant", "max abs error", *tasks, f"p50 ms{batch}", "decision")
    rows: list[tuple[str, ...]] = [head]
    for entry in manifest.evidence:
        errors = [comparison.max_abs_error for comparison in entry.parity.values()]
        rows.append(
            (
                entry.variant,
                f"{np.max(errors):.1e}" if errors else "-",
                *(f"{entry.task[name]:.4f}" if name in entry.task else "-" for name in tasks),
                f"{times[entry.variant]:.3f}" if entry.variant in times else "-",
                _decision(entry.sha256 is None, entry.measured, entry.passed),
            )
        )
    return rows


def _decision(is_reference: bool, measured: bool, passed: bool) -> str:  # noqa: FBT001 - three facts
    if is_reference:
        return "reference" if passed else "reference, unsteady"
    if not measured:
        return "built, not measured here"
    return "passed" if passed else "failed"


def _aligned(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(len(row[at]) for row in rows) for at in range(len(rows[0]))]
    # Names to the left, numbers to the right.
    lines = [
        "  ".join(
            cell.ljust(width) if at in (0, len(row) - 1) else cell.rjust(width)
            for at, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
    return "\n".join([lines[0], "-" * max(map(len, lines)), *lines[1:]])
