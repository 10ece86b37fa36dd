"""Servers as they are: with a certificate, with a password, mistyped, and dying in the middle."""

from __future__ import annotations

import os
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time

import mlflow
import pytest
from small_models import AXES, features, net
from tracking_servers import tracking_server

import mlflow_e2eai
from mlflow_e2eai import tracking
from mlflow_e2eai.errors import E2EAIError, TrackingError
from mlflow_e2eai.tracking.mlflow_recorder import MlflowStage
from mlflow_e2eai.tracking.server import responds

TRIES = "mlflow.utils.rest_utils._get_http_response_with_retries"


@pytest.fixture
def away(isolated, monkeypatch):
    """No store is chosen yet."""
    monkeypatch.setattr(mlflow.tracking.fluent, "_active_experiment_id", None)
    return mlflow.set_tracking_uri


@pytest.mark.parametrize(
    "uri",
    [
        "http://mlflow:geheim@127.0.0.1:9",
        "http://127.0.0.1:9/base?token=geheim",
        "postgress://mlflow:geheim@127.0.0.1:9/mlflow",
        "postgresql+nothing://mlflow:geheim@127.0.0.1:9/mlflow",
        "postgresql://mlflow:geh/geheim@127.0.0.1:9/mlflow",
        "postgresql://mlflow:geheim@127.0.0.1:port/mlflow",
        "mysql://mlflow:geheim#1@127.0.0.1:9/mlflow",
    ],
)
def test_a_uri_that_nothing_answers_is_one_sentence_without_its_password(away, uri):
    away(uri)
    with pytest.raises(TrackingError) as raised:
        tracking.resolve("models:/digits/1")
    assert "geh" not in str(raised.value)
    assert "tracking" in str(raised.value)


@pytest.mark.parametrize(
    "uri",
    [
        "postgresql://mlflow:geheim@127.0.0.1/mlflow",
        "postgresql:/mlflow:geheim@127.0.0.1/mlflow",
        "mlflow:geheim@127.0.0.1",
    ],
)
def test_a_password_in_the_place_of_a_model_reaches_no_tag(store, uri):
    with pytest.raises(E2EAIError), tracking.run("evaluate"):
        tracking.resolve(uri)
    (run,) = mlflow.search_runs(output_format="list")
    assert "is not a model URI" in run.data.tags["e2eai.error"]
    assert "geheim" not in str(run.data.tags)


def test_an_error_of_another_library_reaches_no_tag_with_a_token(store, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "0123456789")
    with pytest.raises(OSError, match="0123456789"), tracking.run("evaluate"):
        raise OSError(os.environ["MLFLOW_TRACKING_TOKEN"] + " is refused")
    (run,) = mlflow.search_runs(output_format="list")
    assert run.data.tags["e2eai.error"] == "*** is refused"


def test_a_run_that_ctrl_c_ended_says_so(store):
    with pytest.raises(KeyboardInterrupt), tracking.run("evaluate"):
        raise KeyboardInterrupt
    (run,) = mlflow.search_runs(output_format="list")
    assert run.info.status == "KILLED"
    assert run.data.tags["e2eai.error"] == "Interrupted by Ctrl-C."


def test_a_handler_of_the_callers_own_stays(store):
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        with tracking.run("evaluate"):
            os.kill(os.getpid(), signal.SIGTERM)
    finally:
        signal.signal(signal.SIGTERM, before)
    (run,) = mlflow.search_runs(output_format="list")
    assert run.info.status == "FINISHED"


@pytest.mark.parametrize("closed", [1, 2])
def test_a_kept_connection_that_ends_as_it_is_used_is_no_absent_server(away, closed):
    """A server ends an idle connection after seconds, perhaps with a request on its way."""

    def serve():
        for at in range(closed + 1):
            connection = listener.accept()[0]
            with connection:
                connection.recv(65536)
                if at == closed:
                    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=serve, daemon=True).start()
        away(f"http://127.0.0.1:{listener.getsockname()[1]}")
        assert responds() == (closed == 1)


