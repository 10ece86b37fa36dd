"""Samples with other masks, indices, counts and numbers than the example's.

A branch, loop or reduction that an exporter froze on the example's values shows only where these
values differ.
"""

from __future__ import annotations

import itertools
import zlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from mlflow_e2eai.artifacts.axes import few_sizes
from mlflow_e2eai.artifacts.sampler import resample
from mlflow_e2eai.artifacts.values import Array, Infer, OnnxArtifact, Tensors
from mlflow_e2eai.errors import brief
from mlflow_e2eai.parity.samples import NUDGE, Kinds, has_tie, nonfinite_kinds

MOST_VARIATIONS = 32
"""Variations at most: with many inputs each gets fewer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Variation:
    """A sample in which one input, or every floating one, has other values.

    Attributes:
        label: The input and its values, for people.
        varied: Names of the inputs with other values.
        inputs: Arrays by name.
        extreme: Whether it may mask all of a row, or leave nothing to sum over, which the example
            does not: PyTorch and ONNX Runtime need not agree on 0 divided by 0.
    """

    label: str
    varied: tuple[str, ...]
    inputs: Tensors
    extreme: bool = False


def value_variations(example: Tensors, special: Collection[int] = ()) -> list[Variation]:
    """Variations of each mask and each integer input, and fresh floating numbers.

    - A mask (booleans, or numbers that are all 0 or 1): some False, one False, one True, all True,
      all False.
    - Integers: all the smallest and all the largest number seen, all 0, some 0, duplicates, another
      order, others in the range seen; a count or constant is one more, and one less.
    - Floating numbers: fresh ones of the example's mean and deviation.

    Args:
        example: One array for each input.
        special: Integers that mean something to the model, such as the index of its padding.

    Returns:
        At most `MOST_VARIATIONS`, each input's most telling ones first. A model may refuse some.
    """
    lists = [
        [
            Variation(
                label=f"{name}: {label}",
                varied=(name,),
                inputs={**example, name: other},
                extreme=_is_extreme(array, other, label),
            )
            for label, other in _distinct(array, _changes(name, array, special))
        ]
        for name, array in example.items()
        if array.size and (array.dtype.kind in "iub" or _is_mask(array))
    ]
    fresh = _fresh_numbers(example)
    turns = itertools.zip_longest([fresh] if fresh is not None else [], *lists)
    return [each for turn in turns for each in turn if each is not None][:MOST_VARIATIONS]


def variations_by_label(
    examples: Sequence[Tensors], special: Collection[int] = ()
) -> dict[str, list[Variation]]:
    """Variations of several examples, those of one label together, each set of inputs once.

    Args:
        examples: The input example at several sizes, the first to try first.
        special: See `value_variations`.
    """
    labelled: dict[str, list[Variation]] = {}
    for at, example in enumerate(examples):
        if not any(_are_equal(example, other) for other in examples[:at]):
            for variation in value_variations(example, special):
                labelled.setdefault(variation.label, []).append(variation)
    return labelled


def _are_equal(one: Tensors, other: Tensors) -> bool:
    return all(np.array_equal(array, other[name]) for name, array in one.items())


MOST_TAKEN = 8
"""Variations that every variant is compared on, at most: they are taken in turns from all inputs,
each input's most telling ones first."""


def taken_variations(
    example: Tensors, graph: OnnxArtifact, reference: Infer, usual: Tensors
) -> tuple[dict[str, Tensors], dict[str, str]]:
    """Variations of the input example whose outputs say something about a variant, by label.

    Extreme ones are not among them: of a mean over nothing, a right graph may make other numbers
    than PyTorch.

    Args:
        example: One array for each input.
        graph: Where the dynamic axes are.
        reference: The model that is right.
        usual: Its outputs for the example at opt.

    Returns:
        At most `MOST_TAKEN` samples, and the reasons why others were left out: the reference
        refuses them, gives NaN that the example does not, or an integer of its outputs changes with
        a rounding error.
    """

    def infer(sample: Tensors) -> tuple[Array, ...]:
        return tuple(reference(sample).values())

    opt = resample(example, graph.inputs, {axis.name: axis.opt for axis in graph.axes})
    few = resample(example, graph.inputs, few_sizes(graph.axes))
    natural = nonfinite_kinds(opt, tuple(usual.values()))
    natural |= {(f"{at}", "inf") for at in range(len(usual))}
    taken: dict[str, Tensors] = {}
    left_out: dict[str, str] = {}
    for label, variations in variations_by_label([few, opt]).items():
        for sample in (each.inputs for each in variations if not each.extreme):
            if len(taken) == MOST_TAKEN:
                return taken, left_out
            reason = _reason_against(infer, sample, natural)
            if reason is None:
                taken[label] = sample
                left_out.pop(label, None)
                break
            left_out[label] = reason
    return taken, left_out


def _reason_against(
    infer: Callable[[Tensors], Sequence[Array]], sample: Tensors, natural: Kinds
) -> str | None:
    try:
        outputs = infer(sample)
    except Exception as error:  # noqa: BLE001 - the user's forward may raise anything on generated numbers
        return f"the model fails on it: {brief(error, 120)}"
    if not nonfinite_kinds(sample, outputs) <= natural:
        return "its outputs are not finite, unlike those of the example"
    if has_tie(infer, sample, outputs, share=NUDGE):
        return "a rounding error in it changes an integer of the output"
    return None


