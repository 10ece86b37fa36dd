"""Take a logged PyTorch model from export to package: `mlflow run . -e pipeline`."""

from mlflow_e2eai.cli.main import entry_point
from mlflow_e2eai.cli.results import print_bundle
from mlflow_e2eai.flavor.repackage import package

with entry_point("pipeline") as arguments:
    print_bundle(package(**arguments), arguments)
