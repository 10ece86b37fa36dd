"""Cost of serving: cold start of a fresh process, and throughput under concurrency."""

from __future__ import annotations

from collections.abc import Sequence

from mlflow_e2eai.bundle.manifest import Manifest
from mlflow_e2eai.latency.report import Throughput
from mlflow_e2eai.report.facts import Section
from mlflow_e2eai.report.formats import TIMES, time_text
from mlflow_e2eai.report.scale import drawable
from mlflow_e2eai.report.sections.doubts import BUSY

_WIDTH, _HEIGHT, _MARGIN = 116.0, 30.0, 4.0
"""Size of a small picture in pixels."""


def serving_section(manifest: Manifest) -> Section | None:
    """Cold start, and throughput by number of callers."""
    evidence = manifest.evidence
    starts = {e.variant: e.cold_start for e in evidence if e.cold_start is not None}
    loads = {e.variant: e.loads for e in evidence if e.loads is not None and e.loads.loads}
    if not starts and not loads:
        return None
    every = [load for throughput in loads.values() for load in throughput.loads]
    threads = sorted({load.threads for load in every})
    most = max((load.items_per_s for load in every if drawable(load.items_per_s)), default=1.0)
    lines = [_line(variant, loads[variant], threads, most) for variant in loads]
    facts = {"starts": starts, "threads": threads, "loads": lines, "busy": BUSY}
    return Section("serving", "Serving", facts)


def _line(
    variant: str, throughput: Throughput, threads: Sequence[int], most: float
) -> dict[str, object]:
    """Rates by number of callers, each with its gain over one caller, and as points."""
    rates = {load.threads: load.items_per_s for load in throughput.loads}
    busy = {load.threads for load in throughput.loads if load.busy}
    steady = {count: rate for count, rate in rates.items() if count not in busy}
    step = (_WIDTH - 2 * _MARGIN) / max(len(threads) - 1, 1)
    height = _HEIGHT - 2 * _MARGIN
    points = [
        (f"{_MARGIN + step * at:.1f}", f"{_HEIGHT - _MARGIN - height * rates[count] / most:.1f}")
        for at, count in enumerate(threads)
        if count in rates and drawable(rates[count])
    ]
    return {
        "variant": variant,
        "size": throughput.items,
        "rates": [
            (rates.get(count), BUSY if count in busy else _gain(steady, count)) for count in threads
        ],
        "points": points,
    }


def _gain(rates: dict[int, float], count: int) -> str | None:
    alone, rate = rates.get(1), rates.get(count)
    if count == 1 or not alone or not rate or not drawable(alone) or not drawable(rate):
        return None
    return f"{time_text(rate / alone)} {TIMES}"
