"""Task metrics: one number for outputs on labelled data, higher is better."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np

from mlflow_e2eai.artifacts.values import Array, Infer, Tensors
from mlflow_e2eai.errors import InvalidInputError, brief

TaskMetric: TypeAlias = Callable[[Mapping[str, Any], Any], float]
"""Outputs by name and the labels -> a number, higher is better.

Each output, and the labels, is one array of all items; or, where that is impossible (its shapes
differ from call to call, it has not one row for each item, it holds Python objects), a list with
one array for each call, in order: so with detections and transcripts."""

Metrics: TypeAlias = Mapping[str, Any] | Sequence[Any]
"""Task metrics of a caller: by name, or a list of metrics with names of their own."""


NEGATED = "neg_"
"""Begins the name of a metric that was negated, so that its best value is 0."""


def accuracy(outputs: Mapping[str, Any], labels: Any) -> float:
    """Share of items whose argmax along the last axis of the first output is the label.

    Raises:
        InvalidInputError: The first output has no classes, or the labels have another shape
            than the predictions.
    """
    first = next(iter(outputs.values()))
    labelled, predicted = np.shape(labels), np.shape(first)
    if not predicted or predicted[-1] < 2 or labelled != predicted[:-1]:  # noqa: PLR2004 - a choice needs two
        msg = (
            f"The first output has shape {list(predicted)} and the labels {list(labelled)}, but "
            "accuracy needs scores of two or more classes along the last axis; give your own "
            "metrics=."
        )
        raise InvalidInputError(msg)
    return float(np.mean(np.argmax(first, axis=-1) == labels))


def task_metrics(given: Metrics | None, labels: Array | None) -> dict[str, TaskMetric]:
    """Task metrics by the name that their number has in the evidence.

    Args:
        given: By name, or a list: callables, or MLflow's metrics (``mlflow.metrics``,
            ``mlflow.models.make_metric``). With ``greater_is_better=False`` the value is
            negated, with ``neg_`` before its name, as in scikit-learn: higher is then better for
            every metric. None is `accuracy`, where there are labels.
        labels: Some of the labels; None when there are none.

    Raises:
        InvalidInputError: There are no labels for the metrics, or labels that are not integers for
            `accuracy`; or two metrics have one name.
    """
    if given is None:
        if labels is not None and labels.dtype.kind not in "iub":
            msg = (
                f"The labels are {labels.dtype}, but accuracy needs integers; give "
                "metrics={'name': function}, or no labels."
            )
            raise InvalidInputError(msg)
        return {} if labels is None else {"accuracy": accuracy}
    pairs = (
        list(given.items()) if isinstance(given, Mapping) else [(_own_name(m), m) for m in given]
    )
    if pairs and labels is None:
        msg = "Metrics need labels; give the data as (inputs, labels)."
        raise InvalidInputError(msg)
    named = dict(_more_is_better(name, metric) for name, metric in pairs)
    if len(named) < len(pairs):
        msg = f"Two metrics {[name for name, _ in pairs]} have the same name; give a mapping."
        raise InvalidInputError(msg)
    return named


def scores(
    infer: Infer,
    calls: Iterable[tuple[Tensors, Array | None, int]],
    metrics: Mapping[str, TaskMetric],
) -> dict[str, float]:
    """Task metrics of one variant.

    The inputs are read call by call and released; the outputs stay in memory, as a metric needs
    all of them.

    Args:
        infer: The variant.
        calls: Those of `evaluation.data.calls`.
        metrics: By name; without any, nothing is run.

    Raises:
        InvalidInputError: A metric raises, or gives no number. On the outputs of the PyTorch module
            that is the caller's error; on those of another variant it is that variant's fault.
    """
    if not metrics:
        return {}
    arrays: dict[str, list[Array]] = {}
    labels: list[Any] = []
    counts: list[int] = []
    for inputs, known, count in calls:
        rows = len(next(iter(inputs.values())))
        for name, value in infer(inputs).items():
            array = np.array(value)
            # Items that fill up to the profile's min do not count.
            arrays.setdefault(name, []).append(array[:count] if _rows(array) == rows else array)
        labels.append(known)
        counts.append(count)
    outputs = {name: join_parts(parts, counts) for name, parts in arrays.items()}
    truth = join_parts(labels, counts)
    return {name: _number_of(name, metric, outputs, truth) for name, metric in metrics.items()}


def join_parts(parts: list[Array], counts: Sequence[int]) -> Array | list[Array]:
    """One array of all items if each part has a row for each item; else the parts."""
    fits = (
        all(_rows(part) == count for part, count in zip(parts, counts, strict=True))
        and len({part.shape[1:] for part in parts}) == 1
        and not any(part.dtype.hasobject for part in parts)
    )
    return np.concatenate(parts) if fits else parts


def _rows(array: Array) -> int | None:
    return array.shape[0] if array.ndim else None


def _number_of(name: str, metric: TaskMetric, outputs: Mapping[str, Any], labels: Any) -> float:
    try:
        return float(metric(outputs, labels))
    except Exception as error:  # the user's metric may raise anything
        msg = (
            f"Task metric {name!r} fails on the outputs {list(outputs)}: {type(error).__name__}: "
            f"{brief(error)}"
        )
        raise InvalidInputError(msg) from error


# MLflow's metrics


def _own_name(metric: Any) -> str:
    return str(getattr(metric, "name", None) or metric.__name__)


def _more_is_better(name: str, metric: Any) -> tuple[str, TaskMetric]:
    if not hasattr(metric, "eval_fn"):
        return name, metric
    sign, prefix = (1, "") if metric.greater_is_better else (-1, NEGATED)

    def negated(outputs: Mapping[str, Any], labels: Any) -> float:
        return sign * _aggregate(metric, metric.eval_fn(*_arguments(metric, outputs, labels)))

    return f"{prefix}{name}", negated


def _arguments(metric: Any, outputs: Mapping[str, Any], labels: Any) -> list[Any]:
    """Arguments of a metric as MLflow's default evaluator passes them.

    ``predictions`` is the first output, one entry for each item; its argmax along the last axis
    where the metric has ``metric_metadata={"predictions": "argmax"}``, as classes need. Other
    parameters are outputs by name; ``metrics`` is empty. A function of two other parameters gets
    a DataFrame with the columns ``prediction`` and ``target``, as in MLflow's first metrics.
    """
    import pandas as pd

    first = next(iter(outputs))
    columns = {name: _series(value, classes=False) for name, value in outputs.items()}
    is_class = (metric.metric_metadata or {}).get("predictions") == "argmax"
    predictions = _series(outputs[first], classes=True) if is_class else columns[first]
    targets = _series(labels, classes=False)
    parameters = [
        parameter
        for parameter in inspect.signature(metric.eval_fn).parameters.values()
        if parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
    ]
    match [parameter.name for parameter in parameters]:
        case [table, other] if table != "predictions" and other != "targets":
            return [pd.DataFrame({"prediction": predictions, "target": targets}), {}]
    known = {**columns, "predictions": predictions, "targets": targets, "metrics": {}}
    arguments = []
    for parameter in parameters:
        if parameter.name not in known and parameter.default is parameter.empty:
            msg = f"it has the parameter {parameter.name!r}, which is not one of {sorted(known)}"
            raise TypeError(msg)
        arguments.append(known.get(parameter.name, parameter.default))
    return arguments


def _series(value: Array | list[Array], *, classes: bool) -> Any:
    """A pandas Series with one entry for each item: a number, or an array where it is more."""
    import pandas as pd

    parts = value if isinstance(value, list) else [value]
    if classes:
        parts = [np.argmax(part, axis=-1) for part in parts]
    rows = [row for part in parts for row in np.atleast_1d(part)]
    return pd.Series(
        [row.item() if np.size(row) == 1 and hasattr(row, "item") else row for row in rows]
    )


def _aggregate(metric: Any, value: Any) -> float:
    """The number of a MetricValue: the one of the metric's own name, the only one, or the mean."""
    results = getattr(value, "aggregate_results", None)
    if results is None:
        return float(value)
    for name in (metric.name, "mean"):
        if name in results:
            return float(results[name])
    (only,) = results.values()
    return float(only)
