"""Numbers as a page states them."""

import math

import pytest

from mlflow_e2eai.latency.ratios import NOISY, Ratio
from mlflow_e2eai.report.formats import NOISY_TEXT, TIMES, speed_text


@pytest.mark.parametrize(
    ("low", "value", "high", "text"),
    [
        (0.19, 0.2, 0.21, f"5.00 {TIMES} faster"),
        (1.4, 1.5, 1.6, f"1.50 {TIMES} slower"),
        (0.9, 1.0, 1.1, "the same"),
        (1.0, 1.0, 1.0, "the same"),
        (0.05, 0.1, 0.25, f"4.00 to 20.0 {TIMES} faster"),
        (2.0, 4.0, 5.0, f"2.00 to 5.00 {TIMES} slower"),
        (0.4, 0.9, 1.5, NOISY_TEXT),
        (0.0, 0.2, math.inf, NOISY_TEXT),
        (0.0, 0.2, 0.9, f"1.11 to inf {TIMES} faster"),
    ],
)
def test_a_speed_says_no_more_than_its_interval(low, value, high, text):
    assert speed_text(Ratio(value=value, low=low, high=high)) == text


def test_a_speed_of_a_busy_machine_is_none():
    assert speed_text(NOISY) == NOISY_TEXT
