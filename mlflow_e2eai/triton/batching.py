"""Whether Triton may put the requests of several clients together."""

from __future__ import annotations

import numpy as np

from mlflow_e2eai.arrays import resize
from mlflow_e2eai.artifacts import Array, Axis, Infer, OnnxArtifact, Tensors
from mlflow_e2eai.errors import RunnerError
from mlflow_e2eai.runners import onnxruntime_runner

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
