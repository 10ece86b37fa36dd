"""A worker's crash is an artifact of the run of its stage, and the error names the folder."""

import signal
import threading
from functools import partial
from pathlib import Path

import crashing_runners
import crashing_simplifier
import mlflow
import numpy as np
import pytest
from crashing_graphs import crashes_onnx_runtime, reproduce
from small_models import AXES, features, net

import mlflow_e2eai
from mlflow_e2eai import tracking
from mlflow_e2eai.errors import RunnerError
from mlflow_e2eai.runtime.isolation import isolated, isolated_onnxruntime
from mlflow_e2eai.surgery import simplify as libraries


def files(run_id, folder="crash/1"):
    client = mlflow.MlflowClient()
    return {item.path.rpartition("/")[2] for item in client.list_artifacts(run_id, folder)}


def download(run_id, tmp_path):
    to = str(tmp_path / "downloaded")
    return Path(mlflow.artifacts.download_artifacts(f"runs:/{run_id}/crash/1", dst_path=to))


def test_a_graph_that_crashes_a_stage_is_on_its_run_and_crashes_from_there(store, tmp_path):
    path = crashes_onnx_runtime(tmp_path / "model.onnx")
    recorder = tracking.MlflowRecorder(name="digits", source=None)
    with (
        pytest.raises(RunnerError) as caught,
        tracking.run("digits") as parent,
        recorder.stage("convert fp16", inputs=[]) as stage,
        isolated_onnxruntime(path),
    ):
        pass
    message = str(caught.value)
    assert message.endswith(f"are in the artifact folder crash/1 of run {stage.run_id}.")
    assert mlflow.get_run(stage.run_id).data.tags["e2eai.error"].endswith(message)
    assert files(stage.run_id) == {"crash.txt", "log.txt", "graph.onnx", "reproduce.py"}
    assert files(parent, "crash") == set()
    assert reproduce(download(stage.run_id, tmp_path)).returncode == -signal.SIGSEGV


def test_each_crash_of_a_run_has_a_folder_of_its_own(store):
    opener = partial(crashing_runners.drops_dead, at_call=0, sign=signal.SIGABRT)
    with tracking.run("digits") as run_id:
        for _ in range(2):
            with isolated(opener) as infer, pytest.raises(RunnerError, match=run_id):
                infer({"x": np.ones(3, np.float32)})
    assert files(run_id, "crash") == {"1", "2"}
    assert files(run_id, "crash/2") == {"crash.txt", "log.txt", "sample.npz"}


def test_a_crash_in_another_thread_is_of_the_stage_that_waits_for_it(store):
    def crash():
        with pytest.raises(RunnerError), isolated(crashing_runners.crashes_while_it_opens):
            pass

    with tracking.run("digits") as run_id:
        thread = threading.Thread(target=crash)
        thread.start()
        thread.join()
    assert files(run_id) == {"crash.txt", "log.txt"}


def test_a_library_that_crashes_a_pipeline_is_on_the_run_of_its_stage(store, monkeypatch):
    monkeypatch.setattr(libraries, "_simplify", crashing_simplifier.simplify)
    with mlflow.start_run() as parent:
        mlflow_e2eai.log_model(
            net(),
            "net",
            input_example={"x": features()},
            dynamic_axes=AXES,
            precisions=("fp32",),
            targets=(),
            evidence="quick",
        )
    (clean,) = mlflow.search_runs(
        filter_string=f"tags.`mlflow.parentRunId` = '{parent.info.run_id}' "
        "and tags.`e2eai.stage` = 'clean'",
        output_format="list",
    )
    assert clean.info.status == "FINISHED"
    assert files(clean.info.run_id) == {"crash.txt", "log.txt", "graph.onnx", "reproduce.py"}
    report = mlflow.artifacts.load_text(f"{clean.info.artifact_uri}/surgery.json")
    assert f"crash/1 of run {clean.info.run_id}" in report
