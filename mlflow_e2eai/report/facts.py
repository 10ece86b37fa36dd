"""Facts on variants that every form of the report shows."""

from __future__ import annotations

import functools
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from urllib.parse import quote, urlsplit

import numpy as np

from mlflow_e2eai.artifacts.values import EngineArtifact, OnnxArtifact
from mlflow_e2eai.bundle.manifest import Manifest
from mlflow_e2eai.evaluation.evidence import ADVISORY, Evidence, Outcome
from mlflow_e2eai.evaluation.variants import FILE, step_of
from mlflow_e2eai.latency.ratios import Ratio
from mlflow_e2eai.latency.report import LatencyReport
from mlflow_e2eai.precision.stage import PrecisionReport
from mlflow_e2eai.report.formats import NONE, items_text

OUTCOMES: Mapping[Outcome, str] = {
    "reference": "reference",
    "unsteady": "reference, unsteady",
    "passed": "passed",
    "failed": "failed",
    "unmeasured": "built, not measured here",
}
"""The words for the outcome of a variant."""

_NAMED = 12
"""Variants that a picture names; of more, the reference and the fastest that passed."""

_TAIL = 0.005
"""Half of the probability outside a 99 % interval."""


@dataclass(frozen=True, slots=True)
class Section:
    """A part of the page.

    Attributes:
        key: Its id, and the name of its template.
        title: Its heading.
        context: The values that its template shows, by name.
    """

    key: str
    title: str
    context: Mapping[str, object]


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One variant in one line.

    Attributes:
        variant: Its name.
        outcome: Its outcome.
        in_bundle: Whether its file is in the bundle. The graph as it was exported is measured, and
            not in the bundle.
        max_abs_error: The largest of all the comparisons that decide; None when there was none.
        task: Task metrics by name.
        p50_ms: Median latency at the sizes that engines are tuned for; None when not timed.
        busy: Whether the machine was busy when that was measured, so that it tells nothing.
    """

    variant: str
    outcome: Outcome
    in_bundle: bool
    max_abs_error: float | None
    task: Mapping[str, float]
    p50_ms: float | None
    busy: bool = False


def rows_of(manifest: Manifest) -> tuple[Row, ...]:
    """One row for each variant, in the manifest's order."""
    report = tuned_sizes(manifest)
    times = {} if report is None else {entry.name: entry.p50_ms for entry in report.variants}
    return tuple(
        _row(
            entry,
            times.get(entry.variant),
            busy=report is not None and report.is_busy(entry.variant),
        )
        for entry in manifest.evidence
    )


def _row(entry: Evidence, p50_ms: float | None, *, busy: bool) -> Row:
    errors = [
        comparison.max_abs_error
        for kind, comparison in entry.parity.items()
        if kind not in ADVISORY
    ]
    return Row(
        variant=entry.variant,
        outcome=entry.outcome,
        in_bundle=not is_raw(entry),
        # NumPy's max keeps a NaN: a comparison that compared nothing must not be hidden.
        max_abs_error=float(np.max(errors)) if errors else None,
        task=entry.task,
        p50_ms=p50_ms,
        busy=busy,
    )


def timed_rows(manifest: Manifest) -> list[Row]:
    """The variants of the bundle that passed and were timed, the fastest first."""
    timed = [
        row
        for row in rows_of(manifest)
        if row.outcome == "passed" and row.in_bundle and row.p50_ms is not None
    ]
    return sorted(timed, key=lambda row: row.p50_ms or 0.0)


def fastest_row(manifest: Manifest) -> Row | None:
    """The fastest variant; None where none was timed, or one of them on a busy machine.

    That one might be faster.
    """
    timed = timed_rows(manifest)
    return timed[0] if timed and not any(row.busy for row in timed) else None


def on_machines(manifest: Manifest) -> list[tuple[Manifest, str]]:
    """The bundle as each machine measured it, and the suffix of its variants' names.

    The suffix is empty where only one machine measured.
    """
    machines = manifest.by_machine
    return [(one, f" on {one.machine}" if manifest.elsewhere else "") for one in machines]


def refused_conversions(manifest: Manifest) -> list[PrecisionReport]:
    """The conversions that gave no graph."""
    return [report for report in manifest.conversions if report.refused is not None]


