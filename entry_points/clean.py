"""Apply a surgery plan to an exported graph, or to an ONNX file: `mlflow run . -e clean`."""

from mlflow_e2eai.cli.clean_verb import clean
from mlflow_e2eai.cli.main import entry_point
from mlflow_e2eai.cli.results import print_models

with entry_point("clean") as arguments:
    print_models(clean(**arguments), arguments)
