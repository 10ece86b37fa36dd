"""Jobs on workers here: what fails fails alone, and what is lost is tried again."""

from __future__ import annotations

import pickle
import tempfile

import mlflow
import pytest
from fleet_jobs import (
    DEATHS,
    busy_workers,
    children,
    compiling,
    dying,
    engines,
    kill_when_building,
    workers,
)
from logged_graphs import log_graph, slow_to_build
from small_models import build

import mlflow_e2eai
from mlflow_e2eai import fleet, tracking
from mlflow_e2eai.artifacts.build_settings import BuildSettings
from mlflow_e2eai.errors import InvalidInputError, RunnerError
from mlflow_e2eai.flavor import repackage
from mlflow_e2eai.fleet import distributed, engine_jobs
from mlflow_e2eai.fleet.job import Job
from mlflow_e2eai.pipeline import jobs
from mlflow_e2eai.tracking.lineage import GraphCache

pytest.importorskip("tensorrt_rtx")

pytestmark = pytest.mark.system


def log_of(run_id):
    return mlflow.artifacts.load_text(f"runs:/{run_id}/job.log")


def test_a_job_is_a_plain_value():
    job = compiling("m-1", precision="tf32")
    assert pickle.loads(pickle.dumps(job)) == job
    with pytest.raises(InvalidInputError, match="stage is 'export', but compile or evaluate"):
        Job(stage="export", model_uri="m-1")


def test_a_fleet_that_there_is_not_is_refused(store):
    with pytest.raises(
        InvalidInputError, match="There is no executor 'slurm'; there are local, ray"
    ):
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
    assert {tracking.resolve(m).params["target"] for m in first.models + second.models} == {
        "tensorrt_rtx-sm86",
        "tensorrt_rtx-sm89",
    }
    assert "The graph is in fp32, but an engine in fp16 is expected" in failed.error
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
        fleet.require_success([first, failed, second])


@pytest.mark.slow
def test_equal_jobs_are_done_once(store, tmp_path):
    graph = log_graph(tmp_path)
    first, second = fleet.run([compiling(graph), compiling(graph)], workers=2)
    assert first == second
    assert len(engines()) == 1


def test_a_worker_that_is_killed_while_it_builds_ends_its_run_and_the_job_is_done_by_another(
    store, tmp_path
):
    graph = log_graph(tmp_path, model=slow_to_build())
    with mlflow.start_run() as parent:
        thread, killed = kill_when_building(busy_workers)
        (outcome,) = fleet.run([compiling(graph)])
        thread.join()
    assert outcome.error is None
    assert list(outcome.failed_runs) == killed
    lost, done = children(parent)
    assert (lost.info.status, done.info.status) == ("FAILED", "FINISHED")
    assert "was killed (SIGKILL" in lost.data.tags["e2eai.error"]
    assert engines() == list(outcome.models)


@pytest.mark.slow
@pytest.mark.parametrize("how", DEATHS)
def test_a_builder_that_dies_fails_its_job_alone(store, tmp_path, how):
    _, said = DEATHS[how]
    slow, quick = log_graph(tmp_path, model=slow_to_build()), log_graph(tmp_path, scale=2)
    with mlflow.start_run() as parent, dying(how) as settings:
        given = [compiling(slow, build_settings=settings), compiling(quick)]
        failed, done = fleet.run(given, workers=1)
    assert "TensorRT did not finish" in failed.error
    assert said in failed.error
    assert done.error is None
    runs = children(parent)
    assert [run.info.status for run in runs] == ["FAILED", "FINISHED"]
    assert runs[0].data.tags["e2eai.error"] == failed.error
    assert [run.info.run_id for run in runs[:1]] == list(failed.failed_runs)
    assert "TensorRT did not finish" in log_of(runs[0].info.run_id)


@pytest.mark.slow
def test_a_job_that_is_lost_twice_is_given_up_and_the_others_go_on(store, tmp_path):
    graph = log_graph(tmp_path, model=slow_to_build())
    with mlflow.start_run() as parent:
        thread, killed = kill_when_building(workers, times=2)
        lost, done = fleet.run([compiling(graph), compiling(graph, "sm89")], workers=1)
        thread.join()
    assert list(lost.failed_runs) == killed
    assert "was killed" in lost.error
    assert done.error is None
    assert [run.info.status for run in children(parent)] == ["FAILED", "FAILED", "FINISHED"]


def test_a_worker_that_hangs_is_ended_at_its_limit(store, tmp_path):
    graph = log_graph(tmp_path)
    (outcome,) = fleet.run([compiling(graph)], timeout_s=0.1)
    assert "did not respond for 0.1 s" in outcome.error
    assert len(outcome.failed_runs) == 2
    assert {mlflow.get_run(run).info.status for run in outcome.failed_runs} == {"FAILED"}


@pytest.mark.slow
def test_an_evaluation_puts_its_evidence_under_the_parent(store, tmp_path):
    graph = log_graph(tmp_path)
    with mlflow.start_run() as parent:
        (outcome,) = fleet.run([Job(stage="evaluate", model_uri=graph)])
    assert outcome.error is None
    (run,) = [run for run in children(parent) if run.info.run_name == "evaluate"]
    assert "evaluate onnxruntime-cpu/fp32" in [child.info.run_name for child in children(run)]


