"""A graph that is made anew and logged already is linked, and keeps apart what differs."""

from __future__ import annotations

from pathlib import Path

import mlflow
import numpy as np
import pytest
from small_models import AXES, features, net

import mlflow_e2eai
from mlflow_e2eai import Axis, tracking

pytestmark = pytest.mark.usefixtures("on_threads")


def log(model, **options):
    options = {"input_example": {"x": features()}, "dynamic_axes": AXES, "fresh": True, **options}
    info = mlflow_e2eai.log_model(model, "net", evidence="quick", exporter="trace", **options)
    return tracking.resolve(info.model_uri)


def logged(stage):
    """Ids of the models of a stage, the oldest first."""
    models = mlflow.search_logged_models(
        filter_string=f"tags.`e2eai.stage` = '{stage}'",
        order_by=[{"field_name": "creation_timestamp", "ascending": True}],
        output_format="list",
    )
    return [model.model_id for model in models]


def outputs(client, name):
    """Models that the runs of a name have as outputs, the oldest run first."""
    runs = mlflow.search_runs(
        filter_string=f"attributes.run_name = '{name}'",
        order_by=["attributes.start_time ASC"],
        output_format="list",
    )
    found = [client.get_run(run.info.run_id) for run in runs]
    return [one.model_id for run in found for one in run.outputs.model_outputs]


def test_the_same_graphs_are_logged_once_and_linked_to_both_runs(store):
    model = net()
    first, second = log(model), log(model)
    for stage, name in (("export", "export"), ("clean", "clean"), ("convert", "convert fp16")):
        (only,) = logged(stage)
        assert outputs(store, name) == [only, only]
    assert first.model_id != second.model_id


def test_each_version_knows_its_own_pytorch_model(store):
    model = net()
    versions = [log(model), log(model)]
    sources = [tracking.source_of(version).model_id for version in versions]
    assert sources == logged("source")
    assert len(set(sources)) == 2


@pytest.mark.parametrize(
    "different",
    [
        {"input_example": {"x": features() + np.float32(1)}},
        {"dynamic_axes": {"x": {0: Axis("N", min=1, opt=2, max=16)}}},
    ],
)
def test_a_graph_with_another_example_or_other_axes_is_another(store, different):
    model = net()
    log(model)
    log(model, **different)
    assert len(logged("clean")) == 2


def test_a_graph_whose_file_changed_is_logged_anew(store):
    model = net()
    log(model)
    (first,) = logged("clean")
    place = Path(tracking.resolve(first).artifact_location.removeprefix("file://"))
    (place / "model.onnx").write_bytes(b"changed")
    with pytest.warns(
        UserWarning, match=f"graph that was logged before \\({first}\\) cannot be reused"
    ):
        log(model)
    assert len(logged("clean")) == 2
