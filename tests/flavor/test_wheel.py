"""A model from a checkout carries the package, so that its requirements install anywhere."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from small_models import features, net

import mlflow_e2eai
from mlflow_e2eai.flavor import get_default_pip_requirements, mlmodel, wheel


def installed_from(monkeypatch, record):
    """Let pip have recorded this of the package."""

    class Installed:
        def read_text(self, name):
            return json.dumps(record) if record and name == "direct_url.json" else None

    monkeypatch.setattr(wheel, "distribution", lambda _: Installed())


@pytest.fixture(scope="module")
def model(on_threads, tmp_path_factory):
    """A saved model, by a package that is installed from a folder."""
    path = tmp_path_factory.mktemp("models") / "net"
    with pytest.MonkeyPatch.context() as patch:
        found = wheel.Origin(requirement="mlflow_e2eai==0.1.0", local="file:///folder")
        for module in ("mlmodel", "wheel"):
            patch.setattr(f"mlflow_e2eai.flavor.{module}.origin", lambda: found)
        mlflow_e2eai.save_model(
            net(), path, input_example={"x": features()}, precisions=("fp32",), evidence="quick"
        )
    return path


def test_a_process_warns_once_that_its_models_contain_the_package(caplog):
    mlmodel._report_wheel.cache_clear()
    for _ in range(2):
        mlmodel._report_wheel("mlflow_e2eai==0.1.0")
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert record.getMessage().startswith(
        "requirements.txt takes mlflow_e2eai==0.1.0 from packages/"
    )


@pytest.mark.system
def test_pip_installs_the_package_from_the_models_folder_wherever_it_runs(model, tmp_path):
    options = [line for line in lines_of(model) if line.startswith("-")]
    (model / "own.txt").write_text("\n".join([*options, "mlflow_e2eai==0.1.0"]))
    target = tmp_path / "installed"
    command = [sys.executable, "-m", "pip", "install", "--no-index", "--no-deps", "--target"]
    done = subprocess.run(
        [*command, str(target), "-r", str(model / "own.txt")],
        cwd=tmp_path,
        env={"PIP_CONFIG_FILE": "/dev/null"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    package = Path(mlflow_e2eai.__file__).parent
    for path in package.rglob("*"):
        if path.is_file() and "__pycache__" not in path.parts:
            copy = target / "mlflow_e2eai" / path.relative_to(package)
            assert copy.read_bytes() == path.read_bytes()
    (info,) = target.glob("*.dist-info")
    assert "Requires-Dist: mlflow" in (info / "METADATA").read_text()
    assert "mlflow.artifact_repository" in (info / "entry_points.txt").read_text()


def lines_of(model):
    return (model / "requirements.txt").read_text().splitlines()


def test_the_wheel_is_in_the_requirements_of_pip_and_conda_and_its_digest_in_the_mlmodel(model):
    assert lines_of(model)[0] == "--find-links packages"
    conda = yaml.safe_load((model / "conda.yaml").read_text())
    assert conda["dependencies"][-1]["pip"] == lines_of(model)
    (file,) = (model / "packages").iterdir()
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    described = yaml.safe_load((model / "MLmodel").read_text())
    assert described["flavors"]["mlflow_e2eai"]["wheel_sha256"] == digest
    assert file.stat().st_size < 1 << 20


def test_the_same_code_has_the_same_digest(tmp_path):
    first = wheel.write_wheel(tmp_path / "first")
    wheel._wheel.cache_clear()
    assert wheel.write_wheel(tmp_path / "second") == first


@pytest.mark.parametrize(
    ("record", "requirement"),
    [
        (None, "mlflow_e2eai==0.1.0"),
        (
            {"url": "https://host/e2eai", "vcs_info": {"vcs": "git", "commit_id": "abc123"}},
            "mlflow_e2eai @ git+https://host/e2eai@abc123",
        ),
        (
            {"url": "https://me:geheim@host/e", "vcs_info": {"vcs": "git", "commit_id": "abc123"}},
            "mlflow_e2eai @ git+https://host/e@abc123",
        ),
        ({"url": "https://geheim@host/e.whl"}, "mlflow_e2eai @ https://host/e.whl"),
    ],
    ids=["an index", "a repository", "a repository with a password", "an address with a token"],
)
def test_a_package_is_required_from_where_it_came_and_nothing_is_carried(
    monkeypatch, record, requirement
):
    installed_from(monkeypatch, record)
    assert wheel.origin() == wheel.Origin(requirement=requirement)
    assert get_default_pip_requirements()[0] == requirement


def test_a_package_from_a_folder_is_carried(monkeypatch):
    installed_from(monkeypatch, {"url": "file:///folder", "dir_info": {"editable": True}})
    assert wheel.origin().local == "file:///folder"
