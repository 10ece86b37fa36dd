"""Log a PyTorch model that a callable returns: `mlflow run . -e log -P model=file.py:callable`."""

from mlflow_e2eai.cli.main import entry_point
from mlflow_e2eai.cli.results import print_models
from mlflow_e2eai.pipeline.jobs import log

with entry_point("log") as arguments:
    print_models(log(**arguments), arguments)
