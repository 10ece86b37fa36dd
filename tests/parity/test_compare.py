import dataclasses
import math
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from itertools import count
from unittest import mock

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from mlflow_e2eai.artifacts.values import Array, Infer, Tensors
from mlflow_e2eai.errors import InvalidInputError
from mlflow_e2eai.parity import comparison as parity_compare
from mlflow_e2eai.parity import measure
from mlflow_e2eai.parity.comparison import REPEATS, WINDOW, compare
from mlflow_e2eai.parity.report import Element, OutputParity, ParityReport
from mlflow_e2eai.parity.tolerances import TOLERANCES

X = np.linspace(-1, 1, 12, dtype=np.float32).reshape(3, 4)

FLOATS = st.floats(-1e6, 1e6, width=32).filter(lambda x: x == 0 or abs(x) > 1e-6)
ARRAYS = hnp.arrays(np.float32, hnp.array_shapes(max_dims=3, max_side=4), elements=FLOATS)
PAIRS = hnp.array_shapes(max_dims=2, max_side=4).flatmap(
    lambda shape: st.tuples(*(hnp.arrays(np.float32, shape, elements=FLOATS) for _ in range(2)))
)


def identity(tensors: Tensors) -> Tensors:
    return {"y": tensors["x"]}


def always(*values: object, dtype: type = np.float32) -> Infer:
    return lambda _: {"y": np.array(values, dtype)}


def on_call(wrong: Callable[[int], bool], change: Callable[[Array], Array]) -> Infer:
    """The identity, whose answer is changed on some of its calls, counted from 1."""
    calls = count(1)
    return lambda tensors: {
        "y": change(tensors["x"].copy()) if wrong(next(calls)) else tensors["x"].copy()
    }


def kinds(report: ParityReport) -> set[str]:
    return {finding.kind for finding in report.findings}


def test_the_same_callable_passes_with_no_error():
    report = compare(identity, identity, [{"x": X}, {"x": 2 * X}])

    assert report.passed
    assert report.findings == ()
    assert (report.samples, report.repeats, report.tolerance) == (2, REPEATS, TOLERANCES["fp32"])
    (output,) = report.outputs
    assert report.calls == 2 * REPEATS + 2 * 4  # two threads, four times
    assert (output.name, output.elements) == ("y", report.calls * X.size)
    assert (output.max_abs_error, output.max_rel_error, output.nonfinite_count) == (0, 0, 0)
    assert (output.mean_abs_error, output.rmse) == (0, 0)
    assert output.cosine == pytest.approx(1)


def asking(asked: list[tuple[str, int]], name: str) -> Infer:
    """The identity, which notes that it was asked, and what."""
    return lambda tensors: asked.append((name, int(tensors["x"][0]))) or identity(tensors)


def test_the_reference_is_asked_twice_and_the_candidate_many_times_in_turns_there_and_back():
    asked = []
    samples = [{"x": np.array([number])} for number in range(2)]
    compare(asking(asked, "r"), asking(asked, "c"), samples, repeats=3, threads=1)

    assert "".join(name + str(number) for name, number in asked) == "r0r1r0r1c0c1c1c0c0c1"


def test_at_one_repeat_each_is_asked_once_for_each_sample_and_from_one_thread():
    asked = []
    samples = [{"x": np.array([number])} for number in range(3)]
    report = compare(asking(asked, "r"), asking(asked, "c"), samples, repeats=1)

    assert "".join(name + str(number) for name, number in asked) == "r0c0r1c1r2c2"
    assert (report.calls, report.threads) == (3, 1)


def test_more_samples_than_are_held_together_are_asked_window_by_window():
    asked = []
    samples = [{"x": np.array([number])} for number in range(WINDOW + 1)]
    compare(identity, asking(asked, "c"), samples, repeats=2, threads=1)

    window = list(range(WINDOW))
    assert [number for _, number in asked] == [*window, *window[::-1], WINDOW, WINDOW]


def test_nothing_seen_is_not_nothing_wrong():
    report = compare(identity, identity, [])

    assert not report.passed
    assert kinds(report) == {"no_samples"}
    assert report.samples == 0
    assert math.isnan(report.max_abs_error)


def test_samples_of_no_items_do_not_pass_whatever_the_candidate_is():
    def seven(tensors):
        return {"output": np.full((len(tensors["x"]), 3), 7.0)}

    def zero(tensors):
        return {"output": np.zeros((len(tensors["x"]), 3))}

    empty = {"x": np.zeros((0, 4)), "scale": np.float32(2)}
    report = compare(zero, seven, [empty, empty])
    assert not report.passed
    assert kinds(report) == {"no_samples"}
    assert not compare(zero, zero, [empty], repeats=1).passed
    assert compare(zero, zero, [empty, {"x": np.zeros((2, 4))}]).passed


def test_finding_nothing_in_items_that_are_there_is_an_output_like_any_other():
    def boxes(_):
        return {"boxes": np.zeros((0, 4))}

    assert compare(boxes, boxes, [{"x": np.zeros((2, 4))}]).passed


def test_an_empty_input_beside_others_hides_nothing():
    sample = {"past": np.zeros((1, 0, 4)), "x": np.zeros((1, 4))}
    assert compare(identity, identity, [sample]).passed


