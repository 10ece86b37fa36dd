"""Samples at other sizes: in range, in order, without ties; and which sizes those are."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlflow_e2eai import Axis
from mlflow_e2eai.artifacts.axes import MOST_INNER, corners, inner_sizes, resize
from mlflow_e2eai.artifacts.sampler import given_sizes, resample, with_samples
from mlflow_e2eai.artifacts.values import TensorSpec
from mlflow_e2eai.errors import InvalidInputError

NUMBERS = np.random.default_rng(0).standard_normal((3, 4)).astype(np.float32)


def spec(name, array, *shape):
    return TensorSpec(name=name, dtype=array.dtype.name, shape=shape)


def resampled(array, *shape, **sizes):
    return resample({"x": array}, (spec("x", array, *shape),), sizes)["x"]


@given(size=st.integers(1, 20))
def test_no_two_continuous_numbers_are_equal_and_none_leaves_the_range(size):
    found = resampled(NUMBERS, "N", 4, N=size)
    assert found.shape == (size, 4)
    assert np.unique(found).size == found.size
    assert NUMBERS.min() <= found.min() <= found.max() <= NUMBERS.max()
    np.testing.assert_array_equal(found[:3], NUMBERS[:size])
    np.testing.assert_array_equal(found, resampled(NUMBERS, "N", 4, N=size))


@pytest.mark.parametrize(
    "array",
    [np.eye(3, dtype=np.float32), np.ones((2, 3)), np.arange(6.0).reshape(2, 3), NUMBERS > 0],
    ids=["codes", "constant", "labels", "booleans"],
)
def test_codes_and_labels_are_repeated_as_they_are(array):
    want = resize({"x": array}, (spec("x", array, "N", 3),), {"N": 7})["x"]
    np.testing.assert_array_equal(resampled(array, "N", array.shape[1], N=7), want)


@given(nodes=st.integers(1, 12), edges=st.integers(1, 12))
def test_an_index_of_another_input_stays_below_its_size(nodes, edges):
    given_edges = np.array([[0, 1, 2, 3, 4], [1, 2, 3, 4, 0]])
    x = np.zeros((5, 2), np.float32)
    specs = (spec("x", x, "V", 2), spec("edge", given_edges, 2, "E"))
    found = resample({"x": x, "edge": given_edges}, specs, {"V": nodes, "E": edges})
    assert found["edge"].shape == (2, edges)
    assert 0 <= found["edge"].min() <= found["edge"].max() < nodes


@given(items=st.integers(1, 9), steps=st.integers(1, 12))
def test_sorted_lengths_stay_sorted_and_reach_the_new_size(items, steps):
    lengths, x = np.array([6, 4, 2]), np.zeros((3, 6), np.float32)
    specs = (spec("x", x, "N", "T"), spec("lengths", lengths, "N"))
    found = resample({"x": x, "lengths": lengths}, specs, {"N": items, "T": steps})["lengths"]
    assert found.tolist() == sorted(found, reverse=True)
    assert found[0] == steps
    assert found.min() >= 1


def test_offsets_that_rise_still_rise():
    offsets = np.array([0, 2, 5])
    found = resampled(offsets, "N", N=7)
    assert found.tolist() == sorted(found)
    assert set(found) <= {0, 2, 5}


def test_tokens_keep_their_range_and_their_places():
    ids = np.array([[101, 7, 9, 102]])
    np.testing.assert_array_equal(resampled(ids, "N", "T", N=2, T=4), np.tile(ids, (2, 1)))


@given(items=st.integers(1, 4), steps=st.integers(1, 12))
def test_a_mask_of_integers_stays_one_however_few_items_there_are(items, steps):
    mask = np.array([[1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0]])
    specs = (spec("x", mask, "N", "T"), spec("mask", mask, "N", "T"))
    sizes = {"N": items, "T": steps}
    example = {"x": mask, "mask": mask}
    found = resample(example, specs, sizes)["mask"]
    np.testing.assert_array_equal(found, resize(example, specs, sizes)["mask"])


# Sizes between the corners

AXES = st.builds(
    lambda low, rise, more, step, cut: Axis(
        "N",
        min=low * step,
        opt=(low + rise) * step,
        max=(low + rise + more) * step,
        multiple=step,
        buckets=(step * (low + cut % (rise + more + 1)),),
    ),
    *(st.integers(1, 9), st.integers(0, 200), st.integers(0, 200), st.integers(1, 4)),
    st.integers(0, 400),
)


@given(axis=AXES)
def test_sizes_between_are_admitted_are_no_corners_and_are_few(axis):
    sizes = [each["N"] for each in inner_sizes((axis,)).values()]
    assert all(map(axis.admits, sizes))
    assert len(set(sizes)) == len(sizes) <= MOST_INNER
    assert not set(sizes) & {each["N"] for each in corners((axis,)).values()}
    beside = {axis.min + axis.multiple, axis.max - axis.multiple}
    beside |= {size + way * axis.multiple for size in axis.buckets for way in (-1, 1)}
    outside = {axis.min, axis.opt, axis.max, *axis.buckets}
    assert {size for size in beside if axis.admits(size)} - outside <= set(sizes)


def test_the_sizes_of_powers_of_two_have_an_odd_one_and_a_prime_and_a_label():
    found = inner_sizes((Axis("T", min=4, opt=8, max=64), Axis("N", min=1, opt=1, max=1)))
    sizes = [each["T"] for each in found.values()]
    assert {5, 63, 7, 9} <= set(sizes)
    assert any(size in (5, 7, 11, 13) for size in sizes)
    assert "T=5, N=1" in found
    assert found == inner_sizes((Axis("T", min=4, opt=8, max=64), Axis("N", min=1, opt=1, max=1)))
    assert inner_sizes(()) == {}


def test_a_short_range_is_run_whole():
    found = inner_sizes((Axis("N", min=1, opt=2, max=8),))
    assert sorted(each["N"] for each in found.values()) == [3, 4, 5, 6, 7]


def test_an_empty_dynamic_axis_of_the_example_is_one_sentence(tmp_path):
    import torch

    from mlflow_e2eai import export
    from mlflow_e2eai.errors import InvalidInputError

    axes = {"x": {0: Axis("N", min=1, opt=2, max=4)}}
    with pytest.raises(InvalidInputError, match="'x' of the example has no items on axis 0"):
        export(torch.nn.Identity(), {"x": torch.ones(0, 4)}, out=tmp_path / "m", dynamic_axes=axes)


# Examples that the caller gives at sizes

N, T = Axis("N", min=1, opt=3, max=9), Axis("T", min=2, opt=4, max=8)
SPECS = (spec("x", NUMBERS, "N", "T"),)


def at(items, steps, value=0):
    return {"x": np.full((items, steps), value, np.float32)}


def test_a_given_example_is_the_sample_at_its_sizes_and_others_are_cut_from_it():
    example = with_samples({"x": NUMBERS}, [at(9, 8, 7), at(2, 5, 1)], SPECS, (N, T))

    def sampled(**sizes):
        return resample(example, SPECS, sizes)["x"]

    np.testing.assert_array_equal(sampled(N=9, T=8), at(9, 8, 7)["x"])
    np.testing.assert_array_equal(sampled(N=2, T=5), at(2, 5, 1)["x"])
    np.testing.assert_array_equal(sampled(N=1, T=5), at(1, 5, 1)["x"])
    np.testing.assert_array_equal(sampled(N=4, T=8), at(4, 8, 7)["x"])
    np.testing.assert_array_equal(sampled(N=3, T=4), NUMBERS)
    np.testing.assert_array_equal(sampled(N=9, T=4), at(9, 4, 7)["x"])
    np.testing.assert_array_equal(sampled(T=2), NUMBERS[:, :2])


def test_where_no_given_example_is_as_large_the_input_example_is_repeated():
    example = with_samples({"x": NUMBERS}, [at(9, 2)], SPECS, (N, T))
    made = resample({"x": NUMBERS}, SPECS, {"N": 9, "T": 8})
    np.testing.assert_array_equal(resample(example, SPECS, {"N": 9, "T": 8})["x"], made["x"])


def test_given_sizes_are_those_that_are_no_corner():
    example = with_samples({"x": NUMBERS}, [at(9, 8), at(2, 5), at(1, 2)], SPECS, (N, T))
    assert given_sizes(example, SPECS, (N, T)) == {"N=2, T=5": {"N": 2, "T": 5}}
    assert given_sizes({"x": NUMBERS}, SPECS, (N, T)) == {}


@pytest.mark.parametrize(
    ("others", "words"),
    [
        ([{"y": NUMBERS}], r"samples_at\[0\] has the inputs \['y'\], but .* has \['x'\]"),
        ([at(2, 5), {"x": NUMBERS.astype(np.float64)}], r"samples_at\[1\] has float64 for 'x'"),
        ([{"x": NUMBERS[0]}], r"the shape \[4\] for 'x', but \['N', 'T'\] is expected"),
        ([at(10, 4)], "has 10 on axis 'N' of 'x', which may have 1 to 9; cut it, or widen"),
        ([at(2, 5), at(2, 5, 1)], r"the sizes of samples_at\[0\], N=2, T=5"),
    ],
)
def test_an_example_that_does_not_fit_is_refused_in_a_sentence(others, words):
    with pytest.raises(InvalidInputError, match=words):
        with_samples({"x": NUMBERS}, others, SPECS, (N, T))


def test_inputs_that_share_an_axis_have_one_size_of_it():
    specs = (spec("x", NUMBERS, "N", "T"), spec("y", NUMBERS, "N", 4))
    other = {"x": at(2, 5)["x"], "y": at(3, 4)["x"]}
    with pytest.raises(InvalidInputError, match="3 on axis 'N' of 'y', but 2 in another input"):
        with_samples({"x": NUMBERS, "y": NUMBERS}, [other], specs, (N, T))


def test_examples_at_sizes_need_an_axis_that_may_vary():
    with pytest.raises(InvalidInputError, match="no axis is dynamic; give dynamic_axes"):
        with_samples({"x": NUMBERS}, [{"x": NUMBERS}], (spec("x", NUMBERS, 3, 4),), ())
