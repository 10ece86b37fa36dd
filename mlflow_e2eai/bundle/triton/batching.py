"""Whether Triton may batch the requests of several clients."""

from __future__ import annotations

import numpy as np

from mlflow_e2eai.artifacts.axes import resize
from mlflow_e2eai.artifacts.values import Array, Axis, Infer, OnnxArtifact, Tensors
from mlflow_e2eai.errors import RunnerError
from mlflow_e2eai.runtime.ort import onnxruntime_runner

_SMALL = 1e-3
"""Of an output's largest number: what sums in another order may differ by, and mixed items more."""


def why_items_mix(graph: OnnxArtifact, example: Tensors, axis: Axis) -> str | None:
    """Reason why requests must not be batched along a common first axis; None if they may.

    By its name, an axis may be a batch or the points of one cloud. So two items, the first of the
    example and the same reversed, are run together and each alone, with ONNX Runtime on the CPU.

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
        opened = onnxruntime_runner(
            graph.path, precision=graph.precision, libraries=graph.libraries
        )
        with opened as infer:
            together, alone = infer(both), _run_apart(infer, one, other)
    except RunnerError as error:
        return f"whether its items are independent could not be checked ({error})"
    for name, array in together.items():
        if not _is_close(np.asarray(array), alone.get(name)):
            return f"an item's {name!r} depends on the other items along {axis.name!r}"
    return None


def _run_apart(infer: Infer, one: Tensors, other: Tensors) -> dict[str, Array]:
    outputs = infer(one), infer(other)
    return {
        name: np.concatenate([np.asarray(each[name]) for each in outputs])
        for name in outputs[0]
        if outputs[0][name].shape[1:] == outputs[1][name].shape[1:]
    }


def _is_close(together: Array, alone: Array | None) -> bool:
    if alone is None or together.shape != alone.shape:
        return False
    if together.dtype.kind in "biu":
        return bool(np.array_equal(together, alone))
    together, alone = together.astype(np.float64), alone.astype(np.float64)
    finite = np.abs(alone[np.isfinite(alone)])
    small = _SMALL * float(finite.max(initial=0))
    return bool(np.allclose(together, alone, rtol=0, atol=small, equal_nan=True))