def test_a_reference_with_no_outputs_does_not_pass():
    report = compare(lambda _: {}, lambda _: {}, [{"x": X}])

    assert kinds(report) == {"no_outputs"}


def test_a_missing_output_is_found():
    report = compare(lambda _: {"a": X, "b": X}, lambda _: {"a": X}, [{"x": X}])

    (finding,) = report.findings
    assert (finding.kind, finding.output, finding.sample) == ("missing_output", "b", 0)
    assert [output.name for output in report.outputs] == ["a"]


def test_an_unexpected_output_is_found():
    report = compare(lambda _: {"a": X}, lambda _: {"a": X, "b": X}, [{"x": X}])

    (finding,) = report.findings
    assert (finding.kind, finding.output, finding.sample) == ("unexpected_output", "b", 0)


def test_another_dtype_is_found_even_where_the_numbers_are_equal():
    report = compare(always(1, 2), always(1, 2, dtype=np.float64), [{}])

    (finding,) = report.findings
    assert (finding.kind, finding.output, finding.sample) == ("dtype", "y", 0)
    assert "float64, not float32" in finding.sentence


@pytest.mark.parametrize("shape", [(4, 3), (12,), (1, 3, 4), (3, 1), ()])
def test_another_shape_is_found_even_where_numpy_would_broadcast(shape):
    report = compare(
        lambda _: {"y": np.zeros((3, 4))}, lambda _: {"y": np.zeros(shape)}, [{"x": X}]
    )

    finding = report.findings[0]
    assert (finding.kind, finding.output, finding.sample) == ("shape", "y", 0)
    assert f"{list(shape)}, not [3, 4]" in finding.sentence
    assert kinds(report) == ({"shape", "transposed"} if shape == (4, 3) else {"shape"})


def test_an_element_beyond_the_tolerance_is_found_with_its_place_and_both_values():
    wrong = X.copy()
    wrong[2, 1] += 0.5
    report = compare(identity, lambda _: {"y": wrong}, [{"x": X}])

    (finding,) = report.findings
    assert (finding.kind, finding.output, finding.sample) == ("tolerance", "y", 0)
    assert finding.index == (2, 1)
    assert f"{wrong[2, 1]:g}, not {X[2, 1]:g}" in finding.sentence


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_one_bad_element_in_a_million_is_found_with_its_place(bad):
    right = np.ones((1000, 1000), np.float32)
    given = right.copy()
    given[777, 42] = bad
    report = compare(lambda _: {"y": right}, lambda _: {"y": given}, [{}], repeats=1)

    (finding,) = report.findings
    assert (finding.kind, finding.output, finding.sample) == ("nonfinite", "y", 0)
    assert finding.index == (777, 42)
    (output,) = report.outputs
    assert (output.nonfinite_count, output.elements) == (1, 1_000_000)
    assert output.max_abs_error == math.inf


def test_a_number_where_the_reference_has_infinity_is_found():
    assert kinds(compare(always(1, math.inf), always(1, 2), [{}])) == {"nonfinite"}
    assert kinds(compare(always(1, math.inf), always(1, -math.inf), [{}])) == {"nonfinite"}
    assert kinds(compare(always(1, math.nan), always(1, math.inf), [{}])) == {"nonfinite"}


def test_the_same_infinities_and_nans_on_both_sides_pass():
    both = always(math.inf, -math.inf, math.nan, 1)
    report = compare(both, both, [{}])

    assert report.passed
    assert report.outputs[0].nonfinite_count == 0
    assert report.max_abs_error == 0


@pytest.mark.parametrize("same", [-math.inf, math.inf, math.nan])
def test_noise_within_the_tolerance_beside_a_shared_infinity_or_nan_passes(same):
    calls = count()

    def noisy(_: Tensors) -> Tensors:
        return {"y": np.array([same, 1 + 1e-6 * next(calls)], np.float32)}

    with warnings.catch_warnings():
        warnings.simplefilter("error")  # NumPy says "invalid value" where it met inf - inf
        report = compare(always(same, 1), noisy, [{}])

    assert report.findings == ()


def test_an_answer_of_nothing_but_nan_is_found_without_a_warning_from_numpy():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        report = compare(identity, on_call(lambda n: n == 1, lambda x: x * math.nan), [{"x": X}])

    assert "nonfinite" in kinds(report)


def test_an_answer_of_nothing_but_zeros_is_found():
    report = compare(identity, lambda tensors: {"y": 0 * tensors["x"]}, [{"x": X}])

    assert kinds(report) == {"tolerance"}
    assert report.outputs[0].cosine == 0


def test_two_outputs_of_zeros_pass():
    report = compare(always(0, 0), always(0, 0), [{}])

    assert report.passed
    assert report.outputs[0].cosine == 1


def test_a_candidate_that_changes_its_mind_within_the_tolerance_of_the_reference_is_found():
    calls = count()

    def swinging(_: Tensors) -> Tensors:
        return {"y": np.array([1 + 8e-4 * (-1) ** next(calls)], np.float32)}

    report = compare(always(1), swinging, [{}], tolerance=1e-3)

    (finding,) = report.findings
    assert (finding.kind, finding.output, finding.sample) == ("nondeterministic", "y", 0)


