"""The example of a team's registry, told once on a server over PostgreSQL."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import mlflow
import pytest

import mlflow_e2eai

EXAMPLE = Path(__file__).parents[2] / "examples/registry.py"

pytestmark = pytest.mark.system


def test_the_registry_decides_from_the_first_model_to_the_rollback(on_postgres):
    done = subprocess.run(
        [sys.executable, EXAMPLE],
        env={**os.environ, "MLFLOW_TRACKING_URI": on_postgres.uri, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=570,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    titles = re.split(r"^== .*$", done.stdout, flags=re.MULTILINE)
    _, _, approval, served, refused, followed, guarded, back, past = titles
    assert "to do: mlflow_e2eai approve digits 1 --as release" in approval
    assert "webhook: @champion is at version 1" in approval
    assert "digits@champion version 1 " in served
    assert re.search(r"^FAILED +champion/task_drop", refused, re.MULTILINE)
    assert "version 2 was rejected" in refused
    assert "digits@champion version 3 " in followed
    assert re.search("@champion points to version 2, moved by hand: .*; it was put back", guarded)
    assert "digits@champion version 1 " in back
    assert len(past.strip().splitlines()) == 4

    moves = [(move.kind, move.before, move.after) for move in mlflow_e2eai.history("digits").moves]
    assert moves == [
        ("promotion", None, "1"),
        ("promotion", "1", "3"),
        ("restoration", "2", "3"),
        ("rollback", "3", "1"),
    ]
    client = mlflow.MlflowClient()
    assert client.get_model_version_by_alias("digits", "champion").version == "1"
    assert client.list_webhooks() == []
