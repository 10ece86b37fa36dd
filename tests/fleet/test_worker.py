"""A job as a worker runs it, here in the test's own process."""

from __future__ import annotations

import mlflow
import pytest
from fleet_jobs import children
from logged_graphs import log_graph

from mlflow_e2eai.errors import TrackingError
from mlflow_e2eai.fleet.job import Job
from mlflow_e2eai.fleet.worker import JobRequest, run_job
from mlflow_e2eai.tracking import remote_jobs

pytestmark = pytest.mark.usefixtures("on_threads")


@pytest.fixture
def request_for(store, monkeypatch):
    """Make the request of a job under a run that has ended meanwhile, as on another machine."""
    monkeypatch.setenv("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    with mlflow.start_run():
        parent = remote_jobs.active_parent()

    def request(model_id, **arguments):
        return JobRequest(
            job=Job(stage="evaluate", model_uri=model_id, arguments=arguments),
            parent=parent,
            attempt_id="attempt-1",
            allowed=frozenset(),
            timeout_s=60,
            worker="node-7",
        )

    return request


def test_an_evaluation_logs_its_evidence_on_a_child_of_the_launchers_run(request_for, tmp_path):
    graph, other = log_graph(tmp_path), log_graph(tmp_path, scale=2, name="other")

    attempt = run_job(None, request=request_for(graph, others=[other]), folder=tmp_path)

    run = mlflow.get_run(attempt.run_id)
    assert run.data.tags["mlflow.parentRunId"] == request_for(graph).parent.run_id
    assert run.data.tags["e2eai.worker"] == "node-7"
    evidence = remote_jobs.fetch_evidence(attempt.run_id).evidence
    assert [entry.variant for entry in evidence] == ["onnxruntime-cpu/raw", "onnxruntime-cpu/fp32"]
    assert len(children(run)) == len(evidence)


def test_a_job_that_fails_leaves_its_traceback_in_the_workers_log(request_for, tmp_path, capsys):
    with pytest.raises(TrackingError, match="There is no model"):
        run_job(None, request=request_for("m-" + 32 * "0"), folder=tmp_path)

    assert "Traceback" in capsys.readouterr().err
    assert remote_jobs.inherited_context() is None
