"""The caller's evaluation data in any form, read batch by batch, anew for each variant."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from mlflow_e2eai.artifacts.arrays import feed, load_arrays, save_arrays
from mlflow_e2eai.artifacts.values import Array, Axis, OnnxArtifact, Tensors
from mlflow_e2eai.errors import InvalidInputError
from mlflow_e2eai.evaluation.data_forms import arrays_of, check_lengths, check_names, pairs_of
from mlflow_e2eai.evaluation.metrics import Metrics, TaskMetric, accuracy, join_parts, task_metrics
from mlflow_e2eai.parity.samples import profile_samples
from mlflow_e2eai.pytorch.flat_module import named_inputs
from mlflow_e2eai.surgery.mapping import convert_inputs

Read: TypeAlias = Callable[[], Iterator[tuple[tuple[Array, ...], Array | None]]]
"""Starts a pass over the data: batches of one array for each input, and labels."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationData:
    """Evaluation data of the variants; see `of` for its forms.

    Attributes:
        names: Names of the inputs.
        read: Starts a pass, in which each batch has arrays in the order of `names`.
        metrics: Task metrics by name; none where there are no labels.
    """

    names: tuple[str, ...]
    read: Read
    metrics: Mapping[str, TaskMetric] = field(default_factory=dict)

    @classmethod
    def of(cls, source: Any, *, example: Tensors, metrics: Metrics | None = None) -> EvaluationData:
        """Evaluation data from any of these forms.

        Args:
            source: One of these; labels may be left out, or be None.

                - ``(inputs, labels)``. Inputs are a mapping of names to arrays or tensors, a tuple
                  of them in the example's order, or a single one; the leading axis counts items.
                - ``(frame, "column")``: a pandas DataFrame and its column of labels, or an array of
                  labels. See `from_frame`.
                - A torch ``DataLoader``, a list, or anything else that can be iterated again and
                  again, of batches as above; or a callable that makes a new iterator of them. It is
                  read anew for each variant, and no batch stays in memory.
                - An MLflow dataset, such as ``mlflow.data.from_pandas(frame, targets="column")``.
            example: One array for each input, with the names and shapes of the data.
            metrics: See `task_metrics`.

        Raises:
            InvalidInputError: It is something else, can be read only once, or its first batch does
                not fit; see also `task_metrics`.
        """
        pairs = pairs_of(source)

        def read() -> Iterator[tuple[tuple[Array, ...], Array | None]]:
            return (arrays_of(inputs, labels, example) for inputs, labels in pairs())

        data = cls(names=tuple(example), read=read)
        _, labels = next(data.batches())
        return dataclasses.replace(data, metrics=task_metrics(metrics, labels))

    def batches(self) -> Iterator[tuple[Tensors, Array | None]]:
        """One pass: inputs by name, and labels, in the caller's batches.

        Raises:
            InvalidInputError: A batch does not fit, or there is none.
        """
        batch = None
        for batch in self.read():
            arrays, labels = batch
            check_lengths(arrays if labels is None else (*arrays, labels))
            if labels is None and self.metrics:
                msg = "A batch of the evaluation data has no labels; give all of them, or none."
                raise InvalidInputError(msg)
            yield dict(zip(self.names, arrays, strict=True)), labels
        if batch is None:
            msg = (
                "The evaluation data has no batches; give at least one, from an object that can "
                "be iterated once per variant."
            )
            raise InvalidInputError(msg)

    def check_names(self, names: Iterable[str]) -> None:
        """Refuse data for other inputs than these.

        Raises:
            InvalidInputError: A name is missing or unknown.
        """
        check_names(self.names, list(names))

    def for_graph(self, cleaned: OnnxArtifact) -> EvaluationData:
        """The same data with the inputs of the cleaned graph."""

        def read() -> Iterator[tuple[tuple[Array, ...], Array | None]]:
            for arrays, labels in self.read():
                converted = convert_inputs(dict(zip(self.names, arrays, strict=True)), cleaned)
                yield tuple(converted.values()), labels

        return dataclasses.replace(self, names=tuple(s.name for s in cleaned.inputs), read=read)

    def whole(self, *, limit_bytes: int) -> tuple[Tensors, Array | None] | None:
        """All of it in one batch; None where that is larger than the limit, or does not fit.

        Reading stops as soon as the limit is exceeded.
        """
        batches: list[tuple[Tensors, Array | None]] = []
        size = 0
        for inputs, labels in self.batches():
            size += sum(array.nbytes for array in inputs.values())
            size += 0 if labels is None else labels.nbytes
            if size > limit_bytes:
                return None
            batches.append((inputs, labels))
        counts = [len(next(iter(inputs.values()))) for inputs, _ in batches]
        columns: dict[str, Array] = {}
        for name in self.names:
            column = join_parts([inputs[name] for inputs, _ in batches], counts)
            if isinstance(column, list):
                return None
            columns[name] = column
        known = [labels for _, labels in batches if labels is not None]
        truth = join_parts(known, counts) if known else None
        return None if isinstance(truth, list) else (columns, truth)


