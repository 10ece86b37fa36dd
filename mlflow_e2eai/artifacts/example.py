"""Input examples with what is assumed of them, or with others at other sizes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from mlflow_e2eai.artifacts.arrays import check_bytes
from mlflow_e2eai.artifacts.values import Array, Tensors

HIGHEST = (1000, 100, 10, 2)
"""Integers are drawn below the first of these that the model accepts; else they are zeros. The
smallest known vocabularies of words are larger than 1000, and types of segments are two."""


class GeneratedExample(dict[str, Array]):
    """An input example that was generated, not given.

    Attributes:
        assumptions: What it, and the axes with it, assume; a sentence each.
    """

    def __init__(self, arrays: Tensors, assumptions: Sequence[str]) -> None:
        super().__init__(arrays)
        self.assumptions = tuple(assumptions)


def assumptions_of(example: object) -> tuple[str, ...]:
    """The assumptions in an input example; none where it was given."""
    return example.assumptions if isinstance(example, GeneratedExample | SizedExample) else ()


class SizedExample(dict[str, Array]):
    """An input example with others at further sizes, of which samples are made too.

    Attributes:
        others: The others, with the same inputs.
        assumptions: Those of the example itself; see `GeneratedExample`.
    """

    def __init__(self, arrays: Tensors, others: Sequence[Tensors]) -> None:
        super().__init__(arrays)
        self.others = tuple(others)
        self.assumptions = assumptions_of(arrays)


def others_of(example: object) -> tuple[Tensors, ...]:
    """The examples at further sizes that an input example has; as a rule none."""
    return example.others if isinstance(example, SizedExample) else ()


def generate_example(
    inputs: Mapping[str, tuple[tuple[int, ...], np.dtype]],
    accepts: Callable[[Tensors], bool],
) -> GeneratedExample:
    """Draw an input example: standard normal floats, booleans of both kinds, and integers.

    Integers are drawn from the largest range that the model accepts, input by input: an embedding
    has no row for larger ones.

    Args:
        inputs: Shape and dtype by input.
        accepts: Whether the model runs on a sample.

    Returns:
        The example, the same for the same inputs.

    Raises:
        InvalidInputError: One would not fit into memory.
    """
    for name, (shape, _) in inputs.items():
        check_bytes(name, shape, _DRAWN_BYTES, "give an input_example of another size")
    arrays = {
        name: _draw(shape, dtype, high=1, seed=seed)
        for seed, (name, (shape, dtype)) in enumerate(inputs.items())
    }
    for seed, (name, (shape, dtype)) in enumerate(inputs.items()):
        for high in HIGHEST if dtype.kind in "iu" and arrays[name].size else ():
            if high - 1 > np.iinfo(dtype).max:
                continue
            drawn = _draw(shape, dtype, high=high, seed=seed)
            if accepts({**arrays, name: drawn}):
                arrays[name] = drawn
                break
    return GeneratedExample(arrays, [_describe(arrays)])


_DRAWN_BYTES = 24
"""Bytes of memory for one number as it is drawn: in fp64, in its own type and compared."""


def _draw(shape: tuple[int, ...], dtype: np.dtype, *, high: int, seed: int) -> Array:
    random = np.random.default_rng(seed)
    if dtype.kind == "f":
        return random.standard_normal(shape).astype(dtype)
    if dtype.kind == "b":
        return random.random(shape) > 0.5  # noqa: PLR2004 - as many of one as of the other
    return random.integers(high, size=shape).astype(dtype)


def _describe(arrays: Tensors) -> str:
    words = [
        f"{name} {array.dtype.name}{list(array.shape)}" + _range_of(array)
        for name, array in arrays.items()
    ]
    return f"The input example was generated, as none was given: {', '.join(words)}."


def _range_of(array: Array) -> str:
    if array.dtype.kind not in "iu" or not array.size:
        return ""
    return f" from {array.min()} to {array.max()}"
