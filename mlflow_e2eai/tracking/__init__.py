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
versions         names of registered versions -> MLflow's versions
latest           the newest model or version that a step can take
downloads        files of a model, one by one
store/           results and processes of earlier runs
remote_jobs      runs of jobs in other processes
mlflow_names     names of metrics and models as MLflow takes them
metrics          evidence -> tags and metrics
summary          the values of a stage in a few words
console          MLflow's bars and INFO lines, hidden in our calls
server           a check of the server, and cached lookups
_mlflow          private helpers of MLflow
"""

from mlflow_e2eai.tracking.downloads import (
    ModelFiles,
    alias_of,
    fetcher,
    manifest_sha256,
)
from mlflow_e2eai.tracking.lineage import (
    MLMODEL_SHA256,
    PARENT,
    SHA256,
    SOURCE,
    STAGE,
    ancestor,
    fetch,
    fetch_engine,
    fetch_graph,
    is_uri,
    link_inputs,
    link_output,
    model_of_version,
    resolve,
    source_of,
    tag_model,
)
from mlflow_e2eai.tracking.metrics import (
    NONFINITE,
    log_metrics,
    log_new_params,
    parity_metrics,
)
from mlflow_e2eai.tracking.mlflow_names import check_names, check_storable, metric_name, model_name
from mlflow_e2eai.tracking.mlflow_recorder import MlflowRecorder
from mlflow_e2eai.tracking.models import (
    fetch_nodes,
    link_permitted_inputs,
    log_bisection,
    log_fp32_nodes,
    open_inputs,
)
from mlflow_e2eai.tracking.runs import (
    fail_run,
    log_model_failure,
    rename_run,
    report_folder,
    run,
)
from mlflow_e2eai.tracking.sources import fetch_source, log_source
from mlflow_e2eai.tracking.store.integrity import audit_saved, fetch_verified
from mlflow_e2eai.tracking.store.mlflow2_models import resolve_source
