"""Operators that are not ONNX's own: kept by the export, and carried with what they mean."""

from mlflow_e2eai.operators.implementing import unimplemented
from mlflow_e2eai.operators.keeping import applied, kept, refuse_scripted
from mlflow_e2eai.operators.meaning import Operator, carry, load, save

__all__ = [
    "Operator",
    "applied",
    "carry",
    "kept",
    "load",
    "refuse_scripted",
    "save",
    "unimplemented",
]
