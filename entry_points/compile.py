"""Build TensorRT engines of a graph: `mlflow run . -e compile -P targets=sm86,sm89`."""

from mlflow_e2eai.cli.main import entry_point
from mlflow_e2eai.cli.results import print_models
from mlflow_e2eai.fleet.distributed import compile

with entry_point("compile") as arguments:
    print_models(compile(**arguments), arguments)
