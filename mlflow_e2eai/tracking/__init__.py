"""Values <-> linked MLflow runs and LoggedModels.

Stages know digests; this package alone knows which LoggedModel a digest is. Every LoggedModel that
it makes carries the tags ``e2eai.derived_from`` (what it was made from), ``e2eai.source_model``
(the PyTorch model at the root) and ``e2eai.stage``, so that the chain can be walked both ways with
MLflow's own search. Run inputs alone would not do: `search_runs` leaves them out.
"""

from mlflow_e2eai.tracking.downloads import ModelFiles, download, fetch_text, fetcher
from mlflow_e2eai.tracking.lineage import (
    ERROR,
    PARENT,
    SHA256,
    SOURCE,
    STAGE,
    ancestor,
    describe_version,
    fetch,
    fetch_engine,
    fetch_graph,
    is_uri,
    link_inputs,
    link_output,
    resolve,
    tag_model,
)
from mlflow_e2eai.tracking.metrics import NONFINITE, log_metrics, parity_metrics
from mlflow_e2eai.tracking.mlflow_recorder import MlflowRecorder, MlflowStage
from mlflow_e2eai.tracking.models import (
    KEEP_FP32,
    fetch_nodes,
    log_artifact,
    log_bisection,
    log_kept,
    signature_of,
)
from mlflow_e2eai.tracking.remote_jobs import (
    TICKET,
    Place,
    end_attempt,
    fetch_found,
    log_found,
    place_here,
    working_at,
)
from mlflow_e2eai.tracking.runs import failed_models_say_why, log_project_failure, run
from mlflow_e2eai.tracking.server import check_server
from mlflow_e2eai.tracking.sources import fetch_source, log_source, open_inputs
