"""Operators that are not ONNX's own: exported as nodes, with functions that define them.

operator         an operator as the user gives it
symbolic         functions with ``symbolic``, as nodes under every exporter
translation      operators of ``torch.library``, as nodes under every exporter
implementations  implementations of an operator: a library, or functions in the graph
"""

from mlflow_e2eai.pytorch.operators.implementations import load_libraries, unimplemented_operators
from mlflow_e2eai.pytorch.operators.operator import Operator, carry, check_operators, load, save
from mlflow_e2eai.pytorch.operators.symbolic import check_no_python, keep_symbolic, record_applied
from mlflow_e2eai.pytorch.operators.translation import translate_operators
