"""A trained PyTorch model goes in, and a registered MLflow version with clean ONNX, TensorRT
engines and measured evidence comes out.

The names below are resolved when they are first used: importing this package imports nothing
heavy, neither MLflow nor PyTorch nor TensorRT nor ONNX Runtime.
"""  # noqa: D205 - one sentence

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from mlflow_e2eai.artifacts import Axis as Axis
    from mlflow_e2eai.bisection import bisect as bisect
    from mlflow_e2eai.building import BuildSettings as BuildSettings
    from mlflow_e2eai.engine import compile as compile
    from mlflow_e2eai.exporter import export as export
    from mlflow_e2eai.flavor import load_model as load_model
    from mlflow_e2eai.flavor import log_model as log_model
    from mlflow_e2eai.flavor import save_model as save_model
    from mlflow_e2eai.latency import benchmark as benchmark
    from mlflow_e2eai.operators import Operator as Operator
    from mlflow_e2eai.parity import compare as compare
    from mlflow_e2eai.precision import convert as convert
    from mlflow_e2eai.registry import promote as promote
    from mlflow_e2eai.surgery import clean as clean
    from mlflow_e2eai.triton import export_triton as export_triton

_HOMES = {
    "Axis": "artifacts",
    "BuildSettings": "building",
    "Operator": "operators",
    "benchmark": "latency",
    "bisect": "bisection",
    "clean": "surgery",
    "compare": "parity",
    "compile": "engine",
    "convert": "precision",
    "export": "exporter",
    "export_triton": "triton",
    "load_model": "flavor",
    "log_model": "flavor",
    "promote": "registry",
    "save_model": "flavor",
}

__all__ = [*sorted(_HOMES), "__version__"]  # noqa: PLE0604 - built from the one table


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        msg = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(msg)
    value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
