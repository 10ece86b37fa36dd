"""Servers that fail, die, or refuse in the middle of a promotion: one sentence, and it goes on."""

from __future__ import annotations

import mlflow
import pytest
from failing_proxy import proxy_of
from mlflow.exceptions import MlflowException
from ranked_versions import GATES, register
from registry_servers import ADMIN, create_user, server_with_users
from tracking_servers import tracking_server

import mlflow_e2eai
from mlflow_e2eai.errors import E2EAIError, TrackingError
from mlflow_e2eai.promotion import stage
from mlflow_e2eai.promotion.registry import moves
from mlflow_e2eai.promotion.registry.lease import LEASE
from mlflow_e2eai.tracking.lineage import ROOTS

pytestmark = [
    pytest.mark.system,
    pytest.mark.filterwarnings("ignore:starlette.middleware.wsgi"),
]


@pytest.fixture(scope="module")
def behind(tmp_path_factory):
    """A server over SQLite, and a proxy before it."""
    folder = tmp_path_factory.mktemp("behind")
    with tracking_server(folder) as server, proxy_of(server.uri) as proxy:
        yield proxy


@pytest.fixture
def proxy(isolated, behind, request, monkeypatch):
    """The proxy, with a model of two versions, of which the first is champion."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    mlflow.set_tracking_uri(behind.uri)
    mlflow.set_experiment("tests")
    name = request.node.name.replace("[", " ").rstrip("]")
    register((0.8, 0.9), name)
    assert mlflow_e2eai.promote(name, 1, gates=GATES).promoted
    yield behind, name
    behind.mend()


def sentence_of(name, version=2, call=None):
    with pytest.raises(E2EAIError) as raised:
        (call or (lambda: mlflow_e2eai.promote(name, version, gates=GATES)))()
    sentence = str(raised.value)
    assert "Traceback" not in sentence
    assert "geheim" not in sentence
    assert "\n" not in sentence
    assert mlflow.active_run() is None
    return sentence


def holder(name):
    return str(mlflow.MlflowClient().get_model_version_by_alias(name, "champion").version)


def finishes(name, version="2"):
    """Whether a promotion that is called again leaves all as if nothing had happened."""
    client = mlflow.MlflowClient()
    assert mlflow_e2eai.promote(name, version, gates=GATES).promoted
    assert holder(name) == version
    tags = client.get_model_version(name, version).tags
    assert tags["e2eai.decision"] == "promoted"
    run = client.get_run(tags["e2eai.decision_run"])
    assert run.info.status == "FINISHED"
    moved = [(move.before, move.after) for move in mlflow_e2eai.history(name).moves]
    assert moved == [(None, "1"), ("1", version)]


def left_running(name):
    model = f"tags.`e2eai.registered_model` = '{name}' AND attributes.status = 'RUNNING'"
    return mlflow.search_runs(
        search_all_experiments=True, filter_string=model, output_format="list"
    )


def is_consistent(name):
    """The alias stands where it stood, or where a decision on record put it."""
    client = mlflow.MlflowClient()
    if holder(name) == "1":
        return True
    return client.get_model_version(name, "2").tags.get("e2eai.decision") == "promoted"


# Requests of a promotion by what they do; about ninety are sent in all.
SOME = (9, 40, 70, 85)


def fail_once(proxy, name, number, status, monkeypatch):
    """Let one request of a promotion fail; whether there was such a request."""
    proxy.fail_from(number, status, times=1)
    monkeypatch.setattr("mlflow_e2eai.promotion.registry.lease.LEASE_S", 12.0)
    try:
        mlflow_e2eai.promote(name, 2, gates=GATES)
    except E2EAIError as error:
        sentence = str(error)
    else:
        sentence = None  # it was one that may fail, such as a look at the server's health
    proxy.mend()
    assert is_consistent(name)
    assert left_running(name) == [], sentence
    if sentence is not None:
        assert sentence.count("\n") == 0
        assert sentence.rstrip().endswith("."), sentence
    return sentence


@pytest.mark.parametrize("number", SOME)
def test_a_request_that_fails_ends_the_promotion_in_a_sentence_and_it_is_finished_by_the_next(
    proxy, number, monkeypatch
):
    server, name = proxy
    fail_once(server, name, number, 503, monkeypatch)
    finishes(name)


@pytest.mark.slow
def test_whichever_request_fails_the_next_promotion_finishes(proxy, monkeypatch):
    server, _ = proxy
    number, sentences = 0, set()
    while True:
        number += 1
        name = f"each {number}"
        register((0.8, 0.9), name)
        mlflow_e2eai.promote(name, 1, gates=GATES)
        before = len(server.seen)
        sentences.add(fail_once(server, name, number, (500, 503)[number % 2], monkeypatch))
        if len(server.seen) - before < number:
            break
        finishes(name)
    assert number > 60
    assert len(sentences) > 5


def test_a_registry_that_can_be_read_only_is_named_and_nothing_is_made(proxy):
    server, name = proxy
    server.decide = lambda method, path: (
        403 if method != "GET" and not path.endswith("/search") else None
    )
    sentence = sentence_of(name)
    assert "Your user may not write a run" in sentence
    server.mend()
    assert holder(name) == "1"
    assert "e2eai.decision" not in mlflow.MlflowClient().get_model_version(name, "2").tags
    assert left_running(name) == []
    finishes(name)


def test_a_server_that_stays_down_is_not_taken_for_a_version_that_is_missing(proxy):
    server, name = proxy
    server.fail_from(1, 503)
    sentence = sentence_of(name)
    assert "There is no version" not in sentence
    assert "503" in sentence


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_server_that_dies_between_decision_and_alias_is_named_and_the_next_finishes(
    isolated, tmp_path, monkeypatch, when
):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setattr("mlflow_e2eai.promotion.registry.lease.LEASE_S", 12.0)
    set_alias, tag_version = moves._set_alias, stage.tag_version
    with tracking_server(tmp_path) as server:
        mlflow.set_tracking_uri(server.uri)
        mlflow.set_experiment("tests")
        register((0.8, 0.9))
        assert mlflow_e2eai.promote("net", 1, gates=GATES).promoted

        def die(*words):
            if when == "after":
                set_alias(*words)
            server.kill()
            if when == "before":
                set_alias(*words)

        monkeypatch.setattr(moves, "_set_alias", die)
        sentence = sentence_of("net")
        assert f"{server.uri} cannot be reached" in sentence
        assert "still shows RUNNING" in sentence
        assert ("'champion' may still stand at version 2" in sentence) == (when == "after")
    monkeypatch.setattr(moves, "_set_alias", set_alias)
    monkeypatch.setattr(stage, "tag_version", tag_version)
    port = int(server.uri.rpartition(":")[2])
    with tracking_server(tmp_path, port=port):
        assert holder("net") == {"before": "1", "after": "2"}[when]
        finishes("net")


def log_in(monkeypatch, name, password):
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", name)
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", password)


def test_who_may_not_write_gets_one_sentence_and_nothing_is_half_done(
    isolated, tmp_path, monkeypatch
):
    pytest.importorskip("flask_wtf", reason="a server with users needs Flask-WTF: mlflow[auth]")

    log_in(monkeypatch, *ADMIN)
    with server_with_users(tmp_path) as server:
        mlflow.set_tracking_uri(server.uri)
        mlflow.set_experiment("tests")
        register((0.8, 0.9, 0.8))
        assert mlflow_e2eai.promote("net", 1, gates=GATES).promoted
        for version in (3, 1):
            assert mlflow_e2eai.promote("net", version, alias="blue", gates=GATES).promoted
        moves_before = mlflow_e2eai.history("net").moves
        create_user(server, tmp_path, "reader", "reader1234567")
        monkeypatch.setattr(mlflow.tracking.fluent, "_active_experiment_id", None)

        log_in(monkeypatch, "reader", "reader1234567")
        calls = {
            "promote": lambda: mlflow_e2eai.promote("net", 2, gates=GATES),
            "approve": lambda: mlflow_e2eai.approve("net", 2, as_="release"),
            "reject": lambda: mlflow_e2eai.reject("net", 2, as_="release"),
            "rollback": lambda: mlflow_e2eai.rollback("net", alias="blue"),
        }
        sentences = {word: sentence_of("net", call=call) for word, call in calls.items()}
        dry = mlflow_e2eai.promote("net", 2, gates=GATES, dry_run=True)

        log_in(monkeypatch, *ADMIN)
        client = mlflow.MlflowClient()
        assert dry.promoted
        assert holder("net") == "1"
        assert str(client.get_model_version_by_alias("net", "blue").version) == "1"
        assert mlflow_e2eai.history("net").moves == moves_before
        assert set(client.get_model_version("net", "2").tags) == set(ROOTS)
        assert left_running("net") == []
        assert not any(tag.startswith(LEASE) for tag in client.get_registered_model("net").tags)
        for sentence in sentences.values():
            assert "ermission" in sentence or "may not" in sentence, sentence
            assert "reader1234567" not in sentence
        with pytest.raises(MlflowException):
            client.get_model_version_by_alias("net", "challenger")
        client.set_registered_model_alias("net", "champion", "2")  # by hand
        log_in(monkeypatch, "reader", "reader1234567")
        with pytest.raises(TrackingError, match=r"may not|ermission"):
            mlflow_e2eai.guard("net", restore=True)
