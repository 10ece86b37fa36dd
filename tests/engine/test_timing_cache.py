"""Timings of kernels go from build to build, and none are lost on the way.

No TensorRT that keeps any runs here: its configuration and its cache are simulated, under names
that tests/engine/test_bindings.py holds against the real bindings.
"""

from __future__ import annotations

import dataclasses
import json

import mlflow
import pytest
from logged_graphs import log_graph

from mlflow_e2eai import BuildSettings, compile, tracking
from mlflow_e2eai.artifacts.values import Target
from mlflow_e2eai.engine import backends
from mlflow_e2eai.engine import stage as engine_stage
from mlflow_e2eai.engine import timing_cache as engine_timing_cache
from mlflow_e2eai.engine.timing_cache import load_timings, save_timings, timings_key
from mlflow_e2eai.fleet import distributed
from mlflow_e2eai.pipeline import stages as engines
from mlflow_e2eai.tracking.store.artifact_store import fetch_timings, log_timings

TRT = Target(backend="tensorrt", compute_capability="sm90", version=11)
H100 = "NVIDIA H100"


class Cache:
    """What each kernel took, and the GPU and version that it was measured on."""

    def __init__(self, header, kernels):
        self.header, self.kernels = header, dict(kernels)

    def serialize(self):
        return json.dumps([self.header, self.kernels], sort_keys=True).encode()

    def combine(self, input_cache, ignore_mismatch):
        assert not ignore_mismatch
        if input_cache.header != self.header:
            return False
        self.kernels = {**input_cache.kernels, **self.kernels}
        return True


class Config:
    """A builder's configuration on a machine with a GPU."""

    def __init__(self, header=H100):
        self.header, self.set = header, None

    def create_timing_cache(self, serialized_timing_cache):
        try:
            header, kernels = json.loads(serialized_timing_cache or json.dumps([self.header, {}]))
        except ValueError:
            return None
        return Cache(header, kernels)

    def set_timing_cache(self, cache, ignore_mismatch):
        assert not ignore_mismatch
        if cache.header != self.header:
            return False
        self.set = cache
        return True


def begun(folder, header=H100):
    """A build that was given a folder's timings."""
    config = Config(header)
    found = load_timings(config, folder)
    assert config.set is found.measured
    return found


def ended(found, folder, *kernels):
    """It has measured kernels that it did not know."""
    for name in kernels:
        found.measured.kernels.setdefault(name, 1.0)
    save_timings(found, folder)


def known(folder):
    return set(begun(folder).measured.kernels)


def test_a_build_knows_what_an_earlier_one_has_measured(tmp_path):
    ended(begun(tmp_path), tmp_path, "conv", "gemm")
    assert known(tmp_path) == {"conv", "gemm"}
    ended(begun(tmp_path), tmp_path, "softmax")
    assert known(tmp_path) == {"conv", "gemm", "softmax"}
    assert len(list(tmp_path.iterdir())) == 1


def test_two_builds_at_once_lose_nothing(tmp_path):
    ended(begun(tmp_path), tmp_path, "conv")
    first, second = begun(tmp_path), begun(tmp_path)
    ended(first, tmp_path, "gemm")
    ended(second, tmp_path, "softmax")
    assert len(list(tmp_path.iterdir())) == 2
    assert known(tmp_path) == {"conv", "gemm", "softmax"}
    ended(begun(tmp_path), tmp_path)
    assert len(list(tmp_path.iterdir())) == 1
    assert known(tmp_path) == {"conv", "gemm", "softmax"}


def test_a_build_that_measures_nothing_new_keeps_what_there_is(tmp_path):
    ended(begun(tmp_path), tmp_path, "conv")
    ended(begun(tmp_path), tmp_path)
    assert known(tmp_path) == {"conv"}


def test_timings_that_another_build_takes_away_meanwhile_are_passed_over(tmp_path):
    first, second = begun(tmp_path), begun(tmp_path)
    ended(first, tmp_path, "conv")
    ended(second, tmp_path, "gemm")
    one, other = sorted(tmp_path.iterdir())

    class Meanwhile(Config):
        def create_timing_cache(self, serialized_timing_cache):
            other.unlink(missing_ok=True)
            return super().create_timing_cache(serialized_timing_cache)

    found = load_timings(Meanwhile(), tmp_path)
    assert found.used == (one,)
    assert found.refused == ()


@pytest.mark.parametrize("first", ["0", "z"])
def test_what_does_not_fit_is_refused_and_stays_for_others(first, tmp_path):
    ended(begun(tmp_path, "NVIDIA A10"), tmp_path, "theirs")
    (theirs,) = tmp_path.iterdir()
    theirs = theirs.rename(tmp_path / f"{first}.timings")
    broken = tmp_path / "broken.timings"
    broken.write_bytes(b"\0")
    ended(begun(tmp_path), tmp_path, "conv")
    found = begun(tmp_path)
    assert set(found.refused) == {theirs, broken}
    assert set(found.measured.kernels) == {"conv"}
    assert theirs.exists()


# what they are for


@pytest.fixture
def an_h100(monkeypatch):
    from types import SimpleNamespace

    monkeypatch.setattr(engine_timing_cache, "gpu_name", lambda: H100)
    monkeypatch.setattr(backends, "load", lambda _: SimpleNamespace(__version__="11.4.0.106"))


