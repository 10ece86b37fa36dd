"""Versions of 2 to 128 engines on a tracking server: time, requests and pages, by engine."""

from __future__ import annotations

import argparse
import itertools
import logging
import os
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "support"))

import mlflow
import page
from registry import counted
from small_models import AXES, features, net
from tracking_servers import tracking_server

import mlflow_e2eai
from mlflow_e2eai.artifacts.values import Precision
from mlflow_e2eai.pipeline.publish import find_report
from mlflow_e2eai.tracking.downloads import ModelFiles, fetch_text

CAPABILITIES = ("sm80", "sm86", "sm89", "sm120", "sm121")  # all but sm75, which has no bf16
PRECISIONS: tuple[Precision, ...] = ("fp32", "fp16", "bf16", "tf32")
GATES = {"unmeasured": "exclude", "gates": [{"metric": "parity/failed", "at_most": 0}]}
SIZES = {2: 1, 10: 5, 50: 25, 128: 32}
"""Number of targets, by the number of engines: two precisions each, and four of the last."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One version.

    Attributes:
        engines: Its number of engines.
        seconds: By call.
        requests: By call.
        page_kb: Size of its report.
        manifest_kb: Size of its manifest.
    """

    engines: int
    seconds: dict[str, float]
    requests: dict[str, int]
    page_kb: float
    manifest_kb: float


def targets(count: int) -> tuple[str, ...]:
    """Different targets, each a set of compute capabilities; ``rtx`` for all comes last."""
    sets = itertools.chain.from_iterable(
        itertools.combinations(CAPABILITIES, size) for size in range(1, len(CAPABILITIES) + 1)
    )
    named = [f"rtx:{'+'.join(each)}" for each in sets]
    return (*named, "rtx")[:count]


def measure(engines: int) -> Row:
    """Log, promote, list and load a version."""
    name, found = f"many-{engines}", targets(SIZES[engines])
    precisions = PRECISIONS[: engines // len(found)]
    seconds: dict[str, float] = {}
    requests: dict[str, int] = {}

    def timed(call: str, function: Callable[[], Any]) -> Any:
        with counted() as sent:
            start = time.perf_counter()
            result = function()
            seconds[call] = time.perf_counter() - start
        requests[call] = len(sent)
        return result

    info = timed(
        "log_model",
        lambda: mlflow_e2eai.log_model(
            net(seed=engines),
            name,
            input_example={"x": features()},
            dynamic_axes=AXES,
            targets=found,
            precisions=precisions,
            evidence="quick",
            registered_model_name=name,
        ),
    )
    decision = timed("promote", lambda: mlflow_e2eai.promote(name, 1, gates=GATES))
    rows = timed("variants", lambda: mlflow_e2eai.variants(f"models:/{name}/1"))
    timed("load_model", lambda: mlflow_e2eai.load_model(f"models:/{name}@champion"))
    built = int(rows["variant"].str.startswith("tensorrt").sum())
    if built != engines or not decision.promoted:
        message = f"{built} engines of {engines} were built: {decision.reasons}"
        raise RuntimeError(message)
    text = fetch_text(find_report(info.model_uri).report)
    with tempfile.TemporaryDirectory() as folder:
        files = ModelFiles(info.model_uri, folder)
        files.fetch("bundle/manifest.json")
        manifest_bytes = (files.directory / "bundle" / "manifest.json").stat().st_size
    return Row(
        engines=engines,
        seconds=seconds,
        requests=requests,
        page_kb=len(text) / 1e3,
        manifest_kb=manifest_bytes / 1e3,
    )


def lines(rows: list[Row]) -> list[str]:
    """The table, and what each further engine takes from the first version to the last."""
    calls = list(rows[0].seconds)
    head = [f"{call}, s (requests)" for call in calls]
    table = [
        f"| engines | {' | '.join(head)} | report, KB | manifest, KB |",
        "|---" * (len(calls) + 3) + "|",
    ]
    for row in rows:
        cells = [f"{row.seconds[call]:.1f} ({row.requests[call]})" for call in calls]
        table.append(
            f"| {row.engines} | {' | '.join(cells)} | {row.page_kb:.0f} | {row.manifest_kb:.0f} |"
        )
    return [*table, "", *[growth(before, after) for before, after in itertools.pairwise(rows)]]


def growth(before: Row, after: Row) -> str:
    """What each further engine took in `log_model`: the same at every step where it is linear."""
    more = after.engines - before.engines
    seconds = (after.seconds["log_model"] - before.seconds["log_model"]) / more
    requests = (after.requests["log_model"] - before.requests["log_model"]) / more
    return (
        f"- From {before.engines} to {after.engines} engines, each further one: {seconds:.2f} s "
        f"and {requests:.1f} requests of `log_model`."
    )


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("most", nargs="?", type=int, default=max(SIZES), help="engines at most")
    most = parser.parse_args().most
    logging.disable(logging.WARNING)
    os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
    with tempfile.TemporaryDirectory() as folder, tracking_server(Path(folder)) as server:
        mlflow.set_tracking_uri(server.uri)
        mlflow.set_experiment("many")
        mlflow_e2eai.log_model(  # what is imported and made on first use
            net(), "first", input_example={"x": features()}, dynamic_axes=AXES, evidence="quick"
        )
        rows = [measure(engines) for engines in SIZES if engines <= most]
    text = [
        "`benchmarks/many.py`: a net of 227 parameters on `mlflow server` over SQLite, engines of",
        "TensorRT-RTX for sets of compute capabilities in two precisions (of 128: four), evidence",
        "`quick`; nothing here can run them. Promoted with `unmeasured: exclude`.",
        "",
        *lines(rows),
    ]
    page.write("many", "Many engines in one version", "\n".join(text))


if __name__ == "__main__":
    main()
