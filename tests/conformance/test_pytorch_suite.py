"""The tests that MLflow holds its PyTorch flavor to, under their names, held to this one.

Those that the ONNX suite has as well stand in test_onnx_suite.py. Not here, and why:

* pickle_module, requirements_file and `torch.load` cases: a bundle holds no pickle and needs no
  PyTorch where it is loaded.
* state_dict cases (save_state_dict, load_state_dict): a state dict has no graph to export.
* ..._when_data_is_model_file_instead_of_directory: a form of MLflow's own models before 1.0.
* ..._with_main_scoped_subclassed_model_...: classes are not pickled, so their scope is nothing.
* test_load_model_with_differing_pytorch_version_logs_warning: what must fit is the format of the
  bundle (test_load_model_with_differing_format_version_names_the_version_that_wrote_it).
* SageMaker and Docker cases: they test MLflow's images.
"""

from __future__ import annotations

import json
import shutil

import mlflow
import numpy as np
import pandas as pd
import pytest
import torch
from helpers import (
    MLFLOW,
    as_arrays,
    assert_close,
    assert_pip_requirements,
    flavor_configuration,
    lines_of,
    post,
    run_python,
    saved_file,
)
from mlflow.entities import LoggedModelStatus
from mlflow.exceptions import MlflowException

import mlflow_e2eai
from mlflow_e2eai import flavor
from mlflow_e2eai.artifacts.files import seal
from mlflow_e2eai.errors import ArtifactError, InvalidInputError

pytestmark = [pytest.mark.exporters, pytest.mark.usefixtures("on_threads")]


def test_log_model(saved, log):
    with mlflow.start_run() as run:
        info = log()

    assert info.model_uri == f"models:/{info.model_id}"
    assert info.run_id == run.info.run_id
    loaded = mlflow_e2eai.load_model(info.model_uri)
    assert_close(loaded(saved.inputs)["output"], saved.outputs["output"])
    by_run = mlflow_e2eai.load_model(f"runs:/{run.info.run_id}/model")
    assert_close(by_run(saved.inputs)["output"], saved.outputs["output"])


def test_log_model_takes_the_arguments_that_every_flavor_takes(log, store):
    with mlflow.start_run() as run:
        mlflow.log_param("of_the_run", 1)
        mlflow.log_metric("loss", 0.25, step=7)
        mlflow.log_metric("loss", 0.5, step=8)
        info = log(
            params={"learning_rate": 0.1},
            tags={"team": "vision"},
            model_type="classifier",
            step=7,
        )

    model = store.get_logged_model(info.model_id)
    assert model.name == "model"
    assert model.model_type == "classifier"
    assert model.source_run_id == run.info.run_id
    assert model.params == {"learning_rate": "0.1", "of_the_run": "1"}
    assert model.tags["team"] == "vision"
    assert ("loss", 0.25, 7) in [(m.key, m.value, m.step) for m in model.metrics]
    (output,) = [
        output
        for output in store.get_run(run.info.run_id).outputs.model_outputs
        if output.model_id == info.model_id
    ]
    assert output.step == 7


def test_log_model_writes_into_the_logged_model_that_is_there_already(saved, log, store):
    given = mlflow.initialize_logged_model(name="given", tags={"mine": "kept"})
    info = log(model_id=given.model_id)

    assert info.model_id == given.model_id
    model = store.get_logged_model(given.model_id)
    assert model.status == LoggedModelStatus.READY
    assert model.name == "given"
    assert model.tags["mine"] == "kept"
    loaded = mlflow_e2eai.load_model(f"models:/{given.model_id}")
    assert_close(loaded(saved.inputs)["output"], saved.outputs["output"])


def test_log_model_registers_a_version_and_waits_until_it_is_ready(saved, log, store):
    with mlflow.start_run():
        info = log(registered_model_name="net", await_registration_for=20, tags={"team": "vision"})

    version = store.get_model_version("net", info.registered_model_version)
    assert version.status == "READY"
    assert version.source == info.model_uri
    assert version.tags["team"] == "vision"
    loaded = mlflow_e2eai.load_model(f"models:/net/{version.version}")
    assert_close(loaded(saved.inputs)["output"], saved.outputs["output"])


