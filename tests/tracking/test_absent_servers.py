"""A tracking server that goes away for a while: the work waits and goes on, or says what to do."""

from __future__ import annotations

import os
import random
import re
import subprocess
import sys
import tempfile
import zlib
from pathlib import Path

import mlflow
import pytest
from failing_proxy import proxy_of
from small_models import features, net
from tracking_servers import tracking_server

import mlflow_e2eai
from mlflow_e2eai import tracking
from mlflow_e2eai.errors import TrackingError
from mlflow_e2eai.tracking import fetch_verified
from mlflow_e2eai.tracking.server import check_server

pytestmark = [
    pytest.mark.system,
    pytest.mark.filterwarnings("ignore:starlette.middleware.wsgi"),
]

FP32 = {"input_example": {"x": features()}, "precisions": ("fp32",), "evidence": "quick"}


@pytest.fixture(scope="module")
def behind(tmp_path_factory):
    folder = tmp_path_factory.mktemp("behind")
    with tracking_server(folder) as server, proxy_of(server.uri) as proxy:
        yield proxy


@pytest.fixture
def proxy(isolated, behind, request, monkeypatch):
    """A proxy before a server, with an experiment of the test's own."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR", "1")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_BACKOFF_JITTER", "0")
    mlflow.set_tracking_uri(behind.uri)
    mlflow.set_experiment(request.node.name.replace("/", " "))
    yield behind
    behind.mend()


@pytest.fixture
def log(request):
    """Log a model that no other test logs, as that would be linked."""
    seed = zlib.crc32(request.node.name.encode())
    return lambda **more: mlflow_e2eai.log_model(net(seed), "net", **FP32, **more)


def verify(info):
    with tempfile.TemporaryDirectory() as folder:
        fetch_verified(mlflow.get_logged_model(info.model_id), Path(folder))


def is_complete(info):
    """Every run has ended well, every model is ready, and the bundle is as it was logged."""
    runs = mlflow.search_runs(output_format="list")
    models = mlflow.search_logged_models(output_format="list")
    verify(info)
    return {run.info.status for run in runs} == {"FINISHED"} and {
        str(model.status) for model in models
    } == {"READY"}


@pytest.mark.parametrize(("verdict", "number"), [(500, 8), (503, 50), ("close", 30)])
def test_a_server_that_is_away_for_a_moment_is_waited_for(proxy, log, verdict, number):
    proxy.fail_for(3.0, verdict, number=number)
    before = len(proxy.seen)
    info = log()
    assert len(proxy.seen) - before > number
    proxy.mend()
    assert is_complete(info)


@pytest.mark.parametrize("verdict", [503, "close"])
def test_within_a_run_the_check_of_the_server_waits_and_before_one_it_does_not(proxy, verdict):
    with tracking.run("net"):
        proxy.fail_for(2.0, verdict)
        check_server()
    proxy.fail_for(2.0, verdict)
    with pytest.raises(TrackingError, match="cannot be reached"):
        check_server()


def test_an_error_while_the_server_is_away_is_written_when_it_is_back(proxy):
    def fail():
        proxy.fail_for(2.0, "close")
        raise KeyError

    with pytest.raises(KeyError), tracking.run("net"):
        fail()
    proxy.mend()
    (run,) = mlflow.search_runs(output_format="list")
    assert run.info.status == "FAILED"
    assert run.data.tags["e2eai.error"] == "KeyError"


def test_a_request_that_hangs_is_given_up_and_sent_again(proxy, log, monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "2")
    proxy.hang_s = 5.0
    proxy.fail_once("hang", "PUT", "model.onnx")
    info = log()
    assert is_complete(info)


def test_an_upload_that_breaks_off_is_sent_again(proxy, log):
    proxy.fail_once("cut upload", "PUT", "bundle/model.onnx")
    before = len(proxy.seen)
    info = log()
    sent = [path for method, path in proxy.seen[before:] if method == "PUT"]
    assert sum("bundle/model.onnx" in path for path in sent) == 2
    assert is_complete(info)


@pytest.mark.parametrize("file", ["data/model.pt2", "artifacts/model.onnx", "bundle/model.onnx"])
def test_half_an_upload_that_the_server_takes_for_all_ends_the_call(proxy, log, file):
    proxy.fail_once("halve upload", "PUT", file)
    with pytest.raises(TrackingError, match=r"model\.\w+ has \d+ bytes, but .* the upload was cut"):
        log(registered_model_name=f"halved {file.partition('/')[0]}")
    models = mlflow.search_logged_models(output_format="list")
    assert [str(model.status) for model in models].count("FAILED") == 1
    assert mlflow.search_model_versions(filter_string="name LIKE 'halved%'") == []
    info = log()
    verify(info)
    assert str(mlflow.get_logged_model(info.model_id).status) == "READY"


@pytest.mark.parametrize("file", ["result.json", "model.onnx"])
def test_a_download_that_breaks_off_is_repeated(proxy, log, file):
    first = log()
    proxy.fail_once("cut download", "GET", file)
    assert log().model_id == first.model_id
    assert [run.data.tags.get("e2eai.reused", "") != "" for run in parents()] == [True, False]


def parents():
    runs = mlflow.search_runs(output_format="list")
    return [run for run in runs if "mlflow.parentRunId" not in run.data.tags]


def test_a_server_that_stays_away_ends_the_command_with_the_one_that_continues(proxy, log):
    source = mlflow.get_logged_model(log().model_id).tags["e2eai.source_model"]
    command = [sys.executable, "-m", "mlflow_e2eai", "pipeline", f"models:/{source}", "--opset=17"]
    environment = {
        **os.environ,
        "MLFLOW_TRACKING_URI": proxy.uri,
        "MLFLOW_EXPERIMENT_NAME": mlflow.get_experiment(parents()[0].info.experiment_id).name,
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    }
    proxy.fail_after("close", "POST", "runs/create", number=3)  # of the stage after export
    common = {"env": environment, "timeout": 200, "capture_output": True, "text": True}
    done = subprocess.run(command, check=False, **common)
    assert done.returncode == 1
    sentence, going_on = done.stderr.splitlines()[-2:]
    assert f"The tracking server {proxy.uri} cannot be reached" in sentence
    assert going_on.startswith(f"To continue: mlflow_e2eai pipeline models:/{source} --opset=17")
    assert "Traceback" not in done.stderr
    waiting = r"MLflow's server does not respond \(.+\); trying again, up to 1 times"
    assert re.search(waiting, done.stderr), done.stderr
    assert "Retrying (Retry" not in done.stderr
    proxy.mend()
    again = subprocess.run(command, check=False, **common)
    assert again.returncode == 0, again.stderr
    assert "reused from run" in again.stderr
    assert {run.info.status for run in mlflow.search_runs(output_format="list")} == {
        "FINISHED",
        "KILLED",
    }


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(8))
def test_a_server_that_is_away_for_half_a_minute_at_any_moment_is_waited_for(proxy, log, seed):
    chance = random.Random(seed)  # noqa: S311 - a moment, not a secret
    proxy.hang_s = 30.0
    proxy.fail_for(
        30.0, chance.choice([500, 503, "close", "hang"]), number=chance.randrange(3, 110)
    )
    info = log()
    proxy.mend()
    assert is_complete(info)
