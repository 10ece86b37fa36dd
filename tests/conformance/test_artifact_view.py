"""The report's page where MLflow's UI shows it: in the artifact view of a run."""

import mlflow
import pytest
from browser import Heard, chromium, needs_chromium
from example_manifest import HALF, REJECTED, shown

from mlflow_e2eai.pipeline.publish import log_report
from mlflow_e2eai.tracking.mlflow_recorder import MlflowRecorder

pytestmark = [pytest.mark.system, pytest.mark.exporters, needs_chromium]

LOADED_MS = 30_000
"""MLflow's UI is megabytes of script, and the machine may be busy."""


@pytest.fixture
def run_id(remote_store):
    with mlflow.start_run() as run:
        log_report(
            shown(), REJECTED, run_id=run.info.run_id, name="digits", version=None, model_id="m-1"
        )
    return run.info.run_id


@pytest.fixture
def view(server, remote_store):
    """MLflow's artifact view of one file of a run, and what was heard from there."""
    with chromium() as browser, browser.new_page() as page:
        heard = Heard(page)

        def opened(run_id, file):
            experiment = remote_store.get_run(run_id).info.experiment_id
            page.goto(f"{server}/#/experiments/{experiment}/runs/{run_id}/artifacts/{file}")
            frame = page.frame_locator("iframe")
            frame.locator("h1").wait_for(timeout=LOADED_MS)
            return frame

        yield opened
        # MLflow's own page may say what it likes.
        assert [text for place, text in heard.said if not place.startswith(server)] == []


def test_the_page_works_inside_mlflows_artifact_view(view, run_id):
    frame = view(run_id, "report.html")

    assert frame.locator(".answer").inner_text() == "Rejected"
    frame.get_by_label("Show variants with").fill("fp16")
    frame.get_by_role("button", name="Outcome").click()
    names = frame.locator("table:has(#variants-table) tbody:visible")
    assert names.count() == 3
    assert HALF in names.nth(1).inner_text()


def test_what_surgery_did_is_a_page_of_the_clean_run(view, remote_store):
    recorder = MlflowRecorder(name="digits", source=None)
    with mlflow.start_run(), recorder.stage("clean", inputs=[]) as stage:
        stage(shown().surgery)

    frame = view(stage.run_id, "surgery.html")
    assert frame.locator("li.removed").count() == 2
    frame.locator("summary").first.click()
    assert frame.get_by_text("/stage.3/layer.0/Conv", exact=True).is_visible()
