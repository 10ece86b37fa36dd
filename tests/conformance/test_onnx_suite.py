"""The tests that MLflow holds its own ONNX flavor to, under their names, held to this one.

Not here, and why:

* test_model_save_load_pyfunc_format_with_session_options: `onnx_session_options` is no argument of
  this flavor; the session's options are part of what was measured.
* the `save_as_external_data` cases: weights are always inside the ONNX file, whose digest is
  recorded (test_model_save_load_nonexternal_data stays and holds that).
* the `onnx_execution_providers` cases: a variant names its provider
  (test_inference_session_always_receives_providers stays and holds that).
"""

from __future__ import annotations

import sys
from pathlib import Path
from unittest import mock

import mlflow
import numpy as np
import onnx
import onnxruntime
import pandas as pd
import pytest
import torch
import yaml
from helpers import (
    BATCH,
    FLAVOR,
    MLFLOW,
    PYFUNC,
    as_arrays,
    assert_close,
    assert_conda_env_requirements,
    assert_logged_code_paths,
    assert_pip_requirements,
    assert_registered,
    flavor_configuration,
    post,
    run_onnx,
    saved_conda_env,
    saved_file,
    score,
)
from mlflow.exceptions import MlflowException
from mlflow.models import Model, infer_signature
from mlflow.tracking._model_registry import fluent

import mlflow_e2eai
from mlflow_e2eai import flavor

pytestmark = [pytest.mark.exporters, pytest.mark.usefixtures("on_threads")]


def watched_register():
    """MLflow's own registering, with a record of what it was asked."""
    return mock.patch.object(fluent, "_register_model", wraps=fluent._register_model)


def test_model_save_load(saved, model_path):
    mlflow_e2eai.save_model(saved.module, model_path, **saved.options)

    assert_close(
        mlflow_e2eai.load_model(model_path)(saved.inputs)["output"], saved.outputs["output"]
    )
    graph = mlflow.onnx.load_model(model_path)
    onnx.checker.check_model(graph, full_check=True)
    assert_close(run_onnx(graph, saved.inputs)["output"], saved.outputs["output"])


def test_model_log_load(saved, store):
    with mlflow.start_run():
        info = mlflow_e2eai.log_model(saved.module, "model", **saved.options)

    loaded = mlflow_e2eai.load_model(info.model_uri)
    assert_close(loaded(saved.inputs)["output"], saved.outputs["output"])
    graph = mlflow.onnx.load_model(info.model_uri)
    onnx.checker.check_model(graph, full_check=True)
    assert_close(run_onnx(graph, saved.inputs)["output"], saved.outputs["output"])


def test_model_save_load_nonexternal_data(saved):
    (file,) = saved.bundle.glob("*.onnx*")
    graph = onnx.load(file, load_external_data=False)

    weights = {
        weight.name: onnx.numpy_helper.to_array(weight) for weight in graph.graph.initializer
    }
    assert all(w.data_location == onnx.TensorProto.DEFAULT for w in graph.graph.initializer)
    assert sum(w.size for w in weights.values()) == sum(
        p.numel() for p in saved.module.parameters()
    )


@pytest.mark.parametrize("with_signature", [False, True])
@pytest.mark.parametrize("with_example", [False, True])
def test_signature_and_examples_are_saved_correctly(
    saved, model_path, with_signature, with_example
):
    signature = infer_signature({"input": saved.inputs["input"].astype(np.float64)})
    example = {"input": saved.inputs["input"][:3]}
    given = {"signature": signature} if with_signature else {}
    if with_example:
        options = {**saved.options, "input_example": example}
        mlflow_e2eai.save_model(saved.module, model_path, **options, **given)
    else:
        mlflow_e2eai.save_model(saved.bundle, model_path, **given)

    model = Model.load(model_path)
    if with_signature:
        assert model.signature == signature
    else:  # this flavor knows its inputs without being told, and says so
        assert model.signature.inputs.to_dict() == [
            {
                "name": "input",
                "type": "tensor",
                "tensor-spec": {"dtype": "float32", "shape": (-1, 4)},
            }
        ]
        assert model.signature.outputs.input_names() == ["output"]
    # Without one of its own it has the example that its bundle was made from.
    wanted = example if with_example else saved.options["input_example"]
    np.testing.assert_array_equal(model.load_input_example(model_path)["input"], wanted["input"])


