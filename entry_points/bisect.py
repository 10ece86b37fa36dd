"""Find the nodes that must stay in fp32 for a precision to pass: `mlflow run . -e bisect`."""

from mlflow_e2eai.cli.main import entry_point
from mlflow_e2eai.cli.results import print_bisection
from mlflow_e2eai.pipeline.jobs import bisect

with entry_point("bisect") as arguments:
    print_bisection(bisect(**arguments), arguments)
