"""`doctor`: what the machine has and lacks, how to get it, and nothing that is secret."""

from __future__ import annotations

import importlib.metadata
import json

import mlflow
import pytest

from mlflow_e2eai.artifacts import machine
from mlflow_e2eai.cli import doctor, main
from mlflow_e2eai.cli.doctor import diagnose, public_address
from mlflow_e2eai.errors import MissingDependencyError

pytestmark = pytest.mark.usefixtures("isolated")


def check(name):
    return next(check for check in diagnose().checks if check.name == name)


def without(monkeypatch, *missing):
    """The machine without some distributions."""
    real = importlib.metadata.version

    def version(name):
        if name in missing:
            raise importlib.metadata.PackageNotFoundError(name)
        return real(name)

    monkeypatch.setattr(doctor, "version", version)


def test_what_is_installed_is_shown_with_its_version():
    for name in ("mlflow", "onnx", "torch"):
        assert (check(name).state, check(name).found) == ("ok", importlib.metadata.version(name))
    assert "CPUExecutionProvider" in check("ONNX Runtime").found


@pytest.mark.parametrize(
    ("distribution", "name", "command"),
    [
        ("torch", "torch", "pip install 'mlflow_e2eai[torch]'"),
        ("tensorrt-rtx-cu13", "TensorRT-RTX", "pip install 'mlflow_e2eai[rtx]'"),
        ("tensorrt-cu13", "TensorRT", "pip install 'mlflow_e2eai[tensorrt]'"),
        ("ray", "ray", "pip install 'mlflow_e2eai[ray]'"),
    ],
)
def test_what_is_missing_is_shown_with_its_purpose_and_the_command(
    distribution, name, command, monkeypatch, capsys
):
    without(monkeypatch, distribution)
    found = check(name)

    assert (found.state, found.command) == ("missing", command)
    assert main.main(["doctor"]) == main.DONE
    out = capsys.readouterr().out
    assert f"for {found.purpose}" in out
    assert command in out


def test_a_library_that_is_installed_and_does_not_load_is_broken_with_its_reason(monkeypatch):
    def refuse(backend):
        raise MissingDependencyError(package="x", extra="rtx", purpose="y") from OSError("no libnv")

    monkeypatch.setattr(doctor, "version", lambda _: "1.0")
    monkeypatch.setattr(doctor, "load", refuse)

    assert check("TensorRT-RTX").state == "broken"
    assert "1.0, which does not load: no libnv" in check("TensorRT-RTX").found


def test_a_gpu_is_shown_with_its_capability_and_driver(monkeypatch):
    monkeypatch.setattr(machine, "gpu_name", lambda: "NVIDIA L4")
    monkeypatch.setattr(machine, "driver_version", lambda: "580.1")
    monkeypatch.setattr(machine, "local_compute_capability", lambda: "sm89")
    assert (check("GPU").state, check("GPU").found) == ("ok", "NVIDIA L4, sm89, driver 580.1")

    monkeypatch.setattr(machine, "local_compute_capability", lambda: None)
    assert check("GPU").state == "broken"

    monkeypatch.setattr(machine, "gpu_name", lambda: None)
    assert check("GPU").state == "missing"


def test_a_server_that_does_not_respond_is_named_without_its_password(monkeypatch, capsys):
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "t0ken")
    mlflow.set_tracking_uri("http://bob:s3cret@localhost:1/mlflow?key=k3y")
    for words in (["doctor"], ["doctor", "--json"]):
        assert main.main(words) == main.DONE
        out, err = capsys.readouterr()
        assert "http://localhost:1/mlflow does not respond" in out
        assert "MLFLOW_TRACKING_TOKEN" in out
        assert not [secret for secret in ("bob", "s3cret", "t0ken", "k3y") if secret in out + err]


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        ("http://host:5000", "http://host:5000"),
        ("https://user:pass@host/path", "https://host/path"),
        ("https://user:p@ss/word@host", "https://host"),
        ("user:pass@host:5000", "host:5000"),
        ("http://bob:s3cret/path", "http://***/path"),
        ("http//user:pass@host", "host"),
        ("postgresql://u:p@db/mlflow?password=p", "postgresql://db/mlflow"),
        ("https://host#token", "https://host"),
        ("sqlite:///mlflow.db", "sqlite:///mlflow.db"),
    ],
)
def test_a_uri_is_shown_public_address_also_where_it_is_mistyped(uri, shown):
    assert public_address(uri) == shown


def test_the_diagnosis_is_data_too(capsys):
    assert main.main(["doctor", "--json"]) == main.DONE
    data = json.loads(capsys.readouterr().out)

    assert {check["state"] for check in data["checks"]} <= {"ok", "missing", "broken"}
    assert data["checks"][0]["name"] == "Python"
    frame = diagnose().to_pandas()
    assert list(frame["name"]) == [check["name"] for check in data["checks"]]
