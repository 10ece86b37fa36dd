"""Every planted fault is found and rightly named."""

import warnings

import pytest
from planted import FAULTS
from staged import STAGED
from timed import TIMED

from mlflow_e2eai.parity.comparison import compare

AT_LEAST = (
    "one weight off by one ulp of fp16",
    "one channel's weights scaled by 1.01",
    "swapped outputs",
    "a transposed output",
    "wrong only at the largest batch",
    "wrong only at odd batches",
    "wrong from the third call on",
    "wrong only after a change of shape",
    "wrong only under two threads",
    "a stale output buffer",
    "an unwritten tail",
    "NaN in one element of ten million",
    "fp16 overflow that the CPU hides",
    "Inf that cancels",
    "an int64 index cut to int32",
    "argmax ties",
    "denormals flushed to zero",
    "a random seed left in",
    "a dropout left on",
    "a batch-norm in training mode",
    "a clock that jumps",
    "a GPU provider that silently fell back to the CPU",
    "an engine that is fp32 and says fp16",
    "a warm-up that compiles in the middle of the measure",
    "a latency that drifts",
)
"""Faults that others are known to have shipped."""


@pytest.mark.parametrize("planted", FAULTS, ids=lambda planted: planted.name)
def test_a_planted_fault_is_found_and_named(planted):
    reference, candidate, samples = planted.make()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        report = compare(reference, candidate, samples, **planted.options)
    found = {finding.kind for finding in report.findings}

    assert report.passed == (not planted.kinds), report.findings
    assert planted.kinds <= found


def test_there_are_many_kinds_of_fault_and_no_two_of_one_name():
    names = [planted.name for planted in FAULTS]

    assert len(set(names)) == len(names)
    assert sum(bool(planted.kinds) for planted in FAULTS) >= 70


@pytest.mark.parametrize("wanted", AT_LEAST)
def test_a_fault_that_must_be_planted_is(wanted):
    assert any(fault.name.startswith(wanted) for fault in (*FAULTS, *TIMED, *STAGED))  # type: ignore[attr-defined]  # mypy sees a wider type
