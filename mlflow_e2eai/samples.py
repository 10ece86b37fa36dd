"""What variants are asked: the corners of the profile, and the caller's labelled data."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np

from mlflow_e2eai.arrays import corners, resize
from mlflow_e2eai.artifacts import Array, OnnxArtifact, Tensors
from mlflow_e2eai.errors import InvalidInputError

TaskMetric: TypeAlias = Callable[[Tensors, Array], float]
"""Outputs by name and the labels -> a number of which more is better."""


def accuracy(outputs: Tensors, labels: Array) -> float:
    """Share of items whose largest value along the first output's last axis is at the label."""
    first = next(iter(outputs.values()))
    return float(np.mean(np.argmax(first, axis=-1) == labels))


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationData:
    """Labelled data that the variants are judged on.

    Attributes:
        inputs: One array for each input; the leading axis counts items.
        labels: One entry for each item.
        metrics: Task metrics by name.

    Raises:
        InvalidInputError: There are no items, or inputs and labels are not as many.
    """

    inputs: Tensors
    labels: Array
    metrics: Mapping[str, TaskMetric] = field(default_factory=lambda: {"accuracy": accuracy})

    def __post_init__(self) -> None:
        lengths = {np.shape(array)[:1] for array in (*self.inputs.values(), self.labels)}
        if len(lengths) != 1 or lengths & {(), (0,)}:
            counts = sorted(length[0] if length else 1 for length in lengths)
            msg = (
                f"The evaluation data has {counts} items; give inputs and labels of one length, "
                f"and at least one item."
            )
            raise InvalidInputError(msg)

    def check_names(self, names: Iterable[str]) -> None:
        """Refuse data for other inputs than these.

        Raises:
            InvalidInputError: A name is missing or strange.
        """
        if set(self.inputs) != set(names):
            msg = f"The evaluation data has {sorted(self.inputs)}, but {list(names)} are wanted."
            raise InvalidInputError(msg)


def profile_samples(example: Tensors, graph: OnnxArtifact) -> dict[str, Tensors]:
    """The input example at every corner of a graph's profile, by corner."""
    return {
        label: resize(example, graph.inputs, sizes) for label, sizes in corners(graph.axes).items()
    }


def calls(inputs: Tensors, graph: OnnxArtifact, sample: Tensors) -> Iterator[tuple[Tensors, int]]:
    """Evaluation data in calls that the profile admits, each with how many of its items count.

    A last call that would be smaller than the profile's min is filled up by repeating its items.
    """
    first = graph.inputs[0]
    lowest = highest = sample[first.name].shape[0]
    for axis in graph.axes:
        if axis.name == first.shape[0]:
            lowest, highest = axis.min, axis.max
    total = len(inputs[first.name])
    for start in range(0, total, highest):
        count = min(highest, total - start)
        index = start + np.arange(max(count, lowest)) % count
        yield {name: np.ascontiguousarray(array[index]) for name, array in inputs.items()}, count
