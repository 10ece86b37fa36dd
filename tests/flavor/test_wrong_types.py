"""Arguments of a wrong type: refused in a sentence, by every call about a logged model."""

from __future__ import annotations

import inspect
import math

import numpy as np
import pytest
from rated_bundles import GATES, register, save

import mlflow_e2eai
from mlflow_e2eai.errors import E2EAIError

pytestmark = pytest.mark.usefixtures("on_threads")

WRONG = [
    *(None, 3, -1, 0.5, math.nan, True, "", "x", b"x", object(), np.ones(2)),
    *([], [1], [None], {}, {"x": 1}, {1: 2}),
]

URI = "models:/digits/1"
CALLS = {
    "load_model": {"model_uri": URI},
    "variants": {"model_uri": URI},
    "verify": {"model_uri": URI},
    "sign": {"model_uri": URI, "key": "key.pem"},
    "compare_versions": {"name": "digits", "versions": 1},
    "list_versions": {"name": "digits"},
    "choose_buckets": {"seen": {1: 3, 2: 4}, "count": 1},
    "promote": {"name": "digits", "version": 1, "gates": GATES, "dry_run": True},
    "approve": {"name": "digits", "version": 1, "as_": "release"},
    "reject": {"name": "digits", "version": 1, "as_": "release"},
    "explain": {"name": "digits", "version": 1},
    "redecide": {"name": "digits", "version": 1},
    "rollback": {"name": "digits"},
    "history": {"name": "digits"},
    "guard": {"name": "digits"},
    "watch": {"name": "digits"},
    "tidy": {},
    "export_triton": {"model_uri": URI, "repository": "triton"},
    "Axis": {"name": "N", "min": 1, "opt": 8, "max": 64},
    "BuildSettings": {},
    "Operator": {"name": "custom::Op"},
}
WITHOUT_STORE = ("choose_buckets", "Axis", "BuildSettings", "Operator")
LATER = ("Operator", "function")
"""An argument that is read when a graph carries it."""


def first_of(function, arguments):
    """The result of a call, or the first of those that it yields."""
    call = getattr(mlflow_e2eai, function)
    if function == "compare_versions":
        return call(*arguments.values())
    return next(call(**arguments)) if function == "watch" else call(**arguments)


@pytest.fixture(scope="module")
def saved(on_threads, tmp_path_factory):
    return save(tmp_path_factory.mktemp("saved") / "model")


@pytest.mark.parametrize("function", CALLS)
def test_a_value_of_any_type_is_taken_or_refused_in_a_sentence(
    function, saved, store, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    if function not in WITHOUT_STORE:
        register(saved, tmp_path / "one")
        assert store.get_model_version("digits", "1")
    usual = CALLS[function]
    for argument in inspect.signature(getattr(mlflow_e2eai, function)).parameters:
        refused = 0
        for value in WRONG:
            try:
                first_of(function, {**usual, argument: value})
            except E2EAIError:
                refused += 1
        assert refused or (function, argument) == LATER, argument
