"""Evaluate a graph, engine or bundle against its PyTorch model: `mlflow run . -e evaluate`."""

from mlflow_e2eai.cli.main import entry_point
from mlflow_e2eai.cli.results import print_evidence
from mlflow_e2eai.fleet.distributed import evaluate

with entry_point("evaluate") as arguments:
    print_evidence(evaluate(**arguments), arguments)
