"""Bundles -> the values of metrics that gates compare with their limits."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from itertools import chain
from pathlib import Path

from mlflow_e2eai import bundle
from mlflow_e2eai.artifacts.graphs import size_of
from mlflow_e2eai.artifacts.values import EngineArtifact, OnnxArtifact
from mlflow_e2eai.bundle.coverage import every_target, missing_gpus, targets_of
from mlflow_e2eai.bundle.manifest import Manifest
from mlflow_e2eai.bundle.rows import TUNED
from mlflow_e2eai.evaluation.evidence import Evidence
from mlflow_e2eai.evaluation.gates import (
    FAILED,
    MEASURED,
    Gate,
    MetricValue,
    drop,
    find_value,
)
from mlflow_e2eai.evaluation.variants import engine_variant
from mlflow_e2eai.latency.report import LatencyReport
from mlflow_e2eai.tracking.metrics import (
    LARGE_IS_GOOD,
    SMALL_IS_GOOD,
    latency_metrics,
    parity_metrics,
    start_metrics,
)

_START_TIMES = frozenset({"cold_start/load_s", "cold_start/first_call_ms"})

NOISY = "too noisy to tell, as the machine was busy"

_LOGGED = ("parity/max_abs_error", "task/drop", "champion/task_drop", "champion/latency_ratio")
"""Metrics whose largest value is logged with a decision; of task metrics it is the smallest."""


def values_of(manifest: Manifest, *, now: datetime | None = None) -> list[MetricValue]:
    """The values of every metric of a version, from its own evidence.

    Of the whole version:

    - ``evidence/unverified``: 1 where the export could not be compared with the PyTorch module.
    - ``evidence/quick``: 1 where the evidence is of the level ``quick``.
    - ``evidence/refused_sizes``: number of sizes within the axes that the PyTorch module refused.
    - ``evidence/frozen``: 1 where the exporter took values of the example for constants.
    - ``evidence/zero_scores``: number of task metrics by which the PyTorch module scores 0.
    - ``evidence/assumptions``: number of assumptions about the inputs, such as an example that was
      generated.
    - ``task/drop``, for each machine: the largest drop of a task metric of any variant against the
      PyTorch module there; missing where there are no task metrics.

    Of each variant, on each machine that measured it, but for those that are not worth it:

    - ``parity/measured``: whether any machine measured it; and where one did, ``parity/failed``:
      whether it had wrong numbers or an error on any. Of an engine for several GPUs, on each.
    - ``parity/<figure>`` and ``parity/<output>/<figure>``: of `OutputParity`, the worst of all
      comparisons that decide.
    - ``task/<name>``, NaN where it is missing; ``task/drop``.
    - ``latency/...``, for each number of items: p50_ms, p90_ms, p95_ms, p99_ms, mean_ms,
      device_p50_ms, throughput_items_per_s, and the upper bound of the ratio to the PyTorch module
      there. ``concurrency/items_per_s``, for each number of callers. NaN on a busy machine.
    - ``cold_start/...``: load_s, first_call_ms (both NaN on a busy machine), peak_memory_bytes,
      device_memory_bytes.
    - ``file/size_bytes``; ``evidence/age_days``, NaN where the time was not recorded.

    Args:
        manifest: The bundle's manifest, with absolute paths of its files.
        now: The time that the age counts to; by default this moment.
    """
    measured = measured_evidence(manifest)
    values = [
        MetricValue(metric=f"evidence/{name}", value=float(number))
        for name, number in _doubts(manifest).items()
    ]
    if not measured:  # which no gate on it may take for a want of data
        values.append(MetricValue(metric="parity/max_abs_error", value=math.nan))
    for there in manifest.by_machine:
        value = drop(_reference_tasks(there), worst_tasks(there))
        if value is not None:
            values.append(MetricValue(metric="task/drop", value=value, machine=there.machine))
        values += machine_values(there, names=_task_names(manifest), now=now)
    return [*values, *_counts(manifest), *_sizes(manifest)]


def totals(values: Sequence[MetricValue]) -> dict[str, float]:
    """The numbers of a version that are logged with a decision: the worst of several."""
    task = {value.metric for value in values if value.metric.startswith("task/")} - {"task/drop"}
    whole = {
        value.metric
        for value in values
        if value.metric.startswith("evidence/") and value.variant is None
    }
    gates = [
        *(
            Gate(metric=name, bound="at_most", limit=0)
            for name in (MEASURED, FAILED, *_LOGGED, *sorted(whole))
        ),
        *(Gate(metric=name, bound="at_least", limit=0) for name in sorted(task)),
    ]
    found = {gate.metric: find_value(gate, values) for gate in gates}
    return {name: value.value for name, value in found.items() if value is not None}


def measured_evidence(manifest: Manifest) -> list[Evidence]:
    """Measured evidence, of any machine, of the bundle's variants that are not rejected."""
    digests = {file.sha256 for file in manifest.files}
    return [
        entry
        for entry in manifest.all_evidence
        if entry.measured and entry.sha256 in digests and not entry.rejected
    ]


