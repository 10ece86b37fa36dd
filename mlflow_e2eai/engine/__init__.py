"""ONNX and a target -> TensorRT engine; an engine -> `Infer`. The only importers of TensorRT."""

from mlflow_e2eai.engine.backends import check_plugins
from mlflow_e2eai.engine.build import compile
from mlflow_e2eai.engine.keys import key_for, key_of, version_for
from mlflow_e2eai.engine.limits import why_not_built
from mlflow_e2eai.engine.run import engine_runner, why_not_here
from mlflow_e2eai.engine.targets import TARGETS, covers, parse, resolve

__all__ = [
    "TARGETS",
    "check_plugins",
    "compile",
    "covers",
    "engine_runner",
    "key_for",
    "key_of",
    "parse",
    "resolve",
    "version_for",
    "why_not_built",
    "why_not_here",
]
