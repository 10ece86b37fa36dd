"""Operators that are not ONNX's own: kept by the export, and carried with what they mean.

operator         an operator as the user gives it
symbolic         operators kept by TorchScript's exporter
translation      operators kept by dynamo
implementations  who implements an operator: a library, or functions in the graph
"""

from mlflow_e2eai.pytorch.operators.implementations import load_libraries, unimplemented_operators
from mlflow_e2eai.pytorch.operators.operator import Operator, carry, load, save
from mlflow_e2eai.pytorch.operators.symbolic import check_no_python, keep_symbolic, record_applied
from mlflow_e2eai.pytorch.operators.translation import translate_operators
