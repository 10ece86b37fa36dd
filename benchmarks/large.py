"""3 GB of weights from `log_model` to a loaded pyfunc, through a server that hands artifacts on.

Memory is that of all processes together, the server's too, and without the page cache that no
process maps; disk is what the server stores, and what lies in the temporary folder at most.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "support"))

import mlflow
import numpy as np
import page
import torch
from memory_use import files_bytes, watched
from tracking_servers import tracking_server
from wide_models import Wide

import mlflow_e2eai

Result = TypeVar("Result")

IDS = {"ids": np.arange(6).reshape(2, 3)}


def measured(
    what: str, call: Callable[[], Result], weights: int, store: Path, scratch: Path
) -> tuple[Result, tuple[str, ...]]:
    """The result of a call, and a row about it: shares of the weights, and seconds."""
    began, before = time.monotonic(), files_bytes(store)
    with watched(os.getpid(), scratch, large_bytes=weights) as seen:
        result = call()
    seconds = time.monotonic() - began
    shares = (seen.peak_bytes, files_bytes(store) - before, seen.files_bytes)
    return result, (what, *(f"{share / weights:.2f}" for share in shares), f"{seconds:.0f}")


def main() -> None:
    """Measure and write."""
    torch.manual_seed(0)
    wide = Wide(inner=112_000).eval()
    weights = sum(each.numel() * each.element_size() for each in wide.parameters())
    with torch.no_grad():
        right = wide(torch.from_numpy(IDS["ids"])).numpy()
    with tempfile.TemporaryDirectory() as name:
        folder, scratch = Path(name), Path(name, "scratch")
        scratch.mkdir()
        with tracking_server(folder) as server:
            tempfile.tempdir = str(scratch)
            mlflow.set_tracking_uri(server.uri)
            mlflow.set_experiment("large")
            common = (weights, folder / "artifacts", scratch)
            info, logged = measured(
                "`log_model`, fp32",
                lambda: mlflow_e2eai.log_model(
                    wide, "wide", input_example=IDS, precisions=("fp32",)
                ),
                *common,
            )
            model, loaded = measured(
                "`mlflow.pyfunc.load_model`",
                lambda: mlflow.pyfunc.load_model(info.model_uri),
                *common,
            )
            (found,) = model.predict(IDS).values()
            error = float(np.abs(found - right).max())
    rows = ["| " + " | ".join(cells) + " |" for cells in (logged, loaded)]
    lines = [
        f"A module with {weights / 1e9:.2f} GB of weights, through `mlflow server` with proxied",
        "artifacts on this machine. Memory is that of all processes together (proportional set size,",
        "the server's too); temporary files are the most that lay there at once.",
        "",
        "| call | memory | stored by the server | temporary files | s |",
        "|---|---|---|---|---|",
        *rows,
        "",
        "Memory and files are multiples of the weights. The largest error of the loaded model's",
        f"outputs is {error:.1g}.",
    ]
    page.write("large", "3 GB of weights", "\n".join(lines))


if __name__ == "__main__":
    main()
