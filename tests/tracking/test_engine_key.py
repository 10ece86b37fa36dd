"""An engine has a key before it is built, by which a finished one is found and linked."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import mlflow
import pytest
from logged_graphs import log_graph

from mlflow_e2eai import tracking
from mlflow_e2eai.artifacts.build_settings import BuildSettings
from mlflow_e2eai.artifacts.values import Axis, EngineArtifact, Library, OnnxArtifact, Target
from mlflow_e2eai.engine.request import key_for, key_of
from mlflow_e2eai.errors import EngineBuildError
from mlflow_e2eai.fleet import distributed
from mlflow_e2eai.pipeline import stages

pytestmark = pytest.mark.usefixtures("on_threads")

pytest.importorskip("tensorrt_rtx")

SM86 = Target(backend="tensorrt_rtx", compute_capability="sm86")
N = Axis("N", min=1, opt=2, max=8)
GRAPH = OnnxArtifact(
    path=Path("model.onnx"),
    sha256="a" * 64,
    parent_sha256=None,
    stage="clean",
    precision="fp32",
    opset=18,
    inputs=(),
    outputs=(),
    axes=(N,),
)
PLUGINS = Library(path=Path("plugins.so"), sha256="b" * 64, allowed=True)


@pytest.fixture
def builds(monkeypatch):
    """The graphs and targets that were really built."""
    seen = []
    real = stages.compile

    def counted(graph, target, **options):
        seen.append((graph.sha256, str(target)))
        return real(graph, target, **options)

    monkeypatch.setattr(stages, "compile", counted)
    return seen


def run_of(stage):
    (found,) = mlflow.search_runs(
        filter_string=f"tags.`e2eai.stage` = '{stage}'",
        order_by=["attributes.start_time DESC"],
        output_format="list",
        max_results=1,
        search_all_experiments=True,
    )
    return mlflow.MlflowClient().get_run(found.info.run_id)


def outputs(run):
    return [output.model_id for output in run.outputs.model_outputs]


def engine_file(model_id):
    folder = mlflow.artifacts.download_artifacts(f"models:/{model_id}")
    return Path(folder, "model.engine")


# the key


def test_the_key_of_a_built_engine_is_the_one_it_was_known_by_before(store, tmp_path):
    (made,) = distributed.compile(log_graph(tmp_path), targets=["sm86"])
    model = tracking.resolve(made)
    graph = tracking.fetch_graph(tracking.ancestor(model, ["clean"]), tmp_path / "graph")
    engine = tracking.fetch_engine(model, tmp_path / "engine")
    assert model.tags["e2eai.engine_key"] == key_of(engine) == key_for(graph, SM86)


@pytest.mark.parametrize(
    "change",
    [
        {"source": dataclasses.replace(GRAPH, sha256="c" * 64)},
        {"source": dataclasses.replace(GRAPH, axes=(dataclasses.replace(N, max=9),))},
        {"source": dataclasses.replace(GRAPH, axes=(dataclasses.replace(N, opt=3),))},
        {"target": dataclasses.replace(SM86, compute_capability="sm89")},
        {"target": dataclasses.replace(SM86, gpu_name="NVIDIA A10")},
        {"tf32": True},
        {"libraries": (PLUGINS,)},
        {"settings": BuildSettings(optimization_level=5)},
        {"settings": BuildSettings(refit=True)},
    ],
    ids=lambda change: next(iter(change)),
)
def test_whatever_is_asked_otherwise_is_another_engine(change):
    asked = {"source": GRAPH, "target": SM86, "tf32": False, "libraries": ()}
    assert key_for(**{**asked, **change}) != key_for(**asked)


def test_another_version_of_the_backend_is_another_engine(monkeypatch):
    import tensorrt_rtx

    before = key_for(GRAPH, SM86)
    monkeypatch.setattr(tensorrt_rtx, "__version__", "1.6.2.1")
    assert key_for(GRAPH, SM86) != before


def test_where_files_lie_is_no_part_of_the_key():
    elsewhere = dataclasses.replace(GRAPH, path=Path("/elsewhere/other.onnx"))
    library = dataclasses.replace(PLUGINS, path=Path("/elsewhere/plugins.so"), allowed=False)
    there = key_for(elsewhere, SM86, libraries=(library,))
    assert there == key_for(GRAPH, SM86, libraries=(PLUGINS,))


ASKED = {"parent_sha256", "target", "backend_version", "tf32", "axes", "libraries", "settings"}
CAME_OUT = {"path", "sha256", "build_s", "size_bytes", "checked"}
OF_THE_GRAPH = {"precision", "inputs", "outputs"}


def test_every_field_of_an_engine_was_asked_for_or_came_out_or_is_its_graphs():
    fields = {field.name for field in dataclasses.fields(EngineArtifact)}
    assert fields == ASKED | CAME_OUT | OF_THE_GRAPH


# found


def test_an_engine_that_another_experiment_holds_is_linked_and_not_built(store, tmp_path, builds):
    (first,) = distributed.compile(log_graph(tmp_path, name="mine"), targets=["sm86"])
    mlflow.create_experiment("theirs", artifact_location=(tmp_path / "theirs").as_uri())
    mlflow.set_experiment("theirs")
    again = log_graph(tmp_path, name="mine")
    assert distributed.compile(again, targets=["sm86"]) == [first]
    assert len(builds) == 1
    run = run_of("compile fp32 sm86")
    assert run.info.experiment_id == mlflow.get_experiment_by_name("theirs").experiment_id
    assert outputs(run) == [first]
    assert [given.model_id for given in run.inputs.model_inputs] == [again]
    assert run.data.tags["e2eai.existing_model"] == first


def test_a_rebuild_is_a_new_engine_which_is_found_from_then_on(store, tmp_path, builds):
    graph = log_graph(tmp_path)
    (first,) = distributed.compile(graph, targets=["sm86"])
    (second,) = distributed.compile(graph, targets=["sm86"], rebuild=True)
    assert first != second
    assert len(builds) == 2
    assert distributed.compile(graph, targets=["sm86"]) == [second]
    assert len(builds) == 2


def test_an_engine_with_a_flipped_byte_is_announced_and_built_again(store, tmp_path, builds):
    graph = log_graph(tmp_path)
    (first,) = distributed.compile(graph, targets=["sm86"])
    stored = engine_file(first)
    data = bytearray(stored.read_bytes())
    data[len(data) // 2] ^= 1
    stored.write_bytes(data)
    with pytest.warns(UserWarning, match=f"{first}.* cannot be reused: model.engine has sha256"):
        (second,) = distributed.compile(graph, targets=["sm86"])
    assert second != first
    assert len(builds) == 2


def test_an_engine_whose_file_is_gone_is_announced_and_built_again(store, tmp_path, builds):
    graph = log_graph(tmp_path)
    (first,) = distributed.compile(graph, targets=["sm86"])
    engine_file(first).unlink()
    with pytest.warns(UserWarning, match=f"{first}.* cannot be reused: .*model.engine.* not exist"):
        (second,) = distributed.compile(graph, targets=["sm86"])
    assert len(builds) == 2
    assert distributed.compile(graph, targets=["sm86"]) == [second]


def test_a_model_that_bears_the_key_of_another_engine_is_not_taken(store, tmp_path, builds):
    (wrong,) = distributed.compile(log_graph(tmp_path, scale=5), targets=["sm86"])
    graph = log_graph(tmp_path)
    (right,) = distributed.compile(graph, targets=["sm86"])
    key = tracking.resolve(right).tags["e2eai.engine_key"]
    mlflow.MlflowClient().delete_logged_model(right)
    tracking.tag_model(wrong, {"e2eai.engine_key": key})
    with pytest.warns(
        UserWarning, match=re.escape(f"({wrong}) cannot be reused: it is the engine")
    ):
        (made,) = distributed.compile(graph, targets=["sm86"])
    assert made not in (wrong, right)
    assert len(builds) == 3


def test_what_failed_or_was_never_finished_is_not_found(store, tmp_path, builds):
    graph = log_graph(tmp_path)
    (first,) = distributed.compile(graph, targets=["sm86"])
    key = tracking.resolve(first).tags["e2eai.engine_key"]
    mlflow.MlflowClient().delete_logged_model(first)
    mlflow.initialize_logged_model(name="pending", tags={"e2eai.engine_key": key})
    (second,) = distributed.compile(graph, targets=["sm86"])
    assert len(builds) == 2
    assert distributed.compile(graph, targets=["sm86"]) == [second]


def test_two_who_want_an_engine_at_once_may_both_build_it_and_the_next_takes_the_newer(
    store, tmp_path, monkeypatch
):
    graph, others = log_graph(tmp_path), []
    build = stages.compile

    def slow(*arguments, **options):
        with monkeypatch.context() as patch:
            patch.setattr(stages, "compile", build)
            others.extend(distributed.compile(graph, targets=["sm86"]))
        return build(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(stages, "compile", slow)
        (mine,) = distributed.compile(graph, targets=["sm86"])
    assert others != [mine]
    assert distributed.compile(graph, targets=["sm86"]) == [mine]


def test_a_build_that_fails_leaves_its_reason_on_the_run_and_no_model(store, tmp_path, monkeypatch):
    graph = log_graph(tmp_path)
    before = mlflow.search_logged_models(output_format="list")

    def refused(*_, **__):
        msg = "TensorRT refuses the graph."
        raise EngineBuildError(msg, reason="refused")

    with monkeypatch.context() as patch:
        patch.setattr(stages, "compile", refused)
        with pytest.raises(EngineBuildError):
            distributed.compile(graph, targets=["sm86"])
    run = run_of("compile fp32 sm86")
    assert (run.info.status, run.data.tags["e2eai.error"]) == (
        "FAILED",
        "TensorRT refuses the graph.",
    )
    assert len(mlflow.search_logged_models(output_format="list")) == len(before)
