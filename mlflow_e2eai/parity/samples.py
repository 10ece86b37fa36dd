"""Samples from the input example: the corners of the profile, the edges of arithmetic."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

import numpy as np

from mlflow_e2eai.artifacts.axes import corners, inner_sizes
from mlflow_e2eai.artifacts.sampler import given_sizes, resample
from mlflow_e2eai.artifacts.values import Array, Infer, OnnxArtifact, Tensors
from mlflow_e2eai.errors import InvalidInputError
from mlflow_e2eai.parity.measure import is_exact

LARGE = 16
"""How many times the example's numbers the edge ``large`` has. A power of two: it changes exponents
and rounds nothing. Standardised data, of which the largest is about 4, becomes 64: far more than a
model was trained on, yet a thousandth of fp16's end (65504), so that what overflows is the model's
arithmetic and not its input."""


NUDGE = 2.0**-11
"""The unit roundoff of fp16, the largest error by which a variant may tell equal numbers apart."""

Kinds: TypeAlias = frozenset[tuple[str, str]]
"""Inputs or outputs that hold NaN or infinities, with which of them."""


def profile_samples(example: Tensors, graph: OnnxArtifact) -> dict[str, Tensors]:
    """The input example at every corner of a graph's profile, by corner."""
    return {
        label: resample(example, graph.inputs, sizes)
        for label, sizes in corners(graph.axes).items()
    }


def inner_samples(example: Tensors, graph: OnnxArtifact, reference: Infer) -> dict[str, Tensors]:
    """The input example at sizes between the corners of a graph's profile, by label.

    Args:
        example: One array for each input, and samples at sizes where the caller gave any.
        graph: Where the dynamic axes are.
        reference: The model that is right. Sizes that it refuses are left out.
    """
    samples = {
        label: resample(example, graph.inputs, sizes)
        for label, sizes in {
            **given_sizes(example, graph.inputs, graph.axes),
            **inner_sizes(graph.axes),
        }.items()
    }
    return {label: sample for label, sample in samples.items() if _runs(reference, sample)}


def batch_samples(
    example: Tensors, graph: OnnxArtifact, sizes: Sequence[int]
) -> dict[str, Tensors]:
    """The input example at further sizes of its leading axis, all other axes at opt.

    Args:
        example: One array for each input.
        graph: Where the dynamic axes are.
        sizes: Of the first input's first axis.

    Returns:
        Samples by label, such as ``N=16``, in the order of their size.

    Raises:
        InvalidInputError: That axis is not dynamic, or does not admit a size.
    """
    if not sizes:
        return {}
    first = graph.inputs[0]
    leading = next((axis for axis in graph.axes if first.shape[:1] == (axis.name,)), None)
    if leading is None:
        msg = (
            f"The leading axis of {first.name!r} is not dynamic, so batch_sizes has no meaning; "
            "leave it out, or give the axis in dynamic_axes."
        )
        raise InvalidInputError(msg)
    for size in sizes:
        if not leading.admits(size):
            msg = (
                f"The batch size {size} is not among those of the axis {leading.name!r}, "
                f"{leading}; leave it out, or widen the axis."
            )
            raise InvalidInputError(msg)
    opt = {axis.name: axis.opt for axis in graph.axes}
    return {
        f"{leading.name}={size}": resample(example, graph.inputs, {**opt, leading.name: size})
        for size in sorted(set(sizes))
    }


def turned_samples(samples: Mapping[str, Tensors], reference: Infer) -> dict[str, Tensors]:
    """Samples with every input turned round: other numbers of the same kind and shape.

    Where only one sample of a shape ever runs, stale outputs of the call before are the right ones.

    Args:
        samples: Samples by label.
        reference: The model that is right.

    Returns:
        Samples by the same labels, without those that the model refuses, or that are the same.
    """
    turned = {
        label: {name: _turn(array) for name, array in sample.items()}
        for label, sample in samples.items()
    }
    return {
        label: sample
        for label, sample in turned.items()
        if not all(np.array_equal(array, samples[label][name]) for name, array in sample.items())
        and _sound_outputs(reference, sample) is not None
    }


def branch_samples(whole: Tensors) -> dict[str, Tensors]:
    """The input example with other values, for a branch or a loop to go another way.

    - ``turned``: every input turned round.
    - ``zeros``: floating numbers are 0.
    - ``negated``: floating numbers have the other sign.
    - ``large``: `LARGE` times the floating numbers.
    - ``less one``: integers that are all 2 or more, such as counts, are one less: an index stays in
      its range, and a mask of ones is left alone.
    - ``inverted``: single booleans are the other one.

    Args:
        whole: One array for each input.

    Returns:
        Samples by label; those that would be the example itself are left out. A model may refuse
        some of them.
    """
    changes: dict[str, Callable[[Array], Array]] = {
        "turned": _turn,
        "zeros": lambda array: np.zeros_like(array) if array.dtype.kind == "f" else array,
        "negated": lambda array: np.negative(array) if array.dtype.kind == "f" else array,
        "large": lambda array: _large(array) if array.dtype.kind == "f" else array,
        "less one": _less_one,
        "inverted": lambda array: (
            np.logical_not(array, out=np.empty_like(array)) if _is_flag(array) else array
        ),
    }
    candidates = {
        label: {name: np.asarray(change(array)) for name, array in whole.items()}
        for label, change in changes.items()
    }
    return {
        label: sample
        for label, sample in candidates.items()
        if not all(np.array_equal(array, whole[name]) for name, array in sample.items())
    }


