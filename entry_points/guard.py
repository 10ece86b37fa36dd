"""Find aliases of a registered model that were moved by hand: `mlflow run . -e guard`."""

from mlflow_e2eai import guard
from mlflow_e2eai.cli.main import entry_point
from mlflow_e2eai.cli.registry_results import print_guard

with entry_point("guard") as arguments:
    raise SystemExit(print_guard(guard(**arguments), arguments))