def test_a_candidate_that_is_always_wrong_alike_is_not_called_nondeterministic():
    assert kinds(compare(always(1), always(2), [{}])) == {"tolerance"}


def test_a_candidate_that_is_wrong_from_its_third_call_on_is_found():
    report = compare(identity, on_call(lambda n: n > 2, lambda x: x + 1), [{"x": X}])

    assert kinds(report) == {"tolerance", "nondeterministic"}
    assert report.max_abs_error == pytest.approx(1)


def test_a_candidate_that_is_wrong_on_its_last_call_only_is_found():
    report = compare(identity, on_call(lambda n: n == REPEATS, lambda x: x + 1), [{"x": X}])

    assert kinds(report) == {"tolerance", "nondeterministic"}


@pytest.mark.parametrize("number", [0, 3, 6])
def test_a_candidate_that_is_wrong_at_one_sample_only_is_found_with_its_number(number):
    def candidate(tensors: Tensors) -> Tensors:
        wrong = tensors["x"][0] == number
        return {"y": tensors["x"] + np.float32(wrong)}

    samples = [{"x": np.array([n, 100], np.float32)} for n in range(7)]
    report = compare(identity, candidate, samples)

    (finding,) = report.findings
    assert (finding.kind, finding.sample, finding.index) == ("tolerance", number, (0,))


def test_an_output_that_goes_missing_on_a_later_call_is_found():
    calls = count()
    report = compare(
        identity, lambda tensors: identity(tensors) if next(calls) < 4 else {}, [{"x": X}]
    )

    assert kinds(report) == {"missing_output"}


def test_each_kind_is_told_once_for_each_output_where_it_was_first_seen():
    report = compare(lambda _: {"a": X, "b": X}, lambda _: {"a": X + 1, "b": X + 1}, 3 * [{"x": X}])

    assert [(finding.kind, finding.output, finding.sample) for finding in report.findings] == [
        ("tolerance", "a", 0),
        ("tolerance", "b", 0),
    ]


@pytest.mark.parametrize("dtype", [np.int8, np.int32, np.int64, np.uint8])
def test_integers_are_compared_exactly(dtype):
    right = always(100, 100, dtype=dtype)

    assert compare(right, right, [{}]).passed
    report = compare(right, always(100, 101, dtype=dtype), [{}], tolerance=0.5)
    assert kinds(report) == {"tolerance"}
    assert report.findings[0].index == (1,)


@pytest.mark.parametrize(
    ("right", "given", "dtype"),
    [
        (2**53, 2**53 + 1, np.int64),
        (-(2**62), -(2**62) + 1, np.int64),
        (2**64 - 2, 2**64 - 1, np.uint64),
    ],
)
def test_integers_that_float64_cannot_tell_apart_are_compared_exactly_too(right, given, dtype):
    report = compare(always(right, dtype=dtype), always(given, dtype=dtype), [{}])

    assert kinds(report) == {"tolerance"}


def test_booleans_are_compared_exactly():
    right = always(1, 0, dtype=bool)

    assert compare(right, right, [{}]).passed
    assert kinds(compare(right, always(1, 1, dtype=bool), [{}])) == {"tolerance"}


def test_the_error_is_a_share_of_the_largest_magnitude_of_the_whole_output():
    # 0.5 is half of the small number, but a thousandth of the large one.
    right, given = always(500, 1), always(500, 1.5)

    assert compare(right, given, [{}], tolerance=0.0011).passed
    assert not compare(right, given, [{}], tolerance=0.0009).passed


def images(*widths: int) -> list[Tensors]:
    """Images that are nearly empty in column 3."""
    random = np.random.default_rng(0)
    made = [random.uniform(0.5, 1, (1, 1, 16, width)).astype(np.float32) for width in widths]
    for image in made:
        image[..., 3] *= 1e-4
    return [{"x": image} for image in made]


def off_by_two_percent_in_column_3(tensors: Tensors) -> Tensors:
    image = tensors["x"].copy()
    image[..., 3] *= 1.02
    return {"y": image}


def test_a_small_column_is_compared_with_itself_where_all_images_have_one_width():
    report = compare(identity, off_by_two_percent_in_column_3, images(8, 8))
    assert kinds(report) == {"slice"}


def test_a_column_of_images_of_several_widths_has_no_unit_of_its_own():
    assert compare(identity, off_by_two_percent_in_column_3, images(8, 12)).passed


def test_an_error_of_just_the_tolerance_passes():
    assert compare(always(1), always(1.25), [{}], tolerance=0.25).passed
    assert compare(always(1), always(1), [{}], tolerance=0).passed


def test_a_lower_precision_is_given_more_room():
    right, given = always(1, dtype=np.float64), always(1.005, dtype=np.float64)

    assert not compare(right, given, [{}], precision="fp32").passed
    assert compare(right, given, [{}], precision="fp16").passed


def test_a_buffer_that_the_candidate_writes_over_at_each_call_hides_nothing():
    buffer = np.empty_like(X)
    calls = count(1)

    def reusing(tensors: Tensors) -> Tensors:
        # Right at last: whoever kept the buffer and not its numbers would see only that.
        buffer[:] = tensors["x"] + (next(calls) != REPEATS)
        return {"y": buffer}

    report = compare(identity, reusing, [{"x": X}])

    assert kinds(report) == {"tolerance", "nondeterministic"}


