"""The variants of a bundle as rows: one for each machine and number of items in a call."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from mlflow_e2eai.artifacts.files import Real
from mlflow_e2eai.artifacts.values import EngineArtifact
from mlflow_e2eai.bundle.manifest import Manifest
from mlflow_e2eai.evaluation.evidence import Evidence
from mlflow_e2eai.latency.ratios import Ratio
from mlflow_e2eai.latency.report import LatencyReport

TUNED = ("opt", "static")
"""The sizes that engines are tuned for, as the bundle names them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VariantRow:
    """One variant on one machine at one number of items; None or NaN where it was not measured.

    Attributes:
        variant: Its name.
        precision: Precision of its arithmetic; ``raw`` for the graph as it was exported.
        target: What its engine was built for; None for what is no engine.
        machine: The machine that measured it.
        outcome: ``passed``, ``failed``, ``unmeasured``; ``reference``, or ``unsteady`` where that
            does not agree with itself.
        items: Items in a call, the batch size; None where it was not timed.
        max_abs_error: Largest absolute error of the comparisons that decide.
        p50_ms: Median of the calls' times on the host's clock.
        ratio: How many times as long as the reference a call takes; NaN on a busy machine.
        ratio_low: Lower bound of its 99 % interval.
        ratio_high: Upper bound.
        max_rel_error: Largest absolute error as a share of the reference's largest magnitude.
        p90_ms: 90th percentile.
        p95_ms: 95th percentile.
        p99_ms: 99th percentile.
        throughput_items_per_s: Items a second of one caller.
        busy: Whether the machine was busy while it was timed, so that the times tell nothing.
        task: Task metrics, a column each.
        size_bytes: Size of its file with its weights, where it is known.
        peak_memory_bytes: The most memory of a fresh process that loaded and called it.
        device_memory_bytes: GPU memory that it took.
        size: The corner of the profile, or the batch size, as the bundle names it.
        reason: Why it was not measured, was not timed, or failed.
    """

    variant: str
    precision: str
    target: str | None
    machine: str
    outcome: str
    items: int | None
    max_abs_error: Real | None
    p50_ms: Real | None
    ratio: Real | None
    ratio_low: Real | None
    ratio_high: Real | None
    max_rel_error: Real | None
    p90_ms: Real | None
    p95_ms: Real | None
    p99_ms: Real | None
    throughput_items_per_s: Real | None
    busy: bool
    task: Mapping[str, Real]
    size_bytes: int | None
    peak_memory_bytes: int | None
    device_memory_bytes: int | None
    size: str | None
    reason: str | None


def rows_of(manifest: Manifest) -> list[VariantRow]:
    """One row for each variant, machine and number of items, in the manifest's order."""
    return [
        row
        for there in manifest.by_machine
        for entry in there.evidence
        for row in _rows(there, entry)
    ]


def _rows(there: Manifest, entry: Evidence) -> Iterator[VariantRow]:
    file = next((file for file in there.files if file.sha256 == entry.sha256), None)
    start, deciding = entry.cold_start, [*entry.deciding.values()]
    by_items = {
        report.items: (label, report)
        # A corner and a batch size may be of one number of items: the one that is tuned for stays.
        for label, report in sorted(there.latency.items(), key=lambda each: each[0] in TUNED)
        if any(each.name == entry.variant for each in report.variants)
    }
    timed: list[tuple[str | None, LatencyReport | None]] = [
        by_items[items] for items in sorted(by_items)
    ]
    for label, report in timed or [(None, None)]:
        latency = None if report is None else report[entry.variant]
        ratio = None if report is None else _ratio(report, entry.variant, there.reference)
        yield VariantRow(
            variant=entry.variant,
            precision=entry.variant.rpartition("/")[2],
            target=str(file.target) if isinstance(file, EngineArtifact) else None,
            machine=there.machine,
            outcome=entry.outcome,
            items=None if report is None else report.items,
            max_abs_error=_largest([each.max_abs_error for each in deciding]),
            p50_ms=getattr(latency, "p50_ms", None),
            ratio=getattr(ratio, "value", None),
            ratio_low=getattr(ratio, "low", None),
            ratio_high=getattr(ratio, "high", None),
            max_rel_error=_largest([o.max_rel_error for each in deciding for o in each.outputs]),
            p90_ms=getattr(latency, "p90_ms", None),
            p95_ms=getattr(latency, "p95_ms", None),
            p99_ms=getattr(latency, "p99_ms", None),
            throughput_items_per_s=getattr(latency, "throughput_items_per_s", None),
            busy=report is not None and report.is_busy(entry.variant),
            task=entry.task,
            size_bytes=None if file is None else file.size_bytes,
            peak_memory_bytes=getattr(start, "peak_memory_bytes", None),
            device_memory_bytes=getattr(start, "device_memory_bytes", None),
            size=label,
            reason=entry.reason or entry.untimed or next(iter(entry.findings), None),
        )


def _largest(errors: list[float]) -> float | None:
    # NumPy's max keeps a NaN: a comparison that compared nothing must not be hidden.
    return float(np.max(errors)) if errors else None


def _ratio(report: LatencyReport, variant: str, reference: str | None) -> Ratio | None:
    timed = {entry.name for entry in report.variants if entry.rounds_ms}
    if reference is None or not {variant, reference} <= timed:
        return None
    with np.errstate(all="ignore"):  # with a clock too coarse the divisors are zero
        return report.ratio(variant, reference)


def sentence_of(manifest: Manifest) -> str:
    """The outcomes, the largest error and the fastest variant that passed, in one sentence."""
    evidence = [entry for entry in manifest.all_evidence if entry.is_shipped]
    counts = {
        outcome: sum(entry.outcome == outcome for entry in evidence)
        for outcome in ("passed", "failed", "unmeasured")
    }
    parts = [f"{count} {outcome}" for outcome, count in counts.items() if count]
    rows = [row for row in rows_of(manifest) if row.outcome == "passed"]
    errors = [row.max_abs_error for row in rows if row.max_abs_error is not None]
    if errors:
        parts.append(f"largest error of those {max(errors):.2g}")
    timed = [row for row in rows if row.size in TUNED]
    if timed and not any(row.busy for row in timed):  # which might be the fastest
        best = min(timed, key=lambda row: math.inf if row.p50_ms is None else row.p50_ms)
        known = best.ratio is not None and not math.isnan(best.ratio)
        ratio = f" ({best.ratio:.3g} times the {manifest.subject})" if known else ""
        parts.append(f"fastest {best.variant}, p50 {best.p50_ms:.3g} ms of {best.items}{ratio}")
    return f"{len(evidence)} variants: {', '.join(parts) or 'no evidence'}"
