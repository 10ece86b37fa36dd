"""Stage jobs on many workers: processes here, or a Ray cluster.

values      a job, and what came of it
working     one attempt at a job, in a process of its own beside whoever asked for it
local       workers here
cluster     workers of a Ray cluster
running     a list of jobs, under one parent run
building    a pipeline's engines as such jobs
judging     the evaluations of engines as such jobs
"""

from mlflow_e2eai.fleet.building import builder
from mlflow_e2eai.fleet.judging import evaluations, judge
from mlflow_e2eai.fleet.running import run
from mlflow_e2eai.fleet.values import EXECUTORS, Executor, Job, Outcome, held, is_away

__all__ = [
    "EXECUTORS",
    "Executor",
    "Job",
    "Outcome",
    "builder",
    "evaluations",
    "held",
    "is_away",
    "judge",
    "run",
]
