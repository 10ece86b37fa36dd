"""Two bundles -> metrics of the one against the other, from evidence of like machines.

``champion/task_drop`` compares the worst variants, on whatever machines: a task metric is of the
model and its data, and what a machine adds to it is limited by parity. All else is compared on one
kind of machine only, see `machine_to_compare`: a version that got slower on every GPU is not to
pass because a laptop's CPU runs both alike.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator
from dataclasses import replace

from mlflow_e2eai.bundle.manifest import Manifest
from mlflow_e2eai.evaluation.evidence import Evidence
from mlflow_e2eai.evaluation.gates import AGAINST_CHAMPION, COUNTS, MetricValue, drop
from mlflow_e2eai.latency.ratios import separate_bound
from mlflow_e2eai.latency.report import LatencyReport
from mlflow_e2eai.promotion.metrics import (
    NOISY,
    machine_values,
    measured_evidence,
    reports_by_items,
    value_of,
    values_of,
    worst_tasks,
)

LATENCY_RATIO, TASK_DROP = "champion/latency_ratio", "champion/task_drop"
RATIO, DIFFERENCE = "/ratio", "/difference"
"""Ends of the names of metrics that compare any other: ``champion/file/size_bytes/ratio``."""


_AGE = "evidence/age_days"
"""The one metric of a file that does not stay as long as the file does."""


def _no_size(metric: str, at: int | None) -> str:
    """Why there is no value at a size of the champion."""
    what = "caller" if metric.startswith("concurrency/") else "item"
    size = f"{at} {what}{'' if at == 1 else 's'}"
    there = size if what == "caller" else f"{size} in a call"
    return f"not comparable, as this version was not measured at {there} there"


def champion_values(
    challenger: Manifest, champion: Manifest, wanted: Collection[str]
) -> list[MetricValue]:
    """The values of metrics of a version against the one that it would replace.

    - ``champion/task_drop``: the largest drop of a task metric from the champion's worst variant to
      the challenger's worst; of a variant that both have, its own; missing where the champion has
      no task metrics.
    - ``champion/latency_ratio``: how many times as long as the champion it takes, an upper bound
      (see `ratios.separate_bound`), at each number of items and on each kind of machine that the
      champion was measured at: of the fastest variants there that passed, and of each variant that
      both have.
    - ``champion/<metric>/ratio`` and ``champion/<metric>/difference``: any metric of a variant that
      both have, divided by the champion's and less the champion's, as the two were measured, on
      each kind of machine that the champion was measured on.

    NaN where the two cannot be compared, with the reason. Files of one digest are equal by
    construction: a comparison of two measurements would only add the machines' noise.

    Args:
        challenger: The bundle's manifest, with absolute paths of its files.
        champion: That of the version which it would replace.
        wanted: Names of the metrics that gates read.
    """
    values = list(_task_drops(challenger, champion)) if TASK_DROP in wanted else []
    if LATENCY_RATIO in wanted:
        values += _latency_ratios(challenger, champion)
    for name in sorted(wanted):
        if name.startswith(AGAINST_CHAMPION) and name.endswith((RATIO, DIFFERENCE)):
            values += _comparisons(name, challenger, champion)
    return values


def machine_to_compare(there: Manifest, variant: str) -> dict[str, str | None]:
    """The properties of a machine that evidence of a variant must have in common to be compared.

    For ONNX Runtime on the CPU: the processor, its instruction set for int8, how many processors
    the process might use, and ONNX Runtime's version. On a GPU: the GPU, its driver, and the
    version of ONNX Runtime or TensorRT. A property that is not known is None.
    """
    known = there.environment.get
    runner = variant.partition("/")[0]
    onnxruntime = known("onnxruntime-gpu") or known("onnxruntime")
    if runner == "onnxruntime-cpu":
        cpus = {report.cpu.cpus for report in there.latency.values() if report.cpu is not None}
        return {
            "machine": known("machine"),
            "processor": known("processor"),
            "int8": known("int8_instructions") or "none",
            "processors": str(max(cpus)) if cpus else known("cores"),
            "ONNX Runtime": onnxruntime,
        }
    on_gpu = {"GPU": known("gpu"), "driver": known("driver")}
    if runner == "onnxruntime-cuda":
        return {**on_gpu, "ONNX Runtime": onnxruntime}
    library = "tensorrt-rtx-cu13" if runner.startswith("tensorrt_rtx") else "tensorrt-cu13"
    return {**on_gpu, library.removesuffix("-cu13"): known(library)}


def is_like(one: Manifest, other: Manifest, *variants: str) -> bool:
    """Whether two machines are of one kind for these variants; False where that is not known."""
    for variant in variants:
        kind = machine_to_compare(one, variant)
        if None in kind.values() or kind != machine_to_compare(other, variant):
            return False
    return True


def _not_comparable(old_there: Manifest, variant: str, challenger: Manifest) -> str:
    """Why nothing of the challenger can be compared with the champion's evidence of a machine."""
    kind = machine_to_compare(old_there, variant)
    unknown = [name for name, value in kind.items() if value is None]
    if unknown:
        return f"not comparable, as the champion's evidence does not name its {unknown[0]}"
    if any(is_like(there, old_there, variant) for there in challenger.by_machine):
        return "not comparable, as this version did not pass there"
    for there in challenger.by_machine:
        if there.machine == old_there.machine:
            other = machine_to_compare(there, variant)
            name = next(name for name in kind if kind[name] != other[name])
            return (
                f"not comparable, as the champion was measured with {name} {kind[name]}, and this "
                f"version with {other[name]}"
            )
    return "not comparable, as the champion was measured there, and this version was not"


