"""Copies of outputs, and the circumstances of the call that returned them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mlflow_e2eai.artifacts.values import Array
from mlflow_e2eai.parity.measure import Measure


@dataclass(frozen=True, slots=True)
class OutputCopy:
    """A copy of one output of a call.

    Attributes:
        array: Its elements; those of a ragged output one after the other.
        items: Shapes of a ragged output's items, or None.
    """

    array: Array
    items: tuple[tuple[int, ...], ...] | None

    @classmethod
    def of(cls, value: Any) -> OutputCopy:
        """Copy an array, or a list of arrays whose shapes may differ."""
        if not _is_ragged(value):
            return cls(np.array(value), None)
        items = [np.asarray(item) for item in value]
        flat = np.concatenate([item.reshape(-1) for item in items])
        return cls(flat, tuple(item.shape for item in items))

    @property
    def shape(self) -> str:
        """The shape for people."""
        if self.items is None:
            return str(list(self.array.shape))
        return f"[{', '.join(str(list(item)) for item in self.items)}]"

    def fits(self, other: OutputCopy) -> bool:
        """Whether both have the same shape."""
        return self.array.shape == other.array.shape and self.items == other.items

    def index_of(self, position: int) -> tuple[int, ...]:
        """Index of an element, from its position in the flattened array."""
        if self.items is None:
            return tuple(int(i) for i in np.unravel_index(position, self.array.shape))
        for number, shape in enumerate(self.items):
            if position < math.prod(shape):
                return (number, *(int(i) for i in np.unravel_index(position, shape)))
            position -= math.prod(shape)
        raise IndexError(position)

    def value(self, position: int) -> Any:
        """One element, as Python's own type."""
        element = self.array.reshape(-1)[position]
        return element.item() if isinstance(element, np.generic) else element


@dataclass(slots=True)
class Comparison:
    """One sample with the reference's outputs and the candidate's first ones.

    The sample is not kept: outputs of many samples may wait to be compared.

    Attributes:
        number: Of the sample, from 0.
        right: The reference's outputs by name.
        first: The candidate's first outputs by name, and their differences.
    """

    number: int
    right: Mapping[str, OutputCopy]
    first: dict[str, tuple[OutputCopy, Measure]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Circumstances:
    """The circumstances of one call of the candidate.

    Attributes:
        before: The right outputs of the call before, if that was of another sample.
        poisoned: Outputs whose buffer was overwritten before the call.
        threads: Threads that called at once.
    """

    before: Mapping[str, OutputCopy] = field(default_factory=dict)
    poisoned: frozenset[str] = frozenset()
    threads: int = 1


def _is_ragged(value: Any) -> bool:
    """Whether it is a sequence of arrays, or of sequences of other lengths."""
    if isinstance(value, np.ndarray):
        return value.dtype.kind == "O" and any(isinstance(item, np.ndarray) for item in value.flat)
    if not isinstance(value, (list, tuple)):
        return False
    lengths = {len(item) for item in value if isinstance(item, (list, tuple))}
    return len(lengths) > 1 or any(isinstance(item, np.ndarray) for item in value)
