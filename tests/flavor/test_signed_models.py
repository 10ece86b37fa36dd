"""A model is loaded only if it was signed by a key that the caller names."""

from __future__ import annotations

import shutil

import mlflow
import pytest
from signing_keys import make_keys
from small_models import AXES, features, net

import mlflow_e2eai
from mlflow_e2eai.errors import ArtifactError, InvalidInputError
from mlflow_e2eai.flavor import api
from mlflow_e2eai.flavor.native import SIGNER

pytestmark = pytest.mark.usefixtures("on_threads")

URI = "models:/net@champion"


@pytest.fixture(scope="session")
def saved(tmp_path_factory):
    place = tmp_path_factory.mktemp("signed") / "model"
    (place.parent / "helper.py").write_text("ANSWER = 42\n")
    mlflow_e2eai.save_model(
        net(),
        place,
        input_example={"x": features()},
        dynamic_axes=AXES,
        evidence="quick",
        code_paths=[str(place.parent / "helper.py")],
    )
    return place


@pytest.fixture
def ann(tmp_path):
    return make_keys(tmp_path / "ann")


@pytest.fixture
def bob(tmp_path):
    return make_keys(tmp_path / "bob")


@pytest.fixture
def logged(store, saved):
    info = api.log_model(saved, "net", registered_model_name="net")
    store.set_registered_model_alias("net", "champion", 1)
    return info.model_id


def native(uri):
    return lambda key: mlflow_e2eai.load_model(uri, require_signature=key)


def followed(key):
    return mlflow_e2eai.load_model(URI, follow=60, require_signature=key)


def through(load, uri):
    """Load with the key in the environment, as a server does that somebody else starts."""

    def load_it(key):
        with pytest.MonkeyPatch.context() as patch:
            if key is not None:
                patch.setenv(SIGNER, str(key))
            return load(uri)

    return load_it


@pytest.mark.parametrize(
    "load",
    [
        native(URI),
        followed,
        through(mlflow_e2eai.load_model, URI),
        through(mlflow.pyfunc.load_model, URI),
        through(mlflow.pyfunc.load_model, f"e2eai:/{URI.removeprefix('models:/')}"),
    ],
    ids=["native", "followed", "environment", "pyfunc", "on demand"],
)
def test_what_its_signer_did_not_sign_is_not_loaded(load, logged, ann, bob):
    load(None)
    with pytest.raises(ArtifactError, match="has no signature"):
        load(ann[1])
    mlflow_e2eai.sign(URI, ann[0])
    load(ann[1])
    with pytest.raises(ArtifactError, match="is signed by another key than SHA256:"):
        load(bob[1])


@pytest.mark.parametrize("load", [mlflow_e2eai.load_model, mlflow.pyfunc.load_model])
def test_each_file_that_loading_reads_is_the_one_that_was_signed(
    load, saved, tmp_path, ann, monkeypatch
):
    model = shutil.copytree(saved, tmp_path / "model")
    mlflow_e2eai.sign(model, ann[0])
    monkeypatch.setenv(SIGNER, ann[1])
    load(str(model))
    opened = {"MLmodel", "bundle/manifest.json", "bundle/model.onnx"}
    for name in opened | ({"code/helper.py"} if load is mlflow_e2eai.load_model else set()):
        content = (model / name).read_bytes()
        (model / name).write_bytes(content + b"\n")
        with pytest.raises(ArtifactError):
            load(str(model))
        (model / name).write_bytes(content)
    load(str(model))


def test_a_list_of_digests_that_fits_changed_files_does_not_stand_for_the_signature(
    saved, tmp_path, ann
):
    model = shutil.copytree(saved, tmp_path / "model")
    mlflow_e2eai.sign(model, ann[0])
    (model / "MLmodel").write_text((model / "MLmodel").read_text() + "\nnote: changed\n")
    mlflow_e2eai.load_model(str(model))
    with pytest.raises(ArtifactError, match=r"MLmodel of .* is not the file that was signed"):
        mlflow_e2eai.load_model(str(model), require_signature=ann[1])


def test_a_key_that_is_none_is_one_sentence(saved, monkeypatch):
    with pytest.raises(InvalidInputError, match="Cannot read nowhere"):
        mlflow_e2eai.load_model(str(saved), require_signature="nowhere")
    monkeypatch.setenv(SIGNER, "ssh-ed25519 AAAA")
    with pytest.raises(InvalidInputError, match="is no public key"):
        mlflow_e2eai.load_model(str(saved))
