"""Jobs on a real Ray cluster of this machine, whose nodes say that they have GPUs."""

from __future__ import annotations

import sys

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
    owner_of,
    parent_of,
    workers,
)
from logged_graphs import log_graph, slow_to_build

import mlflow_e2eai
from mlflow_e2eai import fleet, tracking
from mlflow_e2eai.errors import InvalidInputError, MissingDependencyError
from mlflow_e2eai.flavor import repackage
from mlflow_e2eai.fleet import distributed
from mlflow_e2eai.fleet import ray as cluster_of
from mlflow_e2eai.fleet.job import Job
from mlflow_e2eai.tracking import remote_jobs

pytest.importorskip("tensorrt_rtx")


def test_without_ray_the_extra_that_brings_it_is_named(store, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingDependencyError, match=r"needs ray.*'mlflow_e2eai\[ray\]'"):
        fleet.run([compiling("m-1")], executor="ray")


H100 = {"CPU": 8.0, "GPU": 1.0, "accelerator_type:H100": 1.0}
BY_HAND = {"CPU": 8.0, "GPU": 1.0, "e2eai_sm90": 1.0}
PLAIN = {"CPU": 8.0}


@pytest.mark.parametrize(
    ("target", "nodes", "gpus", "resources"),
    [
        ("trt11:sm90", [PLAIN, H100], 1, {"accelerator_type:H100": 0.001}),
        ("trt11:sm90+compatible", [PLAIN, H100], 1, {"accelerator_type:H100": 0.001}),
        ("trt11:sm90", [PLAIN, H100, BY_HAND], 1, {"e2eai_sm90": 0.001}),
        ("local", [PLAIN, H100], 1, {}),
        ("sm89", [PLAIN], 0, {}),
    ],
)
def test_a_target_says_on_which_gpu_it_is_built(target, nodes, gpus, resources):
    options = cluster_of._options(compiling("m-1", target), nodes)
    assert (options["num_gpus"], options["resources"]) == (gpus, resources)


def test_a_gpu_that_no_node_has_is_named_with_all_that_would_do():
    said = r"compile trt11:sm90 needs \(CPU 1, e2eai_sm90 0.001, GPU 1 or CPU 1, accelerator_type"
    with pytest.raises(InvalidInputError, match=said):
        cluster_of._options(compiling("m-1", "trt11:sm90"), [PLAIN])


def test_the_accelerator_types_are_rays():
    known = pytest.importorskip("ray.util.accelerators.accelerators")
    names = {name for kinds in cluster_of.ACCELERATORS.values() for name in kinds}
    assert names <= {value for value in vars(known).values() if isinstance(value, str)}


def add_node(cluster, kind):
    known = {f"accelerator_type:{kind}": 1, "rack": 1}
    if kind == "A10":  # which Ray has no name for
        known["e2eai_sm86"] = 1
    cluster.add_node(num_cpus=1, num_gpus=1, resources=known)


@pytest.fixture(scope="module")
def cluster():
    """A head without work, two nodes with an A10 and one with an H100, by their word.

    They have no GPU: engines that they are to judge come back with that as the reason.
    """
    pytest.importorskip("ray", reason="install the extra ray: `make test-ray` does")
    import ray
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    for kind in ("A10", "A10", "H100"):
        add_node(cluster, kind)
    ray.init(address=cluster.address, log_to_driver=False)
    yield cluster
    ray.shutdown()
    cluster.shutdown()


def kind_of(run):
    """The accelerator of the node that did a job."""
    import ray

    (found,) = [node for node in ray.nodes() if node["NodeID"] in run.data.tags["e2eai.worker"]]
    (kind,) = [key for key in found["Resources"] if key.startswith("accelerator_type:")]
    return kind.partition(":")[2]


