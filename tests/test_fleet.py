"""Jobs on workers here: what fails fails alone, and what is lost is tried again."""

from __future__ import annotations

import os
import pickle
import signal
import threading
import time
from pathlib import Path

import mlflow
import pytest
from chains import log_graph

from mlflow_e2eai import fleet, tracking
from mlflow_e2eai.errors import InvalidInputError, RunnerError
from mlflow_e2eai.fleet import Job

pytest.importorskip("tensorrt_rtx")


def compiling(model_id, target="sm86", **arguments):
    return Job(stage="compile", model_uri=model_id, arguments={"targets": [target], **arguments})


def children(parent):
    found = mlflow.MlflowClient().search_runs(
        [parent.info.experiment_id],
        f"tags.mlflow.parentRunId = '{parent.info.run_id}'",
        order_by=["attributes.start_time ASC"],
    )
    return [mlflow.get_run(run.info.run_id) for run in found]


def log_of(run_id):
    return mlflow.artifacts.load_text(f"runs:/{run_id}/job.log")


def engines():
    return [
        model
        for model in mlflow.search_logged_models(output_format="list")
        if model.tags.get("e2eai.stage") == "compile"
    ]


def test_a_job_is_a_plain_value():
    job = compiling("m-1", precision="tf32")
    assert pickle.loads(pickle.dumps(job)) == job
    with pytest.raises(InvalidInputError, match="stage is 'export', but compile or evaluate"):
        Job(stage="export", model_uri="m-1")


def test_a_fleet_that_there_is_not_is_refused(store):
    with pytest.raises(InvalidInputError, match="executor is 'slurm', but one of local, ray"):
        fleet.run([], executor="slurm")
    with pytest.raises(InvalidInputError, match="workers is 0, but at least 1"):
        fleet.run([], workers=0)
    assert fleet.run([]) == []


def test_jobs_run_side_by_side_under_the_one_parent_and_one_that_fails_fails_alone(store, tmp_path):
    graph = log_graph(tmp_path)
    given = [compiling(graph, "sm86"), compiling(graph, precision="fp16"), compiling(graph, "sm89")]
    with mlflow.start_run() as parent:
        first, failed, second = fleet.run(given, workers=2)
    assert [outcome.job for outcome in (first, failed, second)] == given
    assert {tracking.resolve(m).tags["e2eai.target"] for m in first.models + second.models} == {
        "tensorrt_rtx-sm86",
        "tensorrt_rtx-sm89",
    }
    assert "The graph is in fp32, but an engine in fp16 is wanted" in failed.error
    assert [outcome.error for outcome in (first, second)] == [None, None]
    runs = {run.info.run_id: run for run in children(parent)}
    assert sorted(run.info.run_name for run in runs.values()) == [
        "compile fp32 sm86",
        "compile fp32 sm89",
        "compile sm86",
    ]
    (failed_run,) = failed.failed_runs
    assert runs[failed_run].info.status == "FAILED"
    assert runs[failed_run].data.tags["e2eai.error"] == failed.error
    assert "in compile" in log_of(failed_run)
    assert [run.info.status for run in runs.values()].count("FINISHED") == 2
    with pytest.raises(RunnerError, match=f"1 of 3 jobs failed.*{failed_run}.*is in fp32"):
        fleet.held([first, failed, second])


def test_equal_jobs_are_done_once(store, tmp_path):
    graph = log_graph(tmp_path)
    first, second = fleet.run([compiling(graph), compiling(graph)], workers=2)
    assert first == second
    assert len(engines()) == 1


def workers_of(parent_pid):
    """Processes of the fleet, by their command line."""
    found = []
    for place in Path("/proc").iterdir():
        if not place.name.isdigit():
            continue
        try:
            status = (place / "stat").read_text().rpartition(")")[2].split()
            words = (place / "cmdline").read_bytes()
        except OSError:
            continue
        if int(status[1]) == parent_pid and b"isolation.worker" in words:
            found.append(int(place.name))
    return found


def kill_when_building(*, times):
    """Kill the worker of the first runs that begin to compile; in a thread, which is returned."""
    client, killed = mlflow.MlflowClient(), []
    experiment = mlflow.get_experiment_by_name("tests").experiment_id

    def watch():
        deadline = time.monotonic() + 120
        while len(killed) < times and time.monotonic() < deadline:
            running = client.search_runs(
                [experiment], "attributes.status = 'RUNNING' AND tags.`e2eai.ticket` != ''"
            )
            fresh = [run for run in running if run.info.run_id not in killed]
            if fresh:
                for pid in workers_of(os.getpid()):
                    os.kill(pid, signal.SIGKILL)
                killed.append(fresh[0].info.run_id)
            time.sleep(0.02)

    thread = threading.Thread(target=watch)
    thread.start()
    return thread, killed


def test_a_worker_that_is_killed_while_it_builds_ends_its_run_and_the_job_is_done_by_another(
    store, tmp_path
):
    graph = log_graph(tmp_path)
    with mlflow.start_run() as parent:
        thread, killed = kill_when_building(times=1)
        (outcome,) = fleet.run([compiling(graph)])
        thread.join()
    assert outcome.error is None
    assert list(outcome.failed_runs) == killed
    lost, done = children(parent)
    assert (lost.info.status, done.info.status) == ("FAILED", "FINISHED")
    assert "was killed (SIGKILL" in lost.data.tags["e2eai.error"]
    assert [m.model_id for m in engines() if str(m.status) == "READY"] == list(outcome.models)


def test_a_job_that_is_lost_twice_is_given_up_and_the_others_go_on(store, tmp_path):
    graph = log_graph(tmp_path)
    with mlflow.start_run() as parent:
        thread, killed = kill_when_building(times=2)
        lost, done = fleet.run([compiling(graph), compiling(graph, "sm89")], workers=1)
        thread.join()
    assert list(lost.failed_runs) == killed
    assert "was killed" in lost.error
    assert done.error is None
    assert [run.info.status for run in children(parent)] == ["FAILED", "FAILED", "FINISHED"]


def test_a_worker_that_hangs_is_ended_at_its_limit(store, tmp_path):
    graph = log_graph(tmp_path)
    (outcome,) = fleet.run([compiling(graph)], limit_s=0.1)
    assert "gave no sign of life for 0.1 s" in outcome.error
    assert len(outcome.failed_runs) == 2
    assert {mlflow.get_run(run).info.status for run in outcome.failed_runs} == {"FAILED"}


def test_an_evaluation_puts_its_evidence_under_the_parent(store, tmp_path):
    graph = log_graph(tmp_path)
    with mlflow.start_run() as parent:
        (outcome,) = fleet.run([Job(stage="evaluate", model_uri=graph)])
    assert outcome.error is None
    (run,) = [run for run in children(parent) if run.info.run_name == "evaluate"]
    assert "evaluate onnxruntime-cpu/fp32" in [child.info.run_name for child in children(run)]


def test_workers_end_when_the_fleet_does(store, tmp_path):
    fleet.run([compiling(log_graph(tmp_path))])
    assert workers_of(os.getpid()) == []
