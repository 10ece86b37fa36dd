"""The benchmark on a CPU: what it says of its goals, on made-up figures."""

import importlib
from pathlib import Path

import pytest


@pytest.fixture
def program(monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "benchmarks")
    return importlib.import_module("cpu")


@pytest.mark.parametrize(("native", "word"), [(23.9, "holds"), (24.1, "does not hold")])
def test_the_native_call_may_take_a_twentieth_and_three_microseconds_more(program, native, word):
    ways = {program.BARE: 20.0, program.NATIVE: native}
    ways |= {program.OURS: 30.0, program.PEER: 45.0, program.ALONE: 10.0}
    first, second = program.goals({"arrays": ways})
    assert f"which is 24.0: {word}, {native}" in first
    assert "at least 1 times as fast as mlflow.onnx: holds, 1.50 times." in second


def test_a_goal_that_mlflow_itself_keeps_out_of_reach_says_so(program):
    ways = {program.OURS: 50.0, program.PEER: 100.0, program.ALONE: 40.0}
    (line,) = program.goals({"a DataFrame of arrays": ways})
    assert "at least 3 times as fast as mlflow.onnx: does not hold, 2.00 times." in line
    assert line.endswith("A model that answers at once would be 2.50 times.")


@pytest.mark.parametrize(
    ("call_s", "process_s", "words"),
    [(0.9, 4.9, ["holds", "holds"]), (1.1, 5.1, ["does not hold", "does not hold"])],
)
def test_a_rerun_may_take_a_twentieth_and_five_seconds(program, call_s, process_s, words):
    lines = importlib.import_module("rerun").goals(20.0, call_s, process_s)
    assert [line.split(": ")[2].partition(",")[0] for line in lines] == words
