"""An error that is large in one slice is found beside a large output, and noise is not."""

import math

import numpy as np
import pytest

from mlflow_e2eai.parity.slices import FEW, MOST, MOST_SLICES, SliceSums


def right(items=8, size=4, columns=6, seed=0):
    return np.random.default_rng(seed).standard_normal((items, size, columns)) + 3


def worst(pairs, limit=0.01):
    sums = SliceSums()
    for one, other in pairs:
        sums.add(one, other)
    return sums.worst(limit)


def test_the_slice_is_named_and_its_error_is_a_share_of_its_own():
    output = right()
    output[:, 2] *= 1e-3  # another unit
    wrong = output.copy()
    wrong[:, 2] *= 1.25
    found = worst([(output, wrong)])

    assert (found.axis, found.index) == (1, 2)
    assert found.noise_to_signal == pytest.approx(0.25)
    assert found.limit == pytest.approx(0.01 * (1 + math.sqrt(2 * math.log(4) / 48)))


def test_an_output_that_is_right_has_slices_without_error():
    assert worst([(right(), right())]).noise_to_signal == 0


def test_a_slice_that_is_lost_exceeds_every_limit():
    output = right(items=1, columns=FEW)
    wrong = output.copy()
    wrong[:, 1] = 0
    found = worst([(output, wrong)], limit=0.7)

    assert found.noise_to_signal == pytest.approx(1)
    assert found.limit <= MOST


def test_zeros_but_for_rounding_are_not_compared():
    output = right()
    output[:, 0] = 1e-8
    wrong = output.copy()
    wrong[:, 0] *= 2

    assert worst([(output, wrong)]).noise_to_signal < 1e-6


@pytest.mark.parametrize(("size", "found"), [(MOST_SLICES, True), (MOST_SLICES + 1, False)])
def test_axes_up_to_512_long_are_compared(size, found):
    output = right(size=size)
    wrong = output.copy()
    wrong[:, -1] *= 2
    slices = worst([(output, wrong)])
    assert (MOST_SLICES, (slices.axis, slices.index) == (1, size - 1)) == (512, found)


def test_neither_items_nor_an_axis_of_several_sizes_have_units():
    output, longer = right(columns=6), right(columns=7, seed=1)
    wrong, items = longer.copy(), output.copy()
    wrong[:, :, 3] *= 1.5
    items[5] *= 1.5
    assert worst([(output, output), (longer, wrong)]).axis == 1
    assert worst([(output, items)]).axis in (1, 2)


def test_one_item_many_times_is_one_item():
    item = right(items=1, columns=2)
    wrong = item.copy()
    wrong[:, 1] = 0
    pairs = [(np.repeat(item, 50, 0), np.repeat(wrong, 50, 0))]

    assert worst(pairs).axis == 2  # of which each slice has four elements, and of the other two