def _is_mask(array: Array) -> bool:
    if array.dtype.kind == "b":
        return True
    # A single number is a count, or a number like others.
    return array.size > 1 and bool(((array == 0) | (array == 1)).all())


def _is_extreme(array: Array, other: Array, label: str) -> bool:
    if _is_mask(array):
        return not _uniform_rows(other) <= _uniform_rows(array)
    return label.startswith(("all ", "some ")) or (label == "one less" and not other.all())


def _uniform_rows(array: Array) -> frozenset[float]:
    """The values that fill a row alone."""
    rows = array.reshape(-1, array.shape[-1]) if array.ndim else array.reshape(1, 1)
    return frozenset(rows[(rows == rows[:, :1]).all(1), 0].tolist())


def _distinct(array: Array, changes: Iterator[tuple[str, Array]]) -> Iterator[tuple[str, Array]]:
    """The changes that differ from the array and from each other."""
    seen = [array]
    for label, other in changes:
        changed = np.ascontiguousarray(other, array.dtype).reshape(array.shape)
        if not any(np.array_equal(changed, each) for each in seen):
            seen.append(changed)
            yield label, changed


def _changes(name: str, array: Array, special: Collection[int]) -> Iterator[tuple[str, Array]]:
    random = np.random.default_rng(zlib.crc32(name.encode()))
    if _is_mask(array):
        yield from _masks(array, random)
    else:
        yield from _integers(array, random, special)


def _masks(array: Array, random: np.random.Generator) -> Iterator[tuple[str, Array]]:
    ones, zeros = np.ones_like(array), np.zeros_like(array)
    some = np.asarray(random.random(array.shape) < 0.5)  # noqa: PLR2004 - half of them
    # Each row has both: a mean over none of its items says nothing about a graph.
    if array.ndim:
        some[..., -1:] = False
        some[..., :1] = True
    last = np.zeros(array.shape, bool)
    last[(-1,) * array.ndim] = True
    yield "one False", np.where(last, zeros, ones)
    yield "some False", np.where(some, ones, zeros)
    yield "one True", np.where(last, ones, zeros)
    yield "all True", ones
    yield "all False", zeros


def _integers(
    array: Array, random: np.random.Generator, special: Collection[int]
) -> Iterator[tuple[str, Array]]:
    low, high = int(array.min()), int(array.max())
    some = random.random(array.shape) < 0.5  # noqa: PLR2004 - half of them
    flat = array.ravel()
    if low == high:
        yield "one more", array + 1
        yield "one less", np.maximum(array, 1) - 1
        yield "others", random.integers(min(low, 1), max(high, 1), array.shape, endpoint=True)
        yield "three more", array + 3
    else:
        paired = flat.copy()
        paired[1::2] = paired[: flat.size - 1 : 2]
        yield "duplicates", paired
        yield "others", random.integers(low, high, array.shape, endpoint=True)
        yield "unsorted", _disorder(flat, random)
        yield f"all {low}, the smallest", np.full_like(array, low)
        yield f"all {high}, the largest", np.full_like(array, high)
    yield "all 0", np.zeros_like(array)
    for value in dict.fromkeys((0, *special)):
        yield f"some {value}", np.where(some, array.dtype.type(value), array)
    yield "sorted", np.sort(flat)


def _disorder(flat: Array, random: np.random.Generator) -> Array:
    """The numbers in a random order, the smallest and the largest at neither end if they can be.

    What reads the largest length at an end, where sorted ones have it, is then wrong.
    """
    order = random.permutation(flat)
    inner = np.flatnonzero((order != order.min()) & (order != order.max()))
    if inner.size > 1:
        order[[0, inner[0]]] = order[[inner[0], 0]]
        order[[-1, inner[-1]]] = order[[inner[-1], -1]]
    return order


def _fresh_numbers(example: Tensors) -> Variation | None:
    """One variation with fresh numbers in all floating inputs but masks."""
    drawn: Mapping[str, Array] = {
        name: _fresh(name, array)
        for name, array in example.items()
        if array.dtype.kind == "f" and array.size and not _is_mask(array)
    }
    fresh = {
        name: array for name, array in drawn.items() if not np.array_equal(array, example[name])
    }
    if not fresh:
        return None
    return Variation(label="fresh numbers", varied=tuple(fresh), inputs={**example, **fresh})


def _fresh(name: str, array: Array) -> Array:
    random = np.random.default_rng(zlib.crc32(name.encode()))
    finite = array[np.isfinite(array)].astype(np.float64)
    if not finite.size:
        return array
    mean, spread = float(finite.mean()), float(finite.std())
    low, high = float(finite.min()), float(finite.max())
    # A constant, such as a state of zeros, may take any number near it.
    drawn = mean + (spread or abs(mean) or 1.0) * random.standard_normal(array.shape)
    if spread:
        inside = random.uniform(low, high, array.shape)
        drawn = np.where((drawn < low) | (drawn > high), inside, drawn)
    return np.where(np.isfinite(array), drawn, array).astype(array.dtype)
