"""Names that MLflow refuses are mapped, and its own made-up names are known."""

from __future__ import annotations

import mlflow
import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_models import features, net

from mlflow_e2eai import tracking
from mlflow_e2eai.tracking import _mlflow


@pytest.mark.parametrize(
    ("name", "mapped"),
    [
        ("task/accuracy", "task/accuracy"),
        ("task/F1 (macro)", "task/F1 _macro_"),
        ("task/a//b/../c", "task/a/_/b/_/c"),
        ("/x", "_/x"),
        ("", "_"),
        ("x" * 300, "x" * 250),
    ],
)
def test_a_metric_gets_a_name_that_mlflow_takes(name, mapped):
    assert tracking.metric_name(name) == mapped


@given(st.text(max_size=300))
def test_mlflow_takes_every_mapped_name(name):
    from mlflow.utils.validation import _validate_logged_model_name, _validate_metric_name

    _validate_metric_name(tracking.metric_name(name))
    _validate_logged_model_name(tracking.model_name(name))
    assert tracking.metric_name(tracking.metric_name(name)) == tracking.metric_name(name)


def test_a_name_that_mlflow_made_up_is_told_from_a_user_s(store):
    run = store.create_run(mlflow.get_experiment_by_name("tests").experiment_id)
    assert _mlflow.is_generated_name(run.info.run_name)
    for name in ("nightly 42", "nightly-build-42", "marvelous-zebra", ""):
        assert not _mlflow.is_generated_name(name)


def test_of_several_models_of_one_name_a_run_gives_the_one_of_the_largest_step(store):
    def log(step):
        info = mlflow.pytorch.log_model(
            net(), name="m", input_example=features(), pip_requirements=[], step=step
        )
        return info.model_id

    with mlflow.start_run() as run:
        _, largest, _ = (log(step) for step in (1, 3, 2))
    uri = f"runs:/{run.info.run_id}/m"
    assert tracking.resolve(uri).model_id == largest
    version = mlflow.register_model(uri, "net")  # as MLflow has it
    assert tracking.resolve(f"models:/net/{version.version}").model_id == largest
