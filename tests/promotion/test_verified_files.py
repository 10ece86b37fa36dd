"""No version is promoted of which a file is another than the one that was logged."""

from __future__ import annotations

import subprocess
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from small_models import AXES, features, net

import mlflow_e2eai
from mlflow_e2eai.bundle.digests import write_digests
from mlflow_e2eai.errors import ArtifactError
from mlflow_e2eai.flavor import api

pytestmark = pytest.mark.usefixtures("on_threads")

GATES = {"gates": [{"metric": "parity/failed", "at_most": 0}]}


@pytest.fixture(scope="session")
def saved(tmp_path_factory):
    place = tmp_path_factory.mktemp("saved") / "model"
    mlflow_e2eai.save_model(
        net(),
        place,
        input_example={"x": features()},
        dynamic_axes=AXES,
        evidence="quick",
    )
    return place


@pytest.fixture
def logged(store, saved, artifacts, tmp_path):
    """A registered version with code and a file of its user: its number, and its stored files.

    The files are a folder, to be changed in a block.
    """
    (tmp_path / "helper.py").write_text("ANSWER = 42\n")
    (tmp_path / "notes.txt").write_text("what the user wants to keep\n")
    info = api.log_model(
        saved,
        "net",
        registered_model_name="net",
        code_paths=[str(tmp_path / "helper.py")],
        extra_files=[str(tmp_path / "notes.txt")],
    )
    return info.registered_model_version, partial(artifacts.edited, info.model_id)


def files(folder):
    return sorted(path for path in folder.rglob("*") if path.is_file())


def refused(version):
    with pytest.raises(ArtifactError) as raised:
        mlflow_e2eai.promote("net", version, gates=GATES)
    return str(raised.value)


def test_a_version_as_it_was_logged_is_promoted_and_coreutils_agree(logged):
    version, edited = logged
    assert mlflow_e2eai.promote("net", version, gates=GATES).promoted
    with edited() as folder:
        subprocess.run(["sha256sum", "--check", "--strict", "SHA256SUMS"], cwd=folder, check=True)


def test_one_flipped_bit_in_any_file_is_refused_by_name(store, logged):
    version, edited = logged
    with edited() as folder:
        contents = {path.relative_to(folder): path.read_bytes() for path in files(folder)}
    names = {path.as_posix() for path in contents}
    assert {"MLmodel", "requirements.txt", "bundle/model.onnx", "code/helper.py"} <= names
    for path, content in contents.items():
        changed = bytearray(content)
        changed[len(changed) // 3] ^= 1 << 3
        with edited() as folder:
            (folder / path).write_bytes(changed)
        assert f"{path.name} has sha256" in refused(version)
        with edited() as folder:
            (folder / path).write_bytes(content)
    assert store.get_registered_model("net").aliases == {}
    assert mlflow_e2eai.promote("net", version, gates=GATES).promoted


def test_a_missing_file_is_refused_by_name(logged):
    version, edited = logged
    with edited() as folder:
        (folder / "bundle" / "model.onnx").unlink()
    assert "bundle/model.onnx, which was in the model when it was made, is missing" in refused(
        version
    )


@pytest.mark.parametrize("name", ["bundle/libevil.so", "code/__pycache__/helper.cpython-311.pyc"])
def test_a_file_that_was_not_logged_is_refused_by_name(logged, name):
    version, edited = logged
    with edited() as folder:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"anything")
    assert f"{name} was not in the model" in refused(version)


def test_a_list_that_was_made_to_fit_is_refused(logged):
    version, edited = logged
    with edited() as folder:
        (folder / "requirements.txt").write_text("evil\n")
        write_digests(folder)
    assert "SHA256SUMS has sha256" in refused(version)


def test_a_version_without_digests_is_refused(store, logged):
    version, _ = logged
    model_id = store.get_model_version("net", version).source.removeprefix("models:/")
    store.delete_logged_model_tag(model_id, "e2eai.mlmodel_sha256")
    store.delete_model_version_tag("net", version, "e2eai.mlmodel_sha256")
    assert "no digests of its files" in refused(version)


@pytest.mark.parametrize(
    "name", ["bundle/input_example.npz", "requirements.txt", "SHA256SUMS", "MLmodel"]
)
def test_a_version_with_a_changed_file_is_not_exported_for_triton(logged, tmp_path, name):
    version, edited = logged
    with edited() as folder:
        changed = bytearray((folder / name).read_bytes())
        changed[-2] ^= 1
        (folder / name).write_bytes(changed)
    with pytest.raises(ArtifactError, match=f"{Path(name).name} has sha256"):
        mlflow_e2eai.export_triton(f"models:/net/{version}", tmp_path / "repository")
    assert not (tmp_path / "repository").exists()


def test_a_version_with_a_changed_example_is_not_followed(store, logged):
    version, edited = logged
    store.set_registered_model_alias("net", "champion", version)
    with edited() as folder:
        np.savez(folder / "bundle" / "input_example.npz", x=features() * 1e9)
    with pytest.raises(ArtifactError, match=r"input_example\.npz has sha256"):
        mlflow_e2eai.load_model("models:/net@champion", follow=5.0)
