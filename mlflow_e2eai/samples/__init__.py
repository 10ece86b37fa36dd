"""What variants are asked: generated samples, the caller's data, and the metrics on its labels."""

from mlflow_e2eai.samples.data import EvaluationData, all_samples, calls
from mlflow_e2eai.samples.generated import (
    batch_samples,
    branch_samples,
    edge_samples,
    other_sample,
    profile_samples,
)
from mlflow_e2eai.samples.metrics import Metrics, TaskMetric, accuracy, joined, scores

__all__ = [
    "EvaluationData",
    "Metrics",
    "TaskMetric",
    "accuracy",
    "all_samples",
    "batch_samples",
    "branch_samples",
    "calls",
    "edge_samples",
    "joined",
    "other_sample",
    "profile_samples",
    "scores",
]
