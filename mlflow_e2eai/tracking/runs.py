"""Runs: parents and children, and the reasons of failures."""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from mlflow_e2eai.artifacts.names import FreshNames
from mlflow_e2eai.errors import TrackingError, brief
from mlflow_e2eai.evaluation.evidence import Span
from mlflow_e2eai.report.facts import Origin
from mlflow_e2eai.runtime.scratch import temporary_files_together
from mlflow_e2eai.runtime.termination import interruption_of, raised_on_sigterm, reason_of
from mlflow_e2eai.tracking.lineage import ERROR, PARENT_RUN, tag_model
from mlflow_e2eai.tracking.mlflow_names import metric_name
from mlflow_e2eai.tracking.remote_jobs import inherited_context
from mlflow_e2eai.tracking.server import (
    address,
    check_server,
    failed_request,
    failure_logged,
    is_denied,
)
from mlflow_e2eai.tracking.store.attempts import PROCESS, RunProcess, attend_to, with_heartbeat
from mlflow_e2eai.tracking.store.crash_folders import crashes_logged
from mlflow_e2eai.tracking.store.leftovers import tidy_before_run

if TYPE_CHECKING:
    from mlflow.entities import Run

_log = logging.getLogger(__name__)

_NAMED_HERE: set[str] = set()
"""Ids of the runs of this process that have their name from here, and not from a user."""


@contextmanager
def run(
    name: str,
    *,
    nested: bool = False,
    tags: Mapping[str, str] | None = None,
    span: Span | None = None,
    elsewhere: str | None = None,
) -> Iterator[str]:
    """A run for the block: the one that is active already, or a new one.

    An error in the block is written on the run as the tag ``e2eai.error`` before it goes on.

    Args:
        name: Name of a new run, and of the one that ``mlflow run`` made, unless its user gave it
            another.
        nested: Start a child of the active run instead of taking the active run itself.
        tags: Tags for the run.
        span: When the work of a new child was done; None for the time of the block.
        elsewhere: Name of an experiment for a new run where the user may not change the active
            one; made if there is none.

    Yields:
        The run's id.

    Raises:
        TrackingError: The server does not respond, or the user may change no such experiment.
    """
    import mlflow
    from mlflow.tracking.context.registry import resolve_tags

    active = mlflow.active_run()
    above = inherited_context() if active is None else None
    if above is None and (active is None or not nested):
        check_server()
    if active is None and above is None:
        tidy_before_run()
    # The runs of a worker are ended by the process that started it.
    with (
        nullcontext() if above is not None else raised_on_sigterm(),
        temporary_files_together(),
    ):
        if active is not None and not nested:
            with attend_to(active), _explain(active.info.run_id):
                yield active.info.run_id
            return
        its_experiment = None if active is None else active.info.experiment_id
        experiment_id, inherited_tags = above or (its_experiment, {})
        tags = {**inherited_tags, PROCESS: RunProcess.current().text(), **(tags or {})}
        if active is not None and span is not None:
            tags = {**resolve_tags(tags), PARENT_RUN: active.info.run_id}
            with _done_before(name, span, tags, experiment_id=str(experiment_id)) as run_id:
                yield run_id
            return
        run_name = None if active is None and _project_run_is_named() else name
        is_nested = active is not None
        start = partial(mlflow.start_run, run_name=run_name, nested=is_nested, tags=tags)
        new = _start(start, experiment_id, elsewhere)
        run_id = str(new.info.run_id)
        with (
            with_heartbeat(run_id),
            _end_after_block(run_id),
            _explain(run_id),
            _named_here(run_id, run_name),
        ):
            yield run_id
        if active is None and above is None:
            _report_address(run_id, str(new.info.experiment_id))


def _report_address(run_id: str, experiment_id: str) -> None:
    """Report the page of a run, where a server shows it."""
    origin = Origin(run_id=run_id, experiment_id=experiment_id, tracking_uri=address())
    if (link := origin.run_link()) is not None:
        _log.info("see %s", link)


@contextmanager
def _named_here(run_id: str, name: str | None) -> Iterator[None]:
    if name is not None:
        _NAMED_HERE.add(run_id)
    try:
        yield
    finally:
        _NAMED_HERE.discard(run_id)


