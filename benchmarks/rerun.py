"""What a second run of a pipeline takes when nothing, or one thing, has changed.

The digits model with one target on a new SQLite store, each run a process of the command line: a
user who repeats a command. The time of the call begins when MLflow, its store and the package are
imported.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import page

ROOT = Path(__file__).parents[1]

MOST_SHARE, MOST_S = 0.05, 5.0
"""Goals of a run with nothing changed: its share of the first run's time, and its time."""

PROGRAM = """
import sys, time
import mlflow, mlflow.store.tracking.sqlalchemy_store, mlflow_e2eai.flavor.repackage
from mlflow_e2eai.cli.main import main
start = time.perf_counter()
code = main()
print(time.perf_counter() - start)
sys.exit(code)
"""
"""The command line, with the time after its imports as its last line."""

RUNS: dict[str, tuple[str, ...]] = {
    "first": (),
    "nothing changed": (),
    "bf16 added": ("--precisions", "fp32,fp16,bf16"),
    "opset 17": ("--opset", "17"),
}


def log(work: Path) -> str:
    """Log the digits model on a new store."""
    import mlflow

    from mlflow_e2eai.pipeline import jobs

    mlflow.set_tracking_uri(os.environ["MLFLOW_TRACKING_URI"])
    mlflow.create_experiment("rerun", artifact_location=(work / "artifacts").as_uri())
    return jobs.log(f"{ROOT / 'examples' / 'digits.py'}:build", name="digits")


def run(model_id: str, words: Sequence[str]) -> tuple[float, float, list[str]]:
    """Seconds of a process and of its call, and the stages that it did."""
    command = ["pipeline", f"models:/{model_id}", "--registered-model-name", "digits"]
    start = time.perf_counter()
    done = subprocess.run(  # noqa: S603 - this program
        [sys.executable, "-c", PROGRAM, *command, "--targets", "sm86", "--quiet", *words],
        check=True,
        capture_output=True,
        text=True,
    )
    process_s = time.perf_counter() - start
    return process_s, float(done.stdout.splitlines()[-1]), _stages_done()


def _stages_done() -> list[str]:
    """The stages of the newest pipeline that were not linked, in their order."""
    import mlflow

    runs = mlflow.search_runs(order_by=["attributes.start_time DESC"], output_format="list")
    parent = next(run for run in runs if "mlflow.parentRunId" not in run.data.tags).info.run_id
    below = [run for run in runs if run.data.tags.get("mlflow.parentRunId") == parent]
    return [
        run.info.run_name for run in reversed(below) if "e2eai.reused_from" not in run.data.tags
    ]


def goals(first_s: float, call_s: float, process_s: float) -> list[str]:
    """What was to be reached, and what was: a line for each."""
    share = call_s / first_s
    words = {True: "holds", False: "does not hold"}
    of_first = f"{words[share <= MOST_SHARE]}, {share:.1%}"
    whole = f"{words[process_s <= MOST_S]}, {process_s:.1f} s"
    return [
        f"- nothing changed, the call: at most {MOST_SHARE:.0%} of the first: {of_first}.",
        f"- nothing changed, the whole process: at most {MOST_S:.0f} s: {whole}.",
    ]


def main() -> None:
    """Measure and write."""
    os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{work}/mlflow.db"
        os.environ["MLFLOW_EXPERIMENT_NAME"] = "rerun"
        model_id = log(work)
        taken = {name: run(model_id, words) for name, words in RUNS.items()}
    first_s = taken["first"][1]
    rows = [
        f"| {name} | {call_s:.2f} | {call_s / first_s:.1%} | {process_s:.1f} | "
        f"{', '.join(anew) or 'none'} |"
        for name, (process_s, call_s, anew) in taken.items()
    ]
    process_s, call_s, _ = taken["nothing changed"]
    lines = [
        "`pipeline` on the logged digits model: fp32 and fp16, one target, SQLite; each run a",
        "process of its own. The call begins once MLflow, its SQLite store and the package are",
        "imported; PyTorch is imported in it where it is needed.",
        "",
        "| run | s, the call | of the first | s, the process | stages that were done |",
        "|---|---|---|---|---|",
        *rows,
        "",
        *goals(first_s, call_s, process_s),
    ]
    page.write("rerun", "The same again", "\n".join(lines))


if __name__ == "__main__":
    main()
