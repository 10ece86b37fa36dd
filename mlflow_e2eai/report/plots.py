"""The pictures, drawn by matplotlib: as SVG for the page, as PNG elsewhere."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mlflow_e2eai.bundle.manifest import Manifest
from mlflow_e2eai.latency.report import LatencyReport
from mlflow_e2eai.parity.report import ParityReport
from mlflow_e2eai.report import canvas
from mlflow_e2eai.report.canvas import (
    FAILED,
    LETTER,
    QUIET,
    SOFT,
    STEP,
    TEXT,
    Picture,
    draw_axes,
    label_ends,
    label_of,
    label_spots,
    set_vertical,
    style_of,
)
from mlflow_e2eai.report.facts import (
    Row,
    benchmarks_by_size,
    in_order,
    median_interval,
    named_rows,
    named_spots,
    on_machines,
    pareto_rows,
    rows_of,
    step_name,
    tuned_sizes,
)
from mlflow_e2eai.report.formats import items_text, printable, shorten, tick_text
from mlflow_e2eai.report.scale import LogScale, drawable, log_scale

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_LANE = 0.09
"""Part of the height that a lane takes, for errors that a logarithmic axis cannot show."""

_LEGEND = 200
"""Width of the legend of the steps in pixels."""

_MOST_STEPS = 12
"""Steps that have room for their names."""


@dataclass(frozen=True, slots=True)
class _Point:
    """A variant's median at one position of the horizontal axis, with its 99 % interval, in ms."""

    x: float
    p50_ms: float
    low_ms: float
    high_ms: float


def plots(manifest: Manifest) -> dict[str, bytes]:
    """Pictures by file name, as PNG; an empty one is left out.

    Returns:
        ``latency.png``, the median latency of each variant against the size of a call,
        ``pareto.png``, its largest error against its latency, and ``steps.png``, the largest error
        of each step against the reference and against the step before. Those of a second machine
        are ``latency-2.png`` and so on: no picture is of two.
    """
    pictures: dict[str, Picture | None] = {}
    for at, (there, where) in enumerate(on_machines(manifest), 1):
        suffix = "" if at == 1 else f"-{at}"
        pictures[f"latency{suffix}.png"] = latency_picture(there, where)
        pictures[f"pareto{suffix}.png"] = pareto_picture(there, where)
        pictures[f"steps{suffix}.png"] = steps_picture(there, where)
    return {name: canvas.png(one) for name, one in pictures.items() if one is not None}


def latency_picture(manifest: Manifest, where: str = "") -> Picture | None:
    """Median latency by batch size, both logarithmic; None without measurements."""
    xs, ticks, name = _sizes(manifest.latency)
    series = _series(manifest, xs)
    scale = log_scale(
        v for points in series.values() for p in points for v in (p.low_ms, p.high_ms)
    )
    if scale is None:
        return None
    rows = rows_of(manifest)
    named = named_rows(rows)
    failed = {row.variant for row in rows if row.outcome == "failed"}
    ends = {v: (points[-1].x, points[-1].p50_ms) for v, points in series.items() if v in named}
    room = 40 + LETTER * max((len(label_of(variant)) for variant in ends), default=0)
    title = f"Latency by batch size{where}"
    figure, axes = draw_axes(title, (name, "median latency, ms"), right=room)
    across = log_scale(xs)
    if across is not None:
        axes.set_xlim(across.low, across.high)
    axes.set_xticks(xs, ticks, parse_math=False)
    set_vertical(axes, scale)
    _quiet_lines(axes, [points for variant, points in series.items() if variant not in named])
    for variant in ends:
        _line(axes, variant, series[variant], failed=variant in failed)
    label_ends(axes, ends, scale)
    description = (
        f"Median latency in milliseconds of {len(series)} variants at {len(xs)} sizes, both axes "
        "logarithmic. The numbers are in the table below."
    )
    return Picture(title, description, figure)


