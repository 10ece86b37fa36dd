"""Operators that are not ONNX's own: kept by the export, and carried with what they mean."""

from mlflow_e2eai.operators.implementing import found, unimplemented
from mlflow_e2eai.operators.keeping import applied, kept, refuse_scripted
from mlflow_e2eai.operators.meaning import Operator, carry, load, save
from mlflow_e2eai.operators.translating import translated

__all__ = [
    "Operator",
    "applied",
    "carry",
    "found",
    "kept",
    "load",
    "refuse_scripted",
    "save",
    "translated",
    "unimplemented",
]