@pytest.mark.usefixtures("an_h100")
def test_timings_are_for_a_gpu_and_a_version_of_tensorrt():
    assert timings_key(TRT, BuildSettings()) == "NVIDIA H100, TensorRT 11.4.0.106"
    assert timings_key(TRT, BuildSettings(timing_cache=False)) is None
    rtx = Target(backend="tensorrt_rtx", compute_capability="sm90")
    assert timings_key(rtx, BuildSettings()) is None


def test_without_a_gpu_nothing_is_timed():
    if backends.local_compute_capability() is None:
        assert timings_key(TRT, BuildSettings()) is None


def test_a_real_builder_takes_the_calls_and_what_was_refused_is_a_warning(
    monkeypatch, tmp_path, store
):
    """TensorRT-RTX has the calls, and takes anything: it does nothing with it."""
    trt = pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed")
    monkeypatch.setattr(engine_stage, "timings_key", lambda *_: "made up")
    graph = tracking.fetch_graph(tracking.resolve(log_graph(tmp_path)), tmp_path / "graph")
    folder = tmp_path / "timings"
    for _ in range(2):
        compile(graph, "sm86", out=tmp_path / "one.engine", timing_cache=folder)
        assert len(list(folder.iterdir())) == 1
    real = engine_stage._build

    def refusing(*given, **named):
        return dataclasses.replace(real(*given, **named), refused=("old.timings",))

    monkeypatch.setattr(engine_stage, "_build", refusing)
    with pytest.warns(UserWarning, match=rf"ignored, .* {trt.__version__} here: old\.timings"):
        compile(graph, "sm86", out=tmp_path / "two.engine", timing_cache=folder)


# kept in the tracking store


@pytest.fixture
def kernels(monkeypatch):
    """Builds that measure one kernel each, beside what TensorRT-RTX does; what each was given."""
    pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed")
    seen = []
    real = engines.compile

    def timed(graph, target, *, timing_cache, **options):
        found = begun(timing_cache)
        seen.append(set(found.measured.kernels))
        ended(found, timing_cache, str(target))
        return real(graph, target, **options)

    monkeypatch.setattr(engines, "compile", timed)
    monkeypatch.setattr(engines, "timings_key", lambda *_: f"{H100}, TensorRT 11")
    return seen


def runs_with_timings():
    return mlflow.search_runs(
        filter_string=f"tags.`e2eai.timings` = '{H100}, TensorRT 11'",
        order_by=["attributes.start_time ASC"],
        output_format="list",
        search_all_experiments=True,
    )


def test_timings_go_from_run_to_run_through_the_tracking_store(store, tmp_path, kernels):
    graph = log_graph(tmp_path)
    distributed.compile(graph, targets=["sm86", "sm89"])
    mlflow.create_experiment("theirs", artifact_location=(tmp_path / "theirs").as_uri())
    mlflow.set_experiment("theirs")
    distributed.compile(log_graph(tmp_path, scale=2), targets=["sm120"])
    rtx = "tensorrt_rtx-"
    assert kernels == [set(), {f"{rtx}sm86"}, {f"{rtx}sm86", f"{rtx}sm89"}]
    first, second, third = runs_with_timings()
    held = [run.data.tags["e2eai.timings_held"] for run in (first, second, third)]
    assert held == ["", first.info.run_id, second.info.run_id]


class Run:
    """A run of a build: it is given all timings there are, and leaves its own."""

    def __init__(self, client, folder):
        self._folder = folder
        folder.mkdir()
        experiment = mlflow.get_experiment_by_name("tests").experiment_id
        self.run_id = client.create_run(experiment).info.run_id
        self._fetched = fetch_timings("key", folder)
        self._timings = begun(folder)
        self.known = set(self._timings.measured.kernels)

    def end(self, *kernels):
        ended(self._timings, self._folder, *kernels)
        log_timings("key", self._folder, run_id=self.run_id, fetched=self._fetched)


def test_runs_at_once_and_runs_that_are_deleted_lose_no_timings(store, tmp_path):
    first, second = Run(store, tmp_path / "1"), Run(store, tmp_path / "2")
    first.end("conv")
    third = Run(store, tmp_path / "3")
    assert (first.known, second.known, third.known) == (set(), set(), {"conv"})
    second.end("gemm")
    third.end("softmax")
    fourth = Run(store, tmp_path / "4")
    assert fourth.known == {"conv", "gemm", "softmax"}
    fourth.end("pool")
    assert len(fetch_timings("key", tmp_path / "only the fourth's")) == 1
    store.delete_run(fourth.run_id)
    assert Run(store, tmp_path / "5").known == {"conv", "gemm", "softmax"}


def test_timings_that_cannot_be_had_are_announced_and_left_out(store, tmp_path, kernels):
    graph = log_graph(tmp_path)
    distributed.compile(graph, targets=["sm86"])
    (run,) = runs_with_timings()
    store.set_tag(run.info.run_id, "e2eai.timings_held", "")
    mlflow.artifacts.download_artifacts(run_id=run.info.run_id, artifact_path="kernels.timings")
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    get_artifact_repository(run.info.artifact_uri).delete_artifacts("kernels.timings")
    with pytest.warns(UserWarning, match=f"timing cache of run {run.info.run_id} cannot be read"):
        distributed.compile(graph, targets=["sm89"])
    assert kernels == [set(), set()]
