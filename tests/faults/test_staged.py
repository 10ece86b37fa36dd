"""A stage refuses what is not what it says."""

import pytest
from staged import STAGED

pytestmark = pytest.mark.usefixtures("on_threads")


@pytest.mark.parametrize(
    "fault",
    [
        pytest.param(fault, marks=pytest.mark.xfail(reason=fault.missed) if fault.missed else ())
        for fault in STAGED
    ],
    ids=lambda fault: fault.name,
)
@pytest.mark.filterwarnings("ignore:.*CUDAExecutionProvider:UserWarning")
def test_a_fault_that_a_stage_meets_is_refused(fault, tmp_path):
    if not fault.can_be_planted:
        pytest.skip("there is a GPU, so nothing falls back")

    assert fault.found(tmp_path) == {fault.refused}


def test_no_two_faults_of_stages_have_one_name():
    names = [fault.name for fault in STAGED]
    assert len(set(names)) == len(names) >= 30
