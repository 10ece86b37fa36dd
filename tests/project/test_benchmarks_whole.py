"""The benchmark of the whole call: its words on made-up figures, its check of Olive's result."""

import importlib
from pathlib import Path

import pytest

import mlflow_e2eai


@pytest.fixture
def program(monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "benchmarks")
    return importlib.import_module("whole")


@pytest.fixture
def runs(program):
    def three(call, whole, again=None):
        return [program.Run(call=call * by, whole=whole * by, again=again) for by in (1, 1.1, 0.9)]

    levels = {
        (case, level): three(6.5, 12, 2.5 if case == "digits" else None)
        for case in ("CNN", "digits", "MiniLM")
        for level in program.LEVELS
    }
    return {("CNN", program.PEER): three(10, 30), **levels}


def test_the_goal_against_olive_is_one_for_the_call_and_one_for_the_process(program, runs):
    whole, call, *_ = program.goals(runs)
    assert whole.endswith("the whole process: at most 0.5 times Olive's: holds, 0.40.")
    assert call.endswith("the call alone: at most 0.5 times Olive's: does not hold, 0.65.")


def test_the_goals_in_seconds_are_held_against_the_first_call_and_the_next(program, runs):
    _, _, *lines = program.goals(runs)
    assert lines == [
        "- digits, standard, the first call of a process: at most 6 s: does not hold, 6.5.",
        "- digits, standard, the next call of a process: at most 6 s: holds, 2.5.",
        "- digits, quick, the first call of a process: at most 3 s: does not hold, 6.5.",
        "- digits, quick, the next call of a process: at most 3 s: holds, 2.5.",
        "- MiniLM, standard, the first call of a process: at most 25 s: holds, 6.5.",
    ]


def test_ratios_are_those_of_one_round(program, runs):
    peer, ours, *others = program.table(runs)[2:]
    assert peer == (
        "| CNN | Olive | 10.0 (9.0 to 11.0) | 30.0 (27.0 to 33.0) |  | 1.00 (1.00 to 1.00) "
        "| 1.00 (1.00 to 1.00) |"
    )
    assert "| CNN | log_model, quick | 6.5 (5.9 to 7.2) |" in ours
    assert ours.endswith("| 0.65 (0.65 to 0.65) | 0.40 (0.40 to 0.40) |")
    assert others[-1].startswith("| MiniLM | log_model, thorough |")
    assert others[-1].endswith("|  |  |")


def test_a_graph_of_olives_passes_only_in_fp16_and_with_the_models_numbers(program, tmp_path):
    model = importlib.import_module("whole_model")
    assert sum(each.numel() for each in model.build().parameters()) == 320_058

    def graph(module, name):
        example = {model.NAME: model.example()}
        raw, _ = mlflow_e2eai.export(module, example, out=tmp_path / name, exporter="trace")
        return raw, mlflow_e2eai.convert(raw, "fp16", out=tmp_path / f"half-{name}")[0]

    whole, half = graph(model.build(), "right.onnx")
    program.check_fp16(half.path)
    with pytest.raises(SystemExit, match="not in fp16"):
        program.check_fp16(whole.path)
    _, other = graph(model.SmallCnn().eval(), "other.onnx")
    with pytest.raises(SystemExit, match="of the largest output"):
        program.check_fp16(other.path)
