"""Values <-> linked MLflow runs and LoggedModels.

Stages know digests; this package alone knows which LoggedModel a digest is. Every LoggedModel that
it makes carries the tags ``e2eai.derived_from`` (what it was made from), ``e2eai.source_model``
(the PyTorch model at the root) and ``e2eai.stage``, so that the chain can be walked both ways with
MLflow's own search. Run inputs alone would not do: `search_runs` leaves them out.
"""

from mlflow_e2eai.tracking.elsewhere import (
    TICKET,
    Builder,
    Judge,
    Place,
    end_attempt,
    fetch_found,
    log_found,
    place_here,
    working_at,
)
from mlflow_e2eai.tracking.files import ModelFiles
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
from mlflow_e2eai.tracking.models import log_artifact, signature_of
from mlflow_e2eai.tracking.nodes import KEEP_FP32, fetch_nodes, log_bisection, log_kept
from mlflow_e2eai.tracking.ondemand import download, fetcher
from mlflow_e2eai.tracking.recorder import MlflowRecorder, MlflowStage
from mlflow_e2eai.tracking.reports import log_report
from mlflow_e2eai.tracking.runs import failed_models_say_why, project_run_says_why, run
from mlflow_e2eai.tracking.server import check_server
from mlflow_e2eai.tracking.sources import fetch_source, log_source, open_inputs
from mlflow_e2eai.tracking.texts import fetch_text

__all__ = [
    "ERROR",
    "KEEP_FP32",
    "NONFINITE",
    "PARENT",
    "SHA256",
    "SOURCE",
    "STAGE",
    "TICKET",
    "Builder",
    "Judge",
    "MlflowRecorder",
    "MlflowStage",
    "ModelFiles",
    "Place",
    "ancestor",
    "check_server",
    "describe_version",
    "download",
    "end_attempt",
    "failed_models_say_why",
    "fetch",
    "fetch_engine",
    "fetch_found",
    "fetch_graph",
    "fetch_nodes",
    "fetch_source",
    "fetch_text",
    "fetcher",
    "is_uri",
    "link_inputs",
    "link_output",
    "log_artifact",
    "log_bisection",
    "log_found",
    "log_kept",
    "log_metrics",
    "log_report",
    "log_source",
    "open_inputs",
    "parity_metrics",
    "place_here",
    "project_run_says_why",
    "resolve",
    "run",
    "signature_of",
    "tag_model",
    "working_at",
]