def rename_run(run_id: str, name: str) -> None:
    """Rename a run that has its name from here; one that a user named keeps that."""
    from mlflow import MlflowClient

    if run_id in _NAMED_HERE:
        MlflowClient().update_run(run_id, name=name)


def _project_run_is_named() -> bool:
    """Whether a user named the run that MLflow resumes next, by MLFLOW_RUN_ID."""
    from mlflow import MlflowClient

    from mlflow_e2eai.tracking import _mlflow

    if (run_id := os.environ.get("MLFLOW_RUN_ID")) is None:
        return False
    name = MlflowClient().get_run(run_id).info.run_name
    return bool(name) and not _mlflow.is_generated_name(name)


def fail_run(run_id: str, name: str, new_name: str) -> None:
    """End the active run as FAILED, and rename it, unless a user named it.

    Args:
        run_id: The run.
        name: The name that it was given here.
        new_name: The name that it gets.
    """
    import mlflow
    from mlflow import MlflowClient

    client = MlflowClient()
    if client.get_run(run_id).info.run_name == name:
        client.update_run(run_id, name=new_name)
    mlflow.end_run("FAILED")


def report_folder(run_id: str, file: str, name: str) -> str:
    """Where in a run the reports of a model go, so that those of another stay.

    Args:
        run_id: The run.
        file: One of the reports.
        name: Name of the model.

    Returns:
        What to put in front of the name of a file: nothing for the first model of the run, then a
        folder of the model's name with its slash.
    """
    from mlflow import MlflowClient

    present = {str(item.path) for item in MlflowClient().list_artifacts(run_id)}
    if file not in present:
        return ""
    return FreshNames(present)(metric_name(name).replace("/", "_")) + "/"


def _start(start: Callable[..., Run], experiment_id: str | None, elsewhere: str | None) -> Run:
    """Start a run in an experiment, or elsewhere if the user may not change that one."""
    from mlflow.exceptions import MlflowException

    try:
        return start(experiment_id=experiment_id)
    except MlflowException as error:
        if not is_denied(error):
            raise
        try:
            if elsewhere is not None:
                return start(experiment_id=_find_or_make_experiment(elsewhere))
        except MlflowException as second:
            if not is_denied(second):
                raise
        msg = (
            f"Your user may not write a run in the active experiment"
            f"{'' if elsewhere is None else f', nor in {elsewhere!r}'}; set MLFLOW_EXPERIMENT_NAME "
            f"to an experiment that it may change."
        )
        raise TrackingError(msg) from error


def _find_or_make_experiment(name: str) -> str:
    import mlflow
    from mlflow.exceptions import MlflowException

    known = mlflow.get_experiment_by_name(name)
    if known is None:
        try:
            return str(mlflow.create_experiment(name))
        except MlflowException:
            known = mlflow.get_experiment_by_name(name)  # another process may have been quicker
            if known is None:
                raise
    return str(known.experiment_id)


@contextmanager
def _done_before(
    name: str, span: Span, tags: Mapping[str, str], *, experiment_id: str
) -> Iterator[str]:
    """A run of work that is done, as long as that took: `mlflow.start_run` would begin now."""
    from mlflow import MlflowClient

    client = MlflowClient()
    began_ms, ended_ms = (int(1e3 * second) for second in span)
    new = client.create_run(experiment_id, start_time=began_ms, tags=dict(tags), run_name=name)
    try:
        with _explain(new.info.run_id):
            yield new.info.run_id
    except BaseException as error:
        if not (isinstance(error, TrackingError) and error.lost):
            status = _status_after(error, new.info.run_id)
            client.set_terminated(new.info.run_id, status, end_time=ended_ms)
        raise
    client.set_terminated(new.info.run_id, "FINISHED", end_time=ended_ms)


@contextmanager
def _end_after_block(run_id: str) -> Iterator[None]:
    """End the active run with the block, unless it has ended; without a server that was lost."""
    import mlflow
    from mlflow.exceptions import MlflowException

    from mlflow_e2eai.tracking import _mlflow

    try:
        yield
    except BaseException as error:
        if isinstance(error, TrackingError) and error.lost:
            _mlflow.forget_active_run()
        else:
            try:
                mlflow.end_run(_status_after(error, run_id))
            except MlflowException:  # the first error is the one to show
                _log.warning("Run %s still says RUNNING, as it could not be ended.", run_id)
        raise
    if (active := mlflow.active_run()) is not None and active.info.run_id == run_id:
        mlflow.end_run()


