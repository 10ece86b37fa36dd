"""Passwords, tokens and keys of a user's environment: on no tag, page, log, artifact or error."""

from __future__ import annotations

import logging
import subprocess

import mlflow
import pytest
from ranked_versions import register
from registry_servers import ADMIN, server_with_users
from tracking_servers import tracking_server

import mlflow_e2eai
from mlflow_e2eai.errors import E2EAIError
from mlflow_e2eai.promotion.registry import moves

pytestmark = [
    pytest.mark.system,
    pytest.mark.filterwarnings("ignore:starlette.middleware.wsgi"),
]

PLANTED = {
    "MLFLOW_TRACKING_TOKEN": "tokengeheim0001",
    "AWS_SECRET_ACCESS_KEY": "awsgeheim0002",
    "AWS_SESSION_TOKEN": "sessiongeheim0003",
    "DATABASE_PASSWORD": "datageheim0004",
    "HF_TOKEN": "hfgeheim0005",
    "SIGNING_KEY": "keygeheim0006",
}
IN_URI = "urigeheim0007"
GATES = {"gates": [{"metric": "parity/failed", "at_most": 0}, {"approval": "release"}]}


@pytest.fixture
def key(tmp_path):
    """A private key for approvals, and the line of it that nobody may see."""
    path = tmp_path / "key"
    subprocess.run(
        ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "ann", "-f", str(path)], check=True
    )
    return path


def everything(client, folder):
    """All that is stored: tags, parameters, descriptions and files, as one text."""
    found = []
    for registered in client.search_registered_models():
        found += [registered.tags, registered.description]
        for version in client.search_model_versions(f"name = '{registered.name}'"):
            found += [version.tags, version.description, version.source]
    experiments = [each.experiment_id for each in client.search_experiments()]
    for run in client.search_runs(experiments):
        found += [run.data.tags, run.data.params, run.info.run_name]
    for model in client.search_logged_models(experiments):
        found += [model.tags, model.params]
    for path in folder.rglob("*"):
        if path.is_file():
            found.append(path.read_bytes().decode("latin-1"))
    assert len(found) > 30
    return "\n".join(map(str, found))


def test_no_secret_is_stored_logged_or_in_an_error(
    isolated, tmp_path, monkeypatch, key, caplog, capfd
):
    private = "".join(key.read_text().splitlines()[1:-1])
    secrets = [*PLANTED.values(), IN_URI, private[:60], private[-60:]]
    for name, value in PLANTED.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    caplog.set_level(logging.DEBUG)
    errors = []

    def fails(call):
        with pytest.raises(E2EAIError) as raised:
            call()
        error = raised.value
        while error is not None:  # a user's traceback shows all of them
            if isinstance(error, E2EAIError):
                errors.append(str(error))
            error = error.__cause__

    with tracking_server(tmp_path) as server:
        uri = server.uri.replace("://", f"://ann:{IN_URI}@")
        mlflow.set_tracking_uri(uri)
        mlflow.set_experiment("tests")
        register((0.8, 0.9, 0.9))
        mlflow_e2eai.approve("net", 1, as_="release", key=key)
        assert mlflow_e2eai.promote("net", 1, gates=GATES).promoted
        assert not mlflow_e2eai.promote("net", 2, gates=GATES).promoted
        mlflow_e2eai.approve("net", 2, as_="release")
        assert mlflow_e2eai.promote("net", 2, gates=GATES).promoted
        mlflow_e2eai.reject("net", 3, as_="release", key=key)
        assert mlflow_e2eai.rollback("net").after == "1"

        fails(lambda: mlflow_e2eai.promote("net", 9, gates=GATES))
        fails(lambda: mlflow_e2eai.approve("net", 3, as_="release"))
        fails(lambda: mlflow_e2eai.approve("net", 2, as_="release", key=tmp_path / "no key"))
        fails(lambda: mlflow_e2eai.rollback("net", to=7))

        def refuse(*_):
            msg = f"API request to {uri} failed: {' '.join(PLANTED.values())}"
            raise mlflow.exceptions.MlflowException(msg)

        with monkeypatch.context() as patch:
            patch.setattr(moves, "_set_alias", refuse)
            fails(lambda: mlflow_e2eai.promote("net", 2, gates=GATES))

        client = mlflow.MlflowClient()
        stored = everything(client, tmp_path / "artifacts")
        client.set_registered_model_tag("net", "leak", IN_URI)
        assert IN_URI in everything(client, tmp_path / "artifacts")  # the search finds one
        server.kill()
        fails(lambda: mlflow_e2eai.promote("net", 2, gates=GATES))
    ours = [r for r in caplog.records if r.name.startswith("mlflow_e2eai")]
    logged = "\n".join(record.getMessage() for record in ours)
    output = "".join(capfd.readouterr())
    assert len(errors) >= 6
    for place, text in {
        "stored": stored,
        "errors": "\n".join(errors),
        "log": logged,
        "output": output,
    }.items():
        found = [secret for secret in secrets if secret in text]
        assert found == [], f"{place}: {[text[max(0, text.index(s) - 200) :][:300] for s in found]}"


def test_the_password_of_an_account_is_not_stored(isolated, tmp_path, monkeypatch):
    pytest.importorskip("flask_wtf", reason="a server with users needs Flask-WTF: mlflow[auth]")
    name, password = ADMIN
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", name)
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", password)
    with server_with_users(tmp_path) as server:
        mlflow.set_tracking_uri(server.uri)
        mlflow.set_experiment("tests")
        register((0.8, 0.9))
        gates = {"gates": GATES["gates"][:1]}
        assert mlflow_e2eai.promote("net", 1, gates=gates).promoted
        stored = everything(mlflow.MlflowClient(), tmp_path / "artifacts")
    assert password not in stored
    assert f"'e2eai.by': '{name}'" in stored
