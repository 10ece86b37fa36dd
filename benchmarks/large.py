"""3 GB of weights from `log_model` to a loaded pyfunc, through a server that hands artifacts on.

Memory is that of all processes together, the server's too, and without the page cache that no
process maps; disk is what the server stores, and what lies in the temporary folder at most.
"""

from __future__ import annotations

import os
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "support"))

import mlflow
import numpy as np
import page
import torch
from memory_use import watched
from tracking_servers import tracking_server

import mlflow_e2eai

Result = TypeVar("Result")

IDS = {"ids": np.arange(6).reshape(2, 3)}


class Wide(torch.nn.Module):
    """3.0 GB of weights, nine tenths of them in two Linear."""

    def __init__(self, words: int = 20_000, width: int = 3072, inner: int = 112_000) -> None:
        super().__init__()
        self.embedding = torch.nn.Embedding(words, width)
        self.up = torch.nn.Linear(width, inner)
        self.down = torch.nn.Linear(inner, width)
        self.out = torch.nn.Linear(width, 8)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """Eight numbers for each id."""
        hidden: torch.Tensor = self.out(self.down(torch.relu(self.up(self.embedding(ids)))))
        return hidden


def size_of(folder: Path) -> int:
    """Bytes of the files of a folder, one with several names once."""
    sizes = {}
    for path in folder.rglob("*"):
        try:
            found = path.stat()
        except OSError:
            continue  # it is gone
        if path.is_file():
            sizes[found.st_ino] = found.st_size
    return sum(sizes.values())


@contextmanager
def largest(folder: Path) -> Iterator[list[int]]:
    """The most bytes that were in a folder during the block, as the only item of a list."""
    most, done = [0], threading.Event()

    def watch() -> None:
        while not done.wait(0.2):
            most[0] = max(most[0], size_of(folder))

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield most
    finally:
        done.set()
        thread.join()


def measured(
    what: str, call: Callable[[], Result], weights: int, store: Path, scratch: Path
) -> tuple[Result, tuple[str, ...]]:
    """The result of a call, and a row about it: shares of the weights, and seconds."""
    began, before = time.monotonic(), size_of(store)
    with watched(os.getpid(), scratch, large_bytes=weights) as seen, largest(scratch) as most:
        result = call()
    seconds = time.monotonic() - began
    shares = (seen.peak_bytes, size_of(store) - before, most[0])
    return result, (what, *(f"{share / weights:.2f}" for share in shares), f"{seconds:.0f}")


def main() -> None:
    """Measure and write."""
    torch.manual_seed(0)
    wide = Wide().eval()
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
