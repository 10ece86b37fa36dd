"""Samples with other masks, indices, counts and numbers than the example's."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from mlflow_e2eai.artifacts.values import Axis, OnnxArtifact, TensorSpec
from mlflow_e2eai.parity.variations import (
    MOST_TAKEN,
    MOST_VARIATIONS,
    taken_variations,
    value_variations,
    variations_by_label,
)

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


@pytest.mark.parametrize(("count", "extreme"), [(4, False), (1, True)])
def test_one_less_is_extreme_where_it_leaves_nothing(count, extreme):
    found = {each.label: each.extreme for each in value_variations({"x": np.array(count)})}
    assert found["x: one less"] == extreme


def test_constant_numbers_get_fresh_ones_and_others_stay_in_their_range():
    (zeros,) = value_variations({"x": np.zeros((2, 3), np.float32)[:, :1] + 2})
    assert np.unique(zeros.inputs["x"]).size == 2
    uniform = np.random.default_rng(0).uniform(0, 1, (9, 9)).astype(np.float32)
    (fresh,) = value_variations({"x": uniform})
    assert (fresh.label, fresh.varied) == ("fresh numbers", ("x",))
    assert uniform.min() <= fresh.inputs["x"].min() <= fresh.inputs["x"].max() <= uniform.max()


@pytest.mark.parametrize("name", "abcdefgh")
def test_unsorted_numbers_have_the_smallest_and_the_largest_at_neither_end(name):
    (found,) = (
        each.inputs[name]
        for each in value_variations({name: np.array([9, 7, 4, 2])})
        if each.label == f"{name}: unsorted"
    )
    assert sorted(found) == [2, 4, 7, 9]
    assert {found[0], found[-1]} == {4, 7}


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


def taken(example, reference, *, rows=64):
    """What `taken_variations` takes of inputs whose first axis may have up to 64 items."""
    specs = tuple(
        TensorSpec(name=name, dtype=str(array.dtype), shape=("N", *array.shape[1:]))
        for name, array in example.items()
    )
    axis = Axis("N", min=1, opt=rows, max=64)
    graph = OnnxArtifact(
        path=None,
        sha256="",
        parent_sha256=None,
        stage="clean",
        precision="fp32",
        opset=18,
        inputs=specs,
        outputs=(),
        axes=(axis,),
    )
    return taken_variations(example, graph, reference, reference(example))


IDS = np.random.default_rng(0).permutation(64)


def test_a_reference_gets_few_variations_of_few_rows_and_no_extreme_ones():
    example = {f"ids_{at}": IDS for at in range(5)}
    found, left_out = taken(example, lambda t: {"y": sum(t.values()) / 2})
    assert len(found) == MOST_TAKEN
    assert {len(sample["ids_0"]) for sample in found.values()} == {4}
    assert not [label for label in found if ": all " in label]
    assert left_out == {}


def test_variations_that_a_reference_refuses_at_few_rows_are_tried_at_its_own():
    def whole(tensors):
        if len(tensors["ids"]) < 64:
            raise IndexError
        return {"y": tensors["ids"] / 2}

    found, left_out = taken({"ids": IDS}, whole)
    assert {len(sample["ids"]) for sample in found.values()} == {64}
    assert left_out == {}


def picky(tensors):
    ids = tensors["ids"]
    if not np.array_equal(np.unique(ids), np.sort(ids)):
        msg = "ids repeat"
        raise ValueError(msg)
    return {"y": np.where(np.all(ids[:-1] <= ids[1:]), np.nan, ids)}


def test_variations_are_left_out_with_the_reason_where_they_say_nothing():
    _, left_out = taken({"ids": IDS}, picky)
    assert left_out["ids: duplicates"] == "the model fails on it: ids repeat"
    assert left_out["ids: sorted"] == "its outputs are not finite, unlike those of the example"
    x = np.random.default_rng(0).standard_normal((64, 3)).astype(np.float32)
    _, left_out = taken({"x": x}, lambda t: {"y": (t["x"] * 2**20).astype(np.int64)})
    assert "changes an integer" in left_out["fresh numbers"]


def test_infinities_that_come_with_another_mask_are_no_reason():
    mask = np.ones((64, 3), bool)
    found, left_out = taken({"mask": mask}, lambda t: {"y": np.where(t["mask"], 1.0, -np.inf)})
    assert "mask: some False" in found
    assert left_out == {}


def test_variations_of_equal_examples_are_made_once():
    assert {len(found) for found in variations_by_label([{"x": IDS}, {"x": IDS}]).values()} == {1}
    twice = variations_by_label([{"x": IDS[:9]}, {"x": IDS}])
    assert [each.inputs["x"].size for each in twice["x: unsorted"]] == [9, 64]