def test_a_buffer_that_reference_and_candidate_share_hides_nothing():
    buffer = np.empty(1, np.float32)

    def writing(value: float) -> Infer:
        def infer(_: Tensors) -> Tensors:
            buffer[:] = value
            return {"y": buffer}

        return infer

    assert kinds(compare(writing(1), writing(2), [{}])) == {"tolerance"}


def test_a_scalar_output_is_compared():
    report = compare(lambda _: {"y": np.float32(1)}, lambda _: {"y": np.float32(2)}, [{}])

    (finding,) = report.findings
    assert (finding.kind, finding.index) == ("tolerance", ())


def test_empty_outputs_are_equal():
    empty = np.zeros((0, 4), np.float32)

    assert compare(lambda _: {"y": empty}, lambda _: {"y": empty}, [{}]).passed


def test_the_metrics_are_those_of_their_formulas():
    rng = np.random.default_rng(0)
    rights = [rng.normal(size=(5, 7)).astype(np.float32) for _ in range(3)]
    givens = [(right + rng.normal(scale=0.1, size=right.shape)).astype("f4") for right in rights]
    answers = iter(givens)
    samples = [{"x": right} for right in rights]
    report = compare(identity, lambda _: {"y": next(answers)}, samples, repeats=1, tolerance=9)

    a, b = (np.stack(arrays).astype(np.float64) for arrays in (rights, givens))
    (output,) = report.outputs
    shares = [np.abs(b[n] - a[n]).max() / np.abs(a[n]).max() for n in range(3)]
    assert output.elements == a.size
    assert output.max_abs_error == report.max_abs_error == np.abs(b - a).max()
    assert output.max_rel_error == pytest.approx(max(shares))
    assert output.mean_abs_error == pytest.approx(np.abs(b - a).mean())
    assert output.rmse == pytest.approx(np.sqrt(np.square(b - a).mean()))
    cosine = a.ravel() @ b.ravel() / np.linalg.norm(a) / np.linalg.norm(b)
    assert output.cosine == pytest.approx(cosine)


def test_the_metrics_of_the_finite_elements_ignore_the_others():
    report = compare(always(1, 3, math.inf), always(2, 3, 0), [{}], repeats=1)

    (output,) = report.outputs
    assert output.mean_abs_error == pytest.approx(0.5)
    assert output.rmse == pytest.approx(math.sqrt(0.5))


def test_the_largest_error_is_that_of_the_worst_output():
    report = compare(lambda _: {"a": X, "b": X}, lambda _: {"a": X + 1, "b": X + 2}, [{}])

    assert report.max_abs_error == pytest.approx(2)


@given(arrays=PAIRS, power=st.integers(-10, 10))
def test_scaling_both_sides_scales_the_absolute_error_and_leaves_the_relative_one(arrays, power):
    right, given_ = arrays
    factor = np.float32(2.0**power)  # a power of two scales floats exactly

    def errors(scale: np.float32) -> tuple[float, float]:
        report = compare(
            lambda _: {"y": right * scale}, lambda _: {"y": given_ * scale}, [{}], repeats=1
        )
        return report.outputs[0].max_abs_error, report.outputs[0].max_rel_error

    absolute, relative = errors(np.float32(1))
    scaled_absolute, scaled_relative = errors(factor)
    assert scaled_absolute == absolute * factor
    if right.any():  # with no magnitude to be a share of, the share has no meaning
        assert scaled_relative == relative


@given(arrays=PAIRS)
def test_errors_are_never_negative_and_the_cosine_is_between_minus_one_and_one(arrays):
    right, given_ = arrays
    report = compare(lambda _: {"y": right}, lambda _: {"y": given_}, [{}], repeats=2)

    (output,) = report.outputs
    assert 0 <= output.mean_abs_error <= output.max_abs_error * (1 + 1e-12)
    assert output.mean_abs_error <= output.rmse * (1 + 1e-12)
    assert output.max_rel_error >= 0
    assert -1 <= output.cosine <= 1


@given(array=ARRAYS)
def test_every_array_equals_itself(array):
    report = compare(lambda _: {"y": array}, lambda _: {"y": array}, [{}], repeats=2, tolerance=0)

    assert report.passed
    assert report.outputs[0].cosine == pytest.approx(1)


@given(arrays=PAIRS)
def test_swapping_the_sides_keeps_the_absolute_error_and_the_cosine(arrays):
    def judged(one: Array, other: Array) -> tuple[float, float]:
        report = compare(lambda _: {"y": one}, lambda _: {"y": other}, [{}], repeats=1)
        return report.outputs[0].max_abs_error, report.outputs[0].cosine

    assert judged(*arrays) == judged(*arrays[::-1])


@given(arrays=PAIRS, tolerances=st.tuples(st.floats(0, 10), st.floats(0, 10)))
def test_what_passes_a_tolerance_passes_a_larger_one(arrays, tolerances):
    right, given_ = arrays
    small, large = sorted(tolerances)

    def passes(tolerance: float) -> bool:
        return compare(
            lambda _: {"y": right}, lambda _: {"y": given_}, [{}], tolerance=tolerance, repeats=1
        ).passed

    assert passes(large) or not passes(small)