@pytest.mark.system
def test_a_certificate_that_mlflow_trusts_is_trusted(away, tmp_path, monkeypatch):
    key, certificate = tmp_path / "key", tmp_path / "certificate"
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"),
            *("-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"),
            *("-keyout", str(key), "-out", str(certificate)),
        ],
        check=True,
        capture_output=True,
    )
    files = f"--ssl-keyfile {key} --ssl-certfile {certificate}"
    with tracking_server(tmp_path, "--uvicorn-opts", files, scheme="https") as server:
        away(server.uri)
        with pytest.raises(TrackingError, match=r"\(.*certificate.*MLFLOW_TRACKING_SERVER_CERT"):
            mlflow_e2eai.promote("nothing", 1)
        monkeypatch.setenv("MLFLOW_TRACKING_SERVER_CERT_PATH", str(certificate))
        with pytest.raises(TrackingError, match="There is no version 1 of 'nothing'"):
            mlflow_e2eai.promote("nothing", 1)


@pytest.mark.system
def test_a_server_that_dies_is_tried_twice_in_vain_and_named(away, tmp_path, monkeypatch):
    from mlflow.utils import rest_utils

    lost, request, log = [], rest_utils._get_http_response_with_retries, MlflowStage.__call__

    def count(*args, **kwargs):
        try:
            return request(*args, **kwargs)
        except Exception:
            lost.append(args[1])
            raise

    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setattr(TRIES, count)
    with tracking_server(tmp_path) as server:

        def die_before(stage, value):
            server.kill()
            return log(stage, value)

        monkeypatch.setattr(MlflowStage, "__call__", die_before)
        away(server.uri)
        with pytest.raises(TrackingError, match=f"{server.uri} cannot be reached") as raised:
            mlflow_e2eai.log_model(net(), "net", input_example={"x": features()}, dynamic_axes=AXES)
    assert raised.value.lost
    assert "with what was logged so far" in str(raised.value)
    assert len(lost) <= 2, lost
    assert mlflow.active_run() is None


@pytest.mark.system
@pytest.mark.parametrize(
    ("number", "code", "reason"),
    [
        (signal.SIGTERM, 143, "Ended by SIGTERM."),
        (signal.SIGINT, 130, "Interrupted by Ctrl-C."),
    ],
)
def test_sigterm_and_ctrl_c_end_alike(store, tmp_path, number, code, reason):
    quick = {"precisions": ("fp32",), "evidence": "quick"}
    source = mlflow_e2eai.log_model(net(), "net", input_example={"x": features()}, **quick)
    # All stages again: the linked ones may be over before the signal arrives.
    words = ["pipeline", source.model_uri, "--fresh"]
    command = [sys.executable, "-m", "mlflow_e2eai", *words]
    environment = {**os.environ, "MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path}/mlflow.db"}
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)

    def runs(where):
        with sqlite3.connect(tmp_path / "mlflow.db") as database:
            return database.execute(f"SELECT run_uuid FROM runs WHERE {where}").fetchall()  # noqa: S608 - of this test

    before = len(runs("name LIKE 'clean%'"))
    while process.poll() is None and len(runs("name LIKE 'clean%'")) == before:
        time.sleep(0.02)
    assert process.poll() is None, process.stderr.read()
    process.send_signal(number)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == code
    sentence, going_on = stderr.splitlines()[-2:]
    assert sentence == f"mlflow_e2eai: {reason}"
    assert going_on == f"To continue: mlflow_e2eai {' '.join(words)}; it does again what was done"
    assert "Traceback" not in stderr
    assert runs("status = 'RUNNING'") == []
    ended = [mlflow.get_run(run_id) for (run_id,) in runs("status = 'KILLED'")]
    assert {run.data.tags["e2eai.error"] for run in ended} == {reason}
