"""MLflow's own settings and workspaces mean for us what they mean in MLflow."""

from __future__ import annotations

import shutil

import mlflow
import pytest
from small_models import features, net
from tracking_servers import tracking_server

import mlflow_e2eai
from mlflow_e2eai import tracking
from mlflow_e2eai.evaluation.gates import Gate

pytestmark = pytest.mark.usefixtures("on_threads")

FAST = (Gate(metric="parity/failed", bound="at_most", limit=0),)
OPTIONS = {
    "input_example": {"x": features()},
    "precisions": ("fp32",),
    "evidence": "quick",
    "exporter": "trace",
}


@pytest.fixture
def no_experiment(store, monkeypatch):
    """No call has chosen an experiment, so that the environment does."""
    monkeypatch.setattr(mlflow.tracking.fluent, "_active_experiment_id", None)
    for name in ("MLFLOW_EXPERIMENT_NAME", "MLFLOW_EXPERIMENT_ID"):
        monkeypatch.delenv(name, raising=False)
    return store


def test_the_experiment_of_the_environment_is_that_of_run_and_models(no_experiment, monkeypatch):
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "mine")
    info = mlflow_e2eai.log_model(net(), "net", **OPTIONS)
    experiment = mlflow.get_experiment_by_name("mine").experiment_id
    assert no_experiment.get_run(info.run_id).info.experiment_id == experiment
    assert tracking.resolve(info.model_uri).experiment_id == experiment


def test_the_run_of_the_environment_is_gone_on_with_and_keeps_its_name(store, monkeypatch):
    experiment = mlflow.get_experiment_by_name("tests").experiment_id
    given = store.create_run(experiment, run_name="nightly").info.run_id
    monkeypatch.setenv("MLFLOW_RUN_ID", given)
    info = mlflow_e2eai.log_model(net(), "net", registered_model_name="net", **OPTIONS)
    assert info.run_id == given
    assert store.get_run(given).info.run_name == "nightly"


def test_a_registry_of_its_own_has_the_versions_and_the_decision(
    store, empty_store, tmp_path, monkeypatch
):
    shutil.copyfile(empty_store, tmp_path / "registry.db")
    monkeypatch.setenv("MLFLOW_REGISTRY_URI", f"sqlite:///{tmp_path}/registry.db")
    info = mlflow_e2eai.log_model(net(), "net", registered_model_name="net", **OPTIONS)
    assert mlflow_e2eai.promote("net", info.registered_model_version, gates=FAST).promoted
    champion = mlflow.MlflowClient().get_model_version_by_alias("net", "champion")
    assert champion.description.startswith("Promoted ")
    assert mlflow_e2eai.load_model("models:/net@champion").manifest.files
    monkeypatch.delenv("MLFLOW_REGISTRY_URI")
    assert not store.search_registered_models()


@pytest.mark.system
def test_a_workspace_of_a_server_holds_all_of_a_model(isolated, tmp_path):
    folder = tmp_path / "server"
    folder.mkdir()
    with tracking_server(folder, "--enable-workspaces") as server:
        mlflow.set_tracking_uri(server.uri)
        mlflow.create_workspace("team")
        mlflow.set_workspace("team")
        try:
            mlflow.set_experiment("team's")
            info = mlflow_e2eai.log_model(net(), "net", registered_model_name="net", **OPTIONS)
            assert mlflow_e2eai.promote("net", info.registered_model_version, gates=FAST).promoted
            champion = mlflow_e2eai.load_model("models:/net@champion")
            assert champion({"x": features()})["output"].shape[0] == len(features())
            mlflow.set_workspace("default")
            assert not mlflow.MlflowClient().search_registered_models()
        finally:
            mlflow.set_workspace(None)
