"""A bundle's evidence as artifacts of a run: the page and the plots."""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from mlflow_e2eai.artifacts.files import from_json, to_json
from mlflow_e2eai.bundle.manifest import Manifest
from mlflow_e2eai.evaluation.gates import Decision
from mlflow_e2eai.report.facts import Origin
from mlflow_e2eai.report.page import html
from mlflow_e2eai.report.plots import plots
from mlflow_e2eai.tracking.runs import report_folder
from mlflow_e2eai.tracking.server import address


def log_report(
    manifest: Manifest,
    decision: Decision | None = None,
    *,
    run_id: str,
    name: str,
    version: int | str | None,
    model_id: str,
    model_ids: Mapping[str, str] | None = None,
) -> None:
    """Write ``report.html`` and the plots on a run.

    The evidence of other machines is in ``report-2.html`` and so on. Where the run has the report
    of another model, all of them are in a folder of the model's name.

    Args:
        manifest: The bundle.
        decision: The outcome of the gates; None before they were evaluated.
        run_id: The run.
        name: Name of the model.
        version: Its version, where it is registered.
        model_id: LoggedModel of the bundle.
        model_ids: LoggedModels of its files, by digest.
    """
    from mlflow import MlflowClient

    client = MlflowClient()
    origin = Origin(
        name=name,
        version=None if version is None else str(version),
        model_id=model_id,
        run_id=run_id,
        experiment_id=str(client.get_run(run_id).info.experiment_id),
        model_ids=model_ids or {},
        tracking_uri=address(),
    )
    with tempfile.TemporaryDirectory() as folder:
        pages = {"report.html": html(manifest, decision, origin=origin)}
        for at, there in enumerate(manifest.by_machine[1:], 2):
            page = html(there, decision, origin=replace(origin, machine=there.machine))
            pages[f"report-{at}.html"] = page
        for file, page in pages.items():
            Path(folder, file).write_text(page, encoding="utf-8")
        for file, content in _plots(to_json(manifest)).items():
            Path(folder, file).write_bytes(content)
        where = report_folder(run_id, "report.html", name)
        client.log_artifacts(run_id, folder, where.rstrip("/") or None)


@functools.lru_cache(maxsize=1)
def _plots(manifest: str) -> Mapping[str, bytes]:
    """A manifest's plots; cached, as a process that logs a model often promotes it too."""
    return plots(from_json(Manifest, manifest))
