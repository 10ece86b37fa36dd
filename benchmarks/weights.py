"""Weights that packages ship, the whole way to a version: a section of BENCHMARKS.md.

Each is logged in three precisions on a new SQLite store, promoted if the default gates let it, and
called by MLflow's pyfunc; its outputs are read: text, a note, a face, digits, words.
"""

from __future__ import annotations

import logging
import os
import sys
import tempfile
import time
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import page

if TYPE_CHECKING:
    from shipped_models import ShippedModel

    from mlflow_e2eai.artifacts.values import Precision
    from mlflow_e2eai.bundle import Manifest

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests" / "support"))
PRECISIONS: tuple[Precision, ...] = ("fp32", "fp16", "bf16")
COLUMNS = (
    *("model", "package, written by", "opset", "inputs", "nodes, raw", "nodes, clean"),
    *(f"error, {precision}" for precision in PRECISIONS),
    *("outcome", "s"),
)


def way(name: str, shipped: ShippedModel) -> str:
    """A row of the table: one model, what became of it, and the seconds of `log_model`."""
    import mlflow

    import mlflow_e2eai

    started = time.perf_counter()
    try:
        mlflow_e2eai.log_model(
            shipped.model,
            "shipped",
            input_example=shipped.input_example,
            dynamic_axes=shipped.dynamic_axes,
            precisions=PRECISIONS,
            registered_model_name=name,
        )
    except mlflow_e2eai.errors.E2EAIError as error:
        cells = [opset(shipped), inputs(shipped), *["-"] * 5, f"refused: {error}"]
    else:
        seconds = time.perf_counter() - started
        uri = f"models:/{name}/1"  # the store is new
        loaded = mlflow_e2eai.load_model(uri)
        decision = mlflow_e2eai.promote(name, 1)
        served = mlflow.pyfunc.load_model(uri).predict(dict(shipped.example))
        outcome = (
            "promoted" if decision.promoted else f"not promoted: {'; '.join(decision.reasons)}"
        )
        meaning = "read right" if shipped.read(served) == shipped.meaning else "READ WRONG"
        surgery = loaded.manifest.surgery
        cells = [
            opset(shipped),
            inputs(shipped),
            str(surgery.nodes_before),
            str(surgery.nodes_after),
            *(error_of(loaded.manifest, precision) for precision in PRECISIONS),
            f"logged, served by {loaded.variant}, {meaning}; {outcome}",
        ]
        return row([name, shipped.source, *cells, f"{seconds:.0f}"])
    return row([name, shipped.source, *cells, f"{time.perf_counter() - started:.1f}"])


def row(cells: list[str]) -> str:
    """Cells as a line of Markdown."""
    return f"| {' | '.join(cells)} |"


def opset(shipped: ShippedModel) -> str:
    """The operator set of a file; that of our export for a module."""
    import onnx

    from mlflow_e2eai.artifacts import graphs
    from mlflow_e2eai.pytorch.stage import DEFAULT_OPSET

    if not isinstance(shipped.model, Path):
        return f"{DEFAULT_OPSET}, ours"
    return str(graphs.opset_of(onnx.load(shipped.model)))


def inputs(shipped: ShippedModel) -> str:
    """Each input with its sizes, dynamic ones with their range."""

    def size(name: str, position: int, fixed: int) -> str:
        axis = (shipped.dynamic_axes or {}).get(name, {}).get(position)
        if axis is None:
            return str(fixed)
        if axis.min == axis.max:
            return f"{axis.name} {axis.min}"
        step = f" by {axis.multiple}" if axis.multiple > 1 else ""
        return f"{axis.name} {axis.min} to {axis.max}{step}"

    return "; ".join(
        f"`{name}` [{', '.join(size(name, at, n) for at, n in enumerate(array.shape))}]"
        for name, array in shipped.example.items()
    )


def error_of(manifest: Manifest, precision: str) -> str:
    """The largest error of a precision that decides, as a share of the largest magnitude."""
    variant = f"onnxruntime-cpu/{precision}"
    found: Mapping[str, Any] = {entry.variant: entry for entry in manifest.evidence}
    if variant not in found:
        return "refused"
    entry = found[variant]
    largest = max(
        output.max_rel_error for report in entry.deciding.values() for output in report.outputs
    )
    return f"{largest:.1e}, {'passed' if entry.passed else 'failed'}"


def main() -> None:
    """Measure and write."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    import mlflow
    from shipped_models import SHIPPED, faces_of_any_size

    models = {**SHIPPED, "CenterFace, sizes not opened": faces_of_any_size}
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)  # artifacts lie beside the database
        mlflow.set_tracking_uri(f"sqlite:///{folder}/mlflow.db")
        table = [way(name, make()) for name, make in models.items()]
    lines = [
        "`python benchmarks/weights.py`. Errors are the largest that decide, as shares of the",
        "largest magnitude of their output, against the file on ONNX Runtime or the module, at all",
        "corners of the dynamic axes, sizes between and zeros; fp16 is rounded between nodes too, as",
        "a GPU does. A precision that failed is in the version with its evidence, and is not served.",
        "",
        f"| {' | '.join(COLUMNS)} |",
        f"|{'---|' * len(COLUMNS)}",
        *table,
    ]
    page.write("weights", "Weights that packages ship", "\n".join(lines))


if __name__ == "__main__":
    main()
