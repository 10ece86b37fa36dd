"""Batches that a profile does not admit: cut where they are too large, filled where too small."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mlflow_e2eai.artifacts import Array, Axis, Infer, Tensors, TensorSpec
from mlflow_e2eai.errors import InvalidInputError


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """One call of several that a batch is cut into.

    Attributes:
        start: First item.
        stop: The item after the last.
        size: Items in the call; those beyond the last are repetitions of it.
    """

    start: int
    stop: int
    size: int


def pieces(size: int, axis: Axis) -> tuple[Piece, ...]:
    """Cut a batch into as few calls as an axis admits; the last is filled up where it must be."""
    found = []
    for start in range(0, size, axis.max):
        stop = min(start + axis.max, size)
        least = max(stop - start, axis.min)
        found.append(Piece(start=start, stop=stop, size=least + -least % axis.multiple))
    return tuple(found)


def batch_axis(
    inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec], axes: Sequence[Axis]
) -> Axis | None:
    """The dynamic axis that comes first in every input and output; None where there is none.

    Only along such an axis can a batch be cut: every item has its place in each of them.
    """
    first = {spec.shape[0] if spec.shape else None for spec in (*inputs, *outputs)}
    return next((axis for axis in axes if first == {axis.name}), None)


def within(
    infer: Infer,
    inputs: Sequence[TensorSpec],
    outputs: Sequence[TensorSpec],
    axes: Sequence[Axis],
    *,
    split: bool,
) -> Infer:
    """Ask a callable only for sizes that its axes admit.

    Args:
        infer: It.
        inputs: Its inputs.
        outputs: Its outputs.
        axes: Its dynamic axes, with the sizes that it admits.
        split: Cut larger batches, and fill smaller ones by repeating their last item; what comes
            out is put together and cut to the items that were given. That is right for models
            which answer each item for itself, which the graph alone does not tell.

    Returns:
        A callable that raises InvalidInputError, with the profile, for sizes that are not admitted
        and not to be split.
    """
    by_name = {axis.name: axis for axis in axes}
    batch = batch_axis(inputs, outputs, axes)
    places = [
        (spec.name, at, by_name[size])
        for spec in inputs
        for at, size in enumerate(spec.shape)
        if isinstance(size, str) and size in by_name
    ]

    def answer(tensors: Tensors) -> Tensors:
        sizes: dict[str, int] = {}
        for name, at, axis in places:
            size = tensors[name].shape[at]
            if sizes.setdefault(axis.name, size) != size:
                msg = (
                    f"Input {name!r} has {size} along axis {at}, but another input has "
                    f"{sizes[axis.name]} along {axis.name!r}; give them the same size."
                )
                raise InvalidInputError(msg)
            if not axis.admits(size) and not (split and axis is batch and size):
                raise InvalidInputError(_refusal(name, at, size, axis, is_batch=axis is batch))
        if batch is None or batch.admits(sizes[batch.name]):
            return infer(tensors)
        return in_pieces(infer, tensors, pieces(sizes[batch.name], batch))

    return answer


def _refusal(name: str, at: int, size: int, axis: Axis, *, is_batch: bool) -> str:
    way = (
        "load the model with split=True, which cuts larger batches and fills smaller ones"
        if is_batch and size
        else "give it a size in that range"
    )
    return (
        f"Input {name!r} has {size} along axis {at}, but the profile admits {axis} for "
        f"{axis.name!r}; {way}."
    )


def in_pieces(infer: Infer, tensors: Tensors, cut: Sequence[Piece]) -> Tensors:
    """Ask for the pieces of a batch one by one, and put the answers together.

    Raises:
        InvalidInputError: A tensor is neither an array nor a torch tensor, and cannot be cut.
    """
    if strange := [name for name, array in tensors.items() if not hasattr(array, "__getitem__")]:
        msg = f"Input {strange[0]!r} cannot be cut; give an array or a torch tensor."
        raise InvalidInputError(msg)
    answers = []
    for piece in cut:
        count = piece.stop - piece.start
        answer = infer({name: _filled(array, piece) for name, array in tensors.items()})
        answers.append({name: array[:count] for name, array in answer.items()})
    return {name: _joined([answer[name] for answer in answers]) for name in answers[0]}


def _filled(array: Array, piece: Piece) -> Array:
    items = array[piece.start : piece.stop]
    missing = piece.size - len(items)
    return _joined([items, *[items[-1:]] * missing]) if missing else items


def _joined(parts: Sequence[Any]) -> Any:
    """Arrays, or torch tensors, one after the other along the first axis."""
    if all(isinstance(part, np.ndarray) for part in parts):
        return np.concatenate(parts)
    import torch

    return torch.cat(list(parts))
