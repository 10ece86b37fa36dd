"""The pictures of the page, as inline SVG."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mlflow_e2eai.bundle.manifest import Manifest
from mlflow_e2eai.latency.ratios import Ratio
from mlflow_e2eai.latency.report import LatencyReport
from mlflow_e2eai.report.charts import (
    HEIGHT,
    LETTER,
    WIDTH,
    LogScale,
    Tick,
    axes,
    dash,
    drawable,
    family,
    label,
    log_scale,
    mark,
    picture,
    shortened,
    spread,
)
from mlflow_e2eai.report.facts import Row, median_interval, reference_of, rows_of, tuned
from mlflow_e2eai.report.html import Markup, element, error_text, join, time_text

_LABELLED = 12
"""Variants that a picture names; of more, the reference and the fastest that passed."""

_GAP = 17.0
_TOP, _BOTTOM, _LEFT = 44.0, 62.0, 66.0


@dataclass(frozen=True, slots=True)
class Point:
    """One variant at one place of the horizontal axis: median and its 99 % interval."""

    x: float
    p50_ms: float
    low_ms: float
    high_ms: float
    place: str


def named_rows(rows: Sequence[Row]) -> set[str]:
    """The variants that a picture gives a label."""
    if len(rows) <= _LABELLED:
        return {row.variant for row in rows}
    timed = [row for row in rows if row.outcome == "passed" and row.p50_ms is not None]
    timed.sort(key=lambda row: row.p50_ms or 0.0)
    kept = [row for row in rows if row.outcome in ("reference", "unsteady")]
    return {row.variant for row in [*kept[:1], *timed[: _LABELLED - 5]]}


def places(latency: Mapping[str, LatencyReport]) -> list[tuple[str, LatencyReport]]:
    """The benchmarks in the order of their size, each with a name for people."""
    order = sorted(latency.items(), key=lambda entry: entry[1].items)
    return [(f"{label}, {_items(report.items)}", report) for label, report in order]


def _items(count: int) -> str:
    return f"{count} item" if count == 1 else f"{count} items"


def across(
    latency: Mapping[str, LatencyReport], start: float, end: float
) -> tuple[list[float], list[Tick], str]:
    """Places of the benchmarks along the horizontal axis, its ticks, and its name.

    By size where sizes tell the benchmarks apart; else (another axis varies) side by side.
    """
    order = sorted(latency.items(), key=lambda entry: entry[1].items)
    sizes = [report.items for _, report in order]
    scale = log_scale(map(float, sizes), start, end)
    if scale is not None and len(set(sizes)) == len(sizes):
        found = [scale(size) for size in sizes]
        ticks = [(place, f"{size:,}") for place, size in zip(found, sizes, strict=True)]
        return found, ticks, "items in one call"
    found = [start + (end - start) * (at + 0.5) / len(order) for at in range(len(order))]
    names = [f"{label} ({size})" for (label, _), size in zip(order, sizes, strict=True)]
    ticks = [(place, shortened(name, 24)) for place, name in zip(found, names, strict=True)]
    return found, ticks, "corner of the profile (items in one call)"


def latency_figure(manifest: Manifest) -> Markup | None:
    """Median latency against the size of a call, both logarithmic; None without measurements."""
    rows = rows_of(manifest)
    named = named_rows(rows)
    room = 26 + LETTER * max((len(shortened(name)) for name in named), default=0)
    right, bottom = WIDTH - room, HEIGHT - _BOTTOM
    if not manifest.latency:
        return None
    xs, ticks, name = across(manifest.latency, _LEFT, right)
    series = _series(manifest, xs)
    values = [v for points in series.values() for p in points for v in (p.low_ms, p.high_ms)]
    scale = log_scale(values, bottom, _TOP)
    if scale is None:
        return None
    failed = {row.variant for row in rows if row.outcome == "failed"}
    lines = [
        _line(variant, points, scale, failed=variant in failed, quiet=variant not in named)
        # What has a name is drawn last, above the rest.
        for variant, points in sorted(series.items(), key=lambda entry: entry[0] in named)
    ]
    ends = {variant: points[-1] for variant, points in series.items() if variant in named}
    return picture(
        "latency",
        "Latency against the size of a call",
        f"Median latency in milliseconds of {len(series)} variants at {len(xs)} sizes, both axes "
        "logarithmic. The numbers are in the table below.",
        axes((_LEFT, _TOP, right, bottom), ticks, scale.ticks(), (name, "median latency, ms")),
        *lines,
        _end_labels(ends, scale, right),
        height=HEIGHT,
    )


def _series(manifest: Manifest, xs: Sequence[float]) -> dict[str, list[Point]]:
    found: dict[str, list[Point]] = {}
    for x, (place, report) in zip(xs, places(manifest.latency), strict=True):
        for entry in report.variants:
            if drawable(entry.p50_ms) and entry.rounds_ms:
                low, high = median_interval(entry.rounds_ms)
                bounds = (low, high) if drawable(low) and drawable(high) else 2 * (entry.p50_ms,)
                found.setdefault(entry.name, []).append(Point(x, entry.p50_ms, *bounds, place))
    return found


def _line(
    variant: str, points: Sequence[Point], scale: LogScale, *, failed: bool, quiet: bool
) -> Markup:
    heights = [scale(point.p50_ms) for point in points]
    corners = [f"{p.x:.1f} {y:.1f}" for p, y in zip(points, heights, strict=True)]
    path = f"M{'L'.join(corners)}"
    if quiet:
        return element("g", element("title", variant), element("path", d=path), class_="line quiet")
    line = element("path", d=path, stroke_dasharray=dash(variant))
    bars = [
        f"M{p.x:.1f} {scale(p.low_ms):.1f}V{scale(p.high_ms):.1f}"
        f"M{p.x - 4:.1f} {scale(p.low_ms):.1f}h8M{p.x - 4:.1f} {scale(p.high_ms):.1f}h8"
        for p in points
    ]
    marks = [
        mark(variant, p.x, y, failed=failed, title=_said(variant, p))
        for p, y in zip(points, heights, strict=True)
    ]
    interval = element("path", d="".join(bars), class_="bar")
    return element("g", line, interval, *marks, class_=f"line {family(variant)}")


def _said(variant: str, point: Point) -> str:
    return (
        f"{variant}, {point.place}: {time_text(point.p50_ms)} ms "
        f"({time_text(point.low_ms)} to {time_text(point.high_ms)})"
    )


def _end_labels(ends: Mapping[str, Point], scale: LogScale, right: float) -> Markup:
    """A name beside the end of each line, moved apart where lines end together."""
    heights = [scale(point.p50_ms) for point in ends.values()]
    moved = spread(heights, _GAP, _TOP - 10, HEIGHT - _BOTTOM + 10)
    return join(
        join(
            (
                element(
                    "path", d=f"M{point.x + 9:.1f} {y:.1f}L{right + 16:.1f} {to:.1f}", class_="lead"
                ),
                label(right + 20, to + 4.5, shortened(variant), kind=f"label {family(variant)}"),
            )
        )
        for (variant, point), y, to in zip(ends.items(), heights, moved, strict=True)
    )


def pareto_rows(rows: Sequence[Row]) -> list[Row]:
    """Those of the bundle that passed, and that no other of them beats in error and latency."""
    sound = [
        row
        for row in rows
        if row.outcome == "passed"
        and row.in_bundle
        and row.p50_ms is not None
        and row.max_abs_error is not None
    ]
    sound.sort(key=lambda row: (row.p50_ms or 0.0, row.max_abs_error or 0.0))
    front: list[Row] = []
    for row in sound:
        if not front or (row.max_abs_error or 0.0) < (front[-1].max_abs_error or 0.0):
            front.append(row)
    return front


def named_spots(rows: Sequence[Row]) -> set[str]:
    """The variants that the picture of error against latency names: of many, those not beaten."""
    return {row.variant for row in (rows if len(rows) <= _LABELLED else pareto_rows(rows))}


def pareto_figure(manifest: Manifest) -> Markup | None:
    """Largest error against latency, both logarithmic; None when nothing has both."""
    report, reference = tuned(manifest), reference_of(manifest)
    rows = [
        row
        for row in rows_of(manifest)
        if row.max_abs_error is not None and drawable(row.p50_ms) and row.variant != reference
    ]
    right, bottom = WIDTH - 30, HEIGHT - _BOTTOM
    across_scale = log_scale((row.p50_ms or 0.0 for row in rows), _LEFT + 40, right)
    if report is None or across_scale is None:
        return None
    lanes = _Lanes.of(rows, bottom)
    spots = {
        row.variant: (across_scale(row.p50_ms or 0.0), lanes(row.max_abs_error or 0.0))
        for row in rows
    }
    front = [spots[row.variant] for row in pareto_rows(rows)]
    named = named_spots(rows)
    return picture(
        "pareto",
        "Error against latency",
        f"Largest absolute error against median latency of {len(rows)} variants at "
        f"{_items(report.items)}, both axes logarithmic; less is better on both. The line joins "
        f"the {len(front)} that no other beats in both.",
        axes(
            (_LEFT, _TOP, right, bottom),
            across_scale.ticks(),
            lanes.ticks,
            (f"median latency at {_items(report.items)}, ms", "largest absolute error"),
        ),
        _stairs(front, right),
        # What has a name is drawn last, above the rest.
        *(
            _spot(row, spots[row.variant], quiet=row.variant not in named)
            for row in sorted(rows, key=lambda row: row.variant in named)
        ),
        _spot_labels(spots, named, right),
        height=HEIGHT,
    )


@dataclass(frozen=True, slots=True)
class _Lanes:
    """The error's axis: a lane for what is not finite, a logarithmic scale, a lane for zero."""

    scale: LogScale | None
    zero: float
    broken: float
    ticks: list[Tick]

    @classmethod
    def of(cls, rows: Sequence[Row], bottom: float) -> _Lanes:
        errors = [row.max_abs_error or 0.0 for row in rows]
        has_zero = 0.0 in errors
        has_broken = any(not math.isfinite(error) for error in errors)
        low, high = bottom - (34 if has_zero else 0), _TOP + (34 if has_broken else 0)
        scale = log_scale(errors, low, high)
        ticks = [] if scale is None else scale.ticks()
        zero, broken = bottom - 10, _TOP + 4
        ticks += [(zero, "0")] if has_zero else []
        ticks += [(broken, "not finite")] if has_broken else []
        return cls(scale, zero, broken, ticks)

    def __call__(self, error: float) -> float:
        if not math.isfinite(error):
            return self.broken
        return self.zero if error <= 0 or self.scale is None else self.scale(error)


