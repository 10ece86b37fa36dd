"""Convert a cleaned graph to another precision: `mlflow run . -e convert -P precision=fp16`."""

from mlflow_e2eai.cli.main import entry_point
from mlflow_e2eai.cli.results import print_models
from mlflow_e2eai.pipeline.jobs import convert

with entry_point("convert") as arguments:
    print_models(convert(**arguments), arguments)
