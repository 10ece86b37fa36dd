"""Evidence -> tags and metrics, under their MLflow names."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from mlflow_e2eai.artifacts.axes import label_of
from mlflow_e2eai.evaluation.evidence import Evidence
from mlflow_e2eai.latency.report import Latency, LatencyReport
from mlflow_e2eai.pytorch.stage import ExportReport
from mlflow_e2eai.tracking.lineage import PARENT_RUN
from mlflow_e2eai.tracking.mlflow_names import metric_name

if TYPE_CHECKING:
    from mlflow.entities import Dataset, RunTag

NONFINITE = "e2eai.nonfinite"
"""Tag of a run: the metrics that were not finite, and so were not stored as numbers."""

EVALUATION = "evaluation"
"""MLflow's context of a dataset that models are evaluated on."""

SMALL_IS_GOOD = (
    "max_abs_error",
    "max_rel_error",
    "mean_abs_error",
    "rmse",
    "max_elementwise_error",
    "mean_elementwise_error",
    "outside_share",
    "noise",
)
LARGE_IS_GOOD = ("cosine", "snr_db", "argmax_agreement", "top5_agreement")


def export_tags(report: ExportReport) -> dict[str, str]:
    """Tags for the exporter that wrote a graph, and the reasons why others failed."""
    tags: dict[str, str] = {"e2eai.exporter": report.exporter}
    if report.unverified is not None:
        tags["e2eai.unverified"] = report.unverified
    if report.sizes is not None and (refused := report.sizes.refused):
        tags["e2eai.refused_sizes"] = "; ".join(map(label_of, refused))
    for name, doubt in (("frozen", report.frozen), ("fast_path", report.fast_path)):
        if doubt is not None:
            tags[f"e2eai.{name}"] = doubt
    return tags | {f"e2eai.refused.{name}": reason for name, reason in report.refused.items()}


def stepped_metrics(
    evidence: Evidence, latency: Mapping[str, LatencyReport]
) -> dict[int, dict[str, float]]:
    """Metrics by step: latency by items, throughput by callers.

    MLflow stores one value of a metric at a step. Where several sizes have as many items, the first
    counts: opt stands before min, max and the mixed corners. Its pages show the last step of a
    metric alone, so that the median of each size and the rate of each number of callers have
    names of their own too.
    """
    steps: dict[int, dict[str, float]] = {}
    for load in () if evidence.loads is None else evidence.loads.loads:
        name = "concurrency/items_per_s"
        rates = dict.fromkeys((name, f"{name}_at_{load.threads}"), load.items_per_s)
        steps.setdefault(load.threads, {}).update(rates)
    for report in latency.values():
        for entry in report.variants:
            if entry.name == evidence.variant:
                row = steps.setdefault(report.items, {})
                own = {f"latency/p50_ms_at_{report.items}": entry.p50_ms}
                steps[report.items] = latency_metrics(entry) | own | row
    return steps


def latency_metrics(entry: Latency) -> dict[str, float]:
    """The numbers of one callable, under their MLflow names."""
    metrics = {
        "latency/p50_ms": entry.p50_ms,
        "latency/p90_ms": entry.p90_ms,
        "latency/p95_ms": entry.p95_ms,
        "latency/p99_ms": entry.p99_ms,
        "latency/mean_ms": entry.mean_ms,
        "latency/throughput_items_per_s": entry.throughput_items_per_s,
    }
    if entry.device_p50_ms is not None:
        metrics["latency/device_p50_ms"] = entry.device_p50_ms
    return metrics


def parity_metrics(evidence: Evidence) -> dict[str, float]:
    """The numbers of a variant's comparisons and task metrics, under their MLflow names.

    Over several kinds of sample, the worst number counts; the advisory ones are left out.
    """
    metrics: dict[str, float] = {}
    for report in evidence.deciding.values():
        for output in report.outputs:
            prefix = f"parity/{metric_name(output.name)}"
            for choose, names in ((max, SMALL_IS_GOOD), (min, LARGE_IS_GOOD)):
                for name in names:
                    # A field that does not apply to this output is None.
                    if (value := getattr(output, name)) is not None:
                        key = f"{prefix}/{name}"
                        metrics[key] = _worst(metrics.get(key), value, choose)
            count = f"{prefix}/nonfinite_count"
            metrics[count] = metrics.get(count, 0) + output.nonfinite_count
    if evidence.measured:
        metrics["parity/passed"] = float(evidence.passed)
    return {
        **metrics,
        **{f"task/{metric_name(name)}": value for name, value in evidence.task.items()},
    }


