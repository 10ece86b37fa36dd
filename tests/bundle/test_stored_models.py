"""A model that was stored by an earlier commit still loads, predicts and is promoted.

tests/data/model_of_0_1_0 is the net of tests/support/small_models.py, saved by commit 3400361 with
its evaluation data, in fp32 and fp16 and without engines.
"""

from __future__ import annotations

from pathlib import Path

import mlflow
import numpy as np
import torch
from small_models import features, net

import mlflow_e2eai

STORED = Path(__file__).parents[1] / "data" / "model_of_0_1_0"


def expected():
    with torch.no_grad():
        return net()(torch.from_numpy(features())).numpy()


def test_it_is_loaded_and_gives_the_modules_numbers():
    with mlflow_e2eai.load_model(STORED) as model:
        assert model.variant == "onnxruntime-cpu/fp32"
        np.testing.assert_allclose(model(features())["output"], expected(), rtol=1e-5, atol=1e-6)


def test_mlflow_loads_it_by_the_loader_that_it_names():
    served = mlflow.pyfunc.load_model(str(STORED)).predict({"x": features()})
    np.testing.assert_allclose(served["output"], expected(), rtol=1e-5, atol=1e-6)


def test_it_is_logged_as_it_is_and_promoted(store):
    info = mlflow_e2eai.log_model(str(STORED), registered_model_name="net")
    assert mlflow_e2eai.promote("net", info.registered_model_version).promoted
    served = mlflow.pyfunc.load_model("models:/net@champion").predict({"x": features()})
    np.testing.assert_allclose(served["output"], expected(), rtol=1e-5, atol=1e-6)
