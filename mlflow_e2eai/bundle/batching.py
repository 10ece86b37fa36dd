"""Batches that a profile does not admit: cut if they are too large, filled if too small."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mlflow_e2eai.artifacts.values import Array, Axis, Infer, Tensors, TensorSpec
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
    cut = []
    for start in range(0, size, axis.max):
        stop = min(start + axis.max, size)
        least = max(stop - start, axis.min)
        cut.append(Piece(start=start, stop=stop, size=least + -least % axis.multiple))
    return tuple(cut)


def batch_axis(
    inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec], axes: Sequence[Axis]
) -> Axis | None:
    """The dynamic axis that comes first in every input and output; None where there is none.

    Only along such an axis can a batch be cut: each of them has every item.
    """
    first = {spec.shape[0] if spec.shape else None for spec in (*inputs, *outputs)}
    return next((axis for axis in axes if first == {axis.name}), None)


def bound_sizes(
    infer: Infer,
    inputs: Sequence[TensorSpec],
    outputs: Sequence[TensorSpec],
    axes: Sequence[Axis],
    *,
    split: bool,
    profile: bool = True,
) -> Infer:
    """Run a callable only on sizes that its axes admit, each the same in all inputs.

    Args:
        infer: The callable.
        inputs: Its inputs.
        outputs: Its outputs.
        axes: Its dynamic axes, with the sizes that it admits.
        split: Cut larger batches, and fill smaller ones by repeating their last item; the outputs
            are joined and cut to the given items. That is right for models that treat each item
            independently, which the graph alone does not show.
        profile: Whether the callable is bound to min and max. If False, only its multiples and no
            items at all are refused, as ONNX Runtime runs what is larger or smaller.

    Returns:
        A callable that raises InvalidInputError, with the profile, for sizes that are not admitted
        and not to be split.
    """
    by_name = {axis.name: axis for axis in axes}
    batch = batch_axis(inputs, outputs, axes)
    axis_positions = [
        (spec.name, at, by_name[size])
        for spec in inputs
        for at, size in enumerate(spec.shape)
        if isinstance(size, str) and size in by_name
    ]

    if not axis_positions:
        return infer

    def refuses(size: int, axis: Axis) -> bool:
        if split and axis is batch:
            return not size
        return not axis.admits(size) if profile else not size or bool(size % axis.multiple)

    def run(tensors: Tensors) -> Tensors:
        sizes: dict[str, int] = {}
        for name, at, axis in axis_positions:
            size = tensors[name].shape[at]
            if sizes.setdefault(axis.name, size) != size:
                msg = (
                    f"Input {name!r} has {size} along axis {at}, but another input has "
                    f"{sizes[axis.name]} along {axis.name!r}; give them the same size."
                )
                raise InvalidInputError(msg)
            if refuses(size, axis):
                raise InvalidInputError(_refusal(name, at, size, axis, is_batch=axis is batch))
        if batch is None or not split or batch.admits(sizes[batch.name]):
            return infer(tensors)
        return run_pieces(infer, tensors, pieces(sizes[batch.name], batch))

    return run


def _refusal(name: str, at: int, size: int, axis: Axis, *, is_batch: bool) -> str:
    way = (
        "load the model with split=True, which splits larger batches and pads smaller ones"
        if is_batch and size
        else "give it a size in that range"
    )
    return (
        f"Input {name!r} has {size} along axis {at}, but the profile allows {axis} for "
        f"{axis.name!r}; {way}."
    )


def run_pieces(infer: Infer, tensors: Tensors, cut: Sequence[Piece]) -> Tensors:
    """Run the pieces of a batch one by one, and put the outputs together.

    Raises:
        InvalidInputError: A tensor is neither an array nor a torch tensor, and cannot be cut.
    """
    if uncut := [name for name, array in tensors.items() if not hasattr(array, "__getitem__")]:
        msg = f"Input {uncut[0]!r} cannot be split; give an array or a torch tensor."
        raise InvalidInputError(msg)
    parts = []
    for piece in cut:
        count = piece.stop - piece.start
        outputs = infer({name: _fill(array, piece) for name, array in tensors.items()})
        parts.append({name: array[:count] for name, array in outputs.items()})
    return {name: _join([part[name] for part in parts]) for name in parts[0]}


def _fill(array: Array, piece: Piece) -> Array:
    items = array[piece.start : piece.stop]
    missing = piece.size - len(items)
    return _join([items, *[items[-1:]] * missing]) if missing else items


def _join(parts: Sequence[Any]) -> Any:
    """Arrays, or torch tensors, one after the other along the first axis."""
    if all(isinstance(part, np.ndarray) for part in parts):
        return np.concatenate(parts)
    import torch

    return torch.cat(list(parts))


# Sizes between buckets: filled up to the next one, or run unchanged, whichever is faster.


_CALLS = 4
"""Calls of each way before one is chosen."""

_MOST_SHAPES = 1024
"""Shapes whose choice is cached."""


class _Trial:
    """Calls of one shape, filled and unfilled in turns, until the faster way is known."""

    def __init__(self) -> None:
        self._times: tuple[list[float], list[float]] = ([], [])
        self._started = [0, 0]
        self.is_filled: bool | None = None

    def begin(self) -> bool:
        """Choose the next call's way; filling up comes first, as it compiles nothing."""
        is_filled = self._started[1] <= self._started[0]
        self._started[is_filled] += 1
        return is_filled

    def end(self, *, is_filled: bool, seconds: float) -> None:
        """Record a call; the shortest counts: others compile, or wait for other callers."""
        self._times[is_filled].append(seconds)
        if min(map(len, self._times)) >= _CALLS:
            plain, filled = map(min, self._times)
            self.is_filled = filled < plain