@pytest.mark.slow
def test_each_job_goes_where_its_gpu_type_is_and_its_run_under_the_one_parent(
    store, tmp_path, cluster
):
    graph = log_graph(tmp_path)
    given = [
        compiling(graph, "sm86", accelerator="A10"),
        compiling(graph, "sm120", accelerator="H100", resources={"rack": 1}),
        compiling(graph, precision="fp16", accelerator="A10"),
        Job(stage="evaluate", model_uri=graph, accelerator="H100"),
    ]
    with mlflow.start_run() as parent:
        small, large, failed, judged = fleet.run(given, executor="ray")
    assert [small.error, large.error, judged.error] == [None] * 3
    targets = [tracking.resolve(one.models[0]).params["target"] for one in (small, large)]
    assert targets == ["tensorrt_rtx-sm86", "tensorrt_rtx-sm120"]
    kinds = {
        run.info.run_name: kind_of(run) for run in children(parent) if run.info.status == "FINISHED"
    }
    assert kinds == {
        "compile fp32 sm86": "A10",
        "compile fp32 sm120": "H100",
        "evaluate": "H100",
    }
    assert "The graph is in fp32" in failed.error
    log = mlflow.artifacts.load_text(f"runs:/{failed.failed_runs[0]}/job.log")
    assert "InvalidInputError: The graph is in fp32" in log
    assert sorted((run.info.run_name, run.info.status) for run in children(parent)) == [
        ("compile fp32 sm120", "FINISHED"),
        ("compile fp32 sm86", "FINISHED"),
        ("compile sm86", "FAILED"),
        ("evaluate", "FINISHED"),
    ]


@pytest.mark.slow
def test_what_no_node_has_is_said_before_anything_begins(store, tmp_path, cluster):
    graph = log_graph(tmp_path)
    given = [compiling(graph), compiling(graph, accelerator="B200")]
    with mlflow.start_run() as parent, pytest.raises(InvalidInputError) as caught:
        fleet.run(given, executor="ray")
    assert "has what compile sm86 needs (CPU 1, accelerator_type:B200" in str(caught.value)
    assert "there are CPU, GPU, accelerator_type:A10, accelerator_type:H100, " in str(caught.value)
    assert children(parent) == []


def above(worker, whose):
    """A worker of the fleet alone, Ray's worker that it works for, or its node with both."""
    task = owner_of(worker)
    return {"worker": [worker], "Ray worker": [task], "node": [parent_of(task), task]}[whose]


@pytest.mark.slow
@pytest.mark.parametrize("whose", ["worker", "Ray worker", "node"])
def test_what_is_killed_while_it_builds_is_built_elsewhere_and_nothing_twice(
    store, tmp_path, cluster, whose
):
    if whose == "node":  # in place of the one that dies
        add_node(cluster, "A10")

    def victims():
        return [pid for worker in busy_workers()[:1] for pid in above(worker, whose)]

    graph = log_graph(tmp_path, model=slow_to_build())
    wanted = ["sm75", "sm80", "sm86", "sm89", "sm120", "sm121"]
    given = [compiling(graph, target, accelerator="A10") for target in wanted]
    with mlflow.start_run():
        thread, killed = kill_when_building(victims)
        outcomes = fleet.run(given, executor="ray")
        thread.join()
    fleet.require_success(outcomes)
    assert len(killed) == 1
    assert len([run for one in outcomes for run in one.failed_runs]) == 1
    made = [model for one in outcomes for model in one.models]
    assert sorted(made) == sorted(engines())
    assert len(set(made)) == len(wanted)


@pytest.mark.slow
def test_engines_are_judged_where_their_gpu_is_and_one_that_no_node_has_says_so(
    store, tmp_path, cluster
):
    graph = log_graph(tmp_path)
    targets = ["sm86", "rtx", "sm120"]
    with mlflow.start_run() as parent:
        info = repackage.package(
            graph, name="net", precisions=["fp32"], targets=targets, executor="ray"
        )
    with mlflow_e2eai.load_model(info.model_uri) as model:
        manifest = model.manifest
    assert len(manifest.engines) == len(targets)
    here = {entry.variant: entry for entry in manifest.evidence}
    (there,) = manifest.elsewhere
    ran = [f"onnxruntime-cpu/{precision}" for precision in ("raw", "fp32")]
    engines = [f"tensorrt_rtx{capability}/fp32" for capability in ("-sm86", "")]
    assert {entry.variant: entry.passed for entry in there.evidence} == {
        **dict.fromkeys(ran, True),
        **dict.fromkeys(engines, False),
    }
    reasons = {entry.variant: entry.reason for entry in there.evidence}
    assert "needs a GPU of sm86" in reasons[engines[0]]
    assert set(here) == {*ran, "tensorrt_rtx-sm120/fp32"}
    assert "has what evaluate sm120 needs" in here["tensorrt_rtx-sm120/fp32"].reason
    runs = {run.info.run_name: run for run in children(parent)}
    assert runs["evaluate sm120"].info.status == "FAILED"
    assert kind_of(runs["evaluate sm86"]) == "A10"
    names = [run.info.run_name for run in children(runs["evaluate sm86"])]
    assert names == [*(f"evaluate {variant}" for variant in ran), "not measured here"]


