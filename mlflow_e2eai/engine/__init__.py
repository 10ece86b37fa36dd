"""ONNX and a target -> TensorRT engine; an engine -> `Infer`. The only importers of TensorRT."""

from mlflow_e2eai.engine.backends import TARGETS, check_plugins, resolve
from mlflow_e2eai.engine.build import compile
from mlflow_e2eai.engine.keys import key_for, key_of
from mlflow_e2eai.engine.limits import why_not_built
from mlflow_e2eai.engine.run import engine_runner, why_not_here

__all__ = [
    "TARGETS",
    "check_plugins",
    "compile",
    "engine_runner",
    "key_for",
    "key_of",
    "resolve",
    "why_not_built",
    "why_not_here",
]
