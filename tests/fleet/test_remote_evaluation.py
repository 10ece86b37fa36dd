"""Engines that other machines judge: jobs, what they find, and what becomes of those that fail."""

from __future__ import annotations

import mlflow
import pytest
from fleet_jobs import children, evaluators, kill_when_building
from logged_graphs import log_graph

import mlflow_e2eai
from mlflow_e2eai import fleet
from mlflow_e2eai.cli import main
from mlflow_e2eai.cli.results import DONE
from mlflow_e2eai.engine.targets import parse
from mlflow_e2eai.evaluation.evidence import machine_name
from mlflow_e2eai.flavor import repackage
from mlflow_e2eai.fleet import distributed, engine_jobs, ray
from mlflow_e2eai.fleet.engine_jobs import by_gpu
from mlflow_e2eai.fleet.job import Job
from mlflow_e2eai.pipeline import build, jobs
from mlflow_e2eai.pipeline import jobs as pipeline_jobs
from mlflow_e2eai.pipeline.job_inputs import engines_in
from mlflow_e2eai.tracking import remote_jobs

pytest.importorskip("tensorrt_rtx")

pytestmark = pytest.mark.system

GRAPH, FILE, ENGINE = "onnxruntime-cpu/fp32", "onnxruntime-cpu/raw", "tensorrt_rtx-sm86/fp32"
ENGINES = {ENGINE, "tensorrt_rtx/fp32"}


@pytest.mark.parametrize(
    ("targets", "found"),
    [
        (["sm86", "sm86"], {"sm86": [0, 1]}),
        (["sm86", "trt11:sm90", "sm89"], {"sm86": [0], "sm90": [1], "sm89": [2]}),
        (["rtx", "rtx"], {"": [0, 1]}),
        (["rtx", "sm86", "trt11:sm90"], {"sm86": [1, 0], "sm90": [2, 0]}),
        (["rtx", "sm75"], {"sm75": [1], "": [0]}),
        (["rtx", "rtx:sm86+sm89"], {"sm86+sm89": [1, 0]}),
        (["rtx:sm86+sm89", "sm89"], {"sm89": [1, 0]}),
        (["trt11+compatible", "trt11:sm80+compatible"], {"sm80": [1, 0]}),
    ],
)
def test_engines_that_run_on_one_gpu_are_judged_there_together(targets, found):
    given = {str(at): parse(text) for at, text in enumerate(targets)}
    assert by_gpu(given) == {gpu: [str(at) for at in held] for gpu, held in found.items()}


T4 = {"CPU": 8.0, "GPU": 1.0, "accelerator_type:T4": 1.0}
L4 = {"CPU": 8.0, "GPU": 1.0, "accelerator_type:L4": 1.0}
BY_HAND = {"CPU": 4.0, "GPU": 1.0, "e2eai_sm86": 1.0}
NEITHER = {"CPU": 8.0, "GPU": 1.0}


@pytest.mark.parametrize(
    ("gpu", "nodes", "cpus", "gpus", "resources"),
    [
        ("sm89", [T4, L4], 8, 1, {"accelerator_type:L4": 0.001}),
        ("sm86+sm89", [T4, L4, BY_HAND], 4, 1, {"e2eai_sm86": 0.001}),
        ("", [T4, L4], 8, 1, {"accelerator_type:L4": 0.001}),
        ("", [NEITHER], 8, 1, {}),
        (None, [NEITHER], 8, 0, {}),
    ],
)
def test_an_evaluation_goes_where_its_gpu_is_and_takes_the_node_for_itself(
    gpu, nodes, cpus, gpus, resources
):
    options = ray._options(Job(stage="evaluate", model_uri="m-1", gpu=gpu), nodes)
    assert options == {"num_cpus": cpus, "num_gpus": gpus, "resources": resources}


def test_a_job_says_in_its_name_which_gpu_it_needs():
    names = [Job(stage="evaluate", model_uri="m-1", gpu=gpu).name for gpu in (None, "sm89", "")]
    assert names == ["evaluate", "evaluate sm89", "evaluate rtx"]


def outcomes(found):
    return {entry.variant: entry.passed for entry in found.evidence}


def test_a_worker_judges_what_it_can_and_says_why_not_the_rest(store, tmp_path, capsys):
    graph = log_graph(tmp_path)
    (engine,) = distributed.compile(graph, targets=["sm86"])
    words = ["evaluate", "--model-uri", engine, "--executor", "local", "--batch-sizes", "4"]
    with mlflow.start_run() as parent:
        assert main.main(words) == DONE
    (above,) = children(parent)
    (run,) = children(above)
    found = remote_jobs.fetch_evidence(run.info.run_id)
    assert outcomes(found) == {FILE: True, GRAPH: True, ENGINE: False}
    reasons = {entry.variant: entry.reason for entry in found.evidence if not entry.measured}
    assert list(reasons) == [ENGINE]
    assert "needs a GPU of sm86" in reasons[ENGINE]
    assert {one.items for one in found.latency.values()} == {1, 2, 4, 8}
    assert found.environment["python"]
    assert run.data.tags["e2eai.worker"]
    below = {each.info.run_name: each.data.tags for each in children(run)}
    measured = {f"evaluate {variant}" for variant in outcomes(found) if variant != ENGINE}
    assert set(below) == {*measured, "not measured here"}
    assert below["not measured here"]["e2eai.reason"] == reasons[ENGINE]
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition("; ")[0] for line in lines] == [
        f"{machine_name(found.environment)}:",
        f"{FILE}: passed",
        f"{GRAPH}: passed",
        f"{ENGINE}: not measured ({reasons[ENGINE]})".partition("; ")[0],
    ]


