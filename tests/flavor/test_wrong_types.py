"""Arguments of a wrong type: refused in a sentence, by every call about a logged model."""

from __future__ import annotations

import math

import pytest
from rated_bundles import GATES, register, save

import mlflow_e2eai
from mlflow_e2eai.errors import E2EAIError

pytestmark = pytest.mark.usefixtures("on_threads")

WRONG = [3, 0.5, math.nan, True, "x", b"x", object(), [1], {"x": 1}]

URI = "models:/digits/1"
CALLS = {
    "load_model": {"model_uri": URI},
    "variants": {"model_uri": URI},
    "verify": {"model_uri": URI},
    "compare_versions": {"name": "digits"},
    "list_versions": {"name": "digits"},
    "choose_buckets": {"seen": {1: 3, 2: 4}, "count": 1},
    "promote": {"name": "digits", "version": 1, "gates": GATES, "dry_run": True},
    "approve": {"name": "digits", "version": 1, "as_": "release"},
    "explain": {"name": "digits", "version": 1},
    "history": {"name": "digits"},
    "guard": {"name": "digits"},
    "export_triton": {"model_uri": URI, "repository": "triton"},
}
ARGUMENTS = {
    "load_model": ("model_uri", "variant", "goal", "follow", "allow_native", "require_signature"),
    "verify": ("model_uri", "key"),
    "choose_buckets": ("seen", "count", "cost"),
    "promote": ("name", "version", "alias", "gates", "goal"),
    "approve": ("name", "version", "as_", "key"),
    "history": ("name", "alias", "on"),
    "export_triton": ("model_uri", "repository", "name", "allow_native"),
}


@pytest.fixture(scope="module")
def saved(on_threads, tmp_path_factory):
    return save(tmp_path_factory.mktemp("saved") / "model")


@pytest.mark.parametrize("function", CALLS)
def test_a_value_of_any_type_is_taken_or_refused_in_a_sentence(
    function, saved, store, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    if function != "choose_buckets":
        register(saved, tmp_path / "one")
        assert store.get_model_version("digits", "1")
    call, usual = getattr(mlflow_e2eai, function), CALLS[function]
    refused = 0
    for argument in ARGUMENTS.get(function, tuple(usual)):
        for value in WRONG:
            try:
                call(**{**usual, argument: value})
            except E2EAIError:
                refused += 1
    assert refused > len(WRONG) / 2
