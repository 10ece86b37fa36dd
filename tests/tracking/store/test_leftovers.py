"""What dead processes left is ended; what living ones have stays, here and elsewhere."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import socket
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import mlflow
import psutil
import pytest
from small_models import AXES, features, net

import mlflow_e2eai
from mlflow_e2eai import tracking
from mlflow_e2eai.cli import main
from mlflow_e2eai.tracking.store import attempts
from mlflow_e2eai.tracking.store.attempts import PROCESS, RunProcess

WORKING = """
import sys, time
import mlflow
from mlflow_e2eai import tracking
mlflow.set_tracking_uri(sys.argv[1])
mlflow.set_experiment("tests")
with tracking.run("digits"):
    recorder = tracking.MlflowRecorder(name="digits", source=None)
    with recorder.stage("clean", inputs=[]):
        pass
    with recorder.stage("convert fp16", inputs=[]) as stage:
        mlflow.initialize_logged_model(name="half", source_run_id=stage.run_id)
        print("at work", flush=True)
        time.sleep(600)
"""


def start(tmp_path):
    """A process in the middle of a stage."""
    (tmp_path / "tmp").mkdir(exist_ok=True)
    process = subprocess.Popen(
        [sys.executable, "-c", WORKING, mlflow.get_tracking_uri()],
        env={**os.environ, "TMPDIR": str(tmp_path / "tmp")},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "at work\n"
    return process


@pytest.fixture
def working(store, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    process = start(tmp_path)
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def all_runs():
    return {run.info.run_name: run for run in mlflow.search_runs(output_format="list")}


def folders(tmp_path):
    return sorted(path.name for path in Path(tmp_path, "tmp").glob("mlflow_e2eai-*"))


def test_a_run_has_its_process_and_a_heartbeat_as_tags(store):
    with tracking.run("net") as run_id:
        process = RunProcess.of(store.get_run(run_id).data.tags)
    assert process.pid == os.getpid()
    assert process.started == pytest.approx(psutil.Process().create_time(), abs=0.01)
    assert process.host == socket.gethostname()
    age = datetime.now(UTC) - process.alive
    assert timedelta(0) <= age < timedelta(minutes=1)


def test_the_heartbeat_goes_on_as_long_as_the_run_and_no_longer(store, monkeypatch):
    monkeypatch.setattr(attempts, "BEAT_S", 0.02)
    beats = []
    text = RunProcess.text
    monkeypatch.setattr(
        RunProcess, "text", lambda self: beats.append(None) or f"{text(self)} {len(beats)}"
    )
    with tracking.run("net") as run_id:
        first = store.get_run(run_id).data.tags[PROCESS]
        deadline = time.monotonic() + 20
        while store.get_run(run_id).data.tags[PROCESS] == first:
            assert time.monotonic() < deadline
            time.sleep(0.01)
    before = -1
    while before != len(beats):  # the last one may be under way
        assert time.monotonic() < deadline + 20
        before = len(beats)
        time.sleep(0.2)


def test_what_a_killed_process_left_is_ended_with_the_stage_that_it_died_at(working, tmp_path):
    left = folders(tmp_path)
    working.kill()
    working.wait()
    tidied = mlflow_e2eai.tidy()
    runs = all_runs()
    assert {name: run.info.status for name, run in runs.items()} == {
        "digits": "KILLED",
        "clean": "FINISHED",
        "convert fp16": "KILLED",
    }
    for name in ("digits", "convert fp16"):
        assert runs[name].data.tags["e2eai.error"] == "died at stage convert fp16"
    assert "e2eai.error" not in runs["clean"].data.tags
    (model,) = mlflow.search_logged_models(output_format="list")
    assert str(model.status) == "FAILED"
    assert model.tags["e2eai.error"] == "died at stage convert fp16"
    assert len(left) == 2, "a folder and its lock"
    assert set(left) & set(folders(tmp_path)) == set()
    assert (len(tidied.runs), tidied.folders) == (2, 1)
    assert mlflow_e2eai.tidy().runs == ()


def end_heartbeats():
    """Let each run have had its last heartbeat long ago."""
    for run in all_runs().values():
        if (process := RunProcess.of(run.data.tags)) is not None:
            long_ago = dataclasses.replace(process, alive=datetime(2026, 1, 1, tzinfo=UTC))
            mlflow.MlflowClient().set_tag(run.info.run_id, PROCESS, long_ago.text())


def test_what_a_living_process_has_stays(working, tmp_path):
    left = folders(tmp_path)
    end_heartbeats()
    tidied = mlflow_e2eai.tidy(dead_after_h=0.1)
    assert (tidied.runs, tidied.folders) == ((), 0)
    assert all_runs()["digits"].info.status == "RUNNING"
    assert set(left) <= set(folders(tmp_path))


def test_a_process_that_stands_still_lives(working):
    working.send_signal(signal.SIGSTOP)
    end_heartbeats()
    assert mlflow_e2eai.tidy(dead_after_h=0.1).runs == ()


def test_the_next_run_ends_what_a_dead_process_left(working):
    working.kill()
    working.wait()
    with tracking.run("next"):
        pass
    assert all_runs()["digits"].info.status == "KILLED"


def test_the_next_run_begins_where_nothing_can_be_ended(working, monkeypatch, caplog):
    working.kill()
    working.wait()
    with monkeypatch.context() as patch:
        patch.setattr(mlflow.MlflowClient, "search_experiments", lambda _: 1 / 0)
        with tracking.run("next"):
            pass
    assert "cannot be ended" in caplog.text
    assert all_runs()["digits"].info.status == "RUNNING"


def test_the_verb_names_each_run_and_counts_all(working, capsys):
    working.kill()
    working.wait()
    assert main.main(["tidy", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert {run["name"]: run["reason"] for run in printed["runs"]} == {
        "digits": "died at stage convert fp16",
        "convert fp16": "died at stage convert fp16",
    }
    assert main.main(["tidy"]) == 0
    out = capsys.readouterr().out
    assert out == "0 runs KILLED, 0 models FAILED, 0 temporary folders removed\n"


def test_a_run_of_the_caller_is_tagged_only_while_it_is_worked_on(store):
    with mlflow.start_run() as mine, tracking.run("net"):
        assert PROCESS in store.get_run(mine.info.run_id).data.tags
    assert PROCESS not in store.get_run(mine.info.run_id).data.tags


def process():
    """A process of another machine that was never alive."""
    never = datetime(1970, 1, 1, tzinfo=UTC)
    return dataclasses.replace(RunProcess.current(), space="another", alive=never)


@pytest.mark.parametrize(
    "changed",
    [
        {"pid": "x"},
        {"pid": 1e400},
        {"alive": "today"},
        {"alive": "0001-01-01T00:00:00+14:00"},
        {"started": None},
        {"more": 1},
    ],
)
def test_a_run_whose_tag_a_hand_changed_is_left_alone(changed):
    found = json.loads(process().text())
    assert RunProcess.of({PROCESS: json.dumps(found)}).is_dead()
    assert RunProcess.of({PROCESS: json.dumps(found | changed)}) is None


@pytest.mark.parametrize("text", ["", "[]", "1", "[" * 4000, "{}"])
def test_a_run_whose_tag_is_something_else_is_left_alone(text):
    assert RunProcess.of({PROCESS: text}) is None


@pytest.mark.parametrize(("hours", "dead"), [(23, False), (25, True)])
def test_a_process_elsewhere_is_dead_only_after_a_day_without_a_heartbeat(hours, dead):
    alive = datetime.now(UTC) - timedelta(hours=hours)
    assert dataclasses.replace(process(), alive=alive).is_dead() is dead


def test_a_number_that_another_process_has_now_is_of_a_dead_one():
    mine = RunProcess.current()
    assert not mine.is_dead()
    assert dataclasses.replace(mine, started=mine.started - 60).is_dead()


def test_a_whole_pipeline_leaves_no_temporary_file(store, tmp_path, on_threads, monkeypatch):
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    options = {"input_example": {"x": features()}, "dynamic_axes": AXES, "precisions": ("fp32",)}
    mlflow_e2eai.log_model(net(), "net", evidence="quick", **options)
    folder, _lock = sorted(Path(tmp_path, "tmp").glob("mlflow_e2eai-*"))
    assert {path.name for path in folder.iterdir()} <= {".ses"}, "ONNX Runtime's own"
