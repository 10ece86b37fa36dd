"""Entry points and models in environments that MLflow makes itself, each from nothing."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import mlflow
import numpy as np
import pytest
from small_models import build, features, net

import mlflow_e2eai
from mlflow_e2eai import tracking

ROOT = Path(__file__).parents[2]
MANAGERS = {"pyenv": (), "uv": ("--env-manager", "uv")}


@pytest.mark.slow
@pytest.mark.parametrize("program", MANAGERS)
def test_an_entry_point_runs_in_an_environment_that_mlflow_makes(store, tmp_path, program):
    if shutil.which(program) is None:
        pytest.skip(f"{program} is not installed here")
    made = build()
    with mlflow.start_run() as run:
        source = tracking.log_source(
            made["model"], made["input_example"], name="net", run_id=run.info.run_id
        )
    words = ["-e", "export", *MANAGERS[program], "-P", f"model_uri=models:/{source}"]
    environment = {
        **os.environ,
        "MLFLOW_TRACKING_URI": mlflow.get_tracking_uri(),
        "MLFLOW_ENV_ROOT": str(tmp_path / "environments"),
        "MLFLOW_DISABLE_TELEMETRY": "true",
        # uv reads none of pip's settings; where pip is told of a folder of wheels, so is uv.
        "UV_FIND_LINKS": os.environ.get("UV_FIND_LINKS", os.environ.get("PIP_FIND_LINKS", "")),
    }
    # MLflow's own, set when an experiment is chosen; beside --experiment-name it is refused.
    environment.pop("MLFLOW_EXPERIMENT_ID", None)
    done = subprocess.run(
        [Path(sys.executable).parent / "mlflow", "run", ROOT, "--experiment-name", "tests", *words],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=1500,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    exported = tracking.resolve(done.stdout.strip().splitlines()[-1])
    assert exported.tags["e2eai.derived_from"] == source


@pytest.mark.slow
def test_a_model_predicts_where_only_its_requirements_are_installed(on_threads, tmp_path):
    if shutil.which("uv") is None:
        pytest.skip("uv is not installed here")
    x, model = features(), tmp_path / "model"
    mlflow_e2eai.save_model(
        net(), model, input_example={"x": x}, precisions=("fp32",), evidence="quick"
    )
    assert "torch" not in (model / "requirements.txt").read_text()
    (tmp_path / "in.json").write_text(json.dumps({"inputs": {"x": x.tolist()}}))
    environment = {
        **os.environ,
        "MLFLOW_ENV_ROOT": str(tmp_path / "environments"),
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "UV_FIND_LINKS": os.environ.get("UV_FIND_LINKS", os.environ.get("PIP_FIND_LINKS", "")),
    }
    environment.pop("PYTHONPATH", None)  # with the checkout there, its wheel would not be tried
    words = ["--model-uri", model, "--env-manager", "uv", "--input-path", "in.json"]
    done = subprocess.run(
        [Path(sys.executable).parent / "mlflow", "models", "predict", *words, "-o", "out.json"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=1500,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads((tmp_path / "out.json").read_text())["predictions"]["output"]
    own = mlflow.pyfunc.load_model(str(model)).predict({"x": x})["output"]
    np.testing.assert_allclose(found, own, rtol=1e-4, atol=1e-6)
