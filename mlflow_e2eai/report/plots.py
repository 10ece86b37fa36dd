"""Pictures as PNG files, for where a page cannot be shown."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from mlflow_e2eai.bundle.manifest import Manifest
from mlflow_e2eai.parity.report import ParityReport
from mlflow_e2eai.report.charts import drawable, family, log_scale, number_text, shortened
from mlflow_e2eai.report.facts import (
    Row,
    median_interval,
    on_machines,
    reference_of,
    rows_of,
    tuned,
)
from mlflow_e2eai.report.figures import named_rows, named_spots, pareto_rows
from mlflow_e2eai.report.html import clean
from mlflow_e2eai.report.sections.steps import in_order, step_name

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_COLOURS = {
    "torch": "#4b5560",
    "onnxruntime-cpu": "#0b63c4",
    "onnxruntime-cuda": "#0a7c7c",
    "tensorrt": "#4d7c0f",
    "tensorrt_rtx": "#7c3aed",
    "other": "#a84b00",
}
_MARKS = {
    "torch": "s",
    "onnxruntime-cpu": "o",
    "onnxruntime-cuda": "D",
    "tensorrt": "^",
    "tensorrt_rtx": "v",
    "other": "X",
}
_QUIET = "#b9bfc6"
_STEP = "#0b63c4"
_FAILED = "#b3261e"
_DOT_AND_RING = ((6, _STEP), (11, "none"))
_SIZE_INCHES = (8.6, 4.6)
_DPI = 150

_MOST_STEPS = 12
"""Steps that have room for their names."""


def plots(manifest: Manifest) -> dict[str, bytes]:
    """Pictures by file name, as PNG; one that has nothing to show is left out.

    Returns:
        ``latency.png``, the median latency of each variant against the size of a call,
        ``pareto.png``, its largest error against its latency, and ``steps.png``, the largest error
        of each step against the reference and against the step before. What the second machine
        found is in ``latency-2.png`` and so on: no picture is of two.
    """
    found: dict[str, bytes | None] = {}
    for at, (there, where) in enumerate(on_machines(manifest), 1):
        suffix = "" if at == 1 else f"-{at}"
        found |= {
            f"latency{suffix}.png": _latency(there, where),
            f"pareto{suffix}.png": _pareto(there, where),
            f"steps{suffix}.png": _steps(there, where),
        }
    return {name: content for name, content in found.items() if content is not None}


def _latency(manifest: Manifest, where: str) -> bytes | None:
    series: dict[str, list[tuple[int, float, float, float]]] = {}
    for report in sorted(manifest.latency.values(), key=lambda report: report.items):
        for entry in report.variants:
            if drawable(entry.p50_ms) and entry.rounds_ms:
                bounds = median_interval(entry.rounds_ms)
                series.setdefault(entry.name, []).append((report.items, entry.p50_ms, *bounds))
    if not series:
        return None
    rows = rows_of(manifest)
    named = named_rows(rows)
    figure, axes = _canvas("items in one call", "median latency, ms")
    for variant in sorted(series, key=lambda name: name in named):
        _line(axes, variant, series[variant], quiet=variant not in named)
    sizes = sorted({report.items for report in manifest.latency.values() if report.items > 0})
    axes.set_xticks(sizes, [f"{size:,}" for size in sizes])
    _upward(axes, [bound for points in series.values() for point in points for bound in point[1:]])
    _title(axes, f"Latency against the size of a call{where}")
    return _png(figure, axes)


def _line(
    axes: Axes, variant: str, points: Sequence[tuple[int, float, float, float]], *, quiet: bool
) -> None:
    items, p50, low, high = zip(*points, strict=True)
    if quiet:
        axes.plot(items, p50, color=_QUIET, linewidth=0.6)
        return
    below = [max(middle - bound, 0.0) for middle, bound in zip(p50, low, strict=True)]
    above = [max(bound - middle, 0.0) for middle, bound in zip(p50, high, strict=True)]
    axes.errorbar(items, p50, yerr=(below, above), capsize=3, **_style(variant))


def _style(variant: str) -> dict[str, Any]:
    name = family(variant)
    full = variant.rpartition("/")[2] == "fp32"
    return {
        "color": _COLOURS[name],
        "marker": _MARKS[name],
        "linestyle": "-" if full else "--",
        "markerfacecolor": _COLOURS[name] if full else "white",
        "markersize": 6,
        "linewidth": 1.6,
        "label": _name(variant),
    }


def _name(variant: str) -> str:
    """A variant's name; a dollar would start a formula, and an underscore hide it."""
    return " " * variant.startswith("_") + shortened(clean(variant)).replace("$", r"\$")


