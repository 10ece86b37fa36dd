"""`latest`: the newest model or version of the active experiment that a step can take."""

from __future__ import annotations

import logging

import mlflow
import pytest
from mlflow import MlflowClient
from mlflow.entities import LoggedModelStatus

from mlflow_e2eai import tracking
from mlflow_e2eai.errors import TrackingError
from mlflow_e2eai.tracking.latest import IMPORTED, latest_model, latest_version


def model_of(stage, *, name="net", status=LoggedModelStatus.READY, **tags):
    """Id of a LoggedModel of a stage, without files."""
    model = mlflow.initialize_logged_model(name=name, tags={tracking.STAGE: stage, **tags})
    MlflowClient().finalize_logged_model(model.model_id, status)
    return model.model_id


def version_of(model_id, name):
    client = MlflowClient()
    if not client.search_registered_models(f"name = '{name}'"):
        client.create_registered_model(name)
    return client.create_model_version(name, f"models:/{model_id}", model_id=model_id).version


def test_the_newest_of_a_stage_is_taken(store):
    model_of("source", name="old")
    newest = model_of("source", name="new")
    model_of("export")
    assert latest_model(["source"]).model_id == newest


def test_the_newest_of_several_stages_is_taken(store):
    stages = ["clean", "convert", "package"]
    for stage in ("clean", "convert", "clean"):
        made = model_of(stage)
        assert latest_model(stages).model_id == made


def test_a_model_that_failed_or_is_being_written_is_passed_over(store):
    ready = model_of("source")
    for _ in range(25):  # more than a page
        model_of("source", status=LoggedModelStatus.FAILED)
    mlflow.initialize_logged_model(name="pending", tags={tracking.STAGE: "source"})
    assert latest_model(["source"]).model_id == ready


def test_a_model_of_another_experiment_is_passed_over(store):
    mine = model_of("source")
    mlflow.set_experiment("others")
    model_of("source")
    mlflow.set_experiment("tests")
    assert latest_model(["source"]).model_id == mine


def test_a_graph_that_an_onnx_file_began_has_no_parent(store):
    imported = model_of("export")
    model_of("export", **{tracking.PARENT: model_of("clean")})
    assert latest_model([IMPORTED]).model_id == imported


@pytest.mark.parametrize(
    ("stages", "sentence"),
    [
        (
            ["source", IMPORTED],
            r"Experiment 'tests' does not have a PyTorch model.*`mlflow_e2eai log`",
        ),
        (
            ["export"],
            r"Experiment 'tests' does not have an exported graph.*`mlflow_e2eai export` first",
        ),
        (["clean", "convert"], r"does not have a cleaned graph; .*`mlflow run \. -e clean` or"),
    ],
)
def test_where_there_is_none_one_sentence_names_the_step_before(store, stages, sentence):
    with pytest.raises(TrackingError, match=sentence):
        latest_model(stages)


def test_the_newest_version_with_a_bundle_of_the_experiment_is_taken_unless_it_is_named(store):
    bundle = model_of("package")
    version_of(bundle, "net")
    version_of(bundle, "other")
    version_of(model_of("source"), "net")  # somebody's PyTorch model is no bundle
    mlflow.set_experiment("others")
    version_of(model_of("package"), "net")
    mlflow.set_experiment("tests")
    newest = latest_version()
    assert (newest.name, str(newest.version)) == ("other", "1")
    of_net = latest_version("net")
    assert (of_net.name, str(of_net.version)) == ("net", "3")


@pytest.mark.parametrize("name", [None, "it's not there"])
def test_where_there_is_no_version_one_sentence_says_what_makes_one(store, name):
    with pytest.raises(TrackingError, match=r"mlflow run \. -e pipeline -P registered_model_name"):
        latest_version(name)


def test_the_log_and_the_run_of_the_project_say_which_was_taken(store, monkeypatch, caplog):
    model_id = model_of("clean", name="digits-clean")
    experiment = mlflow.get_experiment_by_name("tests").experiment_id
    run = store.create_run(experiment).info.run_id
    monkeypatch.setenv("MLFLOW_RUN_ID", run)
    with caplog.at_level(logging.INFO, logger="mlflow_e2eai"):
        latest_model(["clean"])
    said = f"models:/{model_id} (digits-clean)"
    assert f"latest is {said}" in caplog.messages
    assert store.get_run(run).data.tags["e2eai.latest"] == said
