"""Whether Triton may put the requests of several clients together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from mlflow_e2eai.artifacts.axes import resize
from mlflow_e2eai.artifacts.values import Array, Axis, Infer, OnnxArtifact, Tensors, TensorSpec
from mlflow_e2eai.engine.profiles import Profile, admits, dynamic_of
from mlflow_e2eai.errors import RunnerError
from mlflow_e2eai.runtime.ort import onnxruntime_runner

_SMALL = 1e-3
"""Of an output's largest number: what sums in another order may differ by, and mixed items more."""


def why_items_mix(graph: OnnxArtifact, example: Tensors, axis: Axis) -> str | None:
    """Why requests must stay apart though all tensors begin with one axis; None if they need not.

    The name of an axis does not tell a batch from the points of one cloud. So two items, the first
    of the example and the same turned round, are asked together and each alone, with ONNX Runtime
    on the CPU.

    Args:
        graph: The graph.
        example: One array for each input.
        axis: The first axis of all inputs and outputs.
    """
    if axis.max == 1:
        return None
    sizes = {each.name: each.opt for each in graph.axes}
    one = resize(example, graph.inputs, {**sizes, axis.name: 1})
    other = {name: np.flip(array.reshape(-1)).reshape(array.shape) for name, array in one.items()}
    both = {name: np.concatenate([one[name], other[name]]) for name in one}
    try:
        with onnxruntime_runner(graph.path, libraries=graph.libraries) as infer:
            together, alone = infer(both), _joined(infer, one, other)
    except RunnerError as error:
        return f"whether its items are independent could not be tried ({error})"
    for name, array in together.items():
        if not _close(np.asarray(array), alone.get(name)):
            return f"an item's {name!r} depends on the other items along {axis.name!r}"
    return None


def _joined(infer: Infer, one: Tensors, other: Tensors) -> dict[str, Array]:
    answers = infer(one), infer(other)
    return {
        name: np.concatenate([np.asarray(answer[name]) for answer in answers])
        for name in answers[0]
        if answers[0][name].shape[1:] == answers[1][name].shape[1:]
    }


def _close(found: Array, wanted: Array | None) -> bool:
    if wanted is None or found.shape != wanted.shape:
        return False
    if found.dtype.kind in "biu":
        return bool(np.array_equal(found, wanted))
    found, wanted = found.astype(np.float64), wanted.astype(np.float64)
    finite = np.abs(wanted[np.isfinite(wanted)])
    small = _SMALL * float(finite.max(initial=0))
    return bool(np.allclose(found, wanted, rtol=0, atol=small, equal_nan=True))


# Triton takes the profile whose opt is nearest, and of several that are as near the first in the
# engine, whatever order its configuration names them in: GetMostOptimizedProfile and
# EvaluateTensorRTContext of its TensorRT backend (src/instance_state.cc at e2ef6d7, July 2026). In
# a batch it compares the axes after the first with those of the request one place too early, so
# that it can pass a static profile by for one that is nearer by mistake.


def passed_by(
    inputs: Sequence[TensorSpec], every: Sequence[Profile], batch: Axis | None
) -> list[str]:
    """The buckets whose static profiles Triton never takes, as ``N=8``.

    Args:
        inputs: The engine's inputs.
        every: Its profiles, in its order.
        batch: The axis along which Triton puts requests together.
    """
    dynamic = dynamic_of(every)
    found = []
    for at, profile in enumerate(every):
        sizes = {name: opt for name, (_, opt, _) in profile.items()}
        fitting = [other for other, bounds in enumerate(every) if admits(bounds, sizes)]
        nearest = min(fitting, key=lambda each: _distance(inputs, every[each], sizes, batch))
        if at not in (nearest, dynamic):
            fixed = [name for name in sizes if profile[name] != every[dynamic][name]]
            found.append(", ".join(f"{name}={sizes[name]}" for name in fixed))
    return found


def _distance(
    inputs: Sequence[TensorSpec], profile: Profile, sizes: Mapping[str, int], batch: Axis | None
) -> int:
    """Triton's distance between a profile's opt and a request."""
    total, items = 0, sizes[batch.name] if batch else 1
    for spec in inputs:
        asked = [sizes[size] if isinstance(size, str) else size for size in spec.shape]
        opt = [profile[size][1] if isinstance(size, str) else size for size in spec.shape]
        shifted = [items, *asked[:-1]]
        total += sum(abs(best - size) for best, size in zip(opt, shifted, strict=False))
    return total
