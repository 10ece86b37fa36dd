"""The rules of others, as written down here, say what they say."""

import numpy as np
import peers
import pytest
from harmless import HARMLESS
from planted import FAULTS

ONE = np.ones((2, 3), np.float32)


@pytest.mark.parametrize(
    ("right", "given", "passes"),
    [
        ({"y": ONE}, {"y": ONE + np.float32(5e-6)}, True),
        ({"y": ONE}, {"y": ONE * np.float32(1.001)}, False),
        ({"y": 1e6 * ONE}, {"y": 1e6 * ONE + 1}, True),  # within the relative limit
        ({"y": 1e-6 * ONE}, {"y": 5e-6 * ONE}, True),  # within the absolute limit
        ({"y": ONE}, {"y": ONE.T}, False),
        ({"y": ONE * np.nan}, {"y": ONE * np.nan}, False),
        ({"y": ONE}, {"y_1": ONE}, True),  # a part of the name is enough
        ({"a": ONE, "b": ONE}, {"b": ONE}, True),  # what is missing is skipped
        ({"a": ONE}, {"a": ONE, "b": ONE}, True),
        ({"y": ONE > 0}, {"y": ONE < 0}, False),
    ],
)
def test_polygraphys_rule(right, given, passes):
    assert peers.polygraphy_rule(right, given) == passes


@pytest.mark.skipif(not peers.POLYGRAPHY, reason="Polygraphy is not installed")
@pytest.mark.filterwarnings("ignore")
def test_polygraphys_rule_says_what_polygraphy_says_of_every_case():
    cases = {fault.name: fault.make() for fault in FAULTS}
    cases |= {model.name: model.make(0) for model in HARMLESS}
    differing = [
        name
        for name, (reference, candidate, samples) in cases.items()
        for right, given in peers.answers(reference, candidate, samples)
        if peers.polygraphy(right, given) != peers.polygraphy_rule(right, given)
    ]

    assert differing == []


@pytest.mark.parametrize(
    ("right", "given", "passes"),
    [
        ({"y": ONE}, {"y": 9 * ONE}, True),
        ({"y": ONE}, {"y": ONE * np.inf}, False),
        ({"y": ONE}, {"y": ONE, "z": ONE}, False),
        ({"y": ONE}, {"z": ONE}, False),
        ({"y": ONE}, {"y": ONE[:, :2]}, False),
        ({"y": ONE}, {"y": ONE[:1]}, True),  # NumPy repeats it
    ],
)
def test_model_navigators_rule(right, given, passes):
    assert peers.navigator(right, given) == passes


@pytest.mark.parametrize("rule", [peers.perf_analyzer, peers.navigator_profiler])
def test_a_rule_of_windows_ends_at_the_first_that_are_steady(rule):
    size = 50 if rule is peers.perf_analyzer else 25

    assert rule(np.ones(3 * size))
    assert rule([*np.ones(3 * size), *(1 + np.arange(9 * size))])  # what comes later is not seen
    assert not rule(np.ones(3 * size - 1))
    assert not rule(1.01 ** np.arange(10 * size))
    assert not rule([*(1.01 ** np.arange(10 * size)), *np.ones(9 * size)])  # given up
