"""Engines against their peers, on a GPU: writes its section of BENCHMARKS.md.

    python benchmarks/gpu.py                     within 8 minutes
    python benchmarks/gpu.py --quick             one model, a cell of each precision
    python benchmarks/gpu.py --write gpu.json    the section, from figures taken elsewhere

Figures are printed and written to ``gpu.json`` as they come: a machine may be lent for minutes.
"""

from __future__ import annotations

import argparse
import dataclasses
import logging
import math
import os
import shlex
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gpu_page
import numpy as np
import page
from gpu_page import Cell, Pair, Results, Way

from mlflow_e2eai.artifacts.files import from_json, to_json
from mlflow_e2eai.artifacts.machine import driver_version, gpu_name, has_gpu
from mlflow_e2eai.artifacts.values import Tensors
from mlflow_e2eai.latency.measure import benchmark
from mlflow_e2eai.latency.report import LatencyReport
from mlflow_e2eai.parity.tolerances import TOLERANCES

if TYPE_CHECKING:
    from gpu_made import Made

MODELS = ("ResNet-50", "BERT-base")
BUCKETS = (1, 8, 32)
BETWEEN = 20
MINUTES = 8.0

CALLS = 40
"""Checked calls of each way before it is timed. TensorRT-RTX 1.6.1 on an H100 was seen to answer
the first two rightly and most that followed wrongly."""

BUDGET_S = 2.5
"""For the rounds of a cell, and five times for each warm-up a fifth of it."""

PACKAGES = (
    "torch",
    "torchvision",
    "transformers",
    "onnxruntime-gpu",
    "tensorrt-rtx-cu13",
    "tensorrt-cu13",
    "cuda-core",
    "mlflow_e2eai",
)

CELLS = (
    *((model, "fp16", batch) for model in MODELS for batch in BUCKETS),
    *((model, "fp32", batch) for model in MODELS for batch in BUCKETS),
    *((model, "fp16", BETWEEN) for model in MODELS),
)
QUICK = ((MODELS[0], "fp16", 8), (MODELS[0], "fp32", 8))


def measured(made: Made, precision: str, batch: int) -> Cell:
    """Open all ways, check their answers, and time those that are right in turns."""
    import gpu_ways

    samples = [gpu_ways.sample(made.name, batch, seed) for seed in (1, 2)]
    wanted = made.wanted(samples)
    question = gpu_ways.Question(samples)
    right: dict[str, Asked] = {}
    found: dict[str, Way] = {}
    for name, opener in made.openers(question, precision, wanted[0]).items():
        try:
            call, note = opener()
            # What load_model chooses may be of another precision.
            limit = TOLERANCES[note.rpartition("/")[2] or precision]
            asked = Asked(call=call, question=question, wanted=wanted, limit=limit)
            found[name] = checked(Way(name=name, note=note), asked)
        except Exception as error:  # noqa: BLE001 - a way that fails is a result; the others go on
            found[name] = Way(name=name, note=f"failed, {_first_line(error)}")
            continue
        if not found[name].wrong:
            right[name] = asked
    question.ask(0)
    report = timed({name: asked.call for name, asked in right.items()}, batch)
    found |= {name: checked(found[name], asked) for name, asked in right.items()}
    cell = Cell(model=made.name, precision=precision, batch=batch, at_bucket=batch in BUCKETS)
    return told(cell, found, report)


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """A way, what it is asked, what is right, and the error that it may have."""

    call: Callable[[], Mapping[str, Any]]
    question: Any
    wanted: Sequence[Any]
    limit: float


def checked(way: Way, asked: Asked) -> Way:
    """Ask a way again and again, two questions in turns, and overwrite every answer with NaN."""
    import torch

    wrong, worst, first_ms = way.wrong, way.worst, way.first_ms
    for at in range(CALLS):
        asked.question.ask(at % 2)
        started = time.perf_counter()
        answer = asked.call()["output"]
        torch.cuda.synchronize()
        if first_ms is None:
            first_ms = 1e3 * (time.perf_counter() - started)
        right = asked.wanted[at % 2]
        error = float((torch.as_tensor(answer, device="cuda") - right).abs().max())
        error = float("inf") if math.isnan(error) else error / float(right.abs().max())
        wrong += error > asked.limit
        worst = max(worst, error)
        if not isinstance(answer, np.ndarray) or answer.flags.writeable:
            with torch.inference_mode():
                answer[...] = float("nan")
        torch.cuda.synchronize()
    return dataclasses.replace(
        way, first_ms=first_ms, asked=way.asked + CALLS, wrong=wrong, worst=worst
    )


def timed(calls: Mapping[str, Callable[[], Any]], batch: int) -> LatencyReport | None:
    """All ways in turns; a call ends when the GPU is done."""
    import torch

    def until_done(call: Callable[[], Any], _: Tensors) -> Any:
        answer = call()
        torch.cuda.synchronize()
        return answer

    if not calls:
        return None
    infers = {name: partial(until_done, call) for name, call in calls.items()}
    return benchmark(infers, {}, items=batch, budget_s=BUDGET_S)


