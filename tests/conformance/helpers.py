"""What MLflow's own flavor tests share, written again for this package."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mlflow
import numpy as np
import onnxruntime
import pytest
import torch
import yaml
from mlflow.pyfunc.scoring_server import CONTENT_TYPE_JSON, invocations
from mlflow.tracking.artifact_utils import _download_artifact_from_uri
from mlflow.utils.model_utils import _get_flavor_configuration

import mlflow_e2eai

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

FLAVOR = "mlflow_e2eai"
PYFUNC = "python_function"
MLFLOW = f"mlflow=={mlflow.__version__}"

ITEMS = 150
BATCH = mlflow_e2eai.Axis("batch", min=1, opt=5, max=ITEMS)

_START_S = 90
_STOP_S = 20


class TwoInputs(torch.nn.Module):
    """Takes its features in two parts, as MLflow's own multi-tensor model does."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(4, 1)

    def forward(self, sepal_features, petal_features):
        return self.linear(torch.cat((sepal_features, petal_features), dim=-1))


class NotInFp16(torch.nn.Module):
    """Gives 1 in fp32, and 0/0 in fp16, where its two weights are the same number."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("one", torch.full((4,), 1.0))
        self.register_buffer("almost_one", torch.full((4,), 1.0001))

    def forward(self, x):
        difference = x * self.one - x * self.almost_one
        return difference / difference


def as_arrays(module, inputs, output) -> dict[str, np.ndarray]:
    """What a module with one output says."""
    with torch.no_grad():
        answer = module(*(torch.from_numpy(array) for array in inputs.values()))
    return {output: answer.numpy()}


def run_onnx(model, inputs) -> dict[str, np.ndarray]:
    """What a ModelProto says, run by ONNX Runtime itself."""
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, inputs), strict=True))


def assert_close(found, wanted) -> None:
    np.testing.assert_allclose(np.asarray(found), np.asarray(wanted), rtol=1e-5, atol=1e-5)


def flavor_configuration(model_uri, flavor) -> dict[str, Any]:
    place = _download_artifact_from_uri(str(model_uri))
    return _get_flavor_configuration(model_path=place, flavor_name=flavor)


def saved_file(model_uri, *parts) -> Path:
    return Path(_download_artifact_from_uri(str(model_uri)), *parts)


def saved_conda_env(model_uri) -> Path:
    conda_env = flavor_configuration(model_uri, PYFUNC)["env"]["conda"]
    return saved_file(model_uri, conda_env)


def lines_of(path) -> list[str]:
    """The requirements in a file, without pip's options."""
    return [
        line
        for line in Path(path).read_text().splitlines()
        if line and not line.startswith("--find-links")
    ]


def _pip_section(conda_env) -> list[str]:
    parsed = yaml.safe_load(Path(conda_env).read_text())
    found = next(item["pip"] for item in parsed["dependencies"] if isinstance(item, dict))
    return [line for line in found if not line.startswith("--find-links")]


def assert_pip_requirements(model_uri, requirements, constraints=None, *, strict=False) -> None:
    """requirements.txt, constraints.txt and conda.yaml hold these (with strict, only these)."""
    found = set(lines_of(saved_file(model_uri, "requirements.txt")))
    in_conda = set(_pip_section(saved_conda_env(model_uri)))
    wanted = set(requirements)
    assert in_conda == found
    assert found == wanted if strict else wanted <= found
    if constraints is None:
        assert not saved_file(model_uri, "constraints.txt").exists()
    else:
        assert set(lines_of(saved_file(model_uri, "constraints.txt"))) == set(constraints)


def assert_conda_env_requirements(conda_env, requirements_file) -> None:
    """requirements.txt holds what the conda environment installs by pip."""
    assert set(lines_of(requirements_file)) == set(_pip_section(conda_env))


