"""MLflow's bars and lines: silent in this package's calls, and as they were in the user's own."""

import logging
import os
import threading

import mlflow
import pytest
import torch
from free_ports import free_port
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from mlflow.utils.logging_utils import enable_logging, eprint

from mlflow_e2eai.tracking.console import quiet_mlflow
from mlflow_e2eai.tracking.sources import log_source

BARS = "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR"


@pytest.fixture(autouse=True)
def unset(monkeypatch):
    monkeypatch.delenv(BARS, raising=False)


def lines_of_mlflow():
    logging.getLogger("mlflow.store").info("an INFO line")
    eprint("a printed line")


def test_inside_there_are_neither_bars_nor_lines_and_afterwards_all_is_as_before(capsys):
    with quiet_mlflow():
        assert os.environ[BARS] == "false"
        lines_of_mlflow()
        enable_logging()  # as MLflow's autologging does
        lines_of_mlflow()
    assert capsys.readouterr().err == ""
    assert BARS not in os.environ
    lines_of_mlflow()
    after = capsys.readouterr().err
    assert "an INFO line" in after
    assert "a printed line" in after


def test_what_the_user_has_set_is_back_after_an_error(monkeypatch):
    monkeypatch.setenv(BARS, "true")
    with pytest.raises(ZeroDivisionError), quiet_mlflow():
        1 / 0  # noqa: B018 - an error is the point
    assert os.environ[BARS] == "true"


def test_a_warning_of_mlflow_is_logged_by_this_package(caplog):
    with quiet_mlflow():
        logging.getLogger("mlflow.store").warning("the disk is full")
    assert ("mlflow_e2eai.tracking.console", "mlflow.store: the disk is full") in [
        (record.name, record.getMessage()) for record in caplog.records
    ]


class Counting(torch.nn.Module):
    """Runs as often as an input says, which `torch.export` refuses."""

    def forward(self, x, steps):
        for _ in range(int(steps)):
            x = torch.tanh(x)
        return x


def test_a_model_that_has_to_be_pickled_is_logged_without_a_line_of_pytorch_or_mlflow(
    store, capfd, caplog
):
    example = {"x": torch.rand(2, 3), "steps": torch.tensor(3)}
    caplog.set_level("INFO", logger="mlflow_e2eai")
    with quiet_mlflow(), mlflow.start_run() as run:
        log_source(Counting().eval(), example, name="net", run_id=run.info.run_id)
        (model,) = mlflow.search_logged_models(output_format="list")
    assert "data/model.pth" in [
        item.path for item in MlflowClient().list_logged_model_artifacts(model.model_id, "data")
    ]
    printed = capfd.readouterr()
    assert (printed.out, printed.err) == ("", "")
    lines = [record for record in caplog.records if record.levelno > logging.DEBUG]
    assert [record.getMessage().split()[:2] for record in lines] == [["log", "net"]]


def test_blocks_in_two_threads_end_with_the_last():
    first_is_open, second_has_ended = threading.Event(), threading.Event()

    def hold():
        with quiet_mlflow():
            first_is_open.set()
            second_has_ended.wait(timeout=60)

    thread = threading.Thread(target=hold)
    thread.start()
    first_is_open.wait(timeout=60)
    with quiet_mlflow():
        pass
    assert os.environ[BARS] == "false"
    second_has_ended.set()
    thread.join()
    assert BARS not in os.environ


def test_a_request_that_is_sent_again_is_one_sentence(caplog, monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR", "0")
    client = MlflowClient(f"http://127.0.0.1:{free_port()}")
    with quiet_mlflow(), pytest.raises(MlflowException):
        client.get_run("nothing")
    assert [record.getMessage().partition(" (")[0] for record in caplog.records] == [
        "MLflow's server does not respond"
    ] * 2
    assert [record.getMessage().rpartition(", ")[2] for record in caplog.records] == [
        "up to 2 times",
        "up to 1 times",
    ]
    caplog.clear()
    with pytest.raises(MlflowException):
        client.get_run("nothing")
    assert all(record.getMessage().startswith("Retrying (") for record in caplog.records)