def told(cell: Cell, ways: Mapping[str, Way], report: LatencyReport | None) -> Cell:
    """A cell with its times, and the ratios that the goals are about."""
    if report is None:
        return dataclasses.replace(cell, ways=tuple(ways.values()))
    times = {each.name: each.p50_ms for each in report.variants if not ways[each.name].wrong}
    pairs = tuple(
        Pair(
            way=goal.way,
            against=against,
            ratio=report.ratio(goal.way, against),
            extra_us=1e3 * (times[goal.way] - times[against]),
        )
        for goal in gpu_page.GOALS
        for against in goal.against
        if goal.is_about(cell) and {goal.way, against} <= times.keys()
    )
    return dataclasses.replace(
        cell,
        ways=tuple(dataclasses.replace(w, p50_ms=times.get(name)) for name, w in ways.items()),
        pairs=pairs,
        findings=tuple(finding.sentence for finding in report.findings),
    )


def run(cells: Sequence[tuple[str, str, int]], minutes: float, out: Path) -> Results:
    """Measure cell after cell until the time is up, and keep what there is after each."""
    started = time.monotonic()
    results = Results(
        command=shlex.join(["python", "benchmarks/gpu.py", *sys.argv[1:]]),
        machine=f"{gpu_name()}, driver {driver_version()}",
        versions=versions(),
        seconds=0,
        cells=(),
    )
    slowest = Slowest()
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        os.environ["XDG_CACHE_HOME"] = str(Path(folder, "cache"))  # no kernels of an earlier run
        made: dict[str, Made | str] = {}
        for model, precision, batch in cells:
            began = time.monotonic()
            if began - started + slowest.expected(is_new=model not in made) > 60 * minutes:
                cell = _empty(model, precision, batch, "not measured, the time was up")
            else:
                if model not in made:
                    made[model] = saved(model, Path(folder), stack)
                    slowest.saving_s = max(slowest.saving_s, time.monotonic() - began)
                    began = time.monotonic()
                cell = tried(made[model], model, precision, batch)
                slowest.cell_s = max(slowest.cell_s, time.monotonic() - began)
            seconds = time.monotonic() - started
            results = dataclasses.replace(results, seconds=seconds, cells=(*results.cells, cell))
            out.write_text(to_json(results))
            show(cell, time.monotonic() - began)
    return results


@dataclass(slots=True)
class Slowest:
    """The most seconds that something has taken so far."""

    saving_s: float = 0.0
    cell_s: float = 0.0

    def expected(self, *, is_new: bool) -> float:
        """What one more cell may take, of a new model or not."""
        return self.cell_s + (self.saving_s if is_new else 0.0)


def saved(model: str, folder: Path, stack: ExitStack) -> Made | str:
    """A model on its way through `save_model`, or why it did not come out."""
    from gpu_made import Made

    began = time.monotonic()
    try:
        made = Made(model, folder / model, stack, buckets=BUCKETS)
    except Exception as error:  # noqa: BLE001 - the other model goes on
        traceback.print_exc()
        return f"not saved, {_first_line(error)}"
    print(f"{model}: saved in {time.monotonic() - began:.0f} s", flush=True)
    return made


def tried(made: Made | str, model: str, precision: str, batch: int) -> Cell:
    """Measure a cell; if that fails, the others go on."""
    if isinstance(made, str):
        return _empty(model, precision, batch, made)
    try:
        return measured(made, precision, batch)
    except Exception as error:  # noqa: BLE001 - what there is by then is worth keeping
        traceback.print_exc()
        return _empty(model, precision, batch, f"failed, {_first_line(error)}")


def _empty(model: str, precision: str, batch: int, reason: str) -> Cell:
    at_bucket = batch in BUCKETS
    return Cell(model=model, precision=precision, batch=batch, at_bucket=at_bucket, reason=reason)


def _first_line(error: Exception) -> str:
    line = f"{type(error).__name__}: {error}".partition("\n")[0][:160]
    return line.replace("|", "/")  # it stands in a table


def show(cell: Cell, seconds: float) -> None:
    """Print a cell as soon as it is there."""
    print(f"\n{cell} ({seconds:.0f} s) {cell.reason}")
    for way in cell.ways:
        time_ms = "       -" if way.p50_ms is None else f"{way.p50_ms:8.3f}"
        print(f"  {time_ms} ms  {way.name}  worst {way.worst:.1e}, {way.wrong} wrong  {way.note}")
    for goal in gpu_page.GOALS:
        if goal.is_about(cell):
            verdict = gpu_page.judged(goal, cell)
            print(f"  {verdict.holds!s:5} {goal.sentence}: {verdict.says}", flush=True)


def versions() -> dict[str, str]:
    """Of what is installed here and matters."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def main() -> None:
    """Measure, and write the section."""
    words = argparse.ArgumentParser(description=__doc__)
    words.add_argument("--quick", action="store_true", help="a smoke run, which writes no section")
    words.add_argument("--minutes", type=float, default=MINUTES, help="begin no cell beyond")
    words.add_argument("--out", type=Path, default=Path("gpu.json"), help="where figures go")
    words.add_argument("--write", type=Path, help="write the section from such a file")
    given = words.parse_args()
    if given.write is not None:
        results = from_json(Results, given.write.read_text())
    elif not has_gpu():
        sys.exit("benchmarks/gpu.py needs an NVIDIA GPU, and there is none; run it where one is.")
    else:
        import torch

        torch.backends.cudnn.allow_tf32 = False  # as it is for matrix products
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
        results = run(QUICK if given.quick else CELLS, given.minutes, given.out)
    text = gpu_page.section(results)
    print(text)
    if not given.quick:
        page.write("gpu", "Engines on a GPU", text, machine=results.machine)


if __name__ == "__main__":
    main()