def _task_drops(challenger: Manifest, champion: Manifest) -> Iterator[MetricValue]:
    before = worst_tasks(champion)
    if not before:
        return
    if (dropped := drop(before, worst_tasks(challenger))) is not None:
        yield MetricValue(metric=TASK_DROP, value=dropped)
    for old_there in champion.by_machine:
        for old in measured_evidence(old_there):
            for there in challenger.by_machine:
                for new in measured_evidence(there):
                    if new.variant == old.variant and old.task:
                        dropped = drop(old.task, new.task)
                        yield value_of(
                            there, new, TASK_DROP, math.nan if dropped is None else dropped
                        )


# Latency


def _latency_ratios(challenger: Manifest, champion: Manifest) -> Iterator[MetricValue]:
    if challenger.digests == champion.digests:
        yield from _equal_ratios(challenger)
        return
    found = False
    for old_there in champion.by_machine:
        old_names = _passed_evidence(old_there)
        names = [old_name for old_name in old_names if reports_by_items(old_there, old_name)]
        if not names:
            continue
        found = True
        yield from _fastest_ratios(challenger, old_there)
        for name in names:
            yield from _variant_ratios(challenger, old_there, old_names[name])
    if not found:
        reason = "not comparable, as no latency of the champion is in its evidence"
        yield MetricValue(metric=LATENCY_RATIO, value=math.nan, reason=reason)


def _equal_ratios(challenger: Manifest) -> Iterator[MetricValue]:
    """The ratio of files to themselves: of the version, and of each variant that was timed."""
    yield MetricValue(metric=LATENCY_RATIO, value=1.0)
    for there in challenger.by_machine:
        for entry in measured_evidence(there):
            for _, report in reports_by_items(there, entry.variant):
                yield value_of(there, entry, LATENCY_RATIO, 1.0, at=report.items)


def _passed_evidence(there: Manifest) -> dict[str, Evidence]:
    """Evidence of the variants that may be loaded, as they passed on a machine."""
    return {
        entry.variant: entry
        for entry in measured_evidence(there)
        if entry.passed and entry.is_shipped
    }


