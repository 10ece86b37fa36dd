"""Promote a version to an alias if it passes the gates: `mlflow run . -e promote`."""

from mlflow_e2eai import promote
from mlflow_e2eai.cli.main import entry_point
from mlflow_e2eai.cli.results import print_decision

with entry_point("promote") as arguments:
    raise SystemExit(print_decision(promote(**arguments), arguments))