def start_metrics(evidence: Evidence) -> dict[str, float]:
    """Cost of a variant's start, under MLflow names; empty where it was not measured."""
    cold = evidence.cold_start
    if cold is None:
        return {}
    metrics = {
        "cold_start/load_s": cold.load_s,
        "cold_start/first_call_ms": cold.first_call_ms,
        "cold_start/peak_memory_bytes": float(cold.peak_memory_bytes),
    }
    if cold.device_memory_bytes is not None:
        metrics["cold_start/device_memory_bytes"] = float(cold.device_memory_bytes)
    return metrics


def log_metrics(
    metrics: Mapping[str, float],
    *,
    run_id: str,
    model_id: str | None = None,
    steps: Mapping[int, Mapping[str, float]] | None = None,
    tags: Mapping[str, str] | None = None,
    dataset: Dataset | None = None,
) -> None:
    """Log metrics on a run and its model, with tags of the run, in one request.

    A LoggedModel would store NaN as 0.0 and minus infinity as a number that passes any upper bound.
    The names of metrics that are not finite go into the tag ``e2eai.nonfinite`` of the run instead.

    Args:
        metrics: Values at step 0.
        run_id: The run.
        model_id: The model, an input or output of the run.
        steps: Values at other steps.
        tags: Tags of the run.
        dataset: The evaluation data, which the model's task metrics then name.
    """
    from mlflow import MlflowClient
    from mlflow.entities import Metric
    from mlflow.utils.time import get_current_time_millis

    client, now = MlflowClient(), get_current_time_millis()
    rows = [(0, metrics), *(steps or {}).items()]
    measured_on = (
        {} if dataset is None else {"dataset_name": dataset.name, "dataset_digest": dataset.digest}
    )
    finite = [
        Metric(
            name,
            value,
            now,
            step,
            model_id=model_id,
            run_id=run_id,
            **(measured_on if name.startswith("task/") else {}),
        )
        for step, numbers in rows
        for name, value in numbers.items()
        if math.isfinite(value)
    ]
    tags = dict(tags or {})
    if nonfinite := {n for _, row in rows for n, value in row.items() if not math.isfinite(value)}:
        before = client.get_run(run_id).data.tags.get(NONFINITE)
        tags[NONFINITE] = ", ".join(filter(None, [before, *sorted(nonfinite)]))
    client.log_batch(run_id, metrics=finite, tags=run_tags(tags))


def link_datasets(run_id: str) -> Dataset | None:
    """Make the datasets of a child's parent the child's too.

    Returns:
        The evaluation data among them; None where none or several may be.
    """
    from mlflow import MlflowClient
    from mlflow.utils.mlflow_tags import MLFLOW_DATASET_CONTEXT

    client = MlflowClient()
    parent_id = client.get_run(run_id).data.tags.get(PARENT_RUN)
    inputs = None if parent_id is None else client.get_run(parent_id).inputs
    if inputs is None or not inputs.dataset_inputs:
        return None
    client.log_inputs(run_id, inputs.dataset_inputs)
    context = (MLFLOW_DATASET_CONTEXT, EVALUATION)
    found = [
        each.dataset
        for each in inputs.dataset_inputs
        if context in [(tag.key, tag.value) for tag in each.tags]
    ]
    return found[0] if len(found) == 1 else None


def log_new_params(params: Mapping[str, str], *, run_id: str, name: str) -> None:
    """Log parameters on a run, which may have some of them already.

    MLflow refuses another value for a parameter. One that `mlflow run` logged, or an earlier model
    of the run, keeps its value; the other one then has the name of its model in front.

    Args:
        params: Values by name.
        run_id: The run.
        name: Name of the model that they are of.
    """
    from mlflow import MlflowClient
    from mlflow.entities import Param

    client = MlflowClient()
    present = client.get_run(run_id).data.params
    different = {key: value for key, value in params.items() if present.get(key) != value}
    named = {
        key if key not in present else f"{metric_name(name)}/{key}": value
        for key, value in different.items()
    }
    new = [Param(key, value) for key, value in named.items() if key not in present]
    client.log_batch(run_id, params=new)


def run_tags(tags: Mapping[str, str]) -> list[RunTag]:
    """Tags as `MlflowClient.log_batch` takes them."""
    from mlflow.entities import RunTag

    return [RunTag(key, value) for key, value in tags.items()]


def _worst(before: float | None, now: float, choose: Any) -> float:
    # NaN must win, and max() and min() let it lose.
    if before is None or math.isnan(now):
        return now
    return before if math.isnan(before) else float(choose(before, now))
