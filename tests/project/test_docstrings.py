"""The examples in the docstrings of the public functions, run in the order of docs/python.md."""

from __future__ import annotations

import doctest
import re
from pathlib import Path

import numpy as np
import pytest
from signing_keys import make_keys

import mlflow_e2eai

PAGE = Path(__file__).parents[2] / "docs" / "python.md"
NAMES = re.findall(r"^::: mlflow_e2eai\.(\w+)$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)

GATES = """
unmeasured: warn
gates:
  - {metric: parity/failed, at_most: 0}
"""


def test_the_page_has_every_public_name_once():
    assert sorted(NAMES) == sorted(set(mlflow_e2eai.__all__) - {"__version__"})


@pytest.mark.parametrize("name", NAMES)
def test_a_public_name_has_an_example(name):
    assert doctest.DocTestParser().get_examples(getattr(mlflow_e2eai, name).__doc__)


@pytest.fixture
def names(store, tmp_path, monkeypatch):
    """The names that the page says the examples use, and a first version, which is champion."""
    import torch

    monkeypatch.chdir(tmp_path)
    Path("gates.yaml").write_text(GATES, encoding="utf-8")
    _, public = make_keys(tmp_path / "key.pem")
    Path("key.pub").write_text(public, encoding="utf-8")
    layers = torch.nn.Linear(64, 32), torch.nn.ReLU(), torch.nn.Linear(32, 10)
    module = torch.nn.Sequential(*layers).eval()
    x = np.random.default_rng(0).normal(size=(8, 64)).astype(np.float32)
    half = np.float32(0.5)
    first = {"input_example": {"x": x}, "evidence": "quick", "precisions": ("fp32",)}
    mlflow_e2eai.log_model(module, "digits", **first, registered_model_name="digits")
    mlflow_e2eai.promote("digits", 1, gates="gates.yaml")
    values = ("Axis", "BuildSettings", "Operator")
    return {
        "mlflow_e2eai": mlflow_e2eai,
        **{name: getattr(mlflow_e2eai, name) for name in values},
        "module": module,
        "x": x,
        "folder": tmp_path,
        "reference": lambda tensors: {"y": tensors["x"] * half},
        "candidate": lambda tensors: {"y": tensors["x"] / 2},
    }


@pytest.mark.system
@pytest.mark.filterwarnings("ignore:Triton cannot serve all")
def test_the_examples_run_from_top_to_bottom(names):
    parser, runner = doctest.DocTestParser(), doctest.DocTestRunner(verbose=False)
    shown: list[str] = []
    for name in NAMES:
        text = getattr(mlflow_e2eai, name).__doc__
        example = parser.get_doctest(text, names, name, str(PAGE), 0)
        runner.run(example, out=shown.append, clear_globs=False)
        names.update(example.globs)
    assert shown == []