def calls(
    data: EvaluationData, graph: OnnxArtifact, example: Tensors
) -> Iterator[tuple[Tensors, Array | None, int]]:
    """Evaluation data in calls that a profile admits.

    A batch above the profile's max is split. A rest below its min, or no multiple of the axis's
    `multiple`, is filled up by repeating its items, and the filling does not count.

    Args:
        data: The data, under the graph's names.
        graph: Its first input's leading axis counts items; where that is not dynamic, every call
            has as many as the example.
        example: One array for each input.

    Yields:
        Inputs, converted by `feed` to the graph's dtypes; the labels of the items that count, None
        where there are none; and the number of items that count.

    Raises:
        InvalidInputError: The data does not fit the graph: dtype, rank, or the size of an axis.
    """
    first = graph.inputs[0]
    axes = {axis.name: axis for axis in graph.axes}
    static = len(np.atleast_1d(example[first.name]))
    fixed = Axis("static", min=static, opt=static, max=static)
    leading = axes.get(str(first.shape[0]), fixed)
    for inputs, labels in data.batches():
        total = len(inputs[first.name])
        for start in range(0, total, leading.max):
            count = min(leading.max, total - start)
            filled = -(-max(count, leading.min) // leading.multiple) * leading.multiple
            index = start + np.arange(filled) % count
            inputs_of_call = feed(
                {name: array[index] for name, array in inputs.items()}, graph.inputs
            )
            _check_sizes(inputs_of_call, graph, axes)
            yield inputs_of_call, None if labels is None else labels[start : start + count], count


def all_samples(
    example: Tensors, graph: OnnxArtifact, data: EvaluationData | None
) -> Iterator[Tensors]:
    """The input example at every corner of a graph's profile, then the evaluation data.

    Args:
        example: One array for each input.
        graph: Where the dynamic axes are.
        data: The data, under the graph's names.
    """
    yield from profile_samples(example, graph).values()
    if data is not None:
        yield from (batch for batch, _, _ in calls(data, graph, example))


def _check_sizes(tensors: Tensors, graph: OnnxArtifact, axes: Mapping[str, Axis]) -> None:
    for spec in graph.inputs:
        for name, size in zip(spec.shape, tensors[spec.name].shape, strict=True):
            axis = axes.get(str(name))
            if axis is not None and not axis.admits(size):
                msg = (
                    f"The evaluation data has {size} on axis {name!r} of {spec.name!r}, but the "
                    f"profile allows {axis}; cut or pad it, or widen the axis."
                )
                raise InvalidInputError(msg)


def evaluation_of(
    model: Any, input_example: Any, data: Any, metrics: Metrics | None
) -> EvaluationData | None:
    """Evaluation data with the inputs named as in the example; None for None."""
    if data is None or isinstance(data, EvaluationData):
        return data
    example = input_example if isinstance(model, Path) else named_inputs(model, input_example)
    return EvaluationData.of(data, example=example, metrics=metrics)


_log = logging.getLogger(__name__)

_MAX_EVALUATION_BYTES = 256 << 20
"""Evaluation data up to this size is logged with the PyTorch model, and is in memory meanwhile. All
of CIFAR-10's test images in float32 are 117 MiB; ImageNet's are too many to log with each model."""


def save_evaluation(evaluation: EvaluationData, path: Path) -> tuple[Tensors, Array | None] | None:
    """Save evaluation data, all or none; returns them.

    Labels are saved where they are `accuracy`'s: any other metric is code, which is not saved, and
    labels are useless without it.
    """
    whole = evaluation.whole(limit_bytes=_MAX_EVALUATION_BYTES)
    if whole is None:
        _log.warning(
            "The evaluation data is larger than %d MiB or its batches differ in shape, so it is "
            "not logged with the PyTorch model; a later `evaluate` will run only the corners of "
            "the profile.",
            _MAX_EVALUATION_BYTES >> 20,
        )
        return None
    inputs, labels = whole
    arrays = {f"inputs/{name}": array for name, array in inputs.items()}
    if labels is not None and dict(evaluation.metrics) == {"accuracy": accuracy}:
        arrays["labels"] = labels
    save_arrays(path, arrays)
    return whole


def read_evaluation(path: Path) -> EvaluationData | None:
    """The evaluation data of a file that `save_evaluation` wrote; None where there is none."""
    if not path.is_file():
        return None
    arrays = load_arrays(path)
    labels = arrays.pop("labels", None)
    inputs = {name.removeprefix("inputs/"): array for name, array in arrays.items()}
    return EvaluationData.of((inputs, labels), example=inputs)
