"""Arguments of the stages: a value of any type is taken, or refused in a sentence."""

from __future__ import annotations

import inspect
import math
from pathlib import Path

import numpy as np
import pytest
from torch import nn

import mlflow_e2eai
from mlflow_e2eai.errors import E2EAIError, InvalidInputError

pytestmark = pytest.mark.usefixtures("on_threads")

X = np.ones((2, 3), np.float32)
SAMPLES = [{"x": X}]
WRONG = [
    *(None, 3, -1, 0.5, math.nan, True, "", b"x", object()),
    *([], [1], [None], [X], {}, {"x": 1}, {1: 2}, X, [{"x": 1}], [{"x": None}], [{"z": X}], [{}]),
]


def largest(tensors):
    return {"y": np.array([max(map(np.size, tensors.values()), default=0)])}


@pytest.fixture(scope="module")
def graph(on_threads, tmp_path_factory):
    folder = tmp_path_factory.mktemp("graph")
    return mlflow_e2eai.export(nn.Linear(3, 2).eval(), {"x": X}, out=folder / "raw.onnx")[0]


@pytest.fixture
def usual(graph, tmp_path):
    """The arguments of a call of each stage that goes well."""
    out = tmp_path / "out"
    return {
        "export": {"model": nn.Linear(3, 2).eval(), "input_example": {"x": X}, "out": out},
        "clean": {"source": graph, "out": out, "samples": SAMPLES},
        "convert": {"source": graph, "precision": "fp16", "out": out},
        "compile": {"source": graph, "target": "sm86", "out": out},
        "compare": {"reference": largest, "candidate": largest, "samples": SAMPLES},
        "benchmark": {"candidates": {"a": largest}, "sample": {"x": X}, "budget_s": 0.01},
        "bisect": {"source": graph, "samples": SAMPLES},
    }


@pytest.mark.parametrize(
    "stage", ["export", "clean", "convert", "compile", "compare", "benchmark", "bisect"]
)
def test_a_value_of_any_type_is_taken_or_refused_in_a_sentence(stage, usual, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    call = getattr(mlflow_e2eai, stage)
    for argument in inspect.signature(call).parameters:
        refused = 0
        for value in WRONG:
            try:
                call(**{**usual[stage], argument: value})
            except E2EAIError:
                refused += 1
        assert refused, argument


@pytest.mark.parametrize(
    ("stage", "arguments", "message"),
    [
        (
            "clean",
            {"source": "model.onnx"},
            "source is 'model.onnx', of the type str; give a graph",
        ),
        ("clean", {"samples": {"x": X}}, "of the type dict; give a list of samples"),
        ("convert", {"keep_fp32": "Conv_0"}, "keep_fp32 is 'Conv_0', of the type str; give names"),
        ("compile", {"settings": {"threads": 2}}, "of the type dict; give a BuildSettings"),
        (
            "compare",
            {"candidate": None},
            "candidate is None, of the type NoneType; give a",
        ),
        ("benchmark", {"candidates": [largest]}, "of the type list; give a mapping of names"),
    ],
)
def test_what_a_user_writes_by_mistake_is_named_with_what_to_give(stage, arguments, message, usual):
    with pytest.raises(InvalidInputError) as raised:
        getattr(mlflow_e2eai, stage)(**{**usual[stage], **arguments})
    assert message in str(raised.value)


def test_a_file_to_write_may_be_named_by_a_text(graph, tmp_path):
    made, _ = mlflow_e2eai.clean(graph, out=str(tmp_path / "model.onnx"))
    assert made.path == Path(tmp_path / "model.onnx")
    assert made.path.is_file()
