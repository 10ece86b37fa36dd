"""Samples with other masks, indices, counts and numbers than the example's."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from mlflow_e2eai.parity.variations import MOST_VARIATIONS, value_variations

SHAPES = st.just(()) | arrays.array_shapes(max_dims=3, max_side=5)


def labelled(array, *special):
    found = value_variations({"x": array}, special)
    return {each.label.removeprefix("x: "): each.inputs["x"] for each in found}


@pytest.mark.parametrize("dtype", [bool, np.int64, np.float32])
def test_a_mask_of_ones_gets_one_false_some_false_and_no_other_number(dtype):
    found = labelled(np.ones((2, 5), dtype))
    assert {"one False", "some False", "all False"} <= found.keys()
    assert (found["one False"] == 0).sum() == 1
    assert all(set(np.unique(each)) <= {0, 1} for each in found.values())
    rows = found["some False"].sum(axis=1)
    assert ((rows >= 1) & (rows < 5)).all()


@pytest.mark.parametrize("value", [True, False])
def test_a_variation_that_masks_all_of_a_row_is_extreme_unless_the_example_does(value):
    found = value_variations({"x": np.full((1, 5), value)})
    extreme = {each.label.removeprefix("x: ") for each in found if each.extreme}
    assert extreme == {f"all {not value}"}
    ((label, is_extreme),) = {
        (each.label, each.extreme)
        for each in value_variations({"x": np.full((2, 5), value)})
        if each.label == f"x: one {value}"
    }
    assert is_extreme, label


def test_indices_without_duplicates_get_some_within_their_range():
    found = labelled(np.array([3, 0, 5, 1, 4]), 1)
    assert len(set(found["duplicates"])) < 5
    assert all(0 <= each.min() <= each.max() <= 5 for each in found.values())
    assert found["all 5, the largest"].tolist() == [5] * 5
    assert {"unsorted", "sorted", "all 0, the smallest", "some 1"} <= found.keys()


@pytest.mark.parametrize("count", [1, 3])
def test_a_count_is_one_more_and_one_less(count):
    found = labelled(np.array(count))
    assert found["one more"] == count + 1
    assert found["one less"] == count - 1


def test_lengths_that_are_all_equal_differ():
    assert len(set(labelled(np.full(4, 6))["others"])) > 1


def test_constant_numbers_get_fresh_ones_and_others_stay_in_their_range():
    (zeros,) = value_variations({"x": np.zeros((2, 3), np.float32)[:, :1] + 2})
    assert np.unique(zeros.inputs["x"]).size == 2
    uniform = np.random.default_rng(0).uniform(0, 1, (9, 9)).astype(np.float32)
    (fresh,) = value_variations({"x": uniform})
    assert (fresh.label, fresh.varied) == ("fresh numbers", ("x",))
    assert uniform.min() <= fresh.inputs["x"].min() <= fresh.inputs["x"].max() <= uniform.max()


@given(
    example=st.dictionaries(
        st.sampled_from("abcdefgh"),
        st.sampled_from([np.bool_, np.int32, np.int64, np.float32]).flatmap(
            lambda dtype: arrays.arrays(
                dtype, SHAPES, elements={"allow_nan": False} if dtype == np.float32 else None
            )
        ),
        min_size=1,
    )
)
def test_variations_keep_types_and_shapes_and_are_few_and_differ_from_the_example(example):
    with np.errstate(all="ignore"):
        found = value_variations(example, [7])
    assert len(found) <= MOST_VARIATIONS
    assert len({each.label for each in found}) == len(found)
    for each in found:
        assert list(each.inputs) == list(example)
        for name, array in each.inputs.items():
            assert (array.dtype, array.shape) == (example[name].dtype, example[name].shape)
        (varied, *_) = each.varied
        assert not np.array_equal(each.inputs[varied], example[varied])
