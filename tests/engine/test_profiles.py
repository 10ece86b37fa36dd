"""Optimisation profiles: what an engine is tuned for, and which of them a call takes."""

from itertools import combinations
from math import sqrt

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlflow_e2eai import choose_buckets
from mlflow_e2eai.artifacts.values import Axis, TensorSpec
from mlflow_e2eai.engine.profiles import profile_of, profiles, sizes_of
from mlflow_e2eai.errors import InvalidInputError

N = Axis("N", min=1, opt=8, max=64, buckets=(1, 8, 32))
T = Axis("T", min=16, opt=64, max=128)


def test_an_axis_without_buckets_has_the_dynamic_profile_alone():
    assert profiles((T,)) == ({"T": (16, 64, 128)},)
    assert profiles(()) == ({},)


def test_each_bucket_has_a_static_profile_before_the_dynamic_one():
    assert profiles((N,)) == (
        {"N": (1, 1, 1)},
        {"N": (8, 8, 8)},
        {"N": (32, 32, 32)},
        {"N": (1, 8, 64)},
    )


def test_other_axes_stay_dynamic_and_buckets_of_two_are_combined():
    assert profiles((N, T))[0] == {"N": (1, 1, 1), "T": (16, 64, 128)}
    two = Axis("T", min=16, opt=64, max=128, buckets=(32, 64))
    static = [(p["N"][0], p["T"][0]) for p in profiles((N, two))[:-1]]
    assert static == [(1, 32), (1, 64), (8, 32), (8, 64), (32, 32), (32, 64)]


def test_a_call_takes_its_exact_bucket_else_the_dynamic_profile():
    every, asked = profiles((N,)), (1, 8, 32, 2, 64)
    assert [profile_of(every, {"N": size}) for size in asked] == [0, 1, 2, 3, 3]
    assert profile_of(profiles((N, T)), {"N": 8, "T": 17}) == 1
    assert profile_of(profiles(()), {}) == 0


def test_sizes_that_no_profile_has_are_for_the_dynamic_one_to_refuse():
    assert profile_of(profiles((N,)), {"N": 65}) == 3
    assert profile_of(profiles((N, T)), {"N": 8, "T": 129}) == 3


@st.composite
def axes_and_sizes(draw):
    axes, sizes = [], {}
    for name in draw(st.lists(st.sampled_from("NTW"), unique=True)):
        low, best, high = sorted(draw(st.tuples(*[st.integers(1, 9)] * 3)))
        buckets = tuple(sorted(draw(st.sets(st.integers(low, high), max_size=3))))
        axes.append(Axis(name, min=low, opt=best, max=high, buckets=buckets))
        sizes[name] = draw(st.integers(low, high))
    return tuple(axes), sizes


@given(axes_and_sizes())
def test_the_profile_of_a_call_admits_it_and_is_static_wherever_one_is(given_):
    axes, sizes = given_
    every = profiles(axes)
    profile = every[profile_of(every, sizes)]
    assert all(low <= sizes[name] <= high for name, (low, _, high) in profile.items())
    tuned = [axis for axis in axes if axis.buckets]
    if all(sizes[axis.name] in axis.buckets for axis in tuned):
        assert all(profile[axis.name] == (sizes[axis.name],) * 3 for axis in tuned)
    else:
        assert profile == {axis.name: (axis.min, axis.opt, axis.max) for axis in axes}


def test_the_sizes_of_a_call_are_those_of_its_arrays():
    specs = (
        TensorSpec(name="x", dtype="float32", shape=("N", 3, "T")),
        TensorSpec(name="y", dtype="float32", shape=(2,)),
    )
    arrays = {"x": np.zeros((5, 3, 7)), "y": np.zeros(2)}
    assert sizes_of(specs, arrays) == {"N": 5, "T": 7}


# buckets that are chosen


def spent(seen, buckets, cost):
    """What calls cost that are filled up to the next bucket."""
    return sum(
        times * cost(min(bucket for bucket in buckets if bucket >= size))
        for size, times in seen.items()
    )


COSTS = st.sampled_from([float, lambda size: 5.0 + size, lambda size: float(-(-size // 8)), sqrt])


@given(
    st.dictionaries(st.integers(1, 10), st.integers(1, 50), min_size=1, max_size=7),
    st.integers(1, 4),
    COSTS,
)
def test_no_other_buckets_would_cost_less(seen, count, cost):
    chosen = choose_buckets(seen, count, cost=cost)
    assert list(chosen) == sorted(set(chosen))
    assert len(chosen) <= count
    assert chosen[-1] == max(seen)
    least = min(
        spent(seen, (*others, max(seen)), cost)
        for number in range(count)
        for others in combinations(range(1, max(seen)), number)
    )
    assert spent(seen, chosen, cost) == pytest.approx(least)


def test_buckets_are_where_the_calls_are_and_are_what_an_axis_takes():
    seen = [1] * 900 + [7] * 40 + [8] * 300 + [30] * 5 + [32] * 60
    assert choose_buckets(seen, 1) == (32,)
    assert choose_buckets(seen, 2) == (8, 32)
    assert choose_buckets(seen, 9) == (1, 7, 8, 30, 32)
    assert choose_buckets({5: 1}, 3) == (5,)
    assert Axis("N", min=1, opt=8, max=64, buckets=choose_buckets(seen, 3)) == N


def test_what_a_size_costs_decides_which_buckets_are_worth_it():
    seen = {1: 100, 8: 100, 9: 100}
    assert choose_buckets(seen, 2) == (1, 9)
    # Measured: up to 8 items take as long as one.
    assert choose_buckets(seen, 2, cost=lambda size: 1.0 if size <= 8 else 2.0) == (8, 9)


@pytest.mark.parametrize("seen", [[], {}, [0, 3], {4: 0}])
def test_buckets_are_not_chosen_from_nothing(seen):
    with pytest.raises(InvalidInputError, match="chosen from the sizes of real calls, but"):
        choose_buckets(seen, 2)


def test_at_least_one_bucket_is_chosen():
    with pytest.raises(InvalidInputError, match="count is 0, but at least one bucket is expected"):
        choose_buckets([1], 0)
