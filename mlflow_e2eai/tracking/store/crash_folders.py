"""Crashes of worker processes as artifacts of the run that they are of."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mlflow_e2eai.runtime.crashes import crashes_saved

CRASHES = "crash"
"""The folder of a run with a numbered folder for each crash."""

_LOCK = threading.Lock()


@contextmanager
def crashes_logged(run_id: str) -> Iterator[None]:
    """Log the crashes of the block on a run."""

    def keep(folder: Path) -> str:
        from mlflow import MlflowClient

        client = MlflowClient()
        with _LOCK:
            place = f"{CRASHES}/{len(client.list_artifacts(run_id, CRASHES)) + 1}"
            client.log_artifacts(run_id, str(folder), place)
        return f"the artifact folder {place} of run {run_id}"

    with crashes_saved(keep):
        yield