def assert_logged_code_paths(code_path, model_uri) -> None:
    """The file was copied, and each flavor knows where it is."""
    folders = {flavor_configuration(model_uri, name)["code"] for name in (FLAVOR, PYFUNC, "onnx")}
    assert len(folders) == 1
    copied = saved_file(model_uri, folders.pop(), Path(code_path).name)
    assert copied.read_bytes() == Path(code_path).read_bytes()


def assert_registered(register, model_uri, name) -> None:
    """MLflow registered once; after the files were seen to be stored, the local ones are gone."""
    register.assert_called_once()
    options = register.call_args.kwargs
    assert (options["model_uri"], options["name"]) == (model_uri, name)
    assert options["await_registration_for"] == 300
    assert options.get("local_model_path") is None


def score(model_path, payload: Mapping[str, Any]) -> Any:
    """What MLflow's scoring server makes of a JSON request, without the server around it."""
    model = mlflow.pyfunc.load_model(str(model_path))
    schema = model.metadata.get_input_schema()
    response = invocations(json.dumps(payload), CONTENT_TYPE_JSON, model, schema)
    assert response.status == 200, response.response
    return json.loads(response.response)["predictions"]


def post(address, payload: Mapping[str, Any]) -> Any:
    """Score a JSON request at a served model."""
    request = urllib.request.Request(  # noqa: S310 - http, on this machine
        f"{address}/invocations",
        data=json.dumps(payload).encode(),
        headers={"Content-Type": CONTENT_TYPE_JSON},
    )
    with urllib.request.urlopen(request, timeout=30) as response:  # noqa: S310
        return json.loads(response.read())["predictions"]


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@contextmanager
def serving(model_path, *, python=sys.executable) -> Iterator[str]:
    """`mlflow models serve`, for the block, by the MLflow of an interpreter."""
    options = ["--model-uri", str(model_path), "--env-manager", "local"]
    with _started(["models", "serve", *options], path="/ping", python=python) as address:
        yield address


@contextmanager
def tracking_server(folder) -> Iterator[str]:
    """`mlflow server` on the SQLite database in a folder, for the block."""
    options = ["--backend-store-uri", f"sqlite:///{folder}/mlflow.db"]
    options += ["--artifacts-destination", f"{folder}/artifacts", "--workers", "1"]
    with _started(["server", *options], path="/health") as address:
        yield address


@contextmanager
def _started(arguments, *, path, python=sys.executable) -> Iterator[str]:
    """An MLflow command that serves on a free port of this machine, once it answers."""
    address = f"http://127.0.0.1:{(port := free_port())}"
    command = [python, "-m", "mlflow", *arguments, "--host", "127.0.0.1"]
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(
            [*command, "--port", str(port)],
            env=_environment(python, MLFLOW_SERVER_ENABLE_JOB_EXECUTION="false"),
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # it has children, and they are stopped with it
        )
        try:
            _wait_for(f"{address}{path}", process, log)
            yield address
        finally:
            _stop(process)


def _environment(python=sys.executable, **more) -> dict[str, str]:
    """This process's, in which MLflow also finds what is installed beside the interpreter."""
    beside = str(Path(python).parent)
    return {**os.environ, "PATH": f"{beside}{os.pathsep}{os.environ['PATH']}", **more}


def _stop(process) -> None:
    for number in (signal.SIGTERM, signal.SIGKILL):
        if process.poll() is not None:
            return
        os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_STOP_S)


def _wait_for(address, process, log) -> None:
    deadline = time.monotonic() + _START_S
    while time.monotonic() < deadline:
        if process.poll() is not None:
            log.seek(0)
            pytest.fail(f"{address} ended with status {process.returncode}: {log.read()[-2000:]}")
        try:
            with urllib.request.urlopen(address, timeout=5):  # noqa: S310 - http, on this machine
                return
        except (urllib.error.URLError, http.client.HTTPException, OSError):
            time.sleep(0.2)
    pytest.fail(f"{address} did not answer within {_START_S} s")


def run_python(code, *, cwd, **environment) -> str:
    """What a program prints in a fresh interpreter; its failure is the test's."""
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=cwd,
        env=_environment(**environment),
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
