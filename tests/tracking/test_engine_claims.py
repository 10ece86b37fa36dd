"""An engine that several want at the same moment is built by one of them."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import mlflow
import pytest
from conformance.helpers import tracking_server
from logged_graphs import log_graph, slow_to_build

from mlflow_e2eai import tracking
from mlflow_e2eai.errors import EngineBuildError
from mlflow_e2eai.fleet import distributed
from mlflow_e2eai.pipeline import engines as pipeline_engines
from mlflow_e2eai.tracking import engine_store

pytest.importorskip("tensorrt_rtx")

PIPELINE = """
import sys, time
from pathlib import Path
from mlflow_e2eai import jobs
from mlflow_e2eai.tracking import engines
engines.BEAT_S, engines.DEAD_S = 0.5, 5.0
Path(sys.argv[2]).touch()
while not Path(sys.argv[3]).exists():
    time.sleep(0.01)
print("engine", *jobs.compile(sys.argv[1], targets=["sm86"]))
"""


@pytest.fixture(scope="module")
def server(empty_store, tmp_path_factory):
    folder = tmp_path_factory.mktemp("server")
    shutil.copyfile(empty_store, folder / "mlflow.db")
    with tracking_server(folder) as address:
        yield address


@pytest.fixture
def shared(server, isolated, request):
    """A tracking server that other processes reach, and an experiment of the test's own."""
    mlflow.set_tracking_uri(server)
    mlflow.set_experiment(request.node.name)
    return server