def _stairs(front: Sequence[tuple[float, float]], right: float) -> Markup:
    """The border of what can be had: further right, no more error is needed."""
    if not front:
        return Markup("")
    steps = "".join(f"H{x:.1f}V{y:.1f}" for x, y in front[1:])
    x, y = front[0]
    return element("path", d=f"M{x:.1f} {_TOP:.1f}V{y:.1f}{steps}H{right:.1f}", class_="front")


def _spot(row: Row, spot: tuple[float, float], *, quiet: bool) -> Markup:
    said = f"{row.variant}: {error_text(row.max_abs_error)} at {time_text(row.p50_ms)} ms"
    return mark(row.variant, *spot, failed=row.outcome == "failed", title=said, quiet=quiet)


def _spot_labels(spots: Mapping[str, tuple[float, float]], named: set[str], right: float) -> Markup:
    """A name beside each mark where there is room for it."""
    taken = [(x - 9, y - 9, x + 9, y + 9) for x, y in spots.values()]
    parts = []
    for variant, (x, y) in spots.items():
        text = shortened(variant)
        wide = LETTER * len(text)
        offers = [(x + 13, y), (x - 13 - wide, y)]
        offers += [(left, y + down) for down in (-19, 19) for left in (x - wide / 2, x - wide + 9)]
        for left, middle in offers if variant in named else ():
            box = (left, middle - 8, left + wide, middle + 8)
            if left < _LEFT or box[2] > right + 24 or any(_meet(box, other) for other in taken):
                continue
            taken.append(box)
            parts.append(label(left, middle + 4.5, text, kind=f"label {family(variant)}"))
            break
    return join(parts)


