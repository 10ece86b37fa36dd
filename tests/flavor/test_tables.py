"""`variants` and `compare_versions`: the evidence of logged models as DataFrames."""

from __future__ import annotations

import mlflow
import pandas as pd
import pytest
from small_models import AXES, features, labelled, net

import mlflow_e2eai
from mlflow_e2eai.errors import InvalidInputError, TrackingError
from mlflow_e2eai.flavor import api

pytestmark = pytest.mark.usefixtures("on_threads")

CPU = "onnxruntime-cpu/fp32"


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A saved model with task metrics, and little evidence."""
    place = tmp_path_factory.mktemp("saved") / "model"
    module = net()
    mlflow_e2eai.save_model(
        module,
        place,
        input_example={"x": features()},
        dynamic_axes=AXES,
        evaluation_data=labelled(module),
        evidence="quick",
    )
    return place


def test_the_variants_of_a_saved_model_have_errors_times_metrics_and_sizes(saved):
    frame = mlflow_e2eai.variants(str(saved))
    row = frame[frame["variant"] == CPU].iloc[0]

    assert list(frame["variant"][:1]) == ["torch/fp32"]
    assert row["outcome"] == "passed"
    assert row["max_abs_error"] < 1e-4
    assert 0 < row["p50_ms"] <= row["p90_ms"] <= row["p95_ms"] <= row["p99_ms"]
    assert row["task/accuracy"] == 1
    size = (saved / "bundle" / "model.onnx").stat().st_size
    assert row["size_bytes"] == size
    assert row["peak_memory_bytes"] > size


@pytest.mark.usefixtures("store")
def test_versions_side_by_side_are_the_rows_of_each_with_the_version_in_front(saved):
    for _ in range(2):
        api.log_model(saved, "net", registered_model_name="net")
    mlflow.MlflowClient().set_registered_model_alias("net", "champion", "1")
    one = mlflow_e2eai.variants("models:/net/1")
    both = mlflow_e2eai.compare_versions("net", "champion", 2)
    assert mlflow_e2eai.compare_versions("net", "@champion").version.unique().tolist() == [
        "@champion"
    ]

    for name in ("net/1", "net@champion", "models:/net/latest", "net"):
        assert mlflow_e2eai.variants(name).equals(one)
        assert mlflow_e2eai.load_model(name).inputs == mlflow_e2eai.load_model(str(saved)).inputs
    by_id = mlflow_e2eai.variants(api.log_model(saved, "net").model_uri)

    assert by_id.equals(one)
    assert one["size_bytes"].notna().any()
    assert list(both.columns) == ["version", *one.columns]
    assert list(both["version"].unique()) == ["champion", "2"]
    assert len(both) == 2 * len(one)
    assert list(both.dtypes[1:]) == list(one.dtypes)
    wide = both.pivot_table(index="variant", columns="version", values="p50_ms")
    assert set(wide.columns) == {"champion", "2"}


@pytest.mark.usefixtures("store")
def test_a_version_that_is_given_twice_is_compared_once(saved):
    info = api.log_model(saved, "net", registered_model_name="net")
    once = mlflow_e2eai.compare_versions("net", 1)
    assert mlflow_e2eai.compare_versions("net", 1, "1").equals(once)
    line = f"{info.model_uri}, net version 1, "
    assert repr(info).startswith(f"<{line}")
    assert "passed; onnxruntime-cpu/fp" in repr(info)
    assert line in info._repr_html_()
    assert isinstance(info, mlflow.models.model.ModelInfo)


def test_no_version_to_compare_is_refused():
    with pytest.raises(InvalidInputError, match="no version to compare; give two"):
        mlflow_e2eai.compare_versions("net")


def test_a_loaded_model_in_a_notebook_shows_variant_reason_inputs_and_outputs(saved):
    page = mlflow_e2eai.load_model(str(saved), variant=CPU)._repr_html_()

    assert CPU in page
    assert "<td>input</td><td>x</td><td>float32</td><td>[N, 8]</td>" in page
    assert "<td>output</td>" in page


@pytest.mark.usefixtures("store")
def test_versions_are_listed_the_newest_first_with_aliases_decision_and_summary(saved, tmp_path):
    for _ in range(2):
        api.log_model(saved, "net", registered_model_name="net")
    client = mlflow.MlflowClient()
    for alias in ("champion", "blue"):
        client.set_registered_model_alias("net", alias, "1")
    with mlflow.start_run() as run:
        mlflow.log_metric("variants/passed", 3)
        mlflow.log_metric("fastest/p50_ms", 0.25)
    client.create_model_version("net", (tmp_path / "other").as_uri(), run.info.run_id)
    client.set_model_version_tag("net", "3", "e2eai.decision", "rejected")
    client.create_model_version("net", (tmp_path / "other").as_uri(), "0" * 32)
    frame = mlflow_e2eai.list_versions("net")

    assert list(frame["version"]) == [4, 3, 2, 1]
    assert list(frame["aliases"]) == ["", "", "", "blue, champion"]
    assert frame["decision"].to_list() == [pd.NA, "rejected", pd.NA, pd.NA]
    assert frame["passed"].to_list()[:2] == [pd.NA, 3]
    assert frame["fastest_p50_ms"][1] == 0.25
    assert frame["created"].is_monotonic_decreasing
    assert str(frame["created"].dtype) == "datetime64[ms, UTC]"


def test_the_versions_of_another_name_are_not_listed(store):
    for name in ("net", "net'work"):
        store.create_registered_model(name)
        store.create_model_version(name, "s3://there/model")
    assert list(mlflow_e2eai.list_versions("net'work")["version"]) == [1]


@pytest.mark.usefixtures("store")
def test_versions_of_no_model_are_refused_by_name():
    with pytest.raises(TrackingError, match="There is no registered model 'nobody'"):
        mlflow_e2eai.list_versions("nobody")