def test_no_signature_is_saved_when_none_is_asked_for(saved_without_signature):
    assert Model.load(saved_without_signature).signature is None


def test_model_save_load_evaluate_pyfunc_format(saved, saved_without_signature, data, served):
    predicted = saved.outputs["output"]

    loaded = mlflow.pyfunc.load_model(str(saved_without_signature))
    assert_close(loaded.predict(data).to_numpy(), predicted)
    split = {"dataframe_split": data.to_dict(orient="split")}
    answer = pd.DataFrame(score(saved_without_signature, split))
    assert_close(answer.to_numpy(), predicted)

    named = {"inputs": {"input": saved.inputs["input"].tolist()}}
    assert_close(post(served, named)["output"], predicted)
    unnamed = {"inputs": saved.inputs["input"].tolist()}
    assert_close(post(served, unnamed)["output"], predicted)


def test_model_save_load_multiple_inputs(saved_with_two_inputs):
    graph = mlflow.onnx.load_model(str(saved_with_two_inputs.directory))

    onnx.checker.check_model(graph, full_check=True)
    assert [value.name for value in graph.graph.input] == ["sepal_features", "petal_features"]
    found = run_onnx(graph, saved_with_two_inputs.inputs)
    assert_close(found["target"], saved_with_two_inputs.outputs["target"])


def test_model_save_load_evaluate_pyfunc_format_multiple_inputs(saved_with_two_inputs):
    inputs, predicted = saved_with_two_inputs.inputs, saved_with_two_inputs.outputs["target"]
    columns = pd.DataFrame({name: list(array) for name, array in inputs.items()})

    loaded = mlflow.pyfunc.load_model(str(saved_with_two_inputs.directory))
    assert_close(loaded.predict(inputs)["target"], predicted)
    assert_close(np.ravel(loaded.predict(columns)["target"]), np.ravel(predicted))

    payload = {"inputs": {name: array.tolist() for name, array in inputs.items()}}
    assert_close(score(saved_with_two_inputs.directory, payload)["target"], predicted)


def test_pyfunc_representation_of_float32_model_casts_and_evaluates_float64_inputs(
    saved, saved_without_signature, data
):
    loaded = mlflow.pyfunc.load_model(str(saved_without_signature))

    assert_close(loaded.predict(data.astype("float64")).to_numpy(), saved.outputs["output"])
    with pytest.raises(Exception, match="int32, but float32 is expected"):
        loaded.predict(data.astype("int32"))


@pytest.mark.parametrize("should_start_run", [False, True])
def test_model_log(saved, log, store, should_start_run):
    if should_start_run:
        with mlflow.start_run() as run:
            info = log()
            assert mlflow.active_run().info.run_id == run.info.run_id
        assert info.run_id == run.info.run_id
    else:
        info = log()
        assert mlflow.active_run() is None

    assert store.get_run(info.run_id).info.status == "FINISHED"
    assert store.get_logged_model(info.model_id).status == "READY"
    graph = mlflow.onnx.load_model(info.model_uri)
    assert_close(run_onnx(graph, saved.inputs)["output"], saved.outputs["output"])


def test_log_model_calls_register_model(log, custom_env):
    with mlflow.start_run(), watched_register() as register:
        info = log(conda_env=custom_env, registered_model_name="AdsModel1")
    assert_registered(register, info.model_uri, "AdsModel1")


def test_log_model_no_registered_model_name(log, custom_env):
    with mlflow.start_run(), watched_register() as register:
        log(conda_env=custom_env)
    register.assert_not_called()


def test_model_log_evaluate_pyfunc_format(saved, log, data):
    predicted = saved.outputs["output"]
    with mlflow.start_run():
        info = log(signature=False)
        loaded = mlflow.pyfunc.load_model(info.model_uri)

    assert_close(loaded.predict(data).to_numpy(), predicted)
    assert_close(loaded.predict(data.to_numpy())["output"], predicted)
    assert_close(loaded.predict({"input": data.to_numpy()})["output"], predicted)


