"""A bundle's evidence in MLflow: page and plots on a run, and the description of a version."""

from __future__ import annotations

import contextlib
import functools
import logging
import tempfile
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import quote, unquote, urlsplit

import numpy as np

from mlflow_e2eai.artifacts.files import from_json, to_json
from mlflow_e2eai.bundle.manifest import Manifest
from mlflow_e2eai.errors import TrackingError, brief
from mlflow_e2eai.evaluation.gates import Decision
from mlflow_e2eai.report.background import Background
from mlflow_e2eai.report.description import (
    aliases_of,
    is_own_description,
    model_description,
    version_description,
    with_aliases,
)
from mlflow_e2eai.report.facts import (
    Origin,
    Ratios,
    fastest_row,
    ratios_of,
    rows_of,
    task_names,
    worst_outcomes,
)
from mlflow_e2eai.report.page import html
from mlflow_e2eai.report.plots import plots
from mlflow_e2eai.tracking.lineage import REPORT, model_of_version, resolve, source_of, tag_model
from mlflow_e2eai.tracking.metrics import log_metrics
from mlflow_e2eai.tracking.mlflow_names import metric_name
from mlflow_e2eai.tracking.mlflow_recorder import MlflowRecorder
from mlflow_e2eai.tracking.runs import report_folder
from mlflow_e2eai.tracking.server import address
from mlflow_e2eai.tracking.store.uploads import log_files

if TYPE_CHECKING:
    from mlflow.entities import LoggedModel
    from mlflow.entities.model_registry import ModelVersion

_log = logging.getLogger(__name__)

_NOTE = "mlflow.note.content"
"""MLflow's tag of a run's description."""


class Places(NamedTuple):
    """Where a logged bundle is looked at.

    Attributes:
        run: Link of the run that logged it, or its id where the store has no pages.
        report: Path of its report on this machine, or the URI of the artifact.
    """

    run: str
    report: str


def log_report(
    manifest: Manifest,
    decision: Decision | None = None,
    *,
    run_id: str,
    name: str,
    version: int | str | None,
    model_id: str,
    stages: MlflowRecorder | None = None,
    background: Background | None = None,
) -> str:
    """Write ``report.html`` and the plots on a run, and before a decision the summary's metrics.

    The evidence of other machines is in ``report-2.html`` and so on. Where the run has the report
    of another model, all of them are in a folder of the model's name.

    Args:
        manifest: The bundle.
        decision: The outcome of the gates; None before they were evaluated.
        run_id: The run.
        name: Name of the model.
        version: Its version, where it is registered.
        model_id: LoggedModel of the bundle.
        stages: The recorder of the stages, which knows the models of the files and its times.
        background: The registry's part of the decision.

    Returns:
        The page.
    """
    from mlflow import MlflowClient

    client = MlflowClient()
    origin = Origin(
        name=name,
        version=None if version is None else str(version),
        model_id=model_id,
        run_id=run_id,
        experiment_id=str(client.get_run(run_id).info.experiment_id),
        model_ids={} if stages is None else stages.models,
        tracking_uri=address(),
    )
    with tempfile.TemporaryDirectory() as folder:
        pages = {"report.html": html(manifest, decision, origin=origin, background=background)}
        for at, there in enumerate(manifest.by_machine[1:], 2):
            place = replace(origin, machine=there.machine)
            pages[f"report-{at}.html"] = html(there, decision, origin=place, background=background)
        for file, page in pages.items():
            Path(folder, file).write_text(page, encoding="utf-8")
        for file, content in _plots(to_json(manifest)).items():
            Path(folder, file).write_bytes(content)
        where = report_folder(run_id, "report.html", name)
        log_files(run_id, Path(folder), where.rstrip("/") or None)
    if decision is None:
        tag_model(model_id, {REPORT: f"{where}report.html"})
        log_summary(manifest, stages, run_id=run_id, model_id=model_id)
    return pages["report.html"]


def log_summary(
    manifest: Manifest, stages: MlflowRecorder | None, *, run_id: str, model_id: str | None
) -> None:
    """Log a bundle in numbers, and the times of its stages, on a run and on the model."""
    seconds = {} if stages is None else stages.seconds
    times = {f"seconds/{stage}": value for stage, value in seconds.items()}
    log_metrics({**summary_metrics(manifest), **times}, run_id=run_id, model_id=model_id)


def replace_report(model: LoggedModel, page: str) -> None:
    """Put the page of a decision in the place of the report that the model was logged with.

    It is the page that people open. Where the run is gone, or the user may not change it, the
    page of the decision's own run is the only one, which a warning says.
    """
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    if (path := model.tags.get(REPORT)) is None or not model.source_run_id:
        return
    try:
        MlflowClient().log_text(model.source_run_id, page, path)
    except (MlflowException, OSError) as error:
        _log.warning(
            "The report of run %s does not show the decision, because it cannot be written: %s",
            model.source_run_id,
            brief(error),
        )


def find_report(model_uri: str) -> Places:
    """Find the run and the report of a logged bundle.

    Raises:
        TrackingError: There is no such model, or it has no report.
    """
    from mlflow import MlflowClient

    model = resolve(model_uri)
    if (path := model.tags.get(REPORT)) is None or not model.source_run_id:
        msg = (
            f"Model {model.model_id} has no report; `mlflow_e2eai pipeline` makes a model with one."
        )
        raise TrackingError(msg)
    run = MlflowClient().get_run(model.source_run_id).info
    origin = Origin(
        name=str(model.name),
        run_id=run.run_id,
        experiment_id=str(run.experiment_id),
        tracking_uri=address(),
    )
    folder = urlsplit(str(run.artifact_uri))
    is_here = folder.scheme in ("", "file")
    return Places(
        run=origin.run_link() or run.run_id,
        report=str(Path(unquote(folder.path), path)) if is_here else f"runs:/{run.run_id}/{path}",
    )


