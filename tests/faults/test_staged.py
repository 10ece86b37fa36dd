"""A stage refuses what is not what it says."""

import pytest
from staged import STAGED


@pytest.mark.parametrize(
    "fault",
    [
        pytest.param(fault, marks=pytest.mark.xfail(reason=fault.missed) if fault.missed else ())
        for fault in STAGED
    ],
    ids=lambda fault: fault.name,
)
@pytest.mark.filterwarnings("ignore:.*CUDAExecutionProvider:UserWarning")
def test_a_fault_that_no_number_shows_is_refused(fault, tmp_path):
    if not fault.can_be_planted:
        pytest.skip("there is a GPU, so nothing falls back")

    assert fault.found(tmp_path) == {fault.refused}
