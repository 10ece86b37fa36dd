"""`mlflow run .` in environments that MLflow makes itself, each installed from nothing."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import mlflow
import pytest
from small_models import build

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