def machine_values(
    there: Manifest, *, names: Collection[str] = (), now: datetime | None = None
) -> Iterator[MetricValue]:
    """The values of each variant that one machine measured.

    Args:
        there: The bundle with the evidence of that machine alone.
        names: Task metrics that every variant is to have.
        now: See `values_of`.
    """
    for entry in measured_evidence(there):
        numbers = _parity_values(entry)
        numbers |= {f"task/{name}": entry.task.get(name, math.nan) for name in names}
        if (dropped := drop(_reference_tasks(there), entry.task)) is not None:
            numbers["task/drop"] = dropped
        for metric, number in numbers.items():
            yield value_of(there, entry, metric, number)
        yield _age(there, entry, now)
        yield from _start_values(there, entry)
        yield from _latency_values(there, entry)
        loads = () if entry.loads is None else entry.loads.loads
        most = max((load.threads for load in loads), default=None)
        for load in loads:
            yield value_of(
                there,
                entry,
                "concurrency/items_per_s",
                math.nan if load.busy else load.items_per_s,
                at=load.threads,
                usual=load.threads == most,
                reason=NOISY if load.busy else None,
            )


def value_of(
    there: Manifest,
    entry: Evidence,
    metric: str,
    value: float,
    *,
    at: int | None = None,
    usual: bool = True,
    reason: str | None = None,
) -> MetricValue:
    """The value of a metric of one variant on the machine that measured it."""
    file = next((file for file in there.files if file.sha256 == entry.sha256), None)
    return MetricValue(
        metric=metric,
        value=value,
        variant=entry.variant,
        precision=None if file is None else precision_of(file),
        targets=targets_of(file, there.environment),
        at=at,
        usual=usual,
        machine=there.machine,
        reason=reason,
    )


def precision_of(file: OnnxArtifact | EngineArtifact) -> str:
    """Precision of the arithmetic of a variant."""
    return file.arithmetic if isinstance(file, EngineArtifact) else file.precision


def _doubts(manifest: Manifest) -> dict[str, int]:
    """The number of doubts of each kind about the whole version."""
    report = manifest.export
    return {
        "unverified": int(report is not None and report.unverified is not None),
        "quick": int(manifest.level == "quick"),
        "assumptions": len(manifest.graphs[0].assumptions),
        "refused_sizes": 0 if report is None or report.sizes is None else len(report.sizes.refused),
        "frozen": int(report is not None and report.frozen is not None),
        "zero_scores": len(manifest.zero_scores),
    }


def _counts(manifest: Manifest) -> Iterator[MetricValue]:
    """For each variant, on each GPU that it is for, whether it was measured, and failed."""
    digests = {file.sha256: file for file in manifest.files}
    entries = [
        (there, entry)
        for there in manifest.by_machine
        for entry in there.evidence
        if entry.sha256 in digests and not entry.rejected
    ]
    lacking = missing_gpus(manifest)
    files: dict[str, OnnxArtifact | EngineArtifact] = {
        entry.variant: digests[entry.sha256] for _, entry in entries if entry.sha256 is not None
    }
    files |= {name: each for each in manifest.engines if (name := engine_variant(each)) in lacking}
    for variant, file in files.items():
        by_target: dict[tuple[str, ...], list[Evidence]] = {}
        for there, entry in entries:
            if entry.variant == variant and entry.measured:
                by_target.setdefault(targets_of(file, there.environment), []).append(entry)
        for capability in lacking.get(variant, ()):
            by_target[targets_of(file, {"compute_capability": capability})] = []
        for targets, those in (by_target or {targets_of(file, {}): []}).items():
            numbers = {MEASURED: bool(those)}
            if those:
                numbers[FAILED] = not all(entry.passed for entry in those)
            for metric, value in numbers.items():
                yield MetricValue(
                    metric=metric,
                    value=float(value),
                    variant=variant,
                    precision=precision_of(file),
                    targets=targets,
                )


def _sizes(manifest: Manifest) -> Iterator[MetricValue]:
    """Size of the file of each variant that was measured, with its weights."""
    for entry in {entry.variant: entry for entry in measured_evidence(manifest)}.values():
        file = next(file for file in manifest.files if file.sha256 == entry.sha256)
        size = _size(file)
        # An engine for every GPU names none: it is one file on those that measured it.
        met = [
            targets_of(file, there.environment)
            for there in manifest.by_machine
            if any(each.sha256 == entry.sha256 for each in measured_evidence(there))
        ]
        if size is not None:
            yield MetricValue(
                metric="file/size_bytes",
                value=float(size),
                variant=entry.variant,
                precision=precision_of(file),
                targets=tuple(dict.fromkeys(chain(every_target(file), *met))),
            )