def fill_to_buckets(
    infer: Infer,
    inputs: Sequence[TensorSpec],
    outputs: Sequence[TensorSpec],
    axes: Sequence[Axis],
    *,
    clock: Callable[[], float] = time.perf_counter,
) -> Infer:
    """Fill sizes between buckets up to the next one where that is quicker.

    A bucket has a static profile, which may run more items faster than the dynamic one runs fewer.
    That depends on the model and the GPU, so it is measured in use: the first eight calls of a
    shape are filled and unfilled in turns, and the faster way is used from then on. No extra calls
    are made.

    Args:
        infer: An engine.
        inputs: Its inputs.
        outputs: Its outputs.
        axes: Its dynamic axes.
        clock: Seconds, rising.

    Returns:
        The callable; `infer` itself where no size is filled up, as the first axis of every input
        and output must be the same dynamic one, and have buckets.
    """
    batch = batch_axis(inputs, outputs, axes)
    if batch is None or not batch.buckets:
        return infer
    buckets, names = batch.buckets, [spec.name for spec in inputs]
    trials: dict[tuple[tuple[int, ...], ...], _Trial] = {}
    lock = threading.Lock()

    def run(tensors: Tensors) -> Tensors:
        size = tensors[names[0]].shape[0]
        bucket = next((bucket for bucket in buckets if bucket >= size), None)
        can_fill = all(hasattr(tensors[name], "__getitem__") for name in names)
        if bucket is None or bucket == size or not can_fill:
            return infer(tensors)
        whole = (Piece(start=0, stop=size, size=bucket),)
        shapes = tuple([tuple(tensors[name].shape) for name in names])
        with lock:
            if len(trials) >= _MOST_SHAPES:
                trials.clear()
            trial = trials.setdefault(shapes, _Trial())
            chosen = trial.is_filled
            is_filled = trial.begin() if chosen is None else chosen
        if chosen is not None:
            return run_pieces(infer, tensors, whole) if chosen else infer(tensors)
        started = clock()
        outputs = run_pieces(infer, tensors, whole) if is_filled else infer(tensors)
        _wait_for(outputs)
        with lock:
            trial.end(is_filled=is_filled, seconds=clock() - started)
        return outputs

    return run


def _wait_for(outputs: Tensors) -> None:
    """Wait for torch tensors on a GPU, whose numbers may not be computed yet."""
    torch = sys.modules.get("torch")
    tensor = next(iter(outputs.values()))
    if torch is not None and isinstance(tensor, torch.Tensor) and tensor.is_cuda:
        torch.cuda.current_stream(tensor.device).synchronize()