def test_model_save_evaluate_pyfunc_format_multi_tensor(saved_with_two_inputs, data, model_path):
    mlflow_e2eai.save_model(saved_with_two_inputs.bundle, model_path, signature=False)
    loaded = mlflow.pyfunc.load_model(model_path)
    feeds = {
        "sepal_features": data[data.columns[:2]].to_numpy().astype(np.float64),
        "petal_features": data[data.columns[2:4]].to_numpy().astype(np.float32),
    }

    assert_close(loaded.predict(feeds)["target"], saved_with_two_inputs.outputs["target"])
    with pytest.raises(ValueError, match="Unable to map one array to the inputs"):
        loaded.predict(data.to_numpy())
    # With a signature, MLflow itself refuses the one array.
    with_signature = mlflow.pyfunc.load_model(str(saved_with_two_inputs.directory))
    with pytest.raises(MlflowException, match="Failed to enforce schema"):
        with_signature.predict(data.to_numpy())


def test_model_save_persists_specified_conda_env_in_mlflow_model_directory(
    saved, model_path, custom_env
):
    mlflow_e2eai.save_model(saved.bundle, model_path, conda_env=custom_env)

    found = saved_conda_env(model_path)
    assert str(found) != custom_env
    assert yaml.safe_load(found.read_text()) == yaml.safe_load(Path(custom_env).read_text())


def test_model_save_persists_requirements_in_mlflow_model_directory(saved, model_path, custom_env):
    mlflow_e2eai.save_model(saved.bundle, model_path, conda_env=custom_env)

    assert_conda_env_requirements(custom_env, Path(model_path, "requirements.txt"))


def test_log_model_with_pip_requirements(log, tmp_path):
    file = tmp_path / "requirements.txt"
    file.write_text("a")
    with mlflow.start_run():
        of_file = log(pip_requirements=str(file))
        of_list = log(pip_requirements=[f"-r {file}", "b"])
        constrained = log(pip_requirements=[f"-c {file}", "b"])

    assert_pip_requirements(of_file.model_uri, [MLFLOW, "a"], strict=True)
    assert_pip_requirements(of_list.model_uri, [MLFLOW, "a", "b"], strict=True)
    wanted = [MLFLOW, "b", "-c constraints.txt"]
    assert_pip_requirements(constrained.model_uri, wanted, ["a"], strict=True)


def test_log_model_with_extra_pip_requirements(log, tmp_path):
    default = flavor.get_default_pip_requirements()
    file = tmp_path / "requirements.txt"
    file.write_text("a")
    with mlflow.start_run():
        of_file = log(extra_pip_requirements=str(file))
        of_list = log(extra_pip_requirements=[f"-r {file}", "b"])
        constrained = log(extra_pip_requirements=[f"-c {file}", "b"])

    assert_pip_requirements(of_file.model_uri, [MLFLOW, *default, "a"], strict=True)
    assert_pip_requirements(of_list.model_uri, [MLFLOW, *default, "a", "b"], strict=True)
    wanted = [MLFLOW, *default, "b", "-c constraints.txt"]
    assert_pip_requirements(constrained.model_uri, wanted, ["a"], strict=True)


def test_model_save_accepts_conda_env_as_dict(saved, model_path):
    conda_env = dict(flavor.get_default_conda_env())
    conda_env["dependencies"].append("pytest")
    mlflow_e2eai.save_model(saved.bundle, model_path, conda_env=conda_env)

    found = yaml.safe_load(saved_conda_env(model_path).read_text())
    for item in found["dependencies"]:
        if isinstance(item, dict) and item["pip"][0].startswith("--find-links"):
            del item["pip"][0]  # this package is installed from a folder, and the model carries it
    assert found == conda_env


def test_model_log_persists_specified_conda_env_in_mlflow_model_directory(log, custom_env):
    with mlflow.start_run():
        info = log(conda_env=custom_env)

    found = saved_conda_env(info.model_uri)
    assert str(found) != custom_env
    assert yaml.safe_load(found.read_text()) == yaml.safe_load(Path(custom_env).read_text())


def test_model_log_persists_requirements_in_mlflow_model_directory(log, custom_env):
    with mlflow.start_run():
        info = log(conda_env=custom_env)

    assert_conda_env_requirements(custom_env, saved_file(info.model_uri, "requirements.txt"))


def test_model_save_without_specified_conda_env_uses_default_env_with_expected_dependencies(saved):
    wanted = [MLFLOW, *flavor.get_default_pip_requirements()]
    assert_pip_requirements(saved.directory, wanted, strict=True)


