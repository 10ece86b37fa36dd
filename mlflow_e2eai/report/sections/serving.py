"""What serving it costs: the first answer of a fresh process, and many callers at once."""

from __future__ import annotations

from collections.abc import Sequence

from mlflow_e2eai.bundle.manifest import Manifest
from mlflow_e2eai.evaluation.evidence import Evidence
from mlflow_e2eai.latency.report import ColdStart, Throughput
from mlflow_e2eai.report import html
from mlflow_e2eai.report.charts import drawable
from mlflow_e2eai.report.html import (
    NONE,
    TIMES,
    Column,
    Markup,
    Section,
    cell,
    element,
    group,
    head,
    number,
    size_text,
    stack,
    time_text,
)

_WIDE, _HIGH, _AIR = 116.0, 30.0, 4.0
"""Size of a small picture in pixels, and its margin."""


def serving_section(manifest: Manifest) -> Section | None:
    """Cold start, and throughput by number of callers."""
    parts = [part for part in (_cold(manifest.evidence), _loads(manifest.evidence)) if part]
    return ("serving", "Serving", element("div", *parts)) if parts else None


def _cold(evidence: Sequence[Evidence]) -> Markup | None:
    found = {e.variant: e.cold_start for e in evidence if e.cold_start is not None}
    if not found:
        return None
    names = ("Load, s", "First call, ms", "Second call, ms", "Process memory", "Device memory")
    columns = [Column("Variant"), *(Column(name, number=True) for name in names)]
    caption = (
        "Cold start: what loading and the first answer cost a fresh process. Its memory is the "
        "most that it ever held, and below that what loading and calling added. Below an engine's "
        "device memory is what one execution context takes of it for each profile, the dynamic "
        "one first."
    )
    bodies = (
        group(variant, [(head(element("code", variant)), *_started(start))])
        for variant, start in found.items()
    )
    return html.table("cold-table", caption, columns, bodies, kind="sortable")


def _started(start: ColdStart) -> tuple[Markup, ...]:
    factor = None
    if drawable(start.first_call_ms) and drawable(start.second_call_ms):
        factor = f"{time_text(start.first_call_ms / start.second_call_ms)} {TIMES} the second"
    device = start.device_memory_bytes
    return (
        number(time_text(start.load_s), value=start.load_s),
        number(stack(time_text(start.first_call_ms), factor), value=start.first_call_ms),
        number(time_text(start.second_call_ms), value=start.second_call_ms),
        number(
            stack(
                size_text(start.peak_memory_bytes),
                f"+{size_text(start.peak_memory_growth_bytes)}",
            ),
            value=start.peak_memory_bytes,
        ),
        number(
            stack(
                NONE if device is None else size_text(device),
                ", ".join(map(size_text, start.profile_memory_bytes)) or None,
            ),
            value=device,
        ),
    )


def _loads(evidence: Sequence[Evidence]) -> Markup | None:
    found = {e.variant: e.loads for e in evidence if e.loads is not None and e.loads.loads}
    if not found:
        return None
    threads = sorted({load.threads for loads in found.values() for load in loads.loads})
    most = max(
        (
            load.items_per_s
            for loads in found.values()
            for load in loads.loads
            if drawable(load.items_per_s)
        ),
        default=1.0,
    )
    columns = [
        Column("Variant"),
        Column("Items in a call", number=True),
        *(Column(f"{count} caller{'s' if count != 1 else ''}", number=True) for count in threads),
        Column(element("span", "Picture", class_="unseen")),
    ]
    caption = (
        "Callers at once: items a second of all callers together, and below that how many times "
        "as many as one caller gets. The picture goes from few callers to many, from zero up to "
        "the most of any variant."
    )
    bodies = (
        group(variant, [_loaded(variant, loads, threads, most)]) for variant, loads in found.items()
    )
    return html.table("loads-table", caption, columns, bodies, kind="sortable")


def _loaded(
    variant: str, found: Throughput, threads: Sequence[int], most: float
) -> tuple[Markup, ...]:
    rates = {load.threads: load.items_per_s for load in found.loads}
    alone = rates.get(1)

    def said(count: int) -> Markup:
        rate = rates.get(count)
        if rate is None:
            return number(NONE)
        times = None
        if count != 1 and drawable(alone) and drawable(rate):
            times = f"{time_text(rate / (alone or rate))} {TIMES}"
        return number(stack(rate_text(rate), times), value=rate)

    return (
        head(element("code", variant)),
        number(f"{found.items:,}", value=found.items),
        *map(said, threads),
        cell(_glyph(rates, threads, most), kind="glyphs"),
    )


def rate_text(value: float) -> str:
    """Items a second with at least three digits that count."""
    return f"{value:,.0f}" if abs(value) >= 100 else time_text(value)  # noqa: PLR2004 - three digits


def _glyph(rates: dict[int, float], threads: Sequence[int], most: float) -> Markup:
    """Throughput over callers; the numbers beside it say the same."""
    step = (_WIDE - 2 * _AIR) / max(len(threads) - 1, 1)
    points = [
        (_AIR + step * at, _HIGH - _AIR - (_HIGH - 2 * _AIR) * rates[count] / most)
        for at, count in enumerate(threads)
        if count in rates and drawable(rates[count])
    ]
    path = "L".join(f"{x:.1f} {y:.1f}" for x, y in points)
    return element(
        "svg",
        element("path", d=f"M0 {_HIGH - _AIR:.0f}H{_WIDE:.0f}", class_="one"),
        element("path", d=f"M{path}", class_="span") if points else None,
        *(element("circle", cx=x, cy=y, r=2.5) for x, y in points),
        viewBox=f"0 0 {_WIDE:.0f} {_HIGH:.0f}",
        class_="glyph load",
        aria_hidden="true",
    )
