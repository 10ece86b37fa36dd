"""Train a model on handwritten digits and take it the whole way: `mlflow run .`, `make demo`."""

import runpy
from pathlib import Path

runpy.run_path(str(Path(__file__).parents[1] / "examples/digits.py"), run_name="__main__")