def test_model_log_without_specified_conda_env_uses_default_env_with_expected_dependencies(log):
    with mlflow.start_run():
        info = log()

    wanted = [MLFLOW, *flavor.get_default_pip_requirements()]
    assert_pip_requirements(info.model_uri, wanted, strict=True)


@pytest.mark.parametrize("other", ["pip_requirements", "extra_pip_requirements"])
def test_a_conda_env_and_pip_requirements_exclude_each_other(saved, model_path, custom_env, other):
    with pytest.raises(ValueError, match="Only one of"):
        mlflow_e2eai.save_model(saved.bundle, model_path, conda_env=custom_env, **{other: ["a"]})


def test_pyfunc_predict_supports_models_with_list_outputs(saved, model_path):
    class Lists(torch.nn.Module):
        def forward(self, x):
            return [x.sum(dim=1), x * 2]

    x = saved.inputs["input"]
    options = {"input_example": {"x": x[:5]}, "dynamic_axes": {"x": {0: BATCH}}}
    mlflow_e2eai.save_model(
        Lists().eval(), model_path, **options, precisions=("fp32",), signature=False
    )
    loaded = mlflow.pyfunc.load_model(model_path)

    answer = loaded.predict(pd.DataFrame({"x": list(x)}))
    assert list(answer.columns) == ["output_0", "output_1"]
    assert_close(answer["output_0"], x.sum(axis=1))
    assert_close(np.stack(answer["output_1"].to_list()), x * 2)


def test_log_model_with_code_paths(log, monkeypatch):
    with mlflow.start_run():
        info = log(code_paths=[__file__])
    assert_logged_code_paths(__file__, info.model_uri)

    monkeypatch.setattr(sys, "path", sys.path.copy())
    before = set(sys.path)
    mlflow_e2eai.load_model(info.model_uri)
    (added,) = set(sys.path) - before
    assert Path(added, Path(__file__).name).is_file()


def test_virtualenv_subfield_points_to_correct_path(saved):
    environment = flavor_configuration(saved.directory, PYFUNC)["env"]["virtualenv"]

    assert (saved.directory / environment).is_file()


def test_model_save_load_with_metadata(saved, model_path):
    mlflow_e2eai.save_model(saved.bundle, model_path, metadata={"metadata_key": "metadata_value"})

    loaded = mlflow.pyfunc.load_model(model_path)
    assert loaded.metadata.metadata["metadata_key"] == "metadata_value"


def test_model_log_with_metadata(log):
    with mlflow.start_run():
        info = log(metadata={"metadata_key": "metadata_value"})

    loaded = mlflow.pyfunc.load_model(info.model_uri)
    assert loaded.metadata.metadata["metadata_key"] == "metadata_value"


@pytest.mark.parametrize(
    ("variant", "provider"),
    [
        (None, None),
        ("onnxruntime-cpu/fp32", "CPUExecutionProvider"),
        ("onnxruntime-cuda/fp32", "CUDAExecutionProvider"),
    ],
)
def test_inference_session_always_receives_providers(saved, monkeypatch, variant, provider):
    asked = []

    class Session(onnxruntime.InferenceSession):
        def __init__(self, path, options=None, providers=None):
            asked.append([p if isinstance(p, str) else p[0] for p in providers or ()])
            super().__init__(path, options, providers=["CPUExecutionProvider"])

        def get_providers(self):
            return asked[-1]

    monkeypatch.setattr(onnxruntime, "InferenceSession", Session)
    mlflow.pyfunc.load_model(str(saved.directory), model_config={"variant": variant})

    assert asked
    for providers in asked:
        assert len(providers) == 1
        assert provider in (None, providers[0])


def test_the_model_has_our_flavor_and_those_of_onnx_and_pyfunc(saved):
    assert set(Model.load(saved.directory).flavors) == {FLAVOR, PYFUNC, "onnx"}


def test_the_example_that_goes_with_the_model_can_be_served(saved, served):
    payload = Model.load(saved.directory).get_serving_input(str(saved.directory))
    wanted = as_arrays(saved.module, saved.options["input_example"], "output")["output"]

    assert_close(post(served, yaml.safe_load(payload))["output"], wanted)