def _meet(one: tuple[float, float, float, float], other: tuple[float, float, float, float]) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def interval_glyphs(ratios: Mapping[str, Ratio]) -> dict[str, Markup]:
    """A small picture for each ratio, on one scale with a line at 1; words beside it say it."""
    bounds = [bound for ratio in ratios.values() for bound in (ratio.low, ratio.high)]
    scale = log_scale([1.0, *bounds], 4, 116)
    return {} if scale is None else {name: _glyph(r, scale) for name, r in ratios.items()}


def _glyph(ratio: Ratio, scale: LogScale) -> Markup:
    if not drawable(ratio.low) or not drawable(ratio.value) or not drawable(ratio.high):
        return Markup("")
    side = "equal" if ratio.equal else ("faster" if ratio.high < 1 else "slower")
    low, high = scale(ratio.low), scale(ratio.high)
    return element(
        "svg",
        element("path", d=f"M{scale(1):.1f} 1V19", class_="one"),
        element("path", d=f"M{low:.1f} 10H{max(high, low + 1):.1f}", class_="span"),
        element("circle", cx=scale(ratio.value), cy=10, r=3.5),
        viewBox="0 0 120 20",
        class_=f"glyph {side}",
        aria_hidden="true",
    )


def bars(before: int, after: int, most: int) -> Markup:
    """Two counts as bars, before above after; said in numbers beside them."""
    scale = 150 / max(most, 1)
    return element(
        "svg",
        element("path", d=f"M0 2h{before * scale:.1f}v6h-{before * scale:.1f}Z", class_="before"),
        element("path", d=f"M0 10h{after * scale:.1f}v6h-{after * scale:.1f}Z", class_="after"),
        viewBox="0 0 150 18",
        class_="bars",
        aria_hidden="true",
    )