def describe_version(
    manifest: Manifest,
    decision: Decision | None = None,
    *,
    name: str,
    version: int | str,
    alias: str = "champion",
    background: Background | None = None,
) -> None:
    """Write the description of a version, and of a registered model that has none.

    A description that a user wrote or changed stays as it is.

    Args:
        manifest: The bundle.
        decision: The outcome of the gates; None before they were evaluated.
        name: The registered model.
        version: Its version.
        alias: The alias that the decision is about.
        background: The registry's part of the decision.
    """
    from mlflow import MlflowClient

    from mlflow_e2eai.tracking._mlflow import registry_client

    client = MlflowClient()
    registered = client.get_model_version(name, str(version))
    if is_own_description(registered.description):
        text = version_description(
            manifest,
            decision,
            alias=alias,
            day=datetime.now(UTC).date(),
            links=_links(registered),
            background=background,
            aliases=aliases_of(registered.description),
        )
        registry_client().update_model_version(name, str(version), text)
        describe_run(str(registered.run_id), text)
    # Only with the first version: a user who deletes the text later wants none.
    if str(version) == "1" and not client.get_registered_model(name).description:
        client.update_registered_model(name, model_description(name, alias.partition(",")[0]))


def describe_moves(name: str, version: str, moves: Mapping[str, str]) -> None:
    """Write the last move of some aliases into the description of a version, unless a user's.

    Where the user may not change it, or the version is gone, `history` alone has the moves.

    Args:
        name: The registered model.
        version: Its version.
        moves: A phrase by alias.
    """
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    from mlflow_e2eai.tracking._mlflow import registry_client

    client = MlflowClient()
    with contextlib.suppress(MlflowException):
        found = client.get_model_version(name, version)
        before = found.description or ""
        if (text := with_aliases(before, moves)) != before:
            registry_client().update_model_version(name, version, text)
            describe_run(str(found.run_id), text)


def describe_run(run_id: str, text: str) -> None:
    """Give a run that logged or linked a version the version's description, if both are ours.

    Where the run is gone, or the user may not change it, the version alone has it.

    Args:
        run_id: The run.
        text: The description.
    """
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    with contextlib.suppress(MlflowException):
        note = MlflowClient().get_run(run_id).data.tags.get(_NOTE)
        if is_own_description(note) and is_own_description(text):
            MlflowClient().set_tag(run_id, _NOTE, text)


def _links(version: ModelVersion) -> str:
    """Links of MLflow's pages to a version's report, PyTorch model and training run."""
    try:
        model = model_of_version(version)
        source = source_of(model)
    except TrackingError:  # a model on the way was deleted
        return ""
    links = []
    if (report := model.tags.get(REPORT)) is not None and model.source_run_id:
        page = f"runs/{model.source_run_id}/artifacts/{quote(report)}"
        links.append(f"[Report](#/experiments/{model.experiment_id}/{page})")
    if source is not None:
        page = f"#/experiments/{source.experiment_id}"
        links.append(f"[PyTorch model]({page}/models/{source.model_id})")
        if source.source_run_id and source.source_run_id != model.source_run_id:
            links.append(f"[training run]({page}/runs/{source.source_run_id})")
    return ", ".join(links)


def summary_metrics(manifest: Manifest) -> dict[str, float]:
    """A bundle in numbers for a table of runs; times are of this machine, at opt.

    Returns:
        - ``variants/passed``, ``variants/failed`` and ``variants/not_measured``, of the bundle's;
        - ``parity/max_abs_error``: the largest of the bundle's variants;
        - ``task/<name>``: that of the worst variant of the bundle;
        - ``p50_ms/<variant>``: median latency, without what was measured on a busy machine; and
          ``fastest/p50_ms`` of those in the bundle that passed, if none was measured on a busy one;
        - ``ratio/<variant>``, ``ratio_low/<variant>``, ``ratio_high/<variant>``: how many times as
          long as the reference, with the interval; none from a busy machine.
    """
    outcomes = Counter(worst_outcomes(e for e in manifest.all_evidence if e.is_shipped).values())
    rows = rows_of(manifest)
    shipped = [row for row in rows if row.in_bundle and row.outcome in ("passed", "failed")]
    errors = [row.max_abs_error for row in shipped if row.max_abs_error is not None]
    times = {row.variant: row.p50_ms for row in rows if row.p50_ms is not None and not row.busy}
    fastest = fastest_row(manifest)
    metrics = {
        "variants/passed": float(outcomes["passed"]),
        "variants/failed": float(outcomes["failed"]),
        "variants/not_measured": float(outcomes["unmeasured"]),
        **({"parity/max_abs_error": float(np.max(errors))} if errors else {}),
        **({} if fastest is None else {"fastest/p50_ms": times[fastest.variant]}),
        **{f"p50_ms/{variant}": value for variant, value in times.items()},
    }
    for name in task_names(manifest):
        values = [row.task[name] for row in shipped if name in row.task]
        metrics |= {f"task/{metric_name(name)}": min(values)} if values else {}
    for variant, ratio in ratios_of(manifest, Ratios(manifest)).items():
        if ratio.noisy:
            continue
        metrics[f"ratio/{variant}"] = ratio.value
        metrics[f"ratio_low/{variant}"] = ratio.low
        metrics[f"ratio_high/{variant}"] = ratio.high
    return metrics


@functools.lru_cache(maxsize=1)
def _plots(manifest: str) -> Mapping[str, bytes]:
    """A manifest's plots; cached, as a process that logs a model often promotes it too."""
    return plots(from_json(Manifest, manifest))