@pytest.mark.slow
def test_promote_measures_both_versions_on_a_node_of_each_target(store, tmp_path, cluster):
    for scale, targets in ((1, ["sm86"]), (2, ["sm86", "sm120"])):
        graph = log_graph(tmp_path, scale=scale)
        repackage.package(
            graph, name="net", registered_model_name="net", precisions=["fp32"], targets=targets
        )
    gates = {
        "unmeasured": "warn",
        "gates": [
            {"metric": "parity/failed", "at_most": 0},
            {"metric": "champion/latency_ratio", "at_most": 1e9},
        ],
    }
    assert mlflow_e2eai.promote("net", 1, gates=gates).promoted
    decision = mlflow_e2eai.promote("net", 2, gates=gates, executor="ray")

    runs = {run.info.run_name: run for run in mlflow.search_runs(output_format="list")}
    assert kind_of(runs["remeasure sm86"]) == "A10"
    assert runs["remeasure sm120"].info.status == "FAILED"
    there, nowhere = mlflow_e2eai.explain("net", 2).measured
    assert there.environment["host"]
    assert [entry.items for entry in there.overall.sizes] == [1, 2, 8]
    assert nowhere.machine == "a machine of sm120"
    assert not decision.promoted
    (reason,) = decision.reasons
    assert reason.startswith("champion/latency_ratio, on a machine of sm120: the two were not")
    assert "has what remeasure sm120 needs" in reason


@pytest.mark.slow
def test_the_job_evaluate_goes_where_the_gpu_of_its_engine_is(store, tmp_path, cluster):
    (engine,) = distributed.compile(log_graph(tmp_path), targets=["sm86"])
    with mlflow.start_run() as parent:
        (found,) = distributed.evaluate(engine, executor="ray")
    assert sum(entry.passed for entry in found.evidence) == 2
    (above,) = children(parent)
    (run,) = children(above)
    assert (run.info.run_name, kind_of(run)) == ("evaluate sm86", "A10")


@pytest.mark.slow
@pytest.mark.parametrize("whose", ["worker", "Ray worker", "node"])
def test_what_is_killed_while_it_judges_is_judged_elsewhere_and_nothing_twice(
    store, tmp_path, cluster, whose
):
    if whose == "node":  # in place of the one that dies
        add_node(cluster, "A10")
    before = set(workers())

    def victims():
        found = workers()
        # The process that runs a variant is new; a builder that is kept is not.
        new = [owner_of(pid) for pid in found if pid not in before]
        evaluators = [pid for pid in new if pid in found]
        return [pid for worker in evaluators[:1] for pid in above(worker, whose)]

    graphs = [log_graph(tmp_path, scale=scale) for scale in (1, 2)]
    given = [Job(stage="evaluate", model_uri=graph) for graph in graphs]
    with mlflow.start_run() as parent:
        thread, killed = kill_when_building(victims)
        outcomes = fleet.run(given, executor="ray")
        thread.join()
    fleet.require_success(outcomes)
    assert len(killed) == 1
    lost = [run for one in outcomes for run in one.failed_runs]
    assert len(lost) == 1
    states = sorted((run.info.run_id, run.info.status) for run in children(parent))
    done = [(one.run_id, "FINISHED") for one in outcomes]
    assert states == sorted([*done, (lost[0], "FAILED")])
    for one in outcomes:
        names = [entry.variant for entry in remote_jobs.fetch_evidence(one.run_id).evidence]
        assert names == ["onnxruntime-cpu/raw", "onnxruntime-cpu/fp32"]


@pytest.mark.slow
@pytest.mark.parametrize("how", ["crashed", "hanging"])
def test_a_builder_that_dies_fails_its_job_alone(store, tmp_path, cluster, how):
    _, said = DEATHS[how]
    graph = log_graph(tmp_path, model=slow_to_build())
    with mlflow.start_run() as parent, dying(how) as settings:
        given = [
            compiling(graph, "sm86", accelerator="A10", build_settings=settings),
            compiling(graph, "sm89", accelerator="A10"),
        ]
        outcomes = fleet.run(given, executor="ray")
    (failed,) = [outcome for outcome in outcomes if outcome.error is not None]
    assert said in failed.error
    (failed_run,) = failed.failed_runs
    runs = {run.info.run_id: run for run in children(parent)}
    assert sorted(run.info.status for run in runs.values()) == ["FAILED", "FINISHED"]
    assert runs[failed_run].data.tags["e2eai.error"] == failed.error
    assert said in mlflow.artifacts.load_text(f"runs:/{failed_run}/job.log")
    (made,) = engines()
    assert made in [model for outcome in outcomes for model in outcome.models]
