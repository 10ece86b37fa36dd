"""Ctrl-C amid a call: runs are killed, models failed, and the store stays free for both."""

from __future__ import annotations

import sqlite3
import time

import mlflow
import pytest
from small_models import features, net

import mlflow_e2eai
from mlflow_e2eai import tracking
from mlflow_e2eai.runtime.termination import Termination, interruption_of, reason_of
from mlflow_e2eai.tracking import models

FP32 = {"input_example": {"x": features()}, "precisions": ("fp32",), "evidence": "quick"}


def interrupt(_cursor):
    raise KeyboardInterrupt


def interrupt_import(cursor):
    try:
        interrupt(cursor)
    except KeyboardInterrupt as error:
        msg = "initialization failed"
        raise ImportError(msg) from error


def interrupt_in_cycle(cursor):
    result = [cursor]
    result.append(result)
    raise KeyboardInterrupt


@pytest.mark.parametrize("end", [interrupt, interrupt_import, interrupt_in_cycle])
def test_a_query_that_was_interrupted_does_not_lock_the_database(store, end):
    path = mlflow.get_tracking_uri().removeprefix("sqlite:///")

    def query():
        cursor = sqlite3.connect(path).execute("SELECT key FROM tags")
        assert cursor.fetchone()
        end(cursor)

    with pytest.raises((KeyboardInterrupt, ImportError)), tracking.run("net"):
        query()
    (run,) = mlflow.search_runs(output_format="list")
    assert run.info.status == "KILLED"
    assert run.data.tags["e2eai.error"] == "Interrupted by Ctrl-C."


def test_a_model_is_failed_where_the_interruption_came_before_its_files(store, monkeypatch):
    def interrupt_link(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(models, "link_output", interrupt_link)
    with pytest.raises(KeyboardInterrupt):
        mlflow_e2eai.log_model(net(), "net", **FP32)
    found = {
        model.name: (str(model.status), model.tags.get("e2eai.error"))
        for model in mlflow.search_logged_models(output_format="list")
    }
    assert found.pop("net-source") == ("READY", None)
    assert set(found.values()) == {("FAILED", "Interrupted by Ctrl-C.")}


def test_a_model_that_waits_for_its_files_elsewhere_is_left_alone(store):
    with mlflow.start_run():
        model = mlflow.initialize_logged_model(name="other")
        with pytest.raises(KeyboardInterrupt), tracking.run("net"):
            raise KeyboardInterrupt
    assert str(mlflow.get_logged_model(model.model_id).status) == "PENDING"


def test_an_error_that_a_library_made_of_an_interruption_is_one(store):
    failed = ImportError("initialization failed")
    failed.__cause__ = KeyboardInterrupt()
    with pytest.raises(ImportError), tracking.run("net"):
        raise failed
    (run,) = mlflow.search_runs(output_format="list")
    assert run.info.status == "KILLED"
    assert run.data.tags["e2eai.error"] == "Interrupted by Ctrl-C."
    assert interruption_of(ImportError("no module")) is None


@pytest.mark.parametrize("error", [KeyboardInterrupt(), Termination()], ids=["ctrl_c", "sigterm"])
@pytest.mark.parametrize("done_before", [False, True])
def test_a_signal_after_a_run_is_made_and_before_its_block_begins_leaves_its_reason(
    store, monkeypatch, error, done_before
):
    def end_at_once(_run_id):
        raise error

    span = (time.time() - 1, time.time()) if done_before else None
    with mlflow.start_run(), monkeypatch.context() as patch:
        patch.setattr("mlflow_e2eai.tracking.runs._explain", end_at_once)
        with (
            pytest.raises(type(error)),
            tracking.run("clean", nested=True, span=span),
        ):
            pytest.fail("The block began.")
    [ended] = mlflow.search_runs(filter_string="status = 'KILLED'", output_format="list")
    assert ended.data.tags["e2eai.error"] == reason_of(error)