class Pipeline:
    """Another process that wants an engine."""

    def __init__(self, graph, server, folder, name):
        self._ready, self._go = folder / f"{name}.ready", folder / f"{name}.go"
        self._process = subprocess.Popen(
            [sys.executable, "-c", PIPELINE, graph, str(self._ready), str(self._go)],
            env={
                **os.environ,
                "MLFLOW_TRACKING_URI": server,
                "MLFLOW_EXPERIMENT_NAME": mlflow.get_experiment(experiment()).name,
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        wait_until(self._ready.exists)

    def begin(self):
        self._go.touch()

    def kill(self):
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.communicate()

    def engine(self):
        said, _ = self._process.communicate(timeout=120)
        assert self._process.returncode == 0, said
        return said.split("engine ")[1].split()[0]


def experiment():
    return mlflow.tracking.fluent._get_experiment_id()


def wait_until(condition):
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def made(status=None):
    """The models of engines, by status; those that were withdrawn are not there."""
    found = mlflow.search_logged_models(experiment_ids=[experiment()], output_format="list")
    compiled = [model for model in found if model.tags["e2eai.stage"] == "compile"]
    return [model for model in compiled if status in (None, str(model.status))]


def compile_runs():
    runs = mlflow.search_runs(
        [experiment()], "tags.`e2eai.stage` = 'compile fp32 sm86'", output_format="list"
    )
    return sorted(runs, key=lambda run: "e2eai.engine_found" in run.data.tags)


def a_claim(graph):
    """The claim of somebody else on the engine that the jobs here are after."""
    with tracking.run("theirs", nested=True) as run_id:
        return engine_store.Claim(
            key_of(graph), name="theirs", run_id=run_id, params={}, tags=tags_of(graph)
        )


def tags_of(graph):
    return {"e2eai.engine_key": key_of(graph), "e2eai.stage": "compile"}


def key_of(graph):
    model = tracking.resolve(graph)
    target = pipeline_engines.resolve("sm86")
    folder = Path(f"graph-{time.monotonic_ns()}")
    folder.mkdir()
    return pipeline_engines.key_for(tracking.fetch_graph(model, folder), target)


def test_two_pipelines_that_want_an_engine_at_once_share_one(shared, tmp_path):
    graph = log_graph(tmp_path, model=slow_to_build())
    both = [Pipeline(graph, shared, tmp_path, name) for name in ("one", "other")]
    for pipeline in both:
        pipeline.begin()
    first, second = (pipeline.engine() for pipeline in both)
    assert first == second
    assert [model.model_id for model in made()] == [first]
    built, linked = compile_runs()
    assert "e2eai.engine_found" not in built.data.tags
    assert linked.data.tags["e2eai.engine_found"] == first
    for run in (built, linked):
        outputs = mlflow.get_run(run.info.run_id).outputs.model_outputs
        assert [output.model_id for output in outputs] == [first]


def test_the_claim_of_a_pipeline_that_is_killed_is_passed_over(shared, tmp_path):
    model = slow_to_build()
    model.producer_name = "another graph"
    graph = log_graph(tmp_path, model=model)
    lost, heir = (Pipeline(graph, shared, tmp_path, name) for name in ("lost", "heir"))
    lost.begin()
    wait_until(made)
    (claimed,) = made()
    lost.kill()
    heir.begin()
    built = heir.engine()
    (ready,) = made("READY")
    (failed,) = made("FAILED")
    assert (ready.model_id, failed.model_id) == (built, claimed.model_id)
    assert failed.tags["e2eai.error"] == "Its builder gave no sign of life for 5 s."
    assert made("PENDING") == []


def test_a_build_that_fails_gives_its_claim_up_with_the_reason(store, tmp_path, monkeypatch):
    graph = log_graph(tmp_path)

    def refused(*_, **__):
        msg = "TensorRT refuses the graph."
        raise EngineBuildError(msg, reason="refused")

    with monkeypatch.context() as patch:
        patch.setattr(pipeline_engines, "compile", refused)
        with pytest.raises(EngineBuildError):
            distributed.compile(graph, targets=["sm86"])
    (failed,) = made()
    assert (str(failed.status), failed.tags["e2eai.error"]) == (
        "FAILED",
        "TensorRT refuses the graph.",
    )
    (built,) = distributed.compile(graph, targets=["sm86"])
    assert [model.model_id for model in made("READY")] == [built]


def test_who_comes_later_waits_until_the_earlier_gives_up(store, tmp_path, monkeypatch):
    monkeypatch.setattr(engine_store, "LOOK_S", 0.05)
    graph = log_graph(tmp_path)
    claim = a_claim(graph)
    threading.Timer(1.0, claim.failed, [RuntimeError("No.")]).start()
    started = time.monotonic()
    (built,) = distributed.compile(graph, targets=["sm86"])
    assert time.monotonic() - started > 1
    assert [model.model_id for model in made("READY")] == [built]


def test_a_rebuild_waits_for_nobody(store, tmp_path, monkeypatch):
    monkeypatch.setattr(engine_store.Claim, "settled", lambda *_: pytest.fail("It waits."))
    graph = log_graph(tmp_path)
    claim = a_claim(graph)
    (built,) = distributed.compile(graph, targets=["sm86"], rebuild=True)
    claim.close()
    assert [model.model_id for model in made("READY")] == [built]


def waits(claim):
    return tracking.resolve(claim.model.model_id).tags.get("e2eai.waits")


def test_of_two_who_see_each_other_the_later_says_that_it_waits_and_is_the_heir(
    store, tmp_path, monkeypatch
):
    monkeypatch.setattr(engine_store, "LOOK_S", 0.05)
    graph = log_graph(tmp_path)
    first, second = sorted(
        (a_claim(graph), a_claim(graph)), key=lambda c: engine_store._order(c.model)
    )
    with ThreadPoolExecutor() as pool:
        building = pool.submit(first.settled, tmp_path / "first")
        wait_until(lambda: first._heard)  # it has seen the other, which has said nothing yet
        assert not building.done()
        waiting = pool.submit(second.settled, tmp_path / "second")
        assert building.result(timeout=60) is None
        assert waits(second) == "yes"
        assert not waiting.done()
        first.failed(RuntimeError("No."))
        assert waiting.result(timeout=60) is None
    assert waits(second) == "no"
    second.close()


def test_an_earlier_claim_that_was_stored_late_waits_for_the_later_one_that_builds(
    store, tmp_path, monkeypatch
):
    monkeypatch.setattr(engine_store, "LOOK_S", 0.05)
    graph = log_graph(tmp_path)
    early, looks = a_claim(graph), []
    compiled, with_key = pipeline_engines.compile, engine_store._with_key

    def sees(key):
        looks.append(key)
        hidden = early.model.model_id if len(looks) == 1 else None
        return [model for model in with_key(key) if model.model_id != hidden]

    with ThreadPoolExecutor() as pool:
        settled = []

        def slow(*arguments, **options):
            settled.append(pool.submit(early.settled, tmp_path / "early"))
            wait_until(lambda: len(looks) > 3)
            assert not settled[0].done()
            return compiled(*arguments, **options)

        monkeypatch.setattr(engine_store, "_with_key", sees)
        monkeypatch.setattr(pipeline_engines, "compile", slow)
        (built,) = distributed.compile(graph, targets=["sm86"])
        engine, taken = settled[0].result(timeout=60)
    assert taken == built
    assert engine.sha256 == tracking.resolve(built).tags["e2eai.sha256"]
    assert [model.model_id for model in made()] == [built]
