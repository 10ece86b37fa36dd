"""The ratio of two latencies and its interval: what they say of times whose ratio is known."""

import math

import numpy as np
import pytest
from scipy import stats

from mlflow_e2eai.latency.ratios import (
    NOISY,
    Ratio,
    _student_factor,
    paired_ratio,
    separate_bound,
    turns,
)


def ratio_of(times, baseline):
    return paired_ratio(times, baseline, positions=(0, 1), size=2)


def noisy(seed, count=400, spread=0.1):
    """Two series of times of one distribution."""
    return np.exp(np.random.default_rng(seed).normal(0, spread, (2, count)))


def test_times_without_noise_have_their_ratio_and_no_interval():
    baseline = np.linspace(1, 2, 40)
    found = ratio_of(3 * baseline, baseline)

    assert (found.value, found.low, found.high) == pytest.approx((3, 3, 3))


def test_what_going_first_costs_is_in_neither():
    went_first = np.array([order.index(0) == 0 for order in turns(2)] * 20)
    found = ratio_of(np.where(went_first, 1.5, 1.0), np.where(went_first, 1.0, 1.5))

    assert found.value == pytest.approx(1)


def test_the_interval_is_as_wide_as_the_noise_makes_it():
    """That of a median of normal noise is 1.25 times the mean's; two halves are averaged."""
    widths = []
    for seed in range(40):
        found = ratio_of(*noisy(seed))
        assert found.low < found.value < found.high
        widths.append([math.log(found.high / found.value), math.log(found.value / found.low)])
    expected = 2.576 * 1.2533 * 0.1 * math.sqrt(2) / math.sqrt(400)

    assert np.mean(widths, axis=0) == pytest.approx([expected] * 2, rel=0.25)


@pytest.mark.parametrize("blocks", [5, 8, 20, 100])
def test_an_interval_of_few_blocks_is_widened_as_students_is(blocks):
    student = stats.t.ppf(0.995, blocks - 1) / stats.norm.ppf(0.995)

    assert _student_factor(blocks) == pytest.approx(
        math.sqrt(blocks / (blocks - 1)) * student, rel=0.06
    )


def test_fewer_than_ten_rounds_say_nothing():
    assert ratio_of(*noisy(0, 9)).high == math.inf
    assert ratio_of(*noisy(0, 9)).low == 0
    assert ratio_of(*noisy(0, 10)).high < math.inf


def test_two_are_equal_where_the_interval_has_1_or_nothing_is_known():
    def equal(low, high):
        return Ratio(value=(low + high) / 2, low=low, high=high).equal

    assert [equal(0.9, 1.1), equal(1.0, 1.1), equal(0.9, 1.0)] == [True] * 3
    assert [equal(0.8, 0.9), equal(1.1, 1.2)] == [False] * 2
    assert NOISY.equal


def test_a_callable_beside_itself_is_exactly_as_fast():
    found = paired_ratio([1.0], [2.0], positions=(1, 1), size=2)

    assert found == Ratio(value=1.0, low=1.0, high=1.0)


def test_the_bound_of_separate_measurements_is_seldom_exceeded():
    bounds = [separate_bound(*noisy(seed, 200)) for seed in range(200)]

    assert sum(bound < 1 for bound in bounds) <= 4
    assert np.median(bounds) < 1.15


def test_fewer_than_eight_rounds_have_no_bound():
    times = [1.0] * 30
    assert separate_bound(times[:7], times) == math.inf
    assert separate_bound(times, times[:7]) == math.inf
    assert separate_bound(times, times) == 1
