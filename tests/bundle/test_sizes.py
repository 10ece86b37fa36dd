"""A loaded model knows how often it was called with each size."""

import json

import mlflow
import numpy as np
import pytest
import torch

import mlflow_e2eai
from mlflow_e2eai import Axis, choose_buckets
from mlflow_e2eai.artifacts.values import TensorSpec
from mlflow_e2eai.bundle.model import count_sizes

pytestmark = pytest.mark.usefixtures("on_threads")

N = Axis("N", min=1, opt=2, max=8)
X = TensorSpec(name="x", dtype="float32", shape=("N", 3, "T"))
Y = TensorSpec(name="y", dtype="float32", shape=("T",))


def shaped(n, t):
    return {"x": np.zeros((n, 3, t)), "y": np.zeros(t)}


def test_each_axis_is_counted_once_a_call_however_many_inputs_it_is_in():
    sizes = {"N": {}, "T": {}}
    answer = count_sizes(lambda tensors: tensors, (X, Y), sizes)
    for n, t in [(2, 4), (2, 5), (1, 4)]:
        assert answer(given := shaped(n, t)) is given
    assert sizes == {"N": {2: 2, 1: 1}, "T": {4: 2, 5: 1}}


def test_a_model_without_dynamic_axes_is_called_as_it_is():
    def infer(tensors):
        return tensors

    fixed = TensorSpec(name="x", dtype="float32", shape=(2, 3))
    assert count_sizes(infer, (fixed,), {}) is infer


def test_a_loaded_model_says_from_which_sizes_buckets_can_be_chosen(tmp_path):
    mlflow_e2eai.save_model(
        torch.nn.Linear(4, 3).eval(),
        tmp_path / "net",
        input_example={"x": np.ones((2, 4), np.float32)},
        dynamic_axes={"x": {0: N}},
        precisions=["fp32"],
    )
    model = mlflow.pyfunc.load_model(tmp_path / "net")
    for size in (1, 1, 1, 5, 8):
        model.predict(np.ones((size, 4), np.float32))
    native = model.get_raw_model()
    native(torch.ones(5, 4))
    assert native.sizes == {"N": {1: 3, 5: 2, 8: 1}}
    assert choose_buckets(native.sizes["N"], 2) == (1, 8)
    assert json.loads(json.dumps(native.sizes["N"])) == {"1": 3, "5": 2, "8": 1}
