"""What every form of the report says of a variant."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np

from mlflow_e2eai.bundle import Evidence, Manifest
from mlflow_e2eai.latency import LatencyReport, Ratio

Outcome: TypeAlias = Literal["reference", "unsteady", "passed", "failed", "unmeasured"]

OUTCOMES: Mapping[Outcome, str] = {
    "reference": "reference",
    "unsteady": "reference, unsteady",
    "passed": "passed",
    "failed": "failed",
    "unmeasured": "built, not measured here",
}
"""The words for what a variant came to."""

_TAIL = 0.005
"""Half of what a 99 % interval leaves out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One variant in one line.

    Attributes:
        variant: Its name.
        outcome: What it came to.
        max_abs_error: The largest of all its comparisons; None when there was none.
        task: Task metrics by name.
        p50_ms: Median latency at the sizes that engines are tuned for; None when not timed.
    """

    variant: str
    outcome: Outcome
    max_abs_error: float | None
    task: Mapping[str, float]
    p50_ms: float | None


def rows_of(manifest: Manifest) -> tuple[Row, ...]:
    """One row for each variant, in the manifest's order."""
    report = tuned(manifest)
    times = {} if report is None else {entry.name: entry.p50_ms for entry in report.variants}
    return tuple(_row(entry, times.get(entry.variant)) for entry in manifest.evidence)


def _row(entry: Evidence, p50_ms: float | None) -> Row:
    errors = [comparison.max_abs_error for comparison in entry.parity.values()]
    return Row(
        variant=entry.variant,
        outcome=outcome_of(entry),
        # NumPy's max keeps a NaN: a comparison that compared nothing must not be hidden.
        max_abs_error=float(np.max(errors)) if errors else None,
        task=entry.task,
        p50_ms=p50_ms,
    )


def outcome_of(entry: Evidence) -> Outcome:
    """What a variant came to."""
    if entry.sha256 is None:
        return "reference" if entry.passed else "unsteady"
    if not entry.measured:
        return "unmeasured"
    return "passed" if entry.passed else "failed"


def task_names(manifest: Manifest) -> list[str]:
    """Task metrics that any variant has."""
    return sorted({name for entry in manifest.evidence for name in entry.task})


def tuned(manifest: Manifest) -> LatencyReport | None:
    """Latency at the sizes that engines are tuned for."""
    return manifest.latency.get("opt") or manifest.latency.get("static")


def reference_of(manifest: Manifest) -> str | None:
    """The variant that all others are held against, if there is evidence of it."""
    return next((entry.variant for entry in manifest.evidence if entry.sha256 is None), None)


def ratios_of(manifest: Manifest) -> dict[str, Ratio]:
    """How many times as long as the PyTorch module each variant takes, where that can be told."""
    report, reference = tuned(manifest), reference_of(manifest)
    if report is None or reference not in {entry.name for entry in report.variants}:
        return {}
    # A clock too coarse for the module gives zeros to divide by.
    with np.errstate(all="ignore"):
        found = {
            entry.name: report.ratio(entry.name, reference)
            for entry in report.variants
            if entry.name != reference and entry.rounds_ms
        }
    return {name: ratio for name, ratio in found.items() if _drawable(ratio)}


def _drawable(ratio: Ratio) -> bool:
    return all(math.isfinite(number) for number in (ratio.low, ratio.value, ratio.high))


def median_interval(values: Sequence[float]) -> tuple[float, float]:
    """A 99 % interval of the median that assumes nothing of the distribution: two order statistics.

    With fewer than 8 values no such interval is that sure, and the smallest and the largest value
    are given. See Conover, Practical Nonparametric Statistics, 1999, section 3.2.
    """
    ordered = sorted(values)
    skip = _skipped(len(ordered))
    return ordered[skip], ordered[len(ordered) - 1 - skip]


@functools.lru_cache
def _skipped(count: int) -> int:
    """Values to leave out at either end: the most whose binomial tail stays within bounds."""
    below, skip = 0.0, 0
    while skip < count // 2:
        below += math.exp(
            math.lgamma(count + 1)
            - math.lgamma(skip + 1)
            - math.lgamma(count - skip + 1)
            - count * math.log(2)
        )
        if below > _TAIL:
            break
        skip += 1
    # `skip` values below the median are likely enough to be ruled out: the next one is the bound.
    return max(skip - 1, 0)
