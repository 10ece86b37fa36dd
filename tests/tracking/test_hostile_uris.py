"""Names and URIs that are none, in every verb that takes one: one sentence, and nothing is made."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from mlflow.exceptions import MlflowException

import mlflow_e2eai
from mlflow_e2eai.errors import E2EAIError
from mlflow_e2eai.pipeline import jobs

URIS: list[object] = [
    *("", " ", "~", "$HOME", "`id`", "; id", "--help", "a\nb", "a\0b", "\ud800", "x" * 5000),
    *("models:/", "models:/net", "models:/net/", "models:/net@", "models:/net@a@b", "models:net/1"),
    *("models:/net/0", "models:/net/-1", "models:/net/1e3", f"models:/net/{10**30}"),
    *(
        "models:/net/\N{CIRCLED DIGIT ONE}",
        "models:/net/1?x=y",
        "models:/net/1#x",
        "models://net/1",
    ),
    *("models:/net/1/2/3", "models:/../../etc/passwd", "models:/%2e%2e/1", "models:/m-../../x"),
    *("models:/a\nb/1", "models:/a\0b/1", "models:/\ud800/1", f"models:/{'x' * 5000}/1"),
    f"models:/m-{'0' * 32}",
    *("runs:/", "runs:/x", "runs:/../../etc", f"runs:/{'0' * 32}/model", f"runs:/{'0' * 32}/../x"),
    *("/etc/passwd", "/etc", "../..", "file:///etc/passwd", "file://host/share"),
    *("http://127.0.0.1:1/x", "https://user:hunter22@127.0.0.1:1/x", "mlflow-artifacts:/../../x"),
    *("dbfs:/x", "uc:/x", "nothing://x", Path("/nowhere"), Path("models:/net/1")),
    *(None, 5, b"x", []),
]

VERBS: dict[str, Callable[[Any], object]] = {
    "load_model": mlflow_e2eai.load_model,
    "load_model that follows": lambda uri: mlflow_e2eai.load_model(uri, follow=5.0),
    "variants": mlflow_e2eai.variants,
    "compare_versions": lambda uri: mlflow_e2eai.compare_versions("net", uri, 1),
    "verify": mlflow_e2eai.verify,
    "export_triton": lambda uri: mlflow_e2eai.export_triton(uri, "repository"),
    "export": jobs.export,
    "clean": jobs.clean,
    "convert": lambda uri: jobs.convert(uri, precision="fp16"),
    "compile": lambda uri: jobs.compile(uri, targets=["sm86"]),
    "evaluate": jobs.evaluate,
    "promote": lambda uri: mlflow_e2eai.promote("net", uri),
    "promote of that name": lambda uri: mlflow_e2eai.promote(uri, 1),
    "explain": lambda uri: mlflow_e2eai.explain("net", uri),
    "history": mlflow_e2eai.history,
    "guard": mlflow_e2eai.guard,
    "rollback": mlflow_e2eai.rollback,
    "approve": lambda uri: mlflow_e2eai.approve(uri, 1, as_="release"),
}


@pytest.mark.parametrize("verb", VERBS)
def test_a_name_or_uri_that_is_none_is_one_sentence(verb, store, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    store.create_registered_model("net")
    before = {path.name for path in tmp_path.iterdir()}
    for uri in URIS:
        with pytest.raises(E2EAIError) as raised:
            VERBS[verb](uri)
        sentence = str(raised.value)
        assert "\n" not in sentence, uri
        assert len(sentence) < 1000, uri
        assert "hunter22" not in sentence
    assert {path.name for path in tmp_path.iterdir()} == before
    assert store.search_model_versions() == []


def test_a_model_that_is_not_there_is_an_error_of_mlflow_too_with_its_code(store):
    with pytest.raises(MlflowException) as raised:
        mlflow_e2eai.load_model("models:/nothing/1")

    assert isinstance(raised.value, E2EAIError)
    assert getattr(raised.value, "error_code", None) == "RESOURCE_DOES_NOT_EXIST"
    assert str(raised.value).startswith("There is no MLflow model at 'models:/nothing/1': ")
