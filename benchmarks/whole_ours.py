"""One call of `log_model` for benchmarks/whole.py, in a process of its own.

``python whole_ours.py CASE LEVEL FOLDER`` prints the seconds of the call and of its imports as
JSON. The store in the folder is new; it is made before the call, as a server would be, and the model
is trained or read before it too.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from mlflow_e2eai.evaluation.effort import EvidenceLevel

ROOT = Path(__file__).parents[1]


def small_cnn() -> dict[str, Any]:
    """The CNN that Olive takes too, in fp32 and fp16, without engines."""
    import whole_model

    from mlflow_e2eai import Axis

    return {
        "model": whole_model.build(),
        "input_example": {whole_model.NAME: whole_model.example()},
        "dynamic_axes": {whole_model.NAME: {0: Axis("N", min=1, opt=8, max=64)}},
    }


def digits() -> dict[str, Any]:
    """The demo's model and data, with engines for three targets."""
    import digits

    return {**digits.build(), "targets": ("sm86", "sm89", "sm120")}


def minilm() -> dict[str, Any]:
    """all-MiniLM-L6-v2 with its weights, in fp32 and fp16, without engines."""
    from trained_models import REAL_MODELS

    real = REAL_MODELS["MiniLM"]()
    return {
        "model": real.module,
        "input_example": real.example,
        "dynamic_axes": real.dynamic_axes,
    }


CASES = {"CNN": small_cnn, "digits": digits, "MiniLM": minilm}


def main(case: str, level: EvidenceLevel, folder: Path) -> None:
    """Log one model once, and print what it took.

    Raises:
        SystemExit: A variant was not made, or its numbers are wrong.
    """
    sys.path[:0] = [str(ROOT / "examples"), str(ROOT / "tests" / "support")]
    started = time.perf_counter()
    import mlflow
    import torch  # noqa: F401 - the call needs it

    import mlflow_e2eai

    log_model = mlflow_e2eai.log_model  # what the package imports when it is first asked
    imported = time.perf_counter()
    mlflow.set_tracking_uri(f"sqlite:///{folder}/mlflow.db")
    mlflow.set_experiment("whole")
    arguments = CASES[case]()
    begun = time.perf_counter()
    info = log_model(name=case, registered_model_name=case, evidence=level, **arguments)
    ended = time.perf_counter()
    manifest = mlflow_e2eai.load_model(info.model_uri).manifest
    wrong = [each.variant for each in manifest.evidence if each.measured and not each.passed]
    if wrong or {graph.precision for graph in manifest.graphs} != {"fp32", "fp16"}:
        sys.exit(f"{case}: {wrong or 'fp16 is missing'}")
    print(json.dumps({"imports": imported - started, "call": ended - begun}))


if __name__ == "__main__":
    main(sys.argv[1], cast("EvidenceLevel", sys.argv[2]), Path(sys.argv[3]))