_BY_WEIGHT: tuple[Outcome, ...] = ("unmeasured", "reference", "passed", "unsteady", "failed")


def worst_outcomes(evidence: Iterable[Evidence]) -> dict[str, Outcome]:
    """The outcome of each variant, the worst where several machines measured it."""
    outcomes: dict[str, Outcome] = {}
    for entry in evidence:
        outcome = entry.outcome
        worst = outcomes.setdefault(entry.variant, outcome)
        outcomes[entry.variant] = max(worst, outcome, key=_BY_WEIGHT.index)
    return outcomes


def named_rows(rows: Sequence[Row]) -> set[str]:
    """The variants that a picture names; of many, the reference and the fastest that passed."""
    if len(rows) <= _NAMED:
        return {row.variant for row in rows}
    timed = [row for row in rows if row.outcome == "passed" and row.p50_ms is not None]
    timed.sort(key=lambda row: row.p50_ms or 0.0)
    references = [row for row in rows if row.outcome in ("reference", "unsteady")]
    return {row.variant for row in [*references[:1], *timed[: _NAMED - 5]]}


def pareto_rows(rows: Sequence[Row]) -> list[Row]:
    """The Pareto front in error and latency of the bundle's variants that passed."""
    sound = [
        row
        for row in rows
        if row.outcome == "passed"
        and row.in_bundle
        and row.p50_ms is not None
        and not row.busy
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
    return {row.variant for row in (rows if len(rows) <= _NAMED else pareto_rows(rows))}


def in_order(evidence: Sequence[Evidence]) -> list[Evidence]:
    """Each variant after the one that it was made of; those without such an order last."""
    names = {entry.variant for entry in evidence}
    followers: dict[str | None, list[Evidence]] = defaultdict(list)
    for entry in evidence:
        followers[entry.before if entry.before in names else None].append(entry)
    ordered: list[Evidence] = []
    waiting = followers.pop(None, [])[::-1]
    while waiting:
        entry = waiting.pop()
        ordered.append(entry)
        waiting += followers.pop(entry.variant, [])[::-1]
    return ordered + [entry for entries in followers.values() for entry in entries]


def step_name(entry: Evidence, files: Mapping[str, OnnxArtifact | EngineArtifact]) -> str:
    """The step that a variant is the result of.

    Args:
        entry: Evidence of the variant.
        files: The files of the bundle by digest.
    """
    if entry.sha256 is None:
        return "ONNX file" if entry.variant == FILE else "PyTorch module"
    if is_raw(entry):
        return "export"
    file = files.get(entry.sha256)
    return NONE if file is None else step_of(file, entry.variant.partition("/")[0])


def is_raw(entry: Evidence) -> bool:
    """Whether it is of the graph as it was exported, which the bundle does not hold."""
    return entry.sha256 is not None and not entry.is_shipped


def task_names(manifest: Manifest) -> list[str]:
    """Task metrics that any variant has."""
    return sorted({name for entry in manifest.all_evidence for name in entry.task})


def tuned_sizes(manifest: Manifest) -> LatencyReport | None:
    """Latency at the sizes that engines are tuned for."""
    return manifest.latency.get("opt") or manifest.latency.get("static")


def benchmarks_by_size(latency: Mapping[str, LatencyReport]) -> list[tuple[str, LatencyReport]]:
    """The benchmarks in the order of their size, each with a name for people."""
    order = sorted(latency.items(), key=lambda entry: entry[1].items)
    return [(f"{label}, {items_text(report.items)}", report) for label, report in order]


class Ratios:
    """Ratios of the times of two variants, at the sizes that engines are tuned for.

    Each is computed once: it takes some 15 ms, and a page uses the same ones often.

    Args:
        manifest: The bundle's manifest.
    """

    def __init__(self, manifest: Manifest) -> None:
        self._report = tuned_sizes(manifest)
        entries = () if self._report is None else self._report.variants
        self._timed = {entry.name for entry in entries if entry.rounds_ms}
        self._known: dict[tuple[str, str], Ratio | None] = {}

    def of(self, variant: str, baseline: str | None) -> Ratio | None:
        """One ratio; None where one of both was not timed."""
        if baseline is None or variant == baseline or not {variant, baseline} <= self._timed:
            return None
        pair = variant, baseline
        if pair not in self._known:
            self._known[pair] = self._compute(*pair)
        return self._known[pair]

    def _compute(self, variant: str, baseline: str) -> Ratio | None:
        if self._report is None:
            return None
        # With a clock too coarse for the baseline the divisors are zero.
        with np.errstate(all="ignore"):
            ratio = self._report.ratio(variant, baseline)
        return ratio if ratio.noisy or _drawable(ratio) else None


def ratios_of(manifest: Manifest, ratios: Ratios) -> dict[str, Ratio]:
    """How many times as long as the reference each variant takes, where both were timed."""
    reference = manifest.reference
    pairs = ((entry.variant, ratios.of(entry.variant, reference)) for entry in manifest.evidence)
    return {name: ratio for name, ratio in pairs if ratio is not None}


def _drawable(ratio: Ratio) -> bool:
    return all(math.isfinite(number) for number in (ratio.low, ratio.value, ratio.high))


def median_interval(values: Sequence[float]) -> tuple[float, float]:
    """A 99 % interval of the median from two order statistics; it assumes no distribution.

    With fewer than 8 values no such interval is that sure, and the smallest and the largest value
    are given. See Conover, Practical Nonparametric Statistics, 1999, section 3.2.
    """
    ordered = sorted(values)
    skip = _skip_count(len(ordered))
    return ordered[skip], ordered[len(ordered) - 1 - skip]


@functools.lru_cache
def _skip_count(count: int) -> int:
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


# The model of a report in MLflow; optional for a report.


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """Names and ids for a report to show, and the address to link them to.

    Attributes:
        name: The registered model, or the logged one.
        version: Its version, where it is registered.
        model_id: Id of the model that holds the bundle.
        run_id: The run that the report belongs to.
        parent_run_id: The run above it.
        experiment_id: The experiment of that run; models are linked through it.
        model_ids: Ids of the stages' models by the digest of their file.
        tracking_uri: Address of the tracking server. Only http and https are linked, without a
            user or password that they may hold.
        machine: The machine that a page is of, where each of several has one.
    """

    name: str | None = None
    version: str | None = None
    model_id: str | None = None
    run_id: str | None = None
    parent_run_id: str | None = None
    experiment_id: str | None = None
    model_ids: Mapping[str, str] = field(default_factory=dict)
    tracking_uri: str | None = None
    machine: str | None = None

    @property
    def title(self) -> str:
        """The report's heading."""
        name = "Model report" if self.name is None else self.name
        version = "" if self.name is None or self.version is None else f" version {self.version}"
        return f"{name}{version}{'' if self.machine is None else f' on {self.machine}'}"

    @property
    def uri(self) -> str | None:
        """URI of the model in MLflow."""
        if self.name is not None and self.version is not None:
            return f"models:/{self.name}/{self.version}"
        return None if self.model_id is None else f"models:/{self.model_id}"

    @property
    def _page(self) -> str | None:
        """The first page of MLflow's UI, for a fragment to follow."""
        try:
            parts = urlsplit(self.tracking_uri or "")
            host = parts.netloc.rpartition("@")[2]
        except ValueError:
            return None
        if parts.scheme not in ("http", "https") or not host:
            return None
        return f"{parts.scheme}://{host}{parts.path.rstrip('/')}/#"

    def model_link(self, model_id: str) -> str | None:
        """Address of a logged model's page."""
        if self._page is None or self.experiment_id is None:
            return None
        return f"{self._page}/experiments/{_part(self.experiment_id)}/models/{_part(model_id)}"

    def run_link(self, run_id: str | None = None) -> str | None:
        """Address of the page of a run, by default the report's own."""
        run_id = self.run_id if run_id is None else run_id
        if self._page is None or self.experiment_id is None or run_id is None:
            return None
        return f"{self._page}/experiments/{_part(self.experiment_id)}/runs/{_part(run_id)}"

    def version_link(self) -> str | None:
        """Address of the registered version's page."""
        if self._page is None or self.name is None or self.version is None:
            return None
        return f"{self._page}/models/{_part(self.name)}/versions/{_part(self.version)}"


def _part(text: str) -> str:
    return quote(text.encode("utf-8", "replace"), safe="")
