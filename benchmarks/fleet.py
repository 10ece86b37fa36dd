"""What sharing out costs: equal jobs over workers here, against a tracking server over HTTP."""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import page
from onnx import TensorProto, helper, numpy_helper

from mlflow_e2eai import fleet, graphs, tracking
from mlflow_e2eai.artifacts import Axis

LAYERS, WIDTH = 24, 32
TARGET = "sm86"
PATIENCE_S = 120
ARTIFACTS = "mlflow-artifacts"


def network() -> onnx.ModelProto:
    """A stack of convolutions, 15 MB."""
    random = np.random.default_rng(0)
    nodes, weights, before, channels = [], [], "x", 3
    for at in range(LAYERS):
        width = WIDTH + 8 * at
        values = random.standard_normal((width, channels, 3, 3)) / np.sqrt(9 * channels)
        weights.append(numpy_helper.from_array(values.astype(np.float32), f"w{at}"))
        nodes += [
            helper.make_node("Conv", [before, f"w{at}"], [f"c{at}"], pads=[1] * 4),
            helper.make_node("Relu", [f"c{at}"], [f"r{at}"]),
        ]
        before, channels = f"r{at}", width
    given = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3, 32, 32])
    made = helper.make_tensor_value_info(before, TensorProto.FLOAT, ["N", channels, 32, 32])
    graph = helper.make_graph(nodes, "stack", [given], [made], weights)
    return helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 18)])


def logged(folder: Path) -> str:
    """Id of a cleaned graph, whose chain it begins."""
    recorder = tracking.MlflowRecorder(name="stack", source=None)
    parent: str | None = None
    model = network()
    for stage in ("export", "clean"):
        model.doc_string = stage
        path = folder / f"{stage}.onnx"
        onnx.save(model, path)
        artifact = graphs.describe(
            path,
            stage=stage,
            precision="fp32",
            axes=(Axis("N", min=1, opt=2, max=8),),
            parent_sha256=parent,
        )
        with recorder.stage(stage, inputs=[] if parent is None else [parent]) as run:
            run.made(artifact, example={"x": np.zeros((2, 3, 32, 32), np.float32)})
        parent = artifact.sha256
    return recorder.models[artifact.sha256]


@contextlib.contextmanager
def server(folder: Path) -> Iterator[tuple[str, Path]]:
    """A tracking server of our own, with its log of requests."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = folder / "server.log"
    command = [sys.executable, "-m", "mlflow", "server", "--port", str(port), "--workers", "1"]
    command += ["--backend-store-uri", f"sqlite:///{folder}/mlflow.db"]
    command += ["--artifacts-destination", str(folder / "artifacts")]
    environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    with log.open("wb") as out:
        process = subprocess.Popen(command, stdout=out, stderr=out, env=environment, cwd=folder)  # noqa: S603
        try:
            deadline = time.monotonic() + PATIENCE_S
            while True:
                with contextlib.suppress(OSError):
                    urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5)
                    break
                if time.monotonic() > deadline:
                    raise TimeoutError(log.read_text())
                time.sleep(0.5)
            yield f"http://127.0.0.1:{port}", log
        finally:
            process.terminate()
            process.wait()


def requests(log: Path) -> Counter[str]:
    """How often each path was asked for, ids left out."""
    text = log.read_text(errors="replace")
    found = re.findall(r'"(GET|POST|PUT|PATCH|DELETE) (/\S*) HTTP', text)
    return Counter(
        f"{method} {re.sub(r'm-[0-9a-f]{32}|[0-9a-f]{32}', '*', path.partition('?')[0])}"
        for method, path in found
    )


def timed(model: str, count: int, workers: int) -> tuple[float, float]:
    """Seconds that the jobs took from the first to the last, and the sum of what each took."""
    import mlflow

    # Equal ones would be done once; what only Ray reads makes them differ.
    jobs = [
        fleet.Job(
            stage="compile",
            model_uri=model,
            arguments={"targets": [TARGET], "rebuild": True},
            resources={"job": at},
        )
        for at in range(count)
    ]
    started = time.perf_counter()
    with mlflow.start_run() as parent:
        fleet.held(fleet.run(jobs, workers=workers))
    wall = time.perf_counter() - started
    runs = mlflow.MlflowClient().search_runs(
        [parent.info.experiment_id], f"tags.mlflow.parentRunId = '{parent.info.run_id}'"
    )
    assert len(runs) == len(jobs)  # noqa: S101 - nothing lost, nothing twice
    return wall, sum(run.info.end_time - run.info.start_time for run in runs) / 1e3


def main() -> None:
    """Measure, and write the section."""
    words = argparse.ArgumentParser(description=__doc__)
    words.add_argument("--jobs", type=int, default=32)
    words.add_argument("--workers", type=int, default=2)
    words.add_argument("--print", action="store_true", help="do not write BENCHMARKS.md")
    given = words.parse_args()
    import mlflow

    with tempfile.TemporaryDirectory() as name, server(Path(name)) as (uri, log):
        mlflow.set_tracking_uri(uri)
        mlflow.set_experiment("fleet")
        model = logged(Path(name))
        alone, _ = timed(model, given.jobs, 1)
        before = requests(log)
        wall, busy = timed(model, given.jobs, given.workers)
        asked = requests(log) - before
    calls = {path: count / given.jobs for path, count in asked.items() if ARTIFACTS not in path}
    files = sum(count for path, count in asked.items() if ARTIFACTS in path) / given.jobs
    text = f"""{given.jobs} equal jobs against a tracking server over HTTP, each of which compiles a
stack of {LAYERS} convolutions (15 MB) anew for {TARGET}: `python benchmarks/fleet.py`.

| workers | seconds | against one worker | ideal |
|---|---|---|---|
| 1 | {alone:.1f} | 1 | 1 |
| {given.workers} | {wall:.1f} | {alone / wall:.2f} | {given.workers} |

Efficiency against one worker (start of the workers included): {alone / wall / given.workers:.2f}.
Share of the workers' time that went into jobs' runs: {busy / wall / given.workers:.2f}.
Requests to the tracking server for each job: {sum(calls.values()):.1f}, and {files:.1f} for files.
"""
    print(text)
    for path, count in sorted(calls.items(), key=lambda item: -item[1]):
        print(f"{count:6.2f}  {path}")
    if not given.print:
        page.write("fleet", "Jobs on many workers", text)


if __name__ == "__main__":
    main()
