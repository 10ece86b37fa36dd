"""Stage jobs on many workers: processes here, or a Ray cluster.

distributed  `compile` and `evaluate` of a logged model, by an executor
engine_jobs  a pipeline's engines, built and evaluated as jobs
job          a job, its attempts, and its outcome
run          a list of jobs, under one parent run
worker       one attempt at a job, in a worker process
local        workers here
ray          workers of a Ray cluster
"""

from mlflow_e2eai.fleet.engine_jobs import EngineJobs, evaluations, remeasurements
from mlflow_e2eai.fleet.job import (
    EXECUTORS,
    Executor,
    Job,
    Outcome,
    require_success,
    uses_other_machines,
)
from mlflow_e2eai.fleet.run import run