def test_raise_exception(saved, saved_in_two_precisions, tmp_path):
    missing = str(tmp_path / "missing")
    with pytest.raises(Exception) as of_mlflow:  # noqa: PT011 - whatever MLflow's own flavor raises
        mlflow.onnx.load_model(missing)
    with pytest.raises(type(of_mlflow.value), match="missing"):
        mlflow_e2eai.load_model(missing)

    with pytest.raises(InvalidInputError, match=r"The model is a list, but a torch\.nn\.Module"):
        mlflow_e2eai.save_model([1, 2, 3], missing, input_example=torch.ones(1, 4))

    with pytest.raises(MlflowException, match="already exists"):
        mlflow_e2eai.save_model(saved.bundle, saved_in_two_precisions.directory)

    of_another = tmp_path / "of_another"
    shutil.copytree(saved.directory, of_another)
    description = (of_another / "MLmodel").read_text()
    (of_another / "MLmodel").write_text(description.replace("  mlflow_e2eai:", "  other:"))
    with pytest.raises(MlflowException, match='does not have the "mlflow_e2eai" flavor'):
        mlflow_e2eai.load_model(str(of_another))


def test_save_and_load_model(saved, saved_without_signature, data):
    loaded = mlflow_e2eai.load_model(str(saved.directory))
    assert_close(loaded(saved.inputs)["output"], saved.outputs["output"])
    tensors = loaded(torch.from_numpy(saved.inputs["input"]))
    assert isinstance(tensors["output"], torch.Tensor)
    assert_close(tensors["output"], saved.outputs["output"])

    of_pyfunc = mlflow.pyfunc.load_model(str(saved_without_signature))
    assert_close(of_pyfunc.predict(data).to_numpy(), saved.outputs["output"])


def test_load_model_downloads_to_the_folder_that_it_is_given(saved, log, tmp_path):
    with mlflow.start_run():
        info = log()
    (tmp_path / "here").mkdir()

    loaded = mlflow_e2eai.load_model(info.model_uri, str(tmp_path / "here"))
    assert (tmp_path / "here" / "bundle" / "model.onnx").is_file()
    assert_close(loaded(saved.inputs)["output"], saved.outputs["output"])


def test_pyfunc_model_works_with_np_input_type(saved, saved_without_signature, data):
    loaded = mlflow.pyfunc.load_model(str(saved_without_signature))
    predicted = saved.outputs["output"]

    of_frame = loaded.predict(data)
    assert isinstance(of_frame, pd.DataFrame)
    assert_close(of_frame.to_numpy(), predicted)
    of_array = loaded.predict(data.to_numpy())["output"]
    assert isinstance(of_array, np.ndarray)
    assert_close(of_array, predicted)
    for wrong in (4, "four", None):
        with pytest.raises(TypeError, match="a mapping, array or DataFrame is expected"):
            loaded.predict(wrong)


def test_load_model_from_remote_uri_succeeds(saved, remote_store):
    info = mlflow_e2eai.log_model(saved.bundle, "remote")
    place = remote_store.get_logged_model(info.model_id).artifact_location
    assert place.startswith("mlflow-artifacts:/")

    for uri in (info.model_uri, place):
        loaded = mlflow_e2eai.load_model(uri)
        assert_close(loaded(saved.inputs)["output"], saved.outputs["output"])


def test_load_model_with_differing_format_version_names_the_version_that_wrote_it(saved, tmp_path):
    shutil.copytree(saved.directory, tmp_path / "model")
    manifest = tmp_path / "model" / "bundle" / "manifest.json"
    content = json.loads(manifest.read_text())
    del content["sha256"]
    later = {**content, "format_version": 99, "package_version": "9.8.7"}
    manifest.write_text(seal(json.dumps(later, indent=2)))

    with pytest.raises(ArtifactError, match=r"format 99, written by mlflow_e2eai 9\.8\.7"):
        mlflow_e2eai.load_model(str(tmp_path / "model"))


def test_pyfunc_serve_and_score(saved, served):
    inputs = saved.inputs["input"]

    for count in (1, 5, len(inputs)):
        answer = post(served, {"inputs": {"input": inputs[:count].tolist()}})
        assert_close(answer["output"], saved.outputs["output"][:count])


@pytest.mark.parametrize("argument", ["code_paths", "extra_files"])
def test_save_model_with_wrong_codepaths_fails_correctly(saved, model_path, argument):
    with pytest.raises(InvalidInputError, match=f"{argument}='some string' is a str; give a list"):
        mlflow_e2eai.save_model(saved.bundle, model_path, **{argument: "some string"})

    # What failed left nothing in the way of a second try.
    mlflow_e2eai.save_model(saved.bundle, model_path)
    loaded = mlflow_e2eai.load_model(model_path)
    assert_close(loaded(saved.inputs)["output"], saved.outputs["output"])