def _turn(array: Array) -> Array:
    """The array backwards along every axis; NumPy would make a row of a single number."""
    return np.ascontiguousarray(np.flip(array)).reshape(array.shape)


def _less_one(array: Array) -> Array:
    is_count = array.dtype.kind in "iu" and array.size > 0 and array.min() > 1
    return np.asarray(array - array.dtype.type(1)) if is_count else array


def _is_flag(array: Array) -> bool:
    return array.dtype.kind == "b" and array.size == 1


def edge_samples(example: Tensors, graph: OnnxArtifact, reference: Infer) -> dict[str, Tensors]:
    """The input example at the profile's opt sizes, with its floating numbers at an edge.

    - ``zeros``: all are 0.
    - ``denormal``: half the smallest normal number of float32 (of float16 where the input is that),
      with the example's signs: what flushes them to zero, or divides by them, shows.
    - ``large``: `LARGE` times the example's numbers.

    Integers, token ids for instance, stay as they are.

    Args:
        example: One array for each input.
        graph: Where the dynamic axes are, and their opt sizes.
        reference: The model that is right. An edge that it refuses, or whose outputs hold NaN or an
            infinity, is left out: its outputs for such numbers say nothing about a variant. So do
            integers that a rounding error changes, such as the places of equal scores.

    Returns:
        Samples by edge; none for a model with no floating input.
    """
    if not any(array.dtype.kind == "f" for array in example.values()):
        return {}
    whole = resample(example, graph.inputs, {axis.name: axis.opt for axis in graph.axes})
    candidates = {
        edge: {
            name: np.asarray(change(array)) if array.dtype.kind == "f" else array
            for name, array in whole.items()
        }
        for edge, change in (("zeros", np.zeros_like), ("denormal", _denormal), ("large", _large))
    }
    sound: dict[str, Tensors] = {}
    for edge, sample in candidates.items():
        outputs = _sound_outputs(reference, sample)
        if outputs is not None and not has_tie(
            lambda tensors: tuple(reference(tensors).values()),
            sample,
            outputs,
            share=NUDGE,
            of=whole,
        ):
            sound[edge] = sample
    return sound


def _denormal(array: Array) -> Array:
    smallest = max(np.finfo(kind).smallest_normal.item() for kind in (array.dtype, np.float32))
    return np.copysign(np.full_like(array, smallest / 2), array)


def _large(array: Array) -> Array:
    with np.errstate(over="ignore"):  # an infinity is seen and left out
        return np.asarray(array * array.dtype.type(LARGE))


def _runs(reference: Infer, sample: Tensors) -> bool:
    try:
        reference(sample)
    except Exception:  # noqa: BLE001 - the user's forward may raise anything on sizes of ours
        return False
    return True


def _sound_outputs(reference: Infer, sample: Tensors) -> tuple[Array, ...] | None:
    """The outputs, in order; None where the model refuses the sample or they are not finite."""
    try:
        outputs = tuple(reference(sample).values())
    except Exception:  # noqa: BLE001 - the user's forward may raise anything on generated numbers
        return None
    arrays = (*sample.values(), *outputs)
    finite = all(np.isfinite(array).all() for array in arrays if array.dtype.kind == "f")
    return outputs if finite else None


# Samples whose outputs say nothing about a candidate.


def nonfinite_kinds(inputs: Tensors, outputs: Sequence[Array]) -> Kinds:
    """The inputs by name and the outputs by number that hold NaN or infinities."""
    named = {
        **{f"input {name}": array for name, array in inputs.items()},
        **{f"{at}": array for at, array in enumerate(outputs)},
    }
    floats = {name: array for name, array in named.items() if array.dtype.kind == "f"}
    return frozenset(
        (name, kind)
        for name, array in floats.items()
        for kind, test in (("nan", np.isnan), ("inf", np.isinf))
        if test(array).any()
    )


def has_tie(
    infer: Callable[[Tensors], Sequence[Array]],
    inputs: Tensors,
    outputs: Sequence[Array],
    *,
    share: float,
    of: Tensors | None = None,
) -> bool:
    """Whether rounding errors in the inputs change an integer of the outputs.

    Args:
        infer: Gives the outputs, in order.
        inputs: The sample.
        outputs: Its outputs.
        share: Deviation of the errors, as a share of each input's largest magnitude.
        of: Inputs with these magnitudes; by default the sample's own.
    """
    magnitudes = {
        name: float(np.abs(array[np.isfinite(array)]).max(initial=0)) or 1.0
        for name, array in (of or inputs).items()
        if array.dtype.kind == "f"
    }
    if not any(is_exact(array) for array in outputs):
        return False
    random = np.random.default_rng(0)
    for _ in range(2):
        nudged = {
            name: np.asarray(
                array + magnitudes[name] * share * random.standard_normal(array.shape), array.dtype
            )
            if name in magnitudes
            else array
            for name, array in inputs.items()
        }
        try:
            again = infer(nudged)
        except Exception:  # noqa: BLE001 - the user's forward may raise anything on generated numbers
            return True
        for before, after in zip(outputs, again, strict=True):
            if is_exact(before) and not np.array_equal(before, after):
                return True
    return False
