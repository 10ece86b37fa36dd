"""Reports on runs: those of several models in one run stay apart."""

from __future__ import annotations

import mlflow
import pytest
from small_models import AXES, features, net

import mlflow_e2eai

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
