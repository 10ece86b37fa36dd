"""Runners on threads, as most tests have them, behave as those in processes do."""

from __future__ import annotations

from functools import partial

import crashing_runners
import numpy as np
import pytest
from threaded_workers import Threaded

from mlflow_e2eai.errors import RunnerError
from mlflow_e2eai.runtime.fork_server import Child
from mlflow_e2eai.runtime.isolation import isolated, isolated_together

pytestmark = pytest.mark.usefixtures("on_threads")


@pytest.fixture(params=["threads", "processes"], autouse=True)
def kind(request):
    if request.param == "processes":
        request.getfixturevalue("in_processes")
    elif request.config.getoption("--processes"):
        pytest.skip("every runner is in a process of its own")
    return {"threads": Threaded, "processes": Child}[request.param]


def test_a_runner_is_where_it_was_asked_for_and_takes_more_than_a_pipe_holds(kind):
    x = np.arange(1e6)
    with isolated(crashing_runners.healthy) as infer:
        assert isinstance(infer._process._process, kind)
        np.testing.assert_array_equal(infer({"x": x})["y"], 2 * x)
    assert infer._process._process.poll() == 0


def test_what_is_raised_over_there_is_raised_here():
    with (
        isolated(partial(crashing_runners.refuses, ValueError("bad shape"))) as infer,
        pytest.raises(RunnerError, match="ValueError: bad shape"),
    ):
        infer({"x": np.ones(1)})


def test_what_is_raised_here_is_itself_among_the_turns():
    def mine(_):
        raise LookupError

    with (
        isolated_together({"sound": crashing_runners.healthy}) as there,
        pytest.raises(LookupError),
    ):
        there.benchmark({"sound": {"x": np.ones(1)}}, {"mine": mine})
