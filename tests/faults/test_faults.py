"""Every planted fault is found and rightly named."""

import warnings

import pytest
from planted import FAULTS

from mlflow_e2eai.parity import compare


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
    assert sum(bool(planted.kinds) for planted in FAULTS) >= 60
