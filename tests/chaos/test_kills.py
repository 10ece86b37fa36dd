"""Killed again and again at random moments, a pipeline ends as if it had run once."""

from __future__ import annotations

import getpass
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import mlflow
import psutil
import pytest
from small_models import AXES, features, net

import mlflow_e2eai
from mlflow_e2eai import tracking
from mlflow_e2eai.tracking.lineage import (
    ERROR,
    MLMODEL_SHA256,
    PARENT_RUN,
    SHA256,
)
from mlflow_e2eai.tracking.store.integrity import verify_logged_files
from mlflow_e2eai.tracking.store.source_digest import source_digest

STAGES = 9
"""Runs that the pipeline of this file makes, its own and that of `package` among them."""


class Attempts:
    """Pipelines of one model in one store, one after the other."""

    def __init__(self, uri, folder):
        self.folder = folder / "tmp"
        self.folder.mkdir()
        options = ["--targets", "sm86", "--evidence", "quick"]
        self._command = [sys.executable, "-m", "mlflow_e2eai", "pipeline", uri, *options]
        self._environment = {**os.environ, "TMPDIR": str(self.folder), "CHAOS": str(folder)}

    def start(self, *options):
        """Start a pipeline in a process group of its own."""
        return subprocess.Popen(
            [*self._command, *options],
            env=self._environment,
            start_new_session=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )

    def kill_at(self, stage, delay_s, *options):
        """Kill a pipeline some seconds after its nth run began; whether it was alive."""
        before, process = len(all_runs()), self.start(*options)
        while process.poll() is None and len(all_runs()) < before + stage:
            time.sleep(0.05)
        time.sleep(delay_s)
        if alive := process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate(timeout=60)
        return alive

    def processes(self):
        """The living processes of all attempts."""
        return [each for each in psutil.process_iter() if self._is_one(each)]

    def _is_one(self, process):
        try:
            return process.environ().get("CHAOS") == self._environment["CHAOS"]
        except psutil.Error:
            return False

    def temporary_files(self):
        """What they left; PyTorch's cache is for later processes too."""
        return {path.name for path in self.folder.iterdir()} - {
            f"torchinductor_{getpass.getuser()}"
        }


def all_runs():
    return mlflow.search_runs(output_format="list")


def check_files(model):
    """Download a finished model, and compare each of its files with its digest."""
    path = Path(mlflow.artifacts.download_artifacts(model.artifact_location))
    if model.name == "net-source":  # mlflow.pytorch's, with a digest of its own
        assert source_digest(path) == model.tags[SHA256]
    else:
        verify_logged_files(path, model.tags[MLMODEL_SHA256])


@pytest.mark.parametrize(
    "kills",
    [pytest.param(10, marks=pytest.mark.system), pytest.param(100, marks=pytest.mark.slow)],
)
def test_a_pipeline_that_is_killed_again_and_again_ends_as_one_that_is_not(store, tmp_path, kills):
    moments = random.Random(kills)  # noqa: S311 - moments, no secrets
    with tracking.run("source") as run_id:
        source = tracking.log_source(
            net(), {"x": features()}, name="net-source", run_id=run_id, dynamic_axes=AXES
        )
    attempts, killed = Attempts(f"models:/{source}", tmp_path), 0
    for at in range(kills):
        # Those that do everything again are killed at every stage, and make no version. They come
        # first: a version has the newest evidence, and would be another with what they measured.
        again = ["--fresh", "yes"] if at < kills / 2 else ["--registered-model-name", "net"]
        killed += attempts.kill_at(moments.randint(0, STAGES), moments.random(), *again)
    assert killed >= kills / 2
    last = attempts.start("--registered-model-name", "net")
    _, shown = last.communicate(timeout=300)
    assert last.returncode == 0, shown

    (version,) = mlflow.search_model_versions(filter_string="name = 'net'")
    mlflow_e2eai.load_model(f"models:/net/{version.version}")({"x": features()})
    models = mlflow.search_logged_models(output_format="list")
    assert {str(model.status) for model in models} <= {"READY", "FAILED"}
    for model in models:
        if str(model.status) == "READY":
            check_files(model)
    died = [run for run in all_runs() if run.info.status != "FINISHED"]
    assert {run.info.status for run in died} == {"KILLED"}
    assert all(run.data.tags[ERROR].startswith("died ") for run in died)
    parents = [run for run in died if PARENT_RUN not in run.data.tags]
    assert kills / 4 <= len(parents) <= killed
    assert attempts.processes() == []
    assert attempts.temporary_files() == set()
