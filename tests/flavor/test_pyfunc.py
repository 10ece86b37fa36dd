"""What the way through mlflow.pyfunc costs, and the frames that come out of it."""

import inspect

import mlflow.onnx
import mlflow.pyfunc
import numpy as np
import onnxruntime
import pandas as pd
import pytest
import torch
from multiplying_bundles import TIMES, X, graph, manifest

import mlflow_e2eai
from mlflow_e2eai import bundle
from mlflow_e2eai.bundle.load import load
from mlflow_e2eai.flavor.pyfunc import PyFunc
from mlflow_e2eai.latency.measure import benchmark

OUTPUTS = """
<ir_version: 8, opset_import: ["" : 18]>
outputs (float[N, 3] x) => ({outputs}) <int64[1] last = {{1}}>
{{
  row = Identity(x)
  sum = ReduceSum<keepdims = 0>(x, last)
  again = ReduceSum<keepdims = 1>(x, last)
  whole = Cast<to = 7>(sum)
}}
"""
SUM, AGAIN, ROW, WHOLE = "float[N] sum", "float[N, 1] again", "float[N, 3] row", "int64[N] whole"


@pytest.fixture
def make(tmp_path):
    def made(text: str) -> PyFunc:
        bundle.write(tmp_path / "bundle", manifest([graph(tmp_path, text)]), {"x": X})
        return PyFunc(load(tmp_path / "bundle"))

    return made


@pytest.mark.parametrize(
    "outputs",
    [(SUM,), (SUM, AGAIN), (ROW,), (ROW, SUM), (SUM, WHOLE), (WHOLE, ROW, AGAIN)],
    ids=lambda outputs: ", ".join(output.rpartition(" ")[2] for output in outputs),
)
def test_a_frame_has_a_column_for_each_output_and_a_row_for_each_item(make, outputs):
    model = make(OUTPUTS.format(outputs=", ".join(outputs)))
    wanted = model.get_raw_model()(X)

    for _ in range(2):  # the index is made once
        frame = model.predict(pd.DataFrame({"x": list(X)}))
        assert list(frame.columns) == [output.rpartition(" ")[2] for output in outputs]
        for name, array in wanted.items():
            cells = np.stack(frame[name].to_list())
            assert np.array_equal(cells, array.reshape(cells.shape))
            is_row = array.shape[1:] == (3,)
            assert frame[name].dtype == (object if is_row else array.dtype)


def test_a_frame_of_answers_is_not_the_models_memory(make):
    model = make(TIMES.format(factor=2))
    first = model.predict(pd.DataFrame({"x": list(X)}))
    model.predict(pd.DataFrame({"x": list(X + 1)}))

    assert np.array_equal(np.stack(first["y"].to_list()), 2 * X)


def test_the_signature_of_predict_is_made_once(make):
    """MLflow asks for it on every call, and finds `params` in it."""
    predict = make(TIMES.format(factor=2)).predict

    assert inspect.signature(predict) is inspect.signature(predict)
    assert list(inspect.signature(predict).parameters) == ["data", "params"]


@pytest.mark.slow
def test_a_call_costs_little_more_than_onnx_runtimes_and_pyfunc_less_than_mlflows(tmp_path):
    """The goals: 1.05 times the bare call and 3 microseconds; never slower than mlflow.onnx."""
    module = torch.nn.Sequential(torch.nn.Linear(30, 16), torch.nn.ReLU(), torch.nn.Linear(16, 1))
    x = np.ones((1, 30), np.float32)
    axes = {"x": {0: mlflow_e2eai.Axis("N", min=1, opt=1, max=64)}}
    mlflow_e2eai.save_model(
        module.eval(),
        tmp_path / "ours",
        input_example={"x": x},
        dynamic_axes=axes,
        precisions=("fp32",),
    )
    mlflow.onnx.save_model(
        mlflow.onnx.load_model(str(tmp_path / "ours")),
        str(tmp_path / "theirs"),
        signature=mlflow.models.Model.load(str(tmp_path / "ours")).signature,
        pip_requirements=[],
    )
    session = onnxruntime.InferenceSession(
        tmp_path / "ours" / "bundle" / "model.onnx", providers=["CPUExecutionProvider"]
    )
    ways = {
        "bare": lambda tensors: {"output": session.run(None, tensors)[0]},
        "native": mlflow_e2eai.load_model(str(tmp_path / "ours")),
        "ours": mlflow.pyfunc.load_model(str(tmp_path / "ours")).predict,
        "theirs": mlflow.pyfunc.load_model(str(tmp_path / "theirs")).predict,
    }
    report = benchmark(ways, {"x": x}, rounds=2000, budget_s=30)

    assert report["native"].p50_ms <= 1.05 * report["bare"].p50_ms + 0.003
    assert report.ratio("ours", "theirs").high < 1
