"""The report's page where MLflow's UI shows it: in the artifact view of a run."""

import mlflow
import pytest
from browsing import Heard, chromium, needs_chromium
from shown import HALF, REJECTED, shown

from mlflow_e2eai.tracking.reports import log_report

pytestmark = needs_chromium

LOADED_MS = 30_000
"""MLflow's UI is megabytes of script, and the machine may be busy."""


@pytest.fixture
def run_id(remote_store):
    with mlflow.start_run() as run:
        log_report(
            shown(), REJECTED, run_id=run.info.run_id, name="digits", version=None, model_id="m-1"
        )
    return run.info.run_id


def test_the_page_works_inside_mlflows_artifact_view(server, remote_store, run_id):
    experiment = remote_store.get_run(run_id).info.experiment_id
    with chromium() as browser, browser.new_page() as page:
        heard = Heard(page)
        page.goto(f"{server}/#/experiments/{experiment}/runs/{run_id}/artifacts/report.html")
        frame = page.frame_locator("iframe")
        frame.locator(".answer").wait_for(timeout=LOADED_MS)

        assert frame.locator(".answer").inner_text() == "Rejected"
        frame.get_by_label("Show variants with").fill("fp16")
        frame.get_by_role("button", name="Outcome").click()
        names = frame.locator("table:has(#variants-table) tbody:visible")
        assert names.count() == 3
        assert HALF in names.nth(1).inner_text()
        # MLflow's own page may say and ask what it likes.
        assert [text for place, text in heard.said if not place.startswith(server)] == []