@pytest.mark.parametrize("tolerance", [-1e-9, math.nan, math.inf])
def test_a_tolerance_that_is_no_number_of_at_least_zero_is_refused(tolerance):
    with pytest.raises(InvalidInputError, match="tolerance="):
        compare(identity, identity, [{"x": X}], tolerance=tolerance)


@pytest.mark.parametrize("repeats", [0, -1])
def test_asking_less_than_once_is_refused(repeats):
    with pytest.raises(InvalidInputError, match=f"repeats is {repeats}; give at"):
        compare(identity, identity, [{"x": X}], repeats=repeats)


def test_samples_are_read_one_at_a_time():
    handed_out, judged = [], []

    def samples() -> Iterator[Tensors]:
        for number in range(3):
            assert judged == handed_out, "the next sample was read before the last was judged"
            handed_out.append(number)
            yield {"x": np.array([number])}

    def candidate(tensors: Tensors) -> Tensors:
        judged.append(int(tensors["x"][0]))
        return identity(tensors)

    assert compare(identity, candidate, samples(), repeats=1).samples == 3
    assert judged == [0, 1, 2]


@pytest.mark.parametrize(("repeats", "most"), [(1, 1), (2, WINDOW)])
def test_only_so_many_samples_are_held_together(repeats, most):
    import weakref

    held = []

    def samples() -> Iterator[Tensors]:
        for _ in range(3 * WINDOW):
            alive = sum(reference() is not None for reference in held)
            assert alive <= most, f"{alive} samples are still held"
            array = np.ones(8, np.float32)
            held.append(weakref.ref(array))
            yield {"x": array}
            del array

    report = compare(lambda _: {"y": X}, lambda _: {"y": X}, samples(), repeats=repeats)

    assert report.samples == 3 * WINDOW


def one(right, given, **options) -> OutputParity:
    """How one output differs that is asked once."""
    options = {"repeats": 1, **options}
    report = compare(lambda _: {"y": right}, lambda _: {"y": given}, [{}], **options)
    return report.outputs[0]


def test_the_elementwise_error_is_relative_to_the_element_and_a_thousandth_of_the_largest():
    output = one(np.array([100.0, 1.0, 0.0]), np.array([100.0, 1.1, 0.1]))

    wanted = np.array([0, 0.1 / (1 + 0.1), 0.1 / 0.1])
    assert output.max_elementwise_error == pytest.approx(1)
    assert output.mean_elementwise_error == pytest.approx(wanted.mean())


def test_the_signal_to_noise_ratio_is_in_decibels_of_power():
    assert one(np.ones(8), np.full(8, 1.01)).snr_db == pytest.approx(40)
    assert one(np.ones(8), np.ones(8)).snr_db == pytest.approx(319, abs=0.1)
    assert one(np.zeros(8), np.ones(8)).snr_db == -math.inf


def test_the_share_outside_the_tolerance_counts_what_is_not_finite_too():
    right = np.ones(10)
    given = np.array([1, 1, 1, 1, 1, 1, 1, 2, 3, math.nan])

    assert one(right, given).outside_share == pytest.approx(0.3)


def test_what_is_not_finite_is_counted_on_both_sides():
    output = one(np.array([1, math.inf, math.nan]), np.array([math.inf, math.inf, 1.0]))

    assert (output.reference_nonfinite, output.candidate_nonfinite) == (2, 2)
    assert output.nonfinite_count == 2


def test_agreement_counts_the_rows_whose_largest_is_in_the_same_place():
    right = np.eye(8)
    given = right.copy()
    given[0] = [0.5, 1, 0, 0, 0, 0, 0, 0]  # second
    given[1] = [6, 0, 5, 4, 3, 2, 1, 9]  # last
    output = one(right, given)

    assert output.argmax_agreement == pytest.approx(6 / 8)
    assert output.top5_agreement == pytest.approx(7 / 8)


def test_a_tie_is_given_the_benefit_on_either_side():
    assert one(np.array([[1.0, 1, 0]]), np.array([[1.0, 1.1, 0]])).argmax_agreement == 1
    assert one(np.array([[1.0, 0.9, 0]]), np.array([[1.0, 1, 0]])).argmax_agreement == 1
    assert one(np.array([[1.0, 0.9, 0]]), np.array([[1.0, 1.1, 0]])).argmax_agreement == 0


@pytest.mark.parametrize("shape", [(3,), (3, 1), (0, 3)])
def test_where_there_are_no_classes_there_is_no_agreement(shape):
    assert one(np.zeros(shape), np.zeros(shape)).argmax_agreement is None
    assert one(np.zeros((3, 5)), np.zeros((3, 5))).top5_agreement is None
    assert one(np.zeros((3, 5), int), np.zeros((3, 5), int)).argmax_agreement is None


def test_the_first_wrong_element_is_told_with_both_values_to_the_last_digit():
    output = one(np.array([[1, 2**53 + 1], [0, 0]]), np.array([[1, 2**53], [9, 0]]))

    wanted = Element(sample=0, index=(0, 1), reference=str(2**53 + 1), candidate=str(2**53))
    assert output.first_wrong == wanted
    assert one(X, X).first_wrong is None


