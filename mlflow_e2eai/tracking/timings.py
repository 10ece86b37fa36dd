"""Timings of kernels, kept with the runs of the builds that measured them.

A run's timings are never changed: who builds takes those of all runs and keeps them with its own
as new ones, so that two builders at once lose nothing. A run says whose timings its own hold, and
those are not fetched again.
"""

from __future__ import annotations

import warnings
from collections.abc import Collection
from pathlib import Path

from mlflow_e2eai.engine import TIMINGS_SUFFIX
from mlflow_e2eai.tracking.server import experiments

TIMINGS = "e2eai.timings"
"""Tag of a run with timings: what they are for; see `engine.timings_key`."""

HELD = "e2eai.timings_held"
"""The same: ids of the runs whose timings are in them, with commas between."""

_FILE = f"kernels{TIMINGS_SUFFIX}"

_MOST = 200
"""Runs that are looked at, the newest first: what is in an older one is held by them."""


def fetch_timings(key: str, folder: Path) -> tuple[str, ...]:
    """Put all timings of a kind that the tracking server has into a folder.

    Those that cannot be had are announced as a warning and left out.

    Returns:
        Ids of the runs whose they are; each file is named by its run.
    """
    import mlflow
    from mlflow import MlflowClient

    runs = MlflowClient().search_runs(
        list(experiments()),
        f"tags.`{TIMINGS}` = '{key}'",
        order_by=["attributes.start_time DESC"],
        max_results=_MOST,
    )
    held = {run_id for run in runs for run_id in run.data.tags[HELD].split(",")}
    found = []
    for run_id in (run.info.run_id for run in runs if run.info.run_id not in held):
        try:
            place = mlflow.artifacts.download_artifacts(
                run_id=run_id, artifact_path=_FILE, dst_path=str(folder / run_id)
            )
        except Exception as error:  # noqa: BLE001 - whatever a store raises, the build goes on
            warnings.warn(f"The timings of run {run_id} cannot be had: {error}", stacklevel=2)
            continue
        Path(place).rename(folder / f"{run_id}{TIMINGS_SUFFIX}")
        found.append(run_id)
    return tuple(found)


def log_timings(key: str, folder: Path, *, run_id: str, fetched: Collection[str]) -> None:
    """Keep the timings that a build left in a folder with its run.

    Args:
        key: What they are for.
        folder: As `engine.compile` leaves it: what was fetched and is gone is in the new file.
        run_id: The run.
        fetched: What `fetch_timings` gave.
    """
    from mlflow import MlflowClient
    from mlflow.entities import RunTag

    left = {path.name.removesuffix(TIMINGS_SUFFIX): path for path in folder.iterdir()}
    for path in (path for name, path in left.items() if path.is_file() and name not in fetched):
        client = MlflowClient()
        kept = path.rename(folder / _FILE)
        client.log_artifact(run_id, str(kept))
        held = ",".join(name for name in fetched if not left.get(name, folder).is_file())
        # After the file, and both at once: whoever finds the one finds all.
        client.log_batch(run_id, tags=[RunTag(HELD, held), RunTag(TIMINGS, key)])