@pytest.mark.slow
def test_a_worker_that_is_killed_while_it_judges_leaves_the_job_to_another(store, tmp_path):
    job = Job(stage="evaluate", model_uri=log_graph(tmp_path))
    with mlflow.start_run() as parent:
        thread, killed = kill_when_building(evaluators)
        (outcome,) = fleet.run([job], workers=1)
        thread.join()
    assert len(killed) == 1
    assert outcome.error is None
    lost, done = children(parent)
    assert (lost.info.run_id, lost.info.status) == (outcome.failed_runs[0], "FAILED")
    assert (done.info.run_id, done.info.status) == (outcome.run_id, "FINISHED")
    assert {run.info.status for run in children(lost)} <= {"FINISHED", "FAILED"}
    names = [run.info.run_name for run in children(done)]
    assert sorted(names) == [f"evaluate {GRAPH}", f"evaluate {FILE}"]
    assert outcomes(remote_jobs.fetch_evidence(outcome.run_id)) == {FILE: True, GRAPH: True}


@pytest.fixture
def processes_elsewhere(monkeypatch):
    """Processes here stand for machines elsewhere."""
    for module in (fleet, engine_jobs):
        monkeypatch.setattr(module, "uses_other_machines", lambda executor: executor == "local")


def packaged(source):
    with mlflow.start_run() as parent:
        info = repackage.package(
            source,
            name="net",
            precisions=["fp32"],
            targets=["sm86", "rtx"],
            executor="local",
            workers=2,
        )
    with mlflow_e2eai.load_model(info.model_uri) as model:
        return model.manifest, children(parent)


@pytest.mark.usefixtures("store", "processes_elsewhere")
def test_a_pipeline_has_the_engines_judged_that_it_cannot_run_and_keeps_what_each_machine_found():
    manifest, runs = packaged(jobs.log("small_models:build", name="net"))
    assert [entry.variant for entry in manifest.evidence] == [
        "torch/fp32",
        FILE,
        GRAPH,
    ]
    (there,) = manifest.elsewhere
    assert outcomes(there) == {
        **{entry.variant: True for entry in manifest.evidence},
        **dict.fromkeys(ENGINES, False),
    }
    assert there.evidence[2].task["accuracy"] > 0.9
    assert "opt" in there.latency
    assert len(manifest.engines) == len(ENGINES)
    names = [run.info.run_name for run in runs]
    assert names.count("evaluate sm86") == 1
    above = runs[0].data.tags["mlflow.parentRunId"]
    kept = {file.path for file in mlflow.MlflowClient().list_artifacts(above)}
    assert {"report.html", "report-2.html", "latency.png", "latency-2.png"} <= kept
    digests = {str(engine.target): engine.sha256 for engine in manifest.engines}
    models = mlflow.search_logged_models(output_format="list")
    (model,) = [one for one in models if one.tags["e2eai.stage"] == "package"]
    (job,) = fleet.evaluations(model.model_id, engines_in(model), executor="local", batch_sizes=[])
    assert (job.gpu, set(job.arguments["engines"])) == ("sm86", set(digests.values()))
    again = pipeline_jobs.evaluate(model.model_id, engines=[digests["tensorrt_rtx-sm86"]])
    assert list(outcomes(again)) == ["torch/fp32", FILE, GRAPH, ENGINE]
    assert [name for name in names if name.startswith("evaluate ")][1:] == [
        f"evaluate {entry.variant}" for entry in manifest.evidence if entry.measured
    ]


@pytest.mark.slow
@pytest.mark.usefixtures("store", "processes_elsewhere")
def test_where_an_evaluation_fails_the_pipeline_goes_on_and_the_reason_is_the_evidence(
    monkeypatch, tmp_path
):
    unsupported_here = build.unsupported_here

    def spoiled(*given):
        for path in (tmp_path / "artifacts").rglob("*.engine"):
            path.write_bytes(b"something else")
        return unsupported_here(*given)

    monkeypatch.setattr(build, "unsupported_here", spoiled)
    manifest, runs = packaged(jobs.log("small_models:build", name="net"))
    assert manifest.elsewhere == ()
    assert len(manifest.engines) == len(ENGINES)
    said = {entry.variant: entry for entry in manifest.evidence if not entry.measured}
    assert set(said) == ENGINES
    (reason,) = {entry.reason for entry in said.values()}
    assert "sha256" in reason
    (failed,) = [run for run in runs if run.info.run_name == "evaluate sm86"]
    assert (failed.info.status, failed.data.tags["e2eai.error"]) == ("FAILED", reason)
    log = mlflow.artifacts.load_text(f"runs:/{failed.info.run_id}/job.log")
    assert "ArtifactError" in log
    tags = {run.info.run_name: run.data.tags for run in runs}
    assert tags["not measured here"]["e2eai.reason"] == reason
