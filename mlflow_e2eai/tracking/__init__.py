"""Values <-> linked MLflow runs and LoggedModels.

Stages use digests; only this package maps a digest to its LoggedModel. Every LoggedModel that
it makes carries the tags ``e2eai.derived_from`` (what it was made from), ``e2eai.source_model``
(the PyTorch model at the root) and ``e2eai.stage``, so that the chain can be walked both ways with
MLflow's own search. Run inputs alone do not suffice: `search_runs` leaves them out.

recorder         protocols: log a value, find an engine, run remote jobs
mlflow_recorder  stages as child runs, and the cache of logged engines
runs             parents, children, and the reason of a failed one
models           artifacts -> LoggedModels
sources          PyTorch models <-> LoggedModels
lineage          URIs -> LoggedModels, and their lineage
latest           the newest model or version that a step can take
downloads        files of a model, one by one
engine_store     engines and kernel timings of earlier builds
remote_jobs      runs of jobs in other processes
metric_names     names of metrics as MLflow takes them
model_names      names of models: what MLflow refuses is told early, or mapped
metrics          evidence -> tags and metrics
summary          the values of a stage in a few words
console          MLflow's bars and INFO lines, hidden in our calls
server           a check of the server, and cached lookups
_mlflow          private helpers of MLflow
"""

from mlflow_e2eai.tracking.downloads import ModelFiles, fetcher
from mlflow_e2eai.tracking.lineage import (
    MLMODEL_SHA256,
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
    model_of_version,
    resolve,
    tag_model,
)
from mlflow_e2eai.tracking.metric_names import metric_name
from mlflow_e2eai.tracking.metrics import NONFINITE, log_metrics, parity_metrics
from mlflow_e2eai.tracking.mlflow_recorder import MlflowRecorder
from mlflow_e2eai.tracking.model_names import check_names, model_name
from mlflow_e2eai.tracking.models import fetch_nodes, log_bisection, log_fp32_nodes
from mlflow_e2eai.tracking.runs import (
    fail_run,
    link_permitted_inputs,
    log_model_failure,
    report_folder,
    run,
)
from mlflow_e2eai.tracking.sources import fetch_source, log_source, open_inputs
