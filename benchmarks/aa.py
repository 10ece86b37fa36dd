"""A/A and A/B on this machine: is the same variant twice equal, and is a slow-down by a tenth seen?

A small ONNX graph is run by ONNX Runtime, at calls of about 50 microseconds, half a millisecond and
5 milliseconds. Three comparisons are tried over and over, each with the defaults of `benchmark`:

- one session against itself: equal is right;
- the session against itself with a tenth of extra work behind each call: slower is right;
- the session against a second one of the same file: their weights lie elsewhere in memory, which is
  a difference of a few per cent at times, and then rightly found.

    python benchmarks/aa.py [--tries 100] [--sizes 50us 500us 5ms] [--pairs same slower sessions]
"""

from __future__ import annotations

import argparse
import time
from collections import Counter

import numpy as np
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from mlflow_e2eai.artifacts import Infer, Tensors
from mlflow_e2eai.latency import LatencyReport, benchmark

SIZES = {"50us": (160, 6), "500us": (384, 12), "5ms": (768, 26)}
"""Width and layers of the graph by about how long a call takes."""

PAIRS = {
    "same": "A/A, one session",
    "slower": "A/B, a tenth slower",
    "sessions": "A/A, two sessions",
}

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
    return helper.make_model(made, opset_imports=opsets, ir_version=9).SerializeToString()


def runner(model: bytes) -> Infer:
    """A session of its own, whose idle workers do not spin."""
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    return lambda tensors: {"y": session.run(None, dict(tensors))[0]}


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
        added = [benchmark(pair, sample).ratio("slower", "plain").value - 1 for _ in range(3)]
        loops *= share / max(float(np.median(added)), share / 4)
    return round(loops)


def verdict(report: LatencyReport) -> str:
    """What the candidate was found to be."""
    ratio = report.ratio("candidate", "baseline")
    if ratio.equal:
        return "equal"
    return "slower" if ratio.low > 1 else "faster"


def tried(baseline: Infer, candidate: Infer, sample: Tensors, tries: int) -> str:
    """Compare two so often, and count what came out."""
    found: Counter[str] = Counter()
    kinds: Counter[str] = Counter()
    values = []
    started = time.perf_counter()
    for _ in range(tries):
        report = benchmark({"baseline": baseline, "candidate": candidate}, sample)
        found[verdict(report)] += 1
        kinds.update({finding.kind for finding in report.findings})
        values.append(report.ratio("candidate", "baseline").value)
    seconds = (time.perf_counter() - started) / tries
    seen = ", ".join(f"{kind} {count}" for kind, count in sorted(kinds.items())) or "none"
    return (
        f"equal {found['equal']:3}, slower {found['slower']:3}, faster {found['faster']:3} of "
        f"{tries}; median ratio {np.median(values):.3f}; {seconds:.1f} s each; findings: {seen}"
    )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tries", type=int, default=100)
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES))
    parser.add_argument("--pairs", nargs="+", choices=PAIRS, default=list(PAIRS))
    given = parser.parse_args()
    for size in given.sizes:
        width, layers = SIZES[size]
        model = graph(width, layers)
        noise = np.random.default_rng(1).standard_normal((BATCH, width)).astype(np.float32)
        sample = {"x": noise}
        infer, second = runner(model), runner(model)
        loops = loops_for(infer, sample, SLOWER)
        pairs = {
            "same": (infer, working(infer, 0)),
            "slower": (infer, working(infer, loops)),
            "sessions": (infer, working(second, 0)),
        }
        for name in given.pairs:
            baseline, candidate = pairs[name]
            found = tried(working(baseline, 0), candidate, sample, given.tries)
            print(f"{size:>5}  {PAIRS[name]:20} {found}", flush=True)


if __name__ == "__main__":
    main()
