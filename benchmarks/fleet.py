"""What sharing out costs: many engines over workers here, against a tracking server over HTTP."""

from __future__ import annotations

import argparse
import contextlib
import itertools
import os
import re
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import onnx
import page
from onnx import TensorProto, helper, numpy_helper

from mlflow_e2eai import fleet, tracking
from mlflow_e2eai.artifacts import graphs
from mlflow_e2eai.artifacts.values import Axis
from mlflow_e2eai.tracking.recorder import Output

KINDS = ("sm75", "sm80", "sm86", "sm89", "sm120", "sm121")
TARGETS = ("rtx", *KINDS, *("rtx:" + "+".join(pair) for pair in itertools.combinations(KINDS, 2)))
TIMEOUT_S = 120
ARTIFACTS = "mlflow-artifacts"
TICKS = os.sysconf("SC_CLK_TCK")
ROLES = ("launcher", "server", "workers", "builders")


def convolutions(seed: int) -> Any:
    """A stack of 24 convolutions, 15 MB."""
    random = np.random.default_rng(seed)
    nodes, weights, before, channels = [], [], "x", 3
    for at in range(24):
        width = 32 + 8 * at
        values = random.standard_normal((width, channels, 3, 3)) / np.sqrt(9 * channels)
        weights.append(numpy_helper.from_array(values.astype(np.float32), f"w{at}"))
        nodes += [
            helper.make_node("Conv", [before, f"w{at}"], [f"c{at}"], pads=[1] * 4),
            helper.make_node("Relu", [f"c{at}"], [f"r{at}"]),
        ]
        before, channels = f"r{at}", width
    return whole(nodes, weights, ["N", 3, 32, 32], ["N", channels, 32, 32])


def fused(seed: int) -> Any:
    """160 small operators, for which TensorRT-RTX writes kernels for seconds."""
    values = np.random.default_rng(seed).standard_normal((4, 4)).astype(np.float32)
    nodes: list[Any] = []
    before = "x"
    for _ in range(40):
        for kind in ("MatMul", "Softmax", "MatMul", "Sin"):
            given = [before, "w"] if kind == "MatMul" else [before]
            before = f"{kind}{len(nodes)}"
            nodes.append(helper.make_node(kind, given, [before]))
    return whole(nodes, [numpy_helper.from_array(values, "w")], ["N", 4], ["N", 4])


def whole(nodes: list[Any], weights: list[Any], given: list[Any], made: list[Any]) -> Any:
    """The model of operators in a row, from ``x`` to what the last of them makes."""
    ends = [("x", given), (nodes[-1].output[0], made)]
    first, last = (helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in ends)
    graph = helper.make_graph(nodes, "stack", [first], [last], weights)
    return helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 18)])


@dataclass(frozen=True, kw_only=True)
class Engines:
    """Engines that are built at once.

    Attributes:
        name: What they are of.
        network: Makes their graph.
        shape: Of an input.
        jobs: How many of them there are.
        rounds: How often all are built.
    """

    name: str
    network: Callable[[int], Any]
    shape: tuple[int, ...]
    jobs: int
    rounds: int


ALL = (
    Engines(name="24 Conv", network=convolutions, shape=(2, 3, 32, 32), jobs=32, rounds=3),
    Engines(name="24 Conv", network=convolutions, shape=(2, 3, 32, 32), jobs=8, rounds=1),
    Engines(name="160 fused", network=fused, shape=(2, 4), jobs=32, rounds=1),
)


def logged(folder: Path, wanted: Engines, seed: int) -> str:
    """Id of a cleaned graph, whose chain it begins."""
    recorder = tracking.MlflowRecorder(name="stack", source=None)
    parent: str | None = None
    model = wanted.network(seed)
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
            run(Output(artifact=artifact, example={"x": np.zeros(wanted.shape, np.float32)}))
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
            deadline = time.monotonic() + TIMEOUT_S
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


@dataclass(frozen=True, kw_only=True)
class Taken:
    """What the jobs of one fleet took.

    Attributes:
        wall_s: Seconds from the first to the last.
        cpu_s: Seconds that each role kept a core busy.
        calls: Requests to the tracking server, by path.
    """

    wall_s: float
    cpu_s: dict[str, float]
    calls: Counter[str]


class Cpu:
    """The seconds that this process and its descendants keep a core busy, by role, in a block."""

    def __enter__(self) -> Self:
        self._seen: dict[int, tuple[str, float]] = {}
        self._look()
        self._before = dict(self._seen)
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()
        self._look()

    def by_role(self) -> dict[str, float]:
        """Those seconds."""
        taken = dict.fromkeys(ROLES, 0.0)
        for pid, (role, seconds) in self._seen.items():
            taken[role] += seconds - self._before.get(pid, ("", 0.0))[1]
        return taken

    def _watch(self) -> None:
        while not self._done.wait(0.5):
            self._look()

    def _look(self) -> None:
        known = {}
        for place in Path("/proc").iterdir():
            with contextlib.suppress(OSError, ValueError):
                said = (place / "stat").read_text().rpartition(")")[2].split()
                words = (place / "cmdline").read_bytes()
                known[int(place.name)] = (
                    int(said[1]),
                    (int(said[11]) + int(said[12])) / TICKS,
                    words,
                )
        for pid, (_, seconds, _) in known.items():
            above = [pid]
            while above[-1] in known and above[-1] != os.getpid():
                above.append(known[above[-1]][0])
            if above[-1] == os.getpid():
                lines = [known[each][2] for each in above[:-1]]
                # A process that has just ended has no command line any more.
                role = self._seen[pid][0] if pid in self._seen else _role(lines)
                self._seen[pid] = role, seconds


