"""A/A and A/B on this machine: is the same variant twice equal, and is a slow-down by a tenth seen?

A small ONNX graph is run by ONNX Runtime, at calls of about 50 microseconds, half a millisecond and
5 milliseconds. Three comparisons are tried over and over, each with the defaults of `benchmark`:

- one session against itself: equal is right;
- the session against itself with a tenth of extra work behind each call: slower is right;
- two sessions of the same file in one other process, as variants are timed: their weights lie
  elsewhere in memory, which is a difference of some per cent at times, and then rightly found.

Writes its section of BENCHMARKS.md when it tries all of them.

    python benchmarks/aa.py [--tries 100] [--sizes 50us 500us 5ms] [--pairs same slower together]
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import numpy as np
import page
from onnx import TensorProto, helper, numpy_helper

from mlflow_e2eai.artifacts.values import Infer, Tensors
from mlflow_e2eai.latency.measure import benchmark
from mlflow_e2eai.latency.report import LatencyReport
from mlflow_e2eai.runtime.isolation import isolated_together
from mlflow_e2eai.runtime.ort import onnxruntime_runner

SIZES = {"50us": (160, 6), "500us": (384, 12), "5ms": (768, 26)}
"""Width and layers of the graph by about how long a call takes."""

PAIRS = {
    "same": "A/A, one session",
    "slower": "A/B, a tenth slower",
    "together": "A/A, two sessions in another process",
}

NOTE = """
Verdicts of the shipped 99 % interval. The third line of each size is of one pair of sessions, the
same in all tries: where its median ratio is not 1 the two do differ, by where their weights lie.
""".strip()

SLOWER = 0.1
BATCH = 8

CORRECTIONS = 2
"""Times that the extra work is measured behind the call and scaled."""


def graph(width: int, layers: int) -> bytes:
    """Layers of MatMul and Tanh with random weights, as an ONNX file's bytes."""
    rng = np.random.default_rng(0)
    nodes, weights, last = [], [], "x"
    for at in range(layers):
        weight = (rng.standard_normal((width, width)) / width**0.5).astype(np.float32)
        weights.append(numpy_helper.from_array(weight, f"w{at}"))
        nodes.append(helper.make_node("MatMul", [last, f"w{at}"], [f"m{at}"]))
        nodes.append(helper.make_node("Tanh", [f"m{at}"], [f"t{at}"]))
        last = f"t{at}"
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [BATCH, width])
        for name in ("x", last)
    ]
    made = helper.make_graph(nodes, "aa", ends[:1], ends[1:], weights)
    opsets = [helper.make_opsetid("", 18)]
    model = helper.make_model(made, opset_imports=opsets, ir_version=9)
    return bytes(model.SerializeToString())


def working(infer: Infer, loops: int) -> Infer:
    """The same with so many turns of an empty loop behind each call."""

    def infer_and_work(tensors: Tensors) -> Tensors:
        answer = infer(tensors)
        for _ in range(loops):
            pass
        return answer

    return infer_and_work


def loops_for(infer: Infer, sample: Tensors, share: float) -> int:
    """How many turns of the empty loop make a call longer by this share.

    First guessed from the loop alone, then corrected by what it adds behind a call, where it runs
    with the caches and the branch history of the call.
    """
    turns = 10_000
    loop = working(lambda tensors: tensors, turns)
    report = benchmark({"call": infer, "loop": loop}, sample)
    loops = share * turns * report["call"].p50_ms / report["loop"].p50_ms
    for _ in range(CORRECTIONS):
        pair = {"plain": working(infer, 0), "slower": working(infer, round(loops))}
        # The median of three stands in for a quiet machine.
        reports = [benchmark(pair, sample, least_cpu_share=0) for _ in range(3)]
        added = [report.ratio("slower", "plain").value - 1 for report in reports]
        loops *= share / max(float(np.median(added)), share / 4)
    return round(loops)


def verdict(report: LatencyReport) -> str:
    """What the candidate was found to be."""
    ratio = report.ratio("candidate", "baseline")
    if ratio.equal:
        return "equal"
    return "slower" if ratio.low > 1 else "faster"


def tried(ask: Callable[[], LatencyReport], tries: int) -> str:
    """Compare a baseline and a candidate so often, and count what came out."""
    found: Counter[str] = Counter()
    kinds: Counter[str] = Counter()
    values = []
    started = time.perf_counter()
    for _ in range(tries):
        report = ask()
        found[verdict(report)] += 1
        kinds.update({finding.kind for finding in report.findings})
        ratio = report.ratio("candidate", "baseline")
        values += [] if ratio.noisy else [ratio.value]
    seconds = (time.perf_counter() - started) / tries
    seen = ", ".join(f"{kind} {count}" for kind, count in sorted(kinds.items())) or "none"
    verdicts = " | ".join(str(found[word]) for word in ("equal", "slower", "faster"))
    return f"{verdicts} | {tries} | {np.median(values):.3f} | {seconds:.1f} | {seen}"


def lines(tries: int, sizes: Sequence[str], pairs: Sequence[str]) -> Iterator[str]:
    """A table's lines, as they are measured."""
    yield "| a call | what | equal | slower | faster | tries | median ratio | s a try | findings |"
    yield "|---|---|---|---|---|---|---|---|---|"
    for size in sizes:
        width, layers = SIZES[size]
        noise = np.random.default_rng(1).standard_normal((BATCH, width)).astype(np.float32)
        sample = {"x": noise}
        with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
            path = Path(folder, "aa.onnx")
            path.write_bytes(graph(width, layers))
            opener = partial(onnxruntime_runner, path)
            infer = stack.enter_context(opener())
            openers = {"baseline": opener, "candidate": opener}
            there = stack.enter_context(isolated_together(openers))
            loops = loops_for(infer, sample, SLOWER) if "slower" in pairs else 0
            compared = {
                "same": (working(infer, 0), working(infer, 0)),
                "slower": (working(infer, 0), working(infer, loops)),
            }
            for name in pairs:
                if name == "together":
                    ask = partial(there.benchmark, dict.fromkeys(openers, sample))
                else:
                    ask = partial(
                        benchmark, dict(zip(openers, compared[name], strict=True)), sample
                    )
                # Each try takes some seconds at 5 ms.
                found = tried(ask, tries if size != "5ms" else -(-tries // 4))
                yield f"| {size} | {PAIRS[name]} | {found} |"


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tries", type=int, default=100)
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES))
    parser.add_argument("--pairs", nargs="+", choices=PAIRS, default=list(PAIRS))
    given = parser.parse_args()
    written = []
    for line in lines(given.tries, given.sizes, given.pairs):
        print(line, flush=True)
        written.append(line)
    if (given.sizes, given.pairs) == (list(SIZES), list(PAIRS)):
        text = "\n".join([NOTE, "", *written])
        page.write("aa", "Is the same variant equal, and a slower one slower?", text)


if __name__ == "__main__":
    main()