def _sizes(latency: Mapping[str, LatencyReport]) -> tuple[list[float], list[str], str]:
    """Positions of the benchmarks along the horizontal axis, their names, and the axis's name.

    By size where the sizes differ; else (another axis varies) at equal distances.
    """
    order = sorted(latency.items(), key=lambda entry: entry[1].items)
    sizes = [report.items for _, report in order]
    if all(size > 0 for size in sizes) and len(set(sizes)) == len(sizes):
        return list(map(float, sizes)), [f"{size:,}" for size in sizes], "batch size"
    names = [shorten(printable(f"{label} ({report.items})"), 24) for label, report in order]
    apart = [2.0**at for at in range(len(order))]  # equal steps on a logarithmic axis
    return apart, names, "corner of the profile (batch size)"


def _series(manifest: Manifest, xs: Sequence[float]) -> dict[str, list[_Point]]:
    series: dict[str, list[_Point]] = {}
    for x, (_, report) in zip(xs, benchmarks_by_size(manifest.latency), strict=True):
        for entry in report.variants:
            if drawable(entry.p50_ms) and entry.rounds_ms:
                low, high = median_interval(entry.rounds_ms)
                bounds = (low, high) if drawable(low) and drawable(high) else 2 * (entry.p50_ms,)
                series.setdefault(entry.name, []).append(_Point(x, entry.p50_ms, *bounds))
    return series


def _line(axes: Axes, variant: str, points: Sequence[_Point], *, failed: bool) -> None:
    xs, p50 = [point.x for point in points], [point.p50_ms for point in points]
    below = [max(point.p50_ms - point.low_ms, 0.0) for point in points]
    above = [max(point.high_ms - point.p50_ms, 0.0) for point in points]
    axes.errorbar(xs, p50, yerr=(below, above), capsize=3, **style_of(variant))
    if failed:
        axes.plot(xs, p50, "x", color=FAILED, markersize=10, zorder=4)


def _quiet_lines(axes: Axes, lines: Sequence[Sequence[_Point]]) -> None:
    """Lines without a name, as one path that is broken between them: there may be hundreds."""
    gap = [_Point(math.nan, math.nan, math.nan, math.nan)]
    points = [point for line in lines for point in [*line, *gap]]
    xs, p50 = [point.x for point in points], [point.p50_ms for point in points]
    axes.plot(xs, p50, color=QUIET, linewidth=0.6, alpha=0.35, zorder=1)


def pareto_picture(manifest: Manifest, where: str = "") -> Picture | None:
    """Largest error against latency, both logarithmic; None when nothing has both."""
    report, reference = tuned_sizes(manifest), manifest.reference
    rows = [
        row
        for row in rows_of(manifest)
        if row.max_abs_error is not None and drawable(row.p50_ms) and row.variant != reference
    ]
    across = log_scale(row.p50_ms or 0.0 for row in rows)
    if report is None or across is None:
        return None
    size = items_text(report.items)
    title = f"Error and latency{where}; lower left is better"
    names = (f"median latency at {size}, ms", "largest absolute error")
    figure, axes = draw_axes(title, names)
    axes.set_xlim(across.low, across.high)
    axes.set_xticks(across.ticks(), list(map(tick_text, across.ticks())))
    heights = _error_heights(axes, rows)
    spots = {row.variant: (row.p50_ms or 0.0, y) for row, y in zip(rows, heights, strict=True)}
    front, named = pareto_rows(rows), named_spots(rows)
    _front(axes, [spots[row.variant] for row in front])
    _marks(axes, rows, spots, named)
    label_spots(axes, spots, named)
    description = (
        f"Largest absolute error against median latency of {len(rows)} variants at {size}, both "
        f"axes logarithmic; less is better on both. The line joins the {len(front)} that no other "
        "beats in both."
    )
    return Picture(title, description, figure)


def _error_heights(axes: Axes, rows: Sequence[Row]) -> list[float]:
    """The height of each error: a lane for NaN and infinity, a scale, a lane for zero."""
    errors = [row.max_abs_error or 0.0 for row in rows]
    finite = log_scale(errors)
    scale = finite or LogScale(0.1, 10.0)
    ticks = [] if finite is None else [(number, tick_text(number)) for number in scale.ticks()]
    zero, broken = scale.number(-_LANE / 2), scale.number(1 + _LANE / 2)
    low, high = scale.low, scale.high
    if 0.0 in errors:
        low = scale.number(-_LANE)
        ticks.append((zero, "0"))
    if not all(map(math.isfinite, errors)):
        high = scale.number(1 + _LANE)
        ticks.append((broken, "not finite"))
    axes.set_ylim(low, high)
    axes.set_yticks([number for number, _ in ticks], [text for _, text in ticks])

    def height(error: float) -> float:
        if not math.isfinite(error):
            return broken
        return zero if error <= 0 else min(max(error, scale.low), scale.high)

    return list(map(height, errors))