def _role(lines: Sequence[bytes]) -> str:
    """What a process is, by the command lines of it and of those above it that are not this one."""
    if not lines:
        return "launcher"
    workers = sum(b"runtime.worker" in each for each in lines)
    return ("server", "workers", "builders")[min(workers, 2)]


def taken(model: str, wanted: Engines, workers: int, log: Path) -> Taken:
    """Have all engines of a graph built that nobody has built before."""
    import mlflow

    jobs = [
        fleet.Job(
            stage="compile",
            model_uri=model,
            arguments={"targets": [target], "precision": precision},
        )
        for precision in ("fp32", "tf32")
        for target in TARGETS
    ][: wanted.jobs]
    before = requests(log)
    with Cpu() as cpu, mlflow.start_run() as parent:
        started = time.perf_counter()
        fleet.require_success(fleet.run(jobs, workers=workers))
        wall = time.perf_counter() - started
    calls = requests(log) - before
    runs = mlflow.MlflowClient().search_runs(
        [parent.info.experiment_id], f"tags.mlflow.parentRunId = '{parent.info.run_id}'"
    )
    assert len(runs) == len(jobs)  # noqa: S101 - nothing lost, nothing twice
    assert not any("e2eai.existing_model" in run.data.tags for run in runs)  # noqa: S101 - all built
    return Taken(wall_s=wall, cpu_s=cpu.by_role(), calls=calls)


def measured(wanted: Engines, workers: int, folder: Path, log: Path) -> list[str]:
    """Rows of the table: on one worker and on several, in turns."""
    found: dict[int, list[Taken]] = {1: [], workers: []}
    for seed in range(wanted.rounds):
        for count, them in found.items():
            # Another graph each time, or the engines would be found.
            model = logged(folder, wanted, 100 * wanted.jobs + 10 * seed + count)
            them.append(taken(model, wanted, count, log))
    walls = {count: statistics.median(one.wall_s for one in them) for count, them in found.items()}
    rows = []
    for count, them in found.items():
        cpu = {role: statistics.median(one.cpu_s[role] for one in them) for role in ROLES}
        calls = them[-1].calls
        print(f"{wanted.name}, {count}: {[round(one.wall_s, 1) for one in them]} s")
        for path, times in calls.most_common():
            print(f"{times / wanted.jobs:6.2f}  {path}")
        files = sum(times for path, times in calls.items() if ARTIFACTS in path)
        cells = [
            f"{wanted.jobs} {wanted.name}",
            f"{count}",
            f"{walls[count]:.1f}",
            *(f"{cpu[role]:.1f}" for role in ROLES),
            f"{sum(cpu.values()) / walls[count]:.2f}",
            f"{walls[1] / walls[count] / count:.2f}",
            f"{(calls.total() - files) / wanted.jobs:.1f}",
            f"{files / wanted.jobs:.1f}",
        ]
        rows.append(f"| {' | '.join(cells)} |")
    return rows


TEXT = """Engines that nobody has built before, each for another target or precision, against a
tracking server over HTTP: `python benchmarks/fleet.py`. 24 Conv are 15 MB of convolutions, 160
fused are small operators that take seconds to build. The median of three rounds for the first; one
round for the others.

{table}

The server, the launcher and the workers share the cores, and the start of the workers is in it. The
efficiency is the time of one worker over the workers and their time: it cannot be above the cores
there are over the workers and the cores that are busy with one worker.
"""


def main() -> None:
    """Measure, and write the section."""
    words = argparse.ArgumentParser(description=__doc__)
    words.add_argument("--workers", type=int, default=2)
    words.add_argument("--print", action="store_true", help="do not write BENCHMARKS.md")
    given = words.parse_args()
    import mlflow

    with tempfile.TemporaryDirectory() as name, server(Path(name)) as (uri, log):
        mlflow.set_tracking_uri(uri)
        mlflow.set_experiment("fleet")
        rows = [row for each in ALL for row in measured(each, given.workers, Path(name), log)]
    head = ("engines", "workers", "s", *(f"{role}, CPU s" for role in ROLES))
    head += ("cores busy", "efficiency", "requests a job", "and for files")
    table = [f"| {' | '.join(head)} |", "|---" * len(head) + "|", *rows]
    text = TEXT.format(table="\n".join(table))
    print(text)
    if not given.print:
        page.write("fleet", "Jobs on many workers", text)


if __name__ == "__main__":
    main()
