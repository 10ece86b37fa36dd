"""Values <-> linked MLflow runs and LoggedModels.

Stages know digests; this package alone knows which LoggedModel a digest is. Every LoggedModel that
it makes carries the tags ``e2eai.derived_from`` (what it was made from), ``e2eai.source_model``
(the PyTorch model at the root) and ``e2eai.stage``, so that the chain can be walked both ways with
MLflow's own search. Run inputs alone would not do: `search_runs` leaves them out.
"""

from mlflow_e2eai.tracking.downloads import ModelFiles, fetcher
from mlflow_e2eai.tracking.lineage import (
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
from mlflow_e2eai.tracking.mlflow_recorder import MlflowRecorder
from mlflow_e2eai.tracking.models import fetch_nodes, log_bisection, log_fp32_nodes
from mlflow_e2eai.tracking.runs import log_model_failure, run
from mlflow_e2eai.tracking.sources import fetch_source, log_source, open_inputs
