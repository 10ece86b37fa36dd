"""Operators that are not ONNX's own: kept by the export, and carried with what they mean."""

from mlflow_e2eai.operators.implementing import unimplemented
from mlflow_e2eai.operators.keeping import kept, refuse_scripted
from mlflow_e2eai.operators.meaning import Operator, carry

__all__ = ["Operator", "carry", "kept", "refuse_scripted", "unimplemented"]