def test_save_model_that_fails_leaves_nothing_in_the_way_of_a_second_try(saved, model_path):
    class Broken(torch.nn.Module):
        def forward(self, x):
            if bool((x.sum() > 0).item()):
                return x
            msg = "broken"
            raise RuntimeError(msg)

    with pytest.raises(InvalidInputError, match="broken"):
        mlflow_e2eai.save_model(Broken().eval(), model_path, input_example=-torch.ones(1, 4))
    mlflow_e2eai.save_model(saved.bundle, model_path)


def test_load_model_succeeds_with_dependencies_specified_via_code_paths(
    saved, model_path, tmp_path
):
    (tmp_path / "source").mkdir()
    dependency = tmp_path / "source" / "a_dependency_of_the_caller.py"
    dependency.write_text("ANSWER = 42\n")
    mlflow_e2eai.save_model(saved.bundle, model_path, code_paths=[str(dependency)])

    program = """
import mlflow, mlflow_e2eai, numpy
{load}
import a_dependency_of_the_caller
print(a_dependency_of_the_caller.ANSWER)
""".strip()
    native = program.format(load=f"mlflow_e2eai.load_model({model_path!r})")
    of_pyfunc = program.format(load=f"mlflow.pyfunc.load_model({model_path!r})")
    assert run_python(native, cwd=tmp_path).split() == ["42"]
    assert run_python(of_pyfunc, cwd=tmp_path).split() == ["42"]


@pytest.fixture
def extra_files(tmp_path) -> list[str]:
    names = ["extra_1.txt", "extra_2.txt"]
    for name in names:
        (tmp_path / name).write_text(f"the content of {name}")
    return [str(tmp_path / name) for name in names]


def _assert_extra_files(model_uri):
    listed = flavor_configuration(model_uri, flavor.FLAVOR_NAME)["extra_files"]
    assert [item["path"] for item in listed] == [
        "extra_files/extra_1.txt",
        "extra_files/extra_2.txt",
    ]
    for item in listed:
        file = saved_file(model_uri, item["path"])
        assert file.read_text() == f"the content of {file.name}"


def test_extra_files_log_model(log, extra_files):
    with mlflow.start_run():
        info = log(extra_files=extra_files)

    _assert_extra_files(info.model_uri)


def test_extra_files_save_model(saved, model_path, extra_files):
    mlflow_e2eai.save_model(saved.bundle, model_path, extra_files=extra_files)

    _assert_extra_files(model_path)


def test_log_model_invalid_extra_file_path(log):
    with mlflow.start_run(), pytest.raises(InvalidInputError, match="which does not exist"):
        log(extra_files=["no_such_file.txt"])


def test_log_model_invalid_extra_file_type(log):
    with (
        mlflow.start_run(),
        pytest.raises(InvalidInputError, match="extra_files='no_such_file' is a str"),
    ):
        log(extra_files="no_such_file")


def test_save_model_with_pip_requirements(saved, tmp_path):
    file = tmp_path / "requirements.txt"
    file.write_text("a")
    for number, given in enumerate([str(file), [f"-r {file}"], ["a"]]):
        place = tmp_path / str(number)
        mlflow_e2eai.save_model(saved.bundle, place, pip_requirements=given)
        assert_pip_requirements(place, [MLFLOW, "a"], strict=True)


def test_save_model_with_extra_pip_requirements(saved, tmp_path):
    file = tmp_path / "requirements.txt"
    file.write_text("a")
    default = flavor.get_default_pip_requirements()
    for number, given in enumerate([str(file), [f"-r {file}"], ["a"]]):
        place = tmp_path / str(number)
        mlflow_e2eai.save_model(saved.bundle, place, extra_pip_requirements=given)
        assert_pip_requirements(place, [MLFLOW, *default, "a"], strict=True)


def test_the_model_written_is_loaded_by_the_same_pinned_packages(saved):
    for line in lines_of(saved.directory / "requirements.txt"):
        name, _, version = line.partition("==")
        assert version, f"{name} is not pinned"


def test_a_module_of_several_inputs_takes_them_by_name(saved_with_two_inputs):
    inputs = saved_with_two_inputs.inputs
    loaded = mlflow_e2eai.load_model(str(saved_with_two_inputs.directory))

    answer = loaded(**dict(reversed(inputs.items())))
    wanted = as_arrays(saved_with_two_inputs.module, inputs, "target")
    assert_close(answer["target"], wanted["target"])