def test_an_output_may_have_a_tolerance_of_its_own():
    def both(value: float) -> Infer:
        return lambda _: {"a": np.array([value]), "b": np.array([value])}

    report = compare(both(1.0), both(1.05), [{}], tolerance={"a": 0.1})

    assert [(finding.kind, finding.output) for finding in report.findings] == [("tolerance", "b")]
    assert [output.tolerance for output in report.outputs] == [0.1, TOLERANCES["fp32"]]


def test_an_unknown_precision_is_refused():
    with pytest.raises(InvalidInputError, match="The precision is 'fp12', but one of fp32"):
        compare(identity, identity, [{"x": X}], precision="fp12")


@pytest.mark.parametrize("threads", [0, -1])
def test_less_than_one_thread_is_refused(threads):
    with pytest.raises(InvalidInputError, match=f"threads is {threads}; give at"):
        compare(identity, identity, [{"x": X}], threads=threads)


def test_noise_is_measured_and_judged_by_that_of_the_reference():
    def swinging(share: float) -> Infer:
        calls = count()
        return lambda _: {"y": np.array([1 + share * (next(calls) % 2)])}

    calm = compare(always(1, dtype=float), swinging(6e-4), [{}])
    noisy = compare(swinging(6e-4), swinging(6e-4), [{}])

    assert kinds(calm) == {"nondeterministic"}
    assert noisy.passed
    assert noisy.outputs[0].noise == pytest.approx(6e-4, rel=0.01)
    assert noisy.outputs[0].reference_noise == pytest.approx(6e-4, rel=0.01)


