"""MLflow's own `evaluate` with this package's evaluator: any two models, parity and latency."""

from __future__ import annotations

import json
import subprocess
import sys

import mlflow
import numpy as np
import pandas as pd
import pytest
from small_models import AXES, features, net

import mlflow_e2eai
from mlflow_e2eai.errors import InvalidInputError

pytestmark = pytest.mark.usefixtures("on_threads")


@pytest.fixture
def torch_model(store):
    """A PyTorch model that mlflow.pytorch logged."""
    with mlflow.start_run():
        info = mlflow.pytorch.log_model(
            net(), name="torch", input_example=features(), pip_requirements=[]
        )
    return info.model_uri


def bundle_of(module):
    info = mlflow_e2eai.log_model(
        module,
        "net",
        input_example={"x": features()},
        dynamic_axes=AXES,
        precisions=("fp32",),
        signature=False,
    )
    return info.model_uri


def evaluate(model, data=None, **configuration):
    return mlflow.models.evaluate(
        model=model,
        data=features() if data is None else data,
        model_type="parity",
        evaluators="e2eai",
        evaluator_config=configuration,
    )


def test_a_bundle_is_compared_with_the_model_that_mlflow_pytorch_logged(torch_model):
    with mlflow.start_run() as run:
        metrics = evaluate(bundle_of(net()), reference=torch_model).metrics
    assert metrics["parity/passed"] == 1
    assert metrics["parity/output/max_abs_error"] < 1e-5
    assert metrics["latency/p50_ms"] > 0
    assert metrics["latency/ratio_low"] <= metrics["latency/ratio"] <= metrics["latency/ratio_high"]
    evidence = json.loads(mlflow.artifacts.load_text(f"{run.info.artifact_uri}/evidence.json"))
    assert evidence["parity"]["data"]["samples"] == 1


def test_another_model_does_not_pass(torch_model):
    metrics = evaluate(bundle_of(net(seed=1)), reference=torch_model).metrics
    assert metrics["parity/passed"] == 0


def test_named_samples_of_any_rank_go_round_what_mlflow_takes_for_data(torch_model):
    uri = bundle_of(net())
    metrics = evaluate(uri, reference=uri, samples={"x": features(9)}).metrics
    assert metrics["parity/output/max_abs_error"] == 0


def test_a_data_frame_is_asked_as_it_is(torch_model):
    frame = pd.DataFrame(features())
    metrics = evaluate(bundle_of(net()), data=frame, reference=bundle_of(net())).metrics
    assert metrics["parity/passed"] == 1


def test_a_number_that_is_not_finite_is_not_given_to_mlflow_to_store(torch_model):
    class Broken(mlflow.pyfunc.PythonModel):
        def predict(self, context, model_input):
            return np.full((len(model_input), 3), np.nan, np.float32)

    with mlflow.start_run() as run:
        broken = mlflow.pyfunc.log_model(name="broken", python_model=Broken(), pip_requirements=[])
        metrics = evaluate(broken.model_uri, reference=torch_model).metrics
    assert metrics["parity/passed"] == 0
    assert "parity/output/max_abs_error" not in metrics
    tags = mlflow.get_run(run.info.run_id).data.tags
    assert "parity/output/max_abs_error" in tags["e2eai.nonfinite"]


def test_a_ratio_that_a_busy_machine_gave_is_not_stored(torch_model, monkeypatch):
    monkeypatch.setattr("mlflow_e2eai.latency.cpu.LEAST_SHARE", 1.1)  # too small is any share

    with mlflow.start_run() as run:
        metrics = evaluate(bundle_of(net()), reference=torch_model).metrics
    assert not any(name.startswith("latency/ratio") for name in metrics)
    tags = mlflow.get_run(run.info.run_id).data.tags
    assert "latency/ratio, latency/ratio_high, latency/ratio_low" in tags["e2eai.nonfinite"]
    report = mlflow.artifacts.load_text(f"{run.info.artifact_uri}/latency.json")
    assert "too noisy to tell" in report


def test_without_a_model_or_a_reference_there_is_nothing_to_compare(torch_model):
    with pytest.raises(mlflow.exceptions.MlflowException, match="could not be evaluated"):
        evaluate(torch_model)
    with pytest.raises(InvalidInputError, match="as 'reference'"):
        evaluate(torch_model, samples={"x": features()})
    frame = pd.DataFrame({"x": [1.0], "prediction": [1.0]})
    with pytest.raises(InvalidInputError, match="pass model="):
        mlflow.models.evaluate(
            data=frame,
            predictions="prediction",
            model_type="parity",
            evaluators="e2eai",
            evaluator_config={"reference": torch_model},
        )


@pytest.mark.parametrize(
    ("wrong", "hint"),
    [
        ({"tolerence": 1}, "no option 'tolerence'; did you mean 'tolerance'"),
        ({"color": 1}, "no option 'color'; there are reference, samples"),
        ({"samples": [1.0]}, "'samples' is a list"),
    ],
)
def test_a_configuration_that_is_misspelt_is_refused(torch_model, wrong, hint):
    with pytest.raises(InvalidInputError, match=hint):
        evaluate(torch_model, reference=torch_model, **wrong)


@pytest.mark.parametrize("samples", [{"x": features()[:0]}, {}])
def test_no_items_are_nothing_to_compare(torch_model, samples):
    with pytest.raises(InvalidInputError, match=r"are empty|no array"):
        evaluate(torch_model, reference=torch_model, samples=samples)


def test_a_table_of_no_rows_is_nothing_to_compare(torch_model):
    with pytest.raises(InvalidInputError, match="are empty"):
        evaluate(torch_model, data=features()[:0], reference=torch_model)


def test_two_evaluations_in_one_run_keep_both_their_reports(torch_model):
    with mlflow.start_run() as run:
        evaluate(torch_model, reference=torch_model)
        evaluate(bundle_of(net(seed=1)), reference=torch_model)
        evaluate(torch_model, reference=torch_model)
    uri = run.info.artifact_uri
    for folder, passed in (("", True), ("evaluation/", False), ("evaluation_2/", True)):
        evidence = json.loads(mlflow.artifacts.load_text(f"{uri}/{folder}evidence.json"))
        assert (not evidence["parity"]["data"]["findings"]) is passed
        assert json.loads(mlflow.artifacts.load_text(f"{uri}/{folder}latency.json"))


def test_mlflow_can_load_the_evaluator_while_it_is_being_imported():
    heavy = ["mlflow", "torch", "numpy", "pandas", "onnxruntime"]
    code = "import sys, mlflow_e2eai.flavor.evaluator; "
    code += f"print([m for m in {heavy} if m in sys.modules])"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert said.stdout.strip() == "[]"
