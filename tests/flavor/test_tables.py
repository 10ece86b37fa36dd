"""`variants` and `compare_versions`: the evidence of logged models as DataFrames."""

from __future__ import annotations

import mlflow
import pytest
from small_models import AXES, features, labelled, net

import mlflow_e2eai
from mlflow_e2eai.errors import InvalidInputError
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

    by_id = mlflow_e2eai.variants(api.log_model(saved, "net").model_uri)

    assert by_id.equals(one)
    assert one["size_bytes"].notna().any()
    assert list(both.columns) == ["version", *one.columns]
    assert list(both["version"].unique()) == ["champion", "2"]
    assert len(both) == 2 * len(one)
    assert list(both.dtypes[1:]) == list(one.dtypes)
    wide = both.pivot_table(index="variant", columns="version", values="p50_ms")
    assert set(wide.columns) == {"champion", "2"}


def test_no_version_to_compare_is_refused():
    with pytest.raises(InvalidInputError, match="no version to compare; give two"):
        mlflow_e2eai.compare_versions("net")


def test_a_loaded_model_in_a_notebook_shows_variant_reason_inputs_and_outputs(saved):
    page = mlflow_e2eai.load_model(str(saved), variant=CPU)._repr_html_()

    assert CPU in page
    assert "<td>input</td><td>x</td><td>float32</td><td>[N, 8]</td>" in page
    assert "<td>output</td>" in page