def test_it_stops_at_the_first_thing_wrong_where_it_is_told_to():
    asked = []

    def wrong(tensors: Tensors) -> Tensors:
        asked.append(tensors)
        return {"y": tensors["x"] + len(asked) // 3}

    report = compare(identity, wrong, 9 * [{"x": X}], stop_when_failed=True)

    assert not report.passed
    assert len(asked) == 3


def test_a_constant_of_the_candidates_own_is_left_as_it_is():
    anchors = X.copy()

    def candidate(tensors: Tensors) -> Tensors:
        return {"anchors": anchors, "y": tensors["x"] @ anchors.T}

    report = compare(candidate, candidate, [{"x": X}, {"x": 2 * X}])

    assert report.passed
    assert np.array_equal(anchors, X)


def test_what_is_not_written_is_seen_where_the_buffer_holds_the_right_numbers_by_luck():
    last, calls = np.ones((3, 1), np.float32), count(1)
    samples = [{"x": np.append(X * factor, last, axis=1)} for factor in (1, 2)]
    buffer = np.empty_like(samples[0]["x"])

    def candidate(tensors: Tensors) -> Tensors:
        end = None if next(calls) == 1 else -1  # the last column only once
        buffer[:, :end] = tensors["x"][:, :end]
        return {"y": buffer}

    assert "unwritten" in kinds(compare(identity, candidate, samples, threads=1))


def test_the_calls_in_turns_are_compared_each():
    wrong_once = on_call(lambda number: number == REPEATS + 1, lambda x: x + 1)

    report = compare(identity, wrong_once, [{"x": X}, {"x": 2 * X}], threads=1)

    assert not report.passed
    assert report.calls == 2 * REPEATS


def test_a_buffer_that_is_written_in_full_at_each_call_passes_on_one_thread():
    buffer = np.empty_like(X)

    def reusing(tensors: Tensors) -> Tensors:
        buffer[:] = tensors["x"]
        return {"y": buffer}

    assert compare(identity, reusing, [{"x": X}, {"x": 2 * X}], threads=1).passed


def test_complex_numbers_are_compared_by_the_length_of_their_difference():
    right = np.array([3 + 4j, 1])

    assert one(right, right).max_abs_error == 0
    assert one(right, right + np.array([0, 3 - 4j])).max_abs_error == pytest.approx(5)


def test_ragged_outputs_are_compared_and_their_index_starts_with_the_item():
    right = [np.zeros(3), np.zeros((2, 2))]
    given = [np.zeros(3), np.array([[0, 0], [1, 0]])]

    assert one(right, right).max_abs_error == 0
    assert one(right, given).first_wrong.index == (1, 1, 0)


@given(array=ARRAYS, block=st.integers(1, 5))
def test_the_numbers_do_not_depend_on_how_the_array_is_cut(array, block):
    whole = measure.measure(array, array[::-1], 1e-3)
    with mock.patch.object(measure, "BLOCK", block):
        pieces = measure.measure(array, array[::-1], 1e-3)

    for field in dataclasses.fields(whole):
        wanted = getattr(whole, field.name)
        assert getattr(pieces, field.name) == (wanted and pytest.approx(wanted)), field.name


# Small answers, judged together


def scaled(share: float) -> Infer:
    return lambda tensors: {"y": tensors["x"] * np.float32(1 + share)}


def rows(count: int, width: int = 384) -> list[Tensors]:
    rng = np.random.default_rng(0)
    return [{"x": row} for row in rng.standard_normal((count, width)).astype(np.float32)]


def test_small_answers_are_measured_many_at_a_time():
    together = measure.BLOCK // 384
    with mock.patch(
        "mlflow_e2eai.parity.comparer.measure", side_effect=measure.measure
    ) as measured:
        report = compare(identity, scaled(1e-6), rows(2 * together + 1), repeats=1)

    assert report.passed
    assert [call.kwargs.get("calls", 1) for call in measured.call_args_list] == [
        together,
        together,
        1,
    ]
    assert report.calls == report.samples == 2 * together + 1


def same_but_for_rounding(one: ParityReport, other: ParityReport) -> bool:
    def numbers(report: ParityReport) -> list[object]:
        values = [value for o in report.outputs for value in dataclasses.astuple(o)]
        return [pytest.approx(v, nan_ok=True) if isinstance(v, float) else v for v in values]

    left, right = (dataclasses.replace(report, outputs=()) for report in (one, other))
    return left == right and [
        value for output in one.outputs for value in dataclasses.astuple(output)
    ] == numbers(other)


ERRORS = st.sampled_from([0.0, 1e-7, 1e-5, 5e-4, 2e-3, 1.0, math.nan, math.inf])
SHAPES = st.sampled_from([(4,), (2, 3), (1, 7), (3, 2, 8), (), (0, 3)])


@given(
    calls=st.lists(st.tuples(SHAPES, ERRORS, st.integers(-20, 20)), min_size=1, max_size=12),
    seed=st.integers(0, 9),
)
def test_nothing_that_is_said_depends_on_whether_answers_are_judged_together(calls, seed):
    rng = np.random.default_rng(seed)
    samples = [
        {
            "x": (rng.standard_normal(shape) * 2.0**power).astype(np.float32),
            "error": np.array(error),
            "at": rng.random(shape) < 0.2,
        }
        for shape, error, power in calls
    ]

    def wrong(tensors: Tensors) -> Tensors:
        with np.errstate(invalid="ignore"):
            return {"y": (tensors["x"] * (1 + tensors["error"] * tensors["at"])).astype("f4")}

    together = compare(identity, wrong, samples, repeats=1)
    with mock.patch.object(parity_compare, "MOST", 1):
        alone = compare(identity, wrong, samples, repeats=1)

    assert same_but_for_rounding(together, alone)


@pytest.mark.parametrize("number", [0, 1, 17, 63, 64])
def test_the_one_wrong_answer_among_those_judged_together_is_found_with_its_place(number):
    samples = [{**row, "n": np.array(n)} for n, row in enumerate(rows(65))]

    def candidate(tensors: Tensors) -> Tensors:
        answer = tensors["x"].copy()
        answer[42] += tensors["n"] == number
        return {"y": answer}

    report = compare(lambda t: {"y": t["x"]}, candidate, samples, repeats=1)

    (finding,) = report.findings
    assert (finding.kind, finding.sample, finding.index) == ("tolerance", number, (42,))
    assert report.outputs[0].first_wrong.sample == number


def test_a_stale_answer_is_recognised_among_those_judged_together():
    last = []

    def stale(tensors: Tensors) -> Tensors:
        last.append(tensors["x"])
        return {"y": last.pop(0) if len(last) > 1 else last[0]}

    assert kinds(compare(identity, stale, rows(9), repeats=1)) == {"tolerance", "stale"}


def test_an_answer_is_judged_at_once_where_the_first_wrong_one_is_the_last():
    asked = []
    report = compare(
        asking_rows(asked), on_call(lambda n: n == 3, lambda x: x + 1), rows(9), repeats=1,
        stop_when_failed=True,
    )  # fmt: skip

    assert not report.passed
    assert len(asked) == 3


def asking_rows(asked: list[Tensors]) -> Infer:
    return lambda tensors: asked.append(tensors) or identity(tensors)


# In a process of its own: what is traced is of every thread, and those that earlier tests left
# behind allocate too.
PEAKS = """
import sys, tracemalloc
import numpy as np
from mlflow_e2eai.parity.comparison import compare

*shape, count = map(int, sys.argv[1:])
right = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
given = right * np.float32(1 + 1e-6)


def peak(samples):
    tracemalloc.start()
    report = compare(
        lambda _: {"y": right}, lambda _: {"y": given}, ({} for _ in range(samples)), repeats=1
    )
    assert report.samples == samples
    _, highest = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return highest


peak(count // 3)  # what is imported and cached on first use
print(peak(count // 3), peak(count))
"""


@pytest.mark.parametrize(("shape", "count"), [((384,), 6000), ((64, 384), 150), ((), 5000)])
def test_memory_does_not_grow_with_the_number_of_samples(shape, count):
    """The windows are full at a third of `count` already, so that what grows after it is a leak."""
    command = [sys.executable, "-c", PEAKS, *map(str, [*shape, count])]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    third, whole = map(int, done.stdout.split())
    assert whole < third + 50_000


# Progress


def test_progress_is_told_each_sample_just_before_the_candidate_is_asked():
    seen = []
    samples = [{"x": np.array([number])} for number in range(2)]
    compare(
        identity, asking(seen, "c"), samples, repeats=2, threads=1,
        progress=lambda number: seen.append(("p", number)),
    )  # fmt: skip

    assert "".join(name + str(number) for name, number in seen) == "p0c0p1c1p1c1p0c0"


def test_progress_is_told_from_the_callers_thread_also_where_several_ask_at_once():
    told = []
    report = compare(
        identity,
        identity,
        [{"x": X}, {"x": 2 * X}],
        progress=lambda _: told.append(threading.get_ident()),
    )

    assert len(told) == report.calls
    assert set(told) == {threading.get_ident()}


@pytest.mark.parametrize("call", [1, 2 * REPEATS, 2 * REPEATS + 1, 2 * REPEATS + 2])
def test_what_progress_raises_ends_the_comparison(call):
    calls = count(1)

    def cancel(_: int) -> None:
        if next(calls) == call:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        compare(identity, identity, [{"x": X}, {"x": 2 * X}], progress=cancel)


# What outputs may be


def test_a_tolerance_for_an_output_that_there_is_not_is_refused():
    with pytest.raises(
        InvalidInputError, match=r"\['logit'\], but the reference's outputs are \['y'\]"
    ):
        compare(identity, identity, [{"x": X}], tolerance={"logit": 1e-5})


@pytest.mark.parametrize("dtype", [ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn])
@pytest.mark.parametrize("repeats", [1, 3])
def test_floats_that_numpy_has_no_kind_for_are_judged_as_floats(dtype, repeats):
    def judged(value: float) -> ParityReport:
        return compare(
            lambda _: {"y": np.array([2, 256], dtype)},
            lambda _: {"y": np.array([value, 256], dtype)},
            [{}],
            precision="bf16",
            repeats=repeats,
        )

    assert judged(2.5).passed
    assert kinds(judged(128)) == {"tolerance"}
    assert kinds(judged(math.nan)) == {"nonfinite"}


def test_times_and_records_are_compared_exactly():
    day = np.array(["2026-01-01"], "M8[D]")
    record = np.array([(1, 2.0)], "i4,f4")

    assert one(day, day).max_abs_error == 0
    assert one(record, record).max_abs_error == 0
    assert kinds(compare(lambda _: {"y": day}, lambda _: {"y": day + 1}, [{}])) == {"tolerance"}


def test_lists_of_lists_of_numbers_may_be_ragged():
    report = compare(lambda _: {"y": [[1.0, 2], [3]]}, lambda _: {"y": [[1.0, 2], [4]]}, [{}])

    (finding,) = report.findings
    assert (finding.kind, finding.index) == ("tolerance", (1, 0))


# Laws


@st.composite
def pairs_of_answers(draw):
    """Right answers, and answers that are off by more or less, to several samples."""
    count, shape = draw(st.integers(1, 6)), draw(hnp.array_shapes(max_dims=2, max_side=4))
    some = hnp.arrays(np.float32, shape, elements=st.floats(-1e3, 1e3, width=16))
    rights = draw(st.lists(some, min_size=count, max_size=count))
    errors = draw(st.lists(some, min_size=count, max_size=count))
    share = np.float32(draw(st.sampled_from([0, 1e-7, 1e-6, 1e-5, 1e-4, 1e-2])))
    return [(right, right + share * error) for right, error in zip(rights, errors, strict=True)]


def passes(pairs: list[tuple[Array, Array]], **options) -> bool:
    samples = [{"n": np.array(n)} for n in range(len(pairs))]
    sides = [lambda t, side=side: {"y": pairs[int(t["n"])][side]} for side in (0, 1)]
    return compare(*sides, samples, **options).passed


repeated = pytest.mark.parametrize("repeats", [1, 2])


@repeated
@given(pairs=pairs_of_answers(), random=st.randoms(use_true_random=False))
def test_the_order_of_the_samples_does_not_change_whether_it_passes(repeats, pairs, random):
    shuffled = random.sample(pairs, len(pairs))

    assert passes(pairs, repeats=repeats) == passes(shuffled, repeats=repeats)


@repeated
@given(pairs=pairs_of_answers(), power=st.integers(-20, 20))
def test_a_power_of_two_on_both_sides_does_not_change_whether_it_passes(repeats, pairs, power):
    factor = np.float32(2.0**power)
    grown = [(right * factor, given_ * factor) for right, given_ in pairs]

    assert passes(pairs, repeats=repeats) == passes(grown, repeats=repeats)


@repeated
@given(pairs=pairs_of_answers())
def test_equal_answers_always_pass(repeats, pairs):
    assert passes([(right, right.copy()) for right, _ in pairs], repeats=repeats, tolerance=0)


@repeated
@given(pairs=pairs_of_answers(), data=st.data())
def test_a_nan_never_passes_unless_the_reference_has_it(repeats, pairs, data):
    pairs = [(right, right.copy()) for right, _ in pairs]
    right, given_ = pairs[data.draw(st.integers(0, len(pairs) - 1))]
    at = data.draw(st.integers(0, right.size - 1))
    given_.reshape(-1)[at] = math.nan
    assert not passes(pairs, repeats=repeats, tolerance=1e30)

    right.reshape(-1)[at] = math.nan
    assert passes(pairs, repeats=repeats, tolerance=1e30)


@pytest.mark.parametrize("repeats", [1, 3])
def test_a_candidate_that_changes_its_input_is_found(repeats):
    def changes(tensors):
        outputs = {"y": tensors["x"].copy()}
        tensors["x"][0] += 1
        return outputs

    samples = [{"x": np.arange(4.0) + number} for number in range(2)]
    report = compare(lambda tensors: {"y": tensors["x"]}, changes, samples, repeats=repeats)

    assert "changed_input" in {finding.kind for finding in report.findings}
    assert [sample["x"][0] for sample in samples] == [0, 1]
