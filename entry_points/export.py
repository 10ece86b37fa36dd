"""Export a logged PyTorch model to ONNX: `mlflow run . -e export`."""

from mlflow_e2eai.cli.main import entry_point
from mlflow_e2eai.cli.results import print_models
from mlflow_e2eai.pipeline.jobs import export

with entry_point("export") as arguments:
    print_models(export(**arguments), arguments)
