"""ONNX and a target -> TensorRT engine; an engine -> `Infer`. The only importers of TensorRT."""

from mlflow_e2eai.engine.backends import UnlistedGPUWarning
from mlflow_e2eai.engine.buckets import choose_buckets
from mlflow_e2eai.engine.build import compile
from mlflow_e2eai.engine.builders import keep_builder
from mlflow_e2eai.engine.keys import key_for, key_of, version_for
from mlflow_e2eai.engine.limits import check_anywhere, check_here, why_not_built, why_nowhere
from mlflow_e2eai.engine.run import engine_runner, graph_of, why_not_here
from mlflow_e2eai.engine.targets import TARGETS, covers, parse, resolve
from mlflow_e2eai.engine.timings import SUFFIX as TIMINGS_SUFFIX
from mlflow_e2eai.engine.timings import timings_key

__all__ = [
    "TARGETS",
    "TIMINGS_SUFFIX",
    "UnlistedGPUWarning",
    "check_anywhere",
    "check_here",
    "choose_buckets",
    "compile",
    "covers",
    "engine_runner",
    "graph_of",
    "keep_builder",
    "key_for",
    "key_of",
    "parse",
    "resolve",
    "timings_key",
    "version_for",
    "why_not_built",
    "why_not_here",
    "why_nowhere",
]