def _size(file: OnnxArtifact | EngineArtifact) -> int | None:
    if isinstance(file, EngineArtifact):
        return file.size_bytes
    return size_of(file) if file.path.is_file() else None


def _parity_values(entry: Evidence) -> dict[str, float]:
    """Figures of each output, and the worst of all outputs."""
    values = {k: v for k, v in parity_metrics(entry).items() if k.startswith("parity/")}
    by_figure: dict[str, list[float]] = {}
    for name, value in values.items():
        by_figure.setdefault(name.rpartition("/")[2], []).append(value)
    for figures, choose in ((SMALL_IS_GOOD, max), (LARGE_IS_GOOD, min)):
        for figure in {*figures} & {*by_figure}:
            values[f"parity/{figure}"] = _worst(by_figure[figure], choose)
    if counts := by_figure.get("nonfinite_count"):
        values["parity/nonfinite_count"] = sum(counts)
    if entry.deciding:  # NaN where a comparison compared nothing
        errors = [report.max_abs_error for report in entry.deciding.values()]
        values["parity/max_abs_error"] = _worst(errors, max)
    return values


def _worst(values: Sequence[float], choose: Callable[[Sequence[float]], float]) -> float:
    """The largest or smallest; NaN where one is."""
    return math.nan if any(map(math.isnan, values)) else choose(values)


def _start_values(there: Manifest, entry: Evidence) -> Iterator[MetricValue]:
    for metric, number in start_metrics(entry).items():
        busy = entry.cold_start is not None and entry.cold_start.busy and metric in _START_TIMES
        yield value_of(
            there, entry, metric, math.nan if busy else number, reason=NOISY if busy else None
        )


def _latency_values(there: Manifest, entry: Evidence) -> Iterator[MetricValue]:
    for label, report in reports_by_items(there, entry.variant):
        numbers = latency_metrics(report[entry.variant])
        timed = {each.name for each in report.variants if each.rounds_ms}
        if there.reference in timed and entry.variant in timed:
            numbers["latency/ratio"] = report.ratio(entry.variant, there.reference).high
        busy = report.is_busy(entry.variant)
        for metric, number in numbers.items():
            noisy = busy or math.isnan(number)
            yield value_of(
                there,
                entry,
                metric,
                math.nan if noisy else number,
                at=report.items,
                usual=label in TUNED,
                reason=NOISY if noisy else None,
            )


def reports_by_items(there: Manifest, variant: str) -> list[tuple[str, LatencyReport]]:
    """Label and report for each number of items at which a machine timed a variant.

    A corner and a batch size may be of one number of items: the one that engines are tuned for
    counts.
    """
    by_items = {
        report.items: (label, report)
        for label, report in sorted(there.latency.items(), key=lambda each: each[0] in TUNED)
        if any(each.name == variant for each in report.variants)
    }
    return [by_items[items] for items in sorted(by_items)]


def _age(there: Manifest, entry: Evidence, now: datetime | None) -> MetricValue:
    days, reason = age_days(there.measured_at, now)
    return value_of(there, entry, "evidence/age_days", days, reason=reason)


def age_days(measured_at: str | None, now: datetime | None = None) -> tuple[float, str | None]:
    """Days since evidence was measured; NaN, and the reason, where that cannot be told."""
    if measured_at is None:
        return math.nan, "the time of the measurement was not recorded"
    try:
        then = datetime.fromisoformat(measured_at)
        days = ((now or datetime.now(UTC)) - then).total_seconds() / 86400
    except (TypeError, ValueError):  # a time without its zone, or no time
        return math.nan, f"the time of the measurement, {measured_at!r}, cannot be read"
    if days < -1:
        return math.nan, f"it was measured at {measured_at}, which is in the future"
    return max(days, 0.0), None


def _task_names(manifest: Manifest) -> list[str]:
    return sorted({name for entry in measured_evidence(manifest) for name in entry.task})


def worst_tasks(manifest: Manifest) -> dict[str, float]:
    """The lowest value of each task metric over the variants; NaN where a variant lacks it."""
    measured = measured_evidence(manifest)
    return {
        name: _worst([entry.task.get(name, math.nan) for entry in measured], min)
        for name in _task_names(manifest)
    }


def _reference_tasks(manifest: Manifest) -> Mapping[str, float]:
    for entry in manifest.evidence:
        if entry.sha256 is None:
            return entry.task
    return {}


def read_bundle(path: Path) -> Manifest:
    """The manifest of a bundle, with absolute paths of its files."""
    return bundle.audit(path, whole=False)
