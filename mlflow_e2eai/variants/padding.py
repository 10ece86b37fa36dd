"""Sizes between buckets: filled up to the next one, or asked as they are, whichever is quicker."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Sequence

from mlflow_e2eai.artifacts import Axis, Infer, Tensors, TensorSpec
from mlflow_e2eai.variants.batching import Piece, batch_axis, in_pieces

_CALLS = 4
"""Calls of each way before one is chosen."""

_MOST_CHOSEN = 1024
"""Shapes whose way is remembered."""


class _Trial:
    """The calls of one shape, by turns in each of two ways, until it is known which is quicker."""

    def __init__(self) -> None:
        self._times: tuple[list[float], list[float]] = ([], [])
        self._begun = [0, 0]
        self.is_filled: bool | None = None

    def begin(self) -> bool:
        """Which way the next call takes; filling up comes first, as it compiles nothing."""
        is_filled = self._begun[1] <= self._begun[0]
        self._begun[is_filled] += 1
        return is_filled

    def end(self, *, is_filled: bool, seconds: float) -> None:
        """Note a call; the shortest counts: others compile, or wait for other callers."""
        self._times[is_filled].append(seconds)
        if min(map(len, self._times)) >= _CALLS:
            plain, filled = map(min, self._times)
            self.is_filled = filled < plain


def quickest(
    infer: Infer,
    inputs: Sequence[TensorSpec],
    outputs: Sequence[TensorSpec],
    axes: Sequence[Axis],
    *,
    clock: Callable[[], float] = time.perf_counter,
) -> Infer:
    """Fill sizes between buckets up to the next one where that is quicker.

    A bucket has a static profile, which may answer more items sooner than the dynamic one answers
    fewer. Which it is depends on the model and the GPU, so it is measured where it matters: the
    first eight calls of a shape take both ways by turns, and the quicker is kept. No call is made
    that nobody asked for.

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

    def answer(tensors: Tensors) -> Tensors:
        size = tensors[names[0]].shape[0]
        bucket = next((bucket for bucket in buckets if bucket >= size), None)
        can_fill = all(hasattr(tensors[name], "__getitem__") for name in names)
        if bucket is None or bucket == size or not can_fill:
            return infer(tensors)
        whole = (Piece(start=0, stop=size, size=bucket),)
        shapes = tuple([tuple(tensors[name].shape) for name in names])
        with lock:
            if len(trials) >= _MOST_CHOSEN:
                trials.clear()
            trial = trials.setdefault(shapes, _Trial())
            chosen = trial.is_filled
            is_filled = trial.begin() if chosen is None else chosen
        if chosen is not None:
            return in_pieces(infer, tensors, whole) if chosen else infer(tensors)
        started = clock()
        found = in_pieces(infer, tensors, whole) if is_filled else infer(tensors)
        _wait_for(found)
        with lock:
            trial.end(is_filled=is_filled, seconds=clock() - started)
        return found

    return answer


def _wait_for(answer: Tensors) -> None:
    """Wait for torch tensors on a GPU, which are there before they hold the answer."""
    torch = sys.modules.get("torch")
    tensor = next(iter(answer.values()))
    if torch is not None and isinstance(tensor, torch.Tensor) and tensor.is_cuda:
        torch.cuda.current_stream(tensor.device).synchronize()
