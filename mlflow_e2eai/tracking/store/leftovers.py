"""Leftovers of dead processes: runs that say RUNNING, unfinished models, temporary folders."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mlflow_e2eai.artifacts.files import Summary, Table
from mlflow_e2eai.errors import InvalidInputError, brief, require_kind
from mlflow_e2eai.runtime.scratch import remove_dead_folders
from mlflow_e2eai.tracking.lineage import ERROR, PARENT_RUN, STAGE
from mlflow_e2eai.tracking.server import check_server, experiments, mlflow_errors
from mlflow_e2eai.tracking.store.artifact_store import fail_unfinished_models
from mlflow_e2eai.tracking.store.attempts import (
    DEAD_AFTER_H,
    LEAST_DEAD_H,
    PROCESS,
    RunProcess,
)

if TYPE_CHECKING:
    from mlflow.entities import Run

_log = logging.getLogger(__name__)

_PAGE = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class DeadRun:
    """A run whose process is dead, and which is KILLED now.

    Attributes:
        run_id: The run.
        name: Its name.
        host: The host of its process.
        pid: The number of its process there.
        heartbeat: When that last said that it lived.
        reason: At what stage it died.
        models: Number of its models that were unfinished, and are FAILED now.
    """

    run_id: str
    name: str
    host: str
    pid: str
    heartbeat: str
    reason: str
    models: int


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Tidied(Summary):
    """Result of `tidy`.

    Attributes:
        runs: The runs that were ended.
        folders: Number of temporary folders that were removed on this machine.
    """

    runs: tuple[DeadRun, ...]
    folders: int

    @property
    def sentence(self) -> str:
        """The numbers, for people."""
        models = sum(run.models for run in self.runs)
        return (
            f"{len(self.runs)} runs KILLED, {models} models FAILED, {self.folders} temporary "
            f"folders removed"
        )

    def _line(self) -> str:
        return self.sentence

    def _table(self) -> Table:
        return DeadRun, self.runs


def tidy(*, dead_after_h: float = DEAD_AFTER_H) -> Tidied:
    """End the runs of dead processes, and remove their temporary folders on this machine.

    A run that says RUNNING and whose process is dead becomes KILLED, with the stage at which that
    died; its unfinished models become FAILED. A process on this machine is looked up; one elsewhere
    counts as dead only after hours without a heartbeat. Every run of this package does the same
    when it begins.

    Args:
        dead_after_h: These hours.

    Raises:
        InvalidInputError: They are no number, or so few that a living process may count as dead.
        TrackingError: The tracking server cannot be reached, or refuses a request.

    Examples:
        >>> ended = mlflow_e2eai.tidy(dead_after_h=1)
    """
    require_kind("dead_after_h", dead_after_h, (int, float), "a number of hours")
    if not dead_after_h >= LEAST_DEAD_H:
        msg = (
            f"dead_after_h is {dead_after_h}, but a living process may be silent for some minutes; "
            f"give at least {LEAST_DEAD_H} hours."
        )
        raise InvalidInputError(msg)
    check_server()
    with mlflow_errors("check that your user may change these runs"):
        return Tidied(runs=tuple(_end_dead_runs(dead_after_h)), folders=remove_dead_folders())


def tidy_before_run() -> None:
    """Do what `tidy` does; an error is no reason not to begin the run."""
    try:
        tidied = tidy()
    except Exception as error:  # noqa: BLE001 - a store may raise anything, and the run goes on
        _log.warning("The runs of dead processes cannot be ended: %s", brief(error))
        return
    for run in tidied.runs:
        _log.info("run %s (%s) is KILLED now: %s", run.run_id, run.name, run.reason)


def _end_dead_runs(dead_after_h: float) -> Iterator[DeadRun]:
    from mlflow import MlflowClient

    client = MlflowClient()
    found = [(run, process) for run, process in _find_running() if process.is_dead(dead_after_h)]
    runs = [run for run, _ in found]
    for run, process in found:
        run_id = str(run.info.run_id)
        reason = f"died {_place_of(run, runs)}"
        models = fail_unfinished_models(run_id, str(run.info.experiment_id), reason)
        client.set_tag(run_id, ERROR, reason)
        client.set_terminated(run_id, "KILLED", end_time=_last_alive_ms(run, process))
        yield DeadRun(
            run_id=run_id,
            name=str(run.info.run_name),
            host=process.host,
            pid=str(process.pid),
            heartbeat=process.alive.isoformat(),
            reason=reason,
            models=models,
        )


def _last_alive_ms(run: Run, process: RunProcess) -> int:
    """When a dead run was last alive, in milliseconds since the epoch."""
    return max(int(1e3 * process.alive.timestamp()), int(run.info.start_time))


def _find_running() -> Iterator[tuple[Run, RunProcess]]:
    """The runs that say RUNNING and have a process."""
    from mlflow import MlflowClient

    client, token = MlflowClient(), None
    condition = f"attributes.status = 'RUNNING' AND tags.`{PROCESS}` LIKE '%'"
    while True:
        page = client.search_runs(
            list(experiments()), condition, max_results=_PAGE, page_token=token
        )
        for run in page:
            if (process := RunProcess.of(run.data.tags)) is not None:
                yield run, process
        if not (token := page.token):
            return


def _place_of(run: Run, dead: Sequence[Run]) -> str:
    """Where a run died: at its stage, or at that of the run below it that had not ended."""
    below: Mapping[str, Run] = {
        other.data.tags[PARENT_RUN]: other for other in dead if PARENT_RUN in other.data.tags
    }
    last = run
    while (deeper := below.get(str(last.info.run_id))) is not None:
        last = deeper
    if PARENT_RUN in last.data.tags and STAGE in last.data.tags:
        return f"at stage {last.data.tags[STAGE]}"
    before = _last_stage_below(run)
    return "before its first stage" if before is None else f"after stage {before}"


def _last_stage_below(run: Run) -> str | None:
    from mlflow import MlflowClient

    children = MlflowClient().search_runs(
        [str(run.info.experiment_id)],
        f"tags.`{PARENT_RUN}` = '{run.info.run_id}'",
        order_by=["attributes.start_time DESC"],
        max_results=1,
    )
    return next((child.data.tags.get(STAGE) for child in children), None)
