"""The limits of each precision, and an output's own in their place."""

import math

import numpy as np
import pytest

from mlflow_e2eai.errors import InvalidInputError
from mlflow_e2eai.parity.comparison import compare
from mlflow_e2eai.parity.tolerances import limits_for

# The largest error; the root mean square over all; that of a slice. Wider ones would pass models
# that were seen to be wrong: a change here is a change of what a promoted model may be.
LIMITS = {
    "fp32": (1e-3, 1e-4, 5e-3),
    "tf32": (1e-2, 5e-3, 1e-1),
    "fp16": (1e-2, 5e-3, 1e-1),
    "bf16": (8e-2, 4e-2, 4e-1),
    "int8": (1e-1, 1e-1, 5e-1),
    "fp8": (2e-1, 2e-1, 7e-1),
}


def findings(given, right, **options):
    report = compare(lambda _: {"y": right}, given, [{"x": np.ones(1)}] * 2, **options)
    return {finding.kind for finding in report.findings}


@pytest.mark.parametrize("precision", LIMITS)
def test_an_error_of_the_limit_passes_and_a_larger_one_does_not(precision):
    tolerance, noise, _ = LIMITS[precision]
    right = np.ones((1, 3, 1000), np.float32)

    def off_by(share, count):
        wrong = right.copy()
        wrong.reshape(-1)[:count] += share
        return lambda _: {"y": wrong}

    options = {"precision": precision, "repeats": 1}
    assert findings(off_by(0.98 * tolerance, 1), right, **options) == set()
    assert findings(off_by(1.02 * tolerance, 1), right, **options) == {"tolerance"}
    assert findings(off_by(0.98 * noise, 3000), right, **options) == set()
    assert findings(off_by(1.02 * noise, 3000), right, **options) != set()


@pytest.mark.parametrize("precision", LIMITS)
def test_a_slice_is_held_to_its_own_magnitude(precision):
    limits = limits_for(precision, None, None)

    assert (limits.default, limits.noise_to_signal, limits.slices) == LIMITS[precision]


@pytest.mark.parametrize(("differ", "found"), [(0.24, set()), (0.26, {"nondeterministic"})])
def test_two_outputs_for_the_same_input_differ_by_a_quarter_of_the_tolerance(differ, found):
    right = np.ones((1, 100), np.float32)
    calls = iter(range(100))

    def given(_):
        wrong = right.copy()
        wrong[0, 0] += next(calls) % 2 * differ * 1e-2
        return {"y": wrong}

    assert findings(given, right, precision="fp16", repeats=2, threads=1) == found


@pytest.mark.parametrize(("times", "found"), [(2.9, set()), (3.1, {"nondeterministic"})])
def test_or_by_three_times_what_the_reference_differs_by(times, found):
    noise, calls, asked = 2e-3, iter(range(1000)), iter(range(1000))

    def output(share):
        wrong = np.ones((1, 100), np.float32)
        wrong[0, 0] += share
        return {"y": wrong}

    report = compare(
        lambda _: output(next(asked) % 2 * noise),
        lambda _: output(next(calls) % 2 * times * noise),
        [{"x": np.ones(1)}],
        precision="fp16",
        repeats=2,
        threads=1,
    )
    assert {finding.kind for finding in report.findings} == found


def test_an_output_has_its_own_limit_alone():
    limits = limits_for("fp32", {"y": 0.5}, {"z": 2.0})

    assert [limits.of(name) for name in "xyz"] == [1e-3, 0.5, 1e-3]
    assert [limits.noise_to_signal_of(name) for name in "xyz"] == [1e-4, math.inf, math.inf]
    assert [limits.slices_of(name) for name in "xyz"] == [5e-3, math.inf, math.inf]
    assert [limits.scale_of(name) for name in "xyz"] == [2.0**-126, 2.0**-126, 2.0]
    limits.check(["x", "y", "z"])
    with pytest.raises(InvalidInputError, match=r"limit for \['z'\]"):
        limits.check(["x", "y"])
