"""Reports on runs: those of several models in one run stay apart."""

from __future__ import annotations

import mlflow
import pytest
from small_models import AXES, features, net

import mlflow_e2eai
from mlflow_e2eai.flavor.repackage import package

pytestmark = pytest.mark.usefixtures("on_threads")


def test_models_that_are_logged_in_one_run_keep_each_its_report(store, tmp_path):
    mlflow_e2eai.save_model(
        net(),
        tmp_path / "net",
        input_example={"x": features()},
        dynamic_axes=AXES,
        precisions=("fp32",),
        evidence="quick",
    )
    names = ["first", "second", "second"]
    with mlflow.start_run() as run:
        for name in names:
            mlflow_e2eai.log_model(tmp_path / "net", name, registered_model_name=name)
    texts = [
        mlflow.artifacts.load_text(f"{run.info.artifact_uri}/{folder}report.html")
        for folder in ("", "second/", "second_2/")
    ]
    for title, text in zip(
        ("first version 1", "second version 1", "second version 2"), texts, strict=True
    ):
        assert title in text
    plots = [file.path for file in store.list_artifacts(run.info.run_id, "second")]
    assert "second/latency.png" in plots


def test_a_version_links_its_report_its_pytorch_model_and_the_run_that_trained_it(store):
    with mlflow.start_run(run_name="training") as training:
        given = mlflow.pytorch.log_model(
            net(), name="net", input_example=features(), pip_requirements=[]
        )
    info = package(given.model_uri, registered_model_name="net", evidence="quick")
    described = store.get_model_version("net", info.registered_model_version).description
    experiment = f"#/experiments/{training.info.experiment_id}"
    assert f"[Report]({experiment}/runs/{info.run_id}/artifacts/report.html)" in described
    assert f"[PyTorch model]({experiment}/models/{given.model_id})" in described
    assert f"[training run]({experiment}/runs/{training.info.run_id})" in described


def test_a_run_is_named_after_the_version_unless_a_user_named_it(store, tmp_path):
    mlflow_e2eai.save_model(
        net(), tmp_path / "net", input_example={"x": features()}, evidence="quick"
    )
    first = mlflow_e2eai.log_model(tmp_path / "net", registered_model_name="net")
    with mlflow.start_run(run_name="mine"):
        second = mlflow_e2eai.log_model(tmp_path / "net", registered_model_name="net")
    names = [store.get_run(info.run_id).info.run_name for info in (first, second)]
    assert names == ["net v1", "mine"]


def test_a_run_has_the_settings_to_compare_as_params_of_each_model(store):
    options = {"input_example": {"x": features()}, "evidence": "quick", "exporter": "trace"}
    with mlflow.start_run() as run:
        mlflow_e2eai.log_model(net(), "first", dynamic_axes=AXES, **options)
        mlflow_e2eai.log_model(net(), "second", precisions=("fp32",), **options)
    params = store.get_run(run.info.run_id).data.params
    assert params == {
        "exporter": "trace",
        "opset": "18",
        "precisions": "fp32,fp16",
        "targets": "none",
        "evidence": "quick",
        "axes": "N 1 to 16, opt 4",
        "second/precisions": "fp32",
        "second/axes": "none",
    }
