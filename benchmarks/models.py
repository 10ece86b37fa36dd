"""Real models on the way to clean graphs, and what peers leave: a section of BENCHMARKS.md.

Every peer is given the file that the exporter wrote. MiniLM's way is timed in turns with the bare
call of PyTorch's exporter, as a ratio: absolute times on a shared machine say little.
"""

from __future__ import annotations

import logging
import os
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import page

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests" / "support"))
ROUNDS = 3
HEADS = ("raw", "ours", "onnxslim", "onnxsim", "Polygraphy")


def way(name: str, work: Path) -> str:
    """A row of the table: one model, its exporter, nodes, errors and seconds."""
    import onnx
    import torch
    from trained_models import REAL_MODELS, peers

    from mlflow_e2eai import clean, compare, convert, export
    from mlflow_e2eai.artifacts.axes import corners, resize
    from mlflow_e2eai.pytorch.flat_module import flatten_module
    from mlflow_e2eai.pytorch.runner import torch_runner
    from mlflow_e2eai.runtime.ort import onnxruntime_runner

    real = REAL_MODELS[name]()
    module, _ = flatten_module(real.module, real.example)
    started = time.perf_counter()
    raw, taken = export(
        real.module,
        real.example,
        out=work / "raw.onnx",
        dynamic_axes=real.dynamic_axes,
        operators=real.operators,
    )
    exported = time.perf_counter()
    samples = [resize(real.sample, raw.inputs, sizes) for sizes in corners(raw.axes).values()]
    made, report = clean(raw, out=work / "clean.onnx", samples=samples)
    cleaned = time.perf_counter()
    half, _ = convert(made, "fp16", out=work / "half.onnx", samples=samples)
    left = peers(onnx.load(raw.path))
    nodes: Mapping[str, int] = {"raw": report.nodes_before, "ours": report.nodes_after, **left}

    def error(path: Path, precision: Any) -> str:
        outputs = [spec.name for spec in raw.outputs]
        with (
            torch_runner(module, inputs=list(real.sample), outputs=outputs) as reference,
            onnxruntime_runner(path, rounded=precision == "fp16") as candidate,
        ):
            found = compare(reference, candidate, samples, precision=precision, repeats=1)
        return f"{max(output.max_abs_error for output in found.outputs):.1e}"

    torch.manual_seed(0)
    errors = (error(raw.path, "fp32"), error(made.path, "fp32"), error(half.path, "fp16"))
    seconds = (f"{exported - started:.1f}", f"{cleaned - exported:.1f}")
    cells = (name, taken.exporter, *(str(nodes[head]) for head in HEADS), *errors, *seconds)
    return f"| {' | '.join(cells)} |"


def ratios(exporter: str, work: Path) -> str:
    """A row: MiniLM from PyTorch to a clean graph, against the bare call of the exporter."""
    import torch
    from trained_models import REAL_MODELS

    from mlflow_e2eai import clean, export
    from mlflow_e2eai.artifacts.axes import corners, resize

    real = REAL_MODELS["MiniLM"]()
    arguments = tuple(real.example.values())
    dynamo = exporter == "dynamo"
    shapes: dict[str, Any] = (
        {"dynamic_shapes": tuple({0: "N"} for _ in arguments)}
        if dynamo
        else {"dynamic_axes": {name: {0: "N"} for name in real.example}}
    )
    rows: list[tuple[float, float, float]] = []
    for _ in range(ROUNDS + 1):
        started = time.perf_counter()
        with torch.no_grad():
            torch.onnx.export(
                real.module,
                arguments,
                work / "bare.onnx",
                dynamo=dynamo,
                opset_version=18,
                input_names=list(real.example),
                verbose=False,
                **shapes,
            )
        bare = time.perf_counter()
        raw, _ = export(
            real.module,
            real.example,
            out=work / "raw.onnx",
            dynamic_axes=real.dynamic_axes,
            exporter=exporter,  # type: ignore[arg-type]
        )
        samples = [resize(real.sample, raw.inputs, sizes) for sizes in corners(raw.axes).values()]
        exported = time.perf_counter()
        clean(raw, out=work / "clean.onnx", samples=samples)
        cleaned = time.perf_counter()
        rows.append((bare - started, exported - bare, cleaned - exported))
    warm = rows[1:]  # the first round imports
    whole = [(made + cleaned) / bare for bare, made, cleaned in warm]
    middle = [f"{statistics.median(column):.1f}" for column in zip(*warm, strict=True)]
    spread = f"{statistics.median(whole):.2f} ({min(whole):.2f} to {max(whole):.2f})"
    return f"| {exporter} | {' | '.join(middle)} | {spread} |"


def main() -> None:
    """Measure and write."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    from trained_models import REAL_MODELS

    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        table = [way(name, work) for name in REAL_MODELS]
        times = [ratios(exporter, work) for exporter in ("dynamo", "trace")]
    columns = (
        "model",
        "exporter",
        *(f"nodes, {head}" for head in HEADS),
        *(f"error, {what}" for what in ("raw", "clean", "fp16")),
        "s, export",
        "s, clean",
    )
    lines = [
        "`python benchmarks/models.py`. Nodes of the main graph; every peer is given the raw file.",
        "Errors are the largest absolute difference from the module, at every corner of the",
        "dynamic axes; fp16 is rounded between nodes, as a GPU does.",
        "",
        f"| {' | '.join(columns)} |",
        f"|{'---|' * len(columns)}",
        *table,
        "",
        f"### MiniLM against the bare `torch.onnx.export`, median of {ROUNDS} rounds in turns",
        "",
        "| exporter | s, bare | s, export | s, clean | both to bare (smallest to largest) |",
        "|---|---|---|---|---|",
        *times,
    ]
    page.write("models", "Real models, and what peers leave of them", "\n".join(lines))


if __name__ == "__main__":
    main()