def _pareto(manifest: Manifest, where: str) -> bytes | None:
    report, reference = tuned(manifest), reference_of(manifest)
    rows = [
        row
        for row in rows_of(manifest)
        if drawable(row.p50_ms) and drawable(row.max_abs_error) and row.variant != reference
    ]
    if report is None or not rows:
        return None
    unit = "item" if report.items == 1 else "items"
    figure, axes = _canvas(f"median latency at {report.items} {unit}, ms", "largest absolute error")
    named = named_spots(rows)
    for row in sorted(rows, key=lambda row: row.variant in named):
        _spot(axes, row, quiet=row.variant not in named)
    front = [row for row in pareto_rows(rows) if row in rows]
    axes.step(
        [row.p50_ms or 0.0 for row in front],
        [row.max_abs_error or 0.0 for row in front],
        where="post",
        linestyle=":",
        color="#59626b",
        linewidth=1,
        zorder=0,
    )
    _upward(axes, [row.max_abs_error or 0.0 for row in rows])
    across = log_scale([row.p50_ms or 0.0 for row in rows], 0, 1)
    if across is not None:
        axes.set_xlim(across.low, across.high)
        axes.set_xticks(across.numbers(), list(map(number_text, across.numbers())))
    _title(axes, f"Error against latency{where}; lower left is better")
    return _png(figure, axes)


def _spot(axes: Axes, row: Row, *, quiet: bool) -> None:
    style = {**_style(row.variant), "linestyle": "none"}
    if quiet:
        style |= {"label": None, "color": _QUIET, "markerfacecolor": _QUIET, "markersize": 3}
    place = (row.p50_ms or 0.0, row.max_abs_error or 0.0)
    axes.plot(*place, **style)
    if row.outcome == "failed":
        axes.plot(*place, "x", color=_FAILED, markersize=5 if quiet else 11)


def _steps(manifest: Manifest, where: str) -> bytes | None:
    files = {file.sha256: file for file in manifest.files}
    entries = [e for e in in_order(manifest.evidence) if e.against_before][:_MOST_STEPS]
    series = {
        "against the reference": _errors([entry.parity.get("profile") for entry in entries]),
        "against the step before": _errors([entry.against_before for entry in entries]),
    }
    scale = log_scale([error for points in series.values() for _, error, _ in points], 0, 1)
    if scale is None:
        return None
    figure, axes = _canvas("largest absolute error, on the corners of the profile", "")
    axes.set_yscale("linear")
    names = [f"{step_name(entry, files)}\n{_name(entry.variant).strip()}" for entry in entries]
    axes.set_yticks(range(len(entries)), names, fontsize="small")
    axes.set_ylim(len(entries) - 0.5, -0.5)
    # The one is a dot and the other a ring, so that both are seen where they meet.
    for (label, points), (size, face) in zip(series.items(), _DOT_AND_RING, strict=True):
        places = [error for _, error, _ in points], [row for row, _, _ in points]
        axes.plot(*places, "o", label=label, markersize=size, color=_STEP, markerfacecolor=face)
        for row, error, passed in points:
            if not passed:
                axes.plot(error, row, "x", color=_FAILED, markersize=12)
    axes.set_xlim(scale.low, scale.high)
    axes.set_xticks(scale.numbers(), list(map(number_text, scale.numbers())))
    _title(axes, f"Error step by step{where}; a cross marks what failed")
    return _png(figure, axes)


def _errors(reports: Sequence[ParityReport | None]) -> list[tuple[int, float, bool]]:
    """Row, error and verdict; no difference, and no number, have no place on a logarithmic axis."""
    return [
        (row, report.max_abs_error, report.passed)
        for row, report in enumerate(reports)
        if report is not None and drawable(report.max_abs_error)
    ]


def _canvas(across: str, up: str) -> tuple[Figure, Axes]:
    """Axes on a figure of its own: pyplot would keep every figure, and take the caller's window."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=_SIZE_INCHES, dpi=_DPI, layout="constrained")
    axes = figure.subplots()
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel(across)
    axes.set_ylabel(up)
    axes.grid(visible=True, which="major", color="#e3e6e9", linewidth=0.8)
    axes.minorticks_off()
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _title(axes: Axes, text: str) -> None:
    axes.set_title(clean(text).replace("$", r"\$"), loc="left")


def _upward(axes: Axes, values: Sequence[float]) -> None:
    """The page's vertical scale: matplotlib's own may have one tick or none."""
    scale = log_scale(values, 0, 1)
    if scale is not None:
        axes.set_ylim(scale.low, scale.high)
        axes.set_yticks(scale.numbers(), list(map(number_text, scale.numbers())))


def _png(figure: Figure, axes: Axes) -> bytes:
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize="small")
    file = io.BytesIO()
    # Without the version of matplotlib the same evidence gives the same bytes for longer.
    figure.savefig(file, format="png", metadata={"Software": None})
    return file.getvalue()
