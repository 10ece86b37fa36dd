"""Latencies with a fault in them are found and rightly named; healthy ones raise no alarm."""

import pytest
from timed import HEALTHY, TIMED, healthy


def named(report):
    return [(finding.kind, finding.variant) for finding in report.findings]


@pytest.mark.parametrize(
    "timed",
    [
        pytest.param(timed, marks=pytest.mark.xfail(reason=timed.missed) if timed.missed else ())
        for timed in TIMED
    ],
    ids=lambda timed: timed.name,
)
def test_a_fault_of_a_latency_is_found_and_named(timed):
    assert named(timed.script.run()) == [timed.finding]


@pytest.mark.parametrize("name", HEALTHY)
def test_a_healthy_latency_raises_no_alarm_with_any_of_ten_seeds(name):
    reports = [healthy(name, seed).run() for seed in range(10)]

    assert [named(report) for report in reports] == 10 * [[]]


def test_the_measure_of_a_healthy_latency_sees_what_the_script_says():
    script = healthy("skewed noise", 0)
    report = script.run()

    assert report["a"].rounds_ms == pytest.approx(script.calls_ms()[:400])
    assert report["b"].warmup_calls > 0


def test_there_are_many_faults_of_latencies_and_no_two_of_one_name():
    names = [timed.name for timed in TIMED]

    assert len(set(names)) == len(names) >= 20
    assert {timed.finding[0] for timed in TIMED} == {
        "busy",
        "clock_jump",
        "drift",
        "stall",
        "throttled",
        "unsettled",
    }
