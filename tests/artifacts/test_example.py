"""Input examples that nobody gave."""

import numpy as np
import pytest

from mlflow_e2eai.artifacts.example import assumptions_of, generate_example

INPUTS = {
    "ids": ((2, 5), np.dtype(np.int64)),
    "kinds": ((2, 5), np.dtype(np.int32)),
    "mask": ((2, 5), np.dtype(bool)),
    "x": ((2, 3), np.dtype(np.float32)),
}


def below(**highest):
    return lambda sample: all(sample[name].max() < high for name, high in highest.items())


def test_integers_come_from_the_largest_range_that_the_model_accepts_input_by_input():
    example = generate_example(INPUTS, below(ids=300, kinds=2))

    assert 10 < example["ids"].max() < 100
    assert set(example["kinds"].flat) == {0, 1}


def test_a_model_that_accepts_nothing_gets_zeros():
    example = generate_example(INPUTS, lambda _: False)

    assert not example["ids"].any()


def test_booleans_are_of_both_kinds_and_floats_are_normal():
    example = generate_example(INPUTS, lambda _: True)

    assert set(example["mask"].flat) == {False, True}
    assert 0 < np.abs(example["x"]).max() < 6


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int16])
def test_narrow_integers_stay_in_their_range(dtype):
    example = generate_example({"i": ((500,), np.dtype(dtype))}, lambda _: True)

    assert example["i"].dtype == dtype
    assert example["i"].min() >= 0


def test_the_dtypes_and_shapes_are_those_of_the_inputs_and_the_numbers_always_the_same():
    one, other = (generate_example(INPUTS, lambda _: True) for _ in range(2))

    assert {name: (a.shape, a.dtype) for name, a in one.items()} == INPUTS
    assert all(np.array_equal(one[name], other[name]) for name in INPUTS)


def test_a_sentence_says_that_it_was_generated_and_how():
    (sentence,) = assumptions_of(generate_example(INPUTS, below(kinds=2)))

    assert sentence.startswith(
        "The input example was generated, as none was given: ids int64[2, 5]"
    )
    assert "kinds int32[2, 5] from 0 to 1" in sentence


def test_a_given_example_assumes_nothing():
    assert assumptions_of({"x": np.zeros(3)}) == ()