def test_workers_end_when_the_fleet_does_and_leave_nothing(store, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    fleet.run([compiling(log_graph(tmp_path))])
    assert workers() == []
    (lock,) = (tmp_path / "temporary").glob("*.lock")  # of this process, which goes on
    assert sorted((tmp_path / "temporary").rglob("*")) == [lock.with_suffix(""), lock]


def test_a_graph_stays_for_the_next_job_and_goes_when_a_job_did_without_it(store, tmp_path):
    first, other = (tracking.resolve(log_graph(tmp_path, scale=scale)) for scale in (1, 2))
    kept = tmp_path / "kept"
    kept.mkdir()
    cache = GraphCache(kept)
    with cache.in_use():
        graph = tracking.fetch_graph(first, tmp_path)
    with cache.in_use():
        assert tracking.fetch_graph(first, tmp_path) is graph
    with cache.in_use():
        another = tracking.fetch_graph(other, tmp_path)
    assert list(kept.rglob("*.onnx")) == [another.path]
    with cache.in_use():
        assert tracking.fetch_graph(first, tmp_path).sha256 == graph.sha256


@pytest.mark.slow
def test_a_package_whose_engines_a_fleet_built_is_the_one_built_here(store):
    source = jobs.log("small_models:build", name="net")
    arguments = {"name": "net", "precisions": ["fp32"], "targets": ["sm86", "sm89"]}
    with mlflow.start_run() as parent:
        info = repackage.package(source, executor="local", workers=2, **arguments)
    made = engines()
    assert len(made) == 2
    names = [run.info.run_name for run in children(parent)]
    assert names.count("compile fp32 sm86") == names.count("compile fp32 sm89") == 1
    with mlflow_e2eai.load_model(info.model_uri) as model:
        built = {str(engine.target): engine.sha256 for engine in model.manifest.engines}
    assert {tracking.resolve(one).tags["e2eai.sha256"] for one in made} == set(built.values())
    repackage.package(source, **arguments)
    assert sorted(engines()) == sorted(made)


def test_an_engine_that_a_fleet_cannot_build_is_left_out_of_the_package_and_the_reason_is_kept(
    store, monkeypatch
):
    source = jobs.log("small_models:build", name="net")
    defaults = {**fleet.run.__kwdefaults__, "timeout_s": 0.05}
    monkeypatch.setattr(fleet.run, "__kwdefaults__", defaults)
    info = repackage.package(
        source, name="net", precisions=["fp32"], targets=["sm86"], executor="local"
    )
    with mlflow_e2eai.load_model(info.model_uri) as model:
        assert model.manifest.engines == ()
        (said,) = [e for e in model.manifest.evidence if e.variant == "tensorrt_rtx-sm86/fp32"]
    assert not said.measured
    assert "did not respond for 0.05 s" in said.reason
    assert engines() == []


@pytest.mark.slow
def test_targets_that_only_other_machines_know_are_built_there_or_left_out_with_the_reason(
    store, monkeypatch
):
    """Processes here stand for machines elsewhere: the caller must not judge for them."""
    for module in (fleet, engine_jobs):
        monkeypatch.setattr(module, "uses_other_machines", lambda executor: executor == "local")
    source = jobs.log("small_models:build", name="net")
    targets = ["local", "trt11:sm90", "rtx:sm86", "sm86"]
    info = repackage.package(
        source, name="net", precisions=["fp32"], targets=targets, executor="local", workers=1
    )
    with mlflow_e2eai.load_model(info.model_uri) as model:
        assert [str(engine.target) for engine in model.manifest.engines] == ["tensorrt_rtx-sm86"]
        reasons = {entry.variant: entry.reason for entry in model.manifest.evidence}
    assert "'local' needs a GPU, and there is none" in reasons["local/fp32"]
    assert "on a GPU of sm90 itself" in reasons["tensorrt11-sm90/fp32"]
    (made,) = engines()
    cleaned = tracking.ancestor(tracking.resolve(made), ["clean"]).model_id
    with pytest.raises(RunnerError, match="needs a GPU"):
        distributed.compile(cleaned, targets=["local"], executor="local")
    for wrong in ("sm99", "rtx:sm86+compatible"):
        with pytest.raises(InvalidInputError, match="target"):
            distributed.compile(cleaned, targets=[wrong], executor="local")


@pytest.mark.parametrize("targets", [["local"], ["sm86", "trt11:sm90"]])
def test_what_this_machine_cannot_build_is_said_before_anything_is_made(store, targets):
    given = build()
    options = {"dynamic_axes": given["dynamic_axes"], "input_example": given["input_example"]}
    for executor in (None, "local"):
        with pytest.raises(InvalidInputError, match="GPU"):
            mlflow_e2eai.log_model(given["model"], targets=targets, executor=executor, **options)
    assert mlflow.search_logged_models(output_format="list") == []


def test_build_settings_that_need_a_gpu_are_refused_before_anything_is_made(store, tmp_path):
    given = build()
    options = {"input_example": given["input_example"], "targets": ["sm86"]}
    options["build_settings"] = BuildSettings(strip_weights=True)
    refused = r"are strip_weights=yes, but refit and strip_weights need a GPU, .* that has one\."
    with pytest.raises(InvalidInputError, match=refused):
        mlflow_e2eai.log_model(given["model"], **options)
    with pytest.raises(InvalidInputError, match=refused):
        mlflow_e2eai.save_model(given["model"], tmp_path / "net", **options)
    graph = log_graph(tmp_path)
    with pytest.raises(InvalidInputError, match=refused):
        distributed.compile(graph, targets=["sm86"], build_settings=options["build_settings"])
    assert engines() == []


@pytest.mark.slow
def test_the_job_compile_shares_its_targets_out(store, tmp_path):
    graph = log_graph(tmp_path)
    made = distributed.compile(graph, targets=["sm86", "sm89"], executor="local", workers=2)
    targets = [tracking.resolve(one).params["target"] for one in made]
    assert targets == ["tensorrt_rtx-sm86", "tensorrt_rtx-sm89"]