def _fastest_ratios(challenger: Manifest, old_there: Manifest) -> Iterator[MetricValue]:
    """The fastest variants against each other, at each number of items, on one kind of machine.

    Of the challenger's variants, the one counts whose ratio has the lowest bound: to get faster
    never loses.
    """
    before = _fastest(old_there)
    machines = challenger.by_machine
    ratios: dict[int, list[MetricValue]] = {items: [] for items in before}
    for there in machines:
        for items, old in before.items():
            bounds = [
                _with_bound(_whole(there, at=items), (name, report), old, same=same)
                for name, report in _timed(there, items)
                if (same := _is_same(there, name, old_there, old[0]))
                or is_like(there, old_there, old[0], name)
            ]
            ratios[items] += sorted(bounds, key=_known_and_low)[:1]
    for found in ratios.values():
        yield from found
    missing = [items for items, found in ratios.items() if not found]
    if not missing:
        return
    first = before[missing[0]][0]
    if not any(is_like(there, old_there, first) and _passed_evidence(there) for there in machines):
        yield _whole(old_there, reason=_not_comparable(old_there, first, challenger))
        return
    for items in missing:
        yield _whole(old_there, at=items, reason=_no_size(LATENCY_RATIO, items))


def _timed(there: Manifest, items: int) -> list[tuple[str, LatencyReport]]:
    """The passing variants that were timed at a number of items, each with its report."""
    return [
        (name, report)
        for name in _passed_evidence(there)
        for report in _reports(there, name, items)
    ]


def _known_and_low(value: MetricValue) -> tuple[bool, float]:
    """Order of ratios: those that are known first, the lowest first."""
    return math.isnan(value.value), value.value


def _whole(there: Manifest, *, at: int | None = None, reason: str | None = None) -> MetricValue:
    """The ratio of two versions on a machine, before it is known."""
    return MetricValue(
        metric=LATENCY_RATIO, value=math.nan, at=at, machine=there.machine, reason=reason
    )


def _is_same(there: Manifest, name: str, old_there: Manifest, old_name: str) -> bool:
    new, old = _passed_evidence(there)[name], _passed_evidence(old_there)[old_name]
    return name == old_name and new.sha256 == old.sha256


def _fastest(there: Manifest) -> dict[int, tuple[str, LatencyReport]]:
    """The passing variant with the shortest median, and its report, by number of items."""
    best: dict[int, tuple[str, LatencyReport]] = {}
    for name in _passed_evidence(there):
        for _, report in reports_by_items(there, name):
            before = best.get(report.items)
            if before is None or report[name].p50_ms < before[1][before[0]].p50_ms:
                best[report.items] = (name, report)
    return best


def _variant_ratios(
    challenger: Manifest, old_there: Manifest, old: Evidence
) -> Iterator[MetricValue]:
    """One variant of both against itself, at each number of items of the champion."""
    name = old.variant
    before = {report.items: report for _, report in reports_by_items(old_there, name)}
    machines = [
        (there, new)
        for there in challenger.by_machine
        if (new := _passed_evidence(there).get(name)) is not None
    ]
    like = [
        (there, new)
        for there, new in machines
        if is_like(there, old_there, name) or new.sha256 == old.sha256
    ]
    if not like:
        if machines:
            lost = value_of(*machines[0], LATENCY_RATIO, math.nan)
            reason = _not_comparable(old_there, name, challenger)
            for items in before:
                yield replace(lost, at=items, machine=old_there.machine, reason=reason)
        return
    for items, old_report in before.items():
        found = [
            (there, new, report) for there, new in like for report in _reports(there, name, items)
        ]
        for there, new, report in found:
            value = value_of(there, new, LATENCY_RATIO, math.nan, at=items)
            same = new.sha256 == old.sha256
            yield _with_bound(value, (name, report), (name, old_report), same=same)
        if not found:
            reason = _no_size(LATENCY_RATIO, items)
            yield value_of(*like[0], LATENCY_RATIO, math.nan, at=items, reason=reason)