def _status_after(error: BaseException, run_id: str) -> str:
    """The status of a run that an error ends, once its reason is written.

    `_explain` did not do so where a signal came after the run was made and before its block began.
    """
    from mlflow import MlflowClient

    client = MlflowClient()
    if ERROR not in client.get_run(run_id).data.tags:
        client.set_tag(run_id, ERROR, reason_of(error))
    return "FAILED" if interruption_of(error) is None else "KILLED"


@contextmanager
def _explain(run_id: str) -> Iterator[None]:
    """Write the reason of a failure on a run and its unfinished models; log crashes of workers."""
    from mlflow import MlflowClient
    from mlflow.entities import LoggedModelStatus

    client, began_ms = MlflowClient(), time.time() * 1e3

    def log(error: BaseException) -> None:
        reason = reason_of(error)
        client.set_tag(run_id, ERROR, reason)
        experiment = client.get_run(run_id).info.experiment_id
        # MLflow's filter accepts `status`, but finds nothing by it.
        for model in client.search_logged_models([experiment], f"source_run_id = '{run_id}'"):
            is_new = model.creation_timestamp >= began_ms
            if str(model.status) == "PENDING" and is_new:  # where an interruption came amid a call
                client.finalize_logged_model(model.model_id, LoggedModelStatus.FAILED)
            elif str(model.status) != "FAILED":
                continue
            if ERROR not in model.tags:
                tag_model(model.model_id, {ERROR: reason})

    with failure_logged(run_id, log), crashes_logged(run_id):
        yield


def check_project_store() -> None:
    """Check that the store of the run that `mlflow run` made is this process's too.

    The launcher may have a relative path to it, and another working folder.

    Raises:
        TrackingError: There is no such store in this folder.
    """
    uri = os.environ.get("MLFLOW_TRACKING_URI", "")
    scheme, _, rest = uri.partition(":")
    path = Path((rest or scheme).removeprefix("///") if scheme in ("sqlite", "file", uri) else "/")
    is_path = path.name and not uri.startswith("databricks") and not path.is_absolute()
    if os.environ.get("MLFLOW_RUN_ID") is None or not is_path:
        return
    if not path.exists():
        msg = (
            f"`mlflow run` uses the tracking store {uri}, which is relative to the folder where it "
            f"was called; this step runs in {Path.cwd()}, where there is no {path}. Set "
            f"MLFLOW_TRACKING_URI to an absolute one, such as sqlite:////folder/mlflow.db."
        )
        raise TrackingError(msg, lost=True)


def log_project_failure(error: BaseException) -> BaseException:
    """Write an error on the run that `mlflow run` made for this process.

    MLflow's launcher marks that run FAILED when the process fails, but not with the reason. MLflow
    is not imported where there is no such run.

    Returns:
        The error; a `TrackingError` in place of one of MLflow's own.
    """
    run_id = os.environ.get("MLFLOW_RUN_ID")
    lost = isinstance(error, TrackingError) and error.lost
    if run_id is not None and not lost:
        from mlflow import MlflowClient

        try:
            MlflowClient().set_tag(run_id, ERROR, reason_of(error))
            MlflowClient().set_terminated(run_id, "FAILED")
        except Exception:  # noqa: BLE001 - the first error is the one to show
            _log.warning("Could not write the error on run %s.", run_id)
    if (exceptions := sys.modules.get("mlflow.exceptions")) is not None and isinstance(
        error, exceptions.MlflowException
    ):
        return failed_request(error) or TrackingError(brief(error))
    return error


@contextmanager
def log_model_failure(run_id: str, model_id: str | None) -> Iterator[None]:
    """Mark a model that was there before FAILED on an error of the block, with the reason.

    MLflow marks it only for errors of its own writing.
    """
    from mlflow import MlflowClient
    from mlflow.entities import LoggedModelStatus

    def log(error: BaseException) -> None:
        if model_id is not None:
            MlflowClient().finalize_logged_model(model_id, LoggedModelStatus.FAILED)
            tag_model(model_id, {ERROR: reason_of(error)})

    with failure_logged(run_id, log):
        yield