def _front(axes: Axes, corners: Sequence[tuple[float, float]]) -> None:
    """The Pareto front of error and latency."""
    if not corners:
        return
    first, last = corners[0], corners[-1]
    ends = [(first[0], axes.get_ylim()[1]), *corners, (axes.get_xlim()[1], last[1])]
    xs, ys = zip(*ends, strict=True)
    axes.step(xs, ys, where="post", linestyle=":", color=SOFT, linewidth=1, zorder=0)


def _marks(
    axes: Axes, rows: Sequence[Row], spots: Mapping[str, tuple[float, float]], named: set[str]
) -> None:
    """A mark for each variant, a point for one without a name, and a cross over what failed."""
    quiet = [spots[row.variant] for row in rows if row.variant not in named]
    axes.plot([x for x, _ in quiet], [y for _, y in quiet], "o", color=QUIET, markersize=3)
    for row in rows:
        if row.variant in named:
            axes.plot(*spots[row.variant], **{**style_of(row.variant), "linestyle": "none"})
    for size, among in ((5, False), (11, True)):
        crosses = [
            spots[row.variant]
            for row in rows
            if row.outcome == "failed" and (row.variant in named) == among
        ]
        xs, ys = [x for x, _ in crosses], [y for _, y in crosses]
        axes.plot(xs, ys, "x", color=FAILED, markersize=size, zorder=4)


def steps_picture(manifest: Manifest, where: str = "") -> Picture | None:
    """The largest error of each step, against the reference and against the step before."""
    files = {file.sha256: file for file in manifest.files}
    entries = [e for e in in_order(manifest.evidence) if e.against_before][:_MOST_STEPS]
    series = {
        "compared with the reference": _errors([entry.parity.get("profile") for entry in entries]),
        "compared with the step before": _errors([entry.against_before for entry in entries]),
    }
    scale = log_scale(error for points in series.values() for _, error, _ in points)
    if scale is None:
        return None
    names = [f"{step_name(entry, files)}\n{label_of(entry.variant)}" for entry in entries]
    room = LETTER * max(len(line) for name in names for line in name.splitlines())
    title = f"Error step by step{where}; a cross marks a failure"
    caption = ("largest absolute error, on the corners of the profile", "")
    figure, axes = draw_axes(title, caption, left=room + 24, right=_LEGEND)
    axes.set_yscale("linear")
    axes.set_yticks(range(len(entries)), names, **TEXT)
    axes.set_ylim(len(entries) - 0.5, -0.5)
    # The one is a dot and the other a ring, so that both are seen where they meet.
    for (label, points), (size, face) in zip(
        series.items(), ((6, STEP), (11, "none")), strict=True
    ):
        spots = [error for _, error, _ in points], [row for row, _, _ in points]
        axes.plot(*spots, "o", label=label, markersize=size, color=STEP, markerfacecolor=face)
        failed = [(error, row) for row, error, passed in points if not passed]
        xs, ys = [x for x, _ in failed], [y for _, y in failed]
        axes.plot(xs, ys, "x", color=FAILED, markersize=12)
    axes.set_xlim(scale.low, scale.high)
    axes.set_xticks(scale.ticks(), list(map(tick_text, scale.ticks())))
    axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(1, 1), fontsize=9)
    description = f"The largest absolute error of {len(entries)} steps, on a logarithmic axis."
    return Picture(title, description, figure)


def _errors(reports: Sequence[ParityReport | None]) -> list[tuple[int, float, bool]]:
    """Row, error and outcome; zero and NaN cannot be shown on a logarithmic axis."""
    return [
        (row, report.max_abs_error, report.passed)
        for row, report in enumerate(reports)
        if report is not None and drawable(report.max_abs_error)
    ]