def _reports(there: Manifest, name: str, items: int) -> list[LatencyReport]:
    """The report of a variant at a number of items, if it was timed at it."""
    return [report for _, report in reports_by_items(there, name) if report.items == items]


def _with_bound(
    value: MetricValue,
    new: tuple[str, LatencyReport],
    old: tuple[str, LatencyReport],
    *,
    same: bool,
) -> MetricValue:
    """The value with the upper bound of the ratio, or the reason why it cannot be told."""
    if same:
        return replace(value, value=1.0)
    if any(report.is_busy(name) for name, report in (new, old)):
        return replace(value, reason=NOISY)
    times = [report[name].rounds_ms for name, report in (new, old)]
    bound = separate_bound(*times)
    if math.isinf(bound):
        return replace(value, reason="not comparable, as too few calls were measured")
    return replace(value, value=bound)


# Any other metric


def _comparisons(name: str, challenger: Manifest, champion: Manifest) -> Iterator[MetricValue]:
    """The ratio or difference of one metric, of each variant that both have, by machine."""
    divides = name.endswith(RATIO)
    metric = name.removeprefix(AGAINST_CHAMPION).removesuffix(RATIO if divides else DIFFERENCE)
    new = list(_values_by_machine(metric, challenger))
    old = list(_values_by_machine(metric, champion))
    digests = [
        {entry.variant: entry.sha256 for entry in measured_evidence(each)}
        for each in (challenger, champion)
    ]
    found = False
    for old_there, before in old:
        variant = before.variant or ""
        same = digests[0].get(variant) == digests[1].get(variant) and metric != _AGE
        like = [
            value
            for there, value in new
            if value.variant == variant
            and (same or there is None or old_there is None or is_like(there, old_there, variant))
        ]
        pairs = [value for value in like if value.at == before.at]
        for value in pairs:
            found = True
            # A gate without a number of items reads the one that was usual for the champion.
            both = replace(value, metric=name, usual=before.usual)
            yield _compare_values(both, before, divides=divides, same=same)
        if pairs or old_there is None:
            continue
        lost = replace(before, metric=name, value=math.nan)
        if like:
            found = True
            yield replace(lost, reason=_no_size(metric, before.at))
        elif not any(is_like(there, old_there, variant) for there in challenger.by_machine):
            found = True
            yield replace(lost, reason=_not_comparable(old_there, variant, challenger))
    if not found:
        reason = f"not comparable, as the two have no variant in common with a value of {metric}"
        yield MetricValue(metric=name, value=math.nan, reason=reason)


def _compare_values(
    value: MetricValue, before: MetricValue, *, divides: bool, same: bool
) -> MetricValue:
    """The value of the challenger against that of the champion; of one file, equal.

    A number that is missing, and not for noise, is so of a file against itself too.
    """
    if same and not (math.isnan(value.value) and value.reason is None):
        return replace(value, value=1.0 if divides else 0.0, reason=None)
    number = _compare(value.value, before.value, divides=divides)
    return replace(value, value=number, reason=value.reason or before.reason)


def _values_by_machine(
    metric: str, manifest: Manifest
) -> Iterator[tuple[Manifest | None, MetricValue]]:
    """The values of a metric of single variants, with the machine where it matters."""
    if metric.startswith("file/"):
        for value in values_of(manifest):
            if value.metric == metric:
                yield None, value
        return
    names = {name for entry in measured_evidence(manifest) for name in entry.task}
    for there in manifest.by_machine:
        for value in machine_values(there, names=names):
            if value.metric == metric and metric not in COUNTS:
                yield there, value


def _compare(new: float, old: float, *, divides: bool) -> float:
    if not divides:
        return new - old
    if old == 0:
        return 1.0 if new == 0 else math.nan if math.isnan(new) else math.inf
    return new / old
