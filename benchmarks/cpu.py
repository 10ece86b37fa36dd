"""What this package costs, on the CPU: writes its section of BENCHMARKS.md.

Two things compared are measured in one run and in turns, and given as a ratio: absolute times on a
shared machine say little.
"""

from __future__ import annotations

import inspect
import logging
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import page

from mlflow_e2eai.artifacts.values import Tensors
from mlflow_e2eai.latency.measure import benchmark
from mlflow_e2eai.latency.report import Timing
from mlflow_e2eai.latency.timing import Touched

Value = TypeVar("Value")

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "examples"))
IMPORTS = 9
TURNS = 400

CALLS = 20
"""One way makes so many calls in its turn, whose median counts. A call takes microseconds, and the
first after another way's finds the processor's caches full of what is theirs."""

COLUMNS = 30

BARE = "onnxruntime session.run"
NATIVE = "mlflow_e2eai.load_model"
OURS = "mlflow.pyfunc, ours"
PEER = "mlflow.pyfunc, mlflow.onnx"
ALONE = "mlflow.pyfunc, a model that answers at once"
"""What MLflow takes by itself: no model behind it can be faster."""


def import_ratio() -> tuple[float, float]:
    """Median seconds of `import mlflow`, and the ratio of importing this package too."""
    taken: dict[str, list[float]] = {"import mlflow": [], "import mlflow, mlflow_e2eai": []}
    for _ in range(IMPORTS):
        for statement, times in taken.items():
            started = time.perf_counter()
            subprocess.run([sys.executable, "-c", statement], check=True, cwd=tempfile.gettempdir())  # noqa: S603
            times.append(time.perf_counter() - started)
    alone, both = (statistics.median(times) for times in taken.values())
    return alone, both / alone


def stages(work: Path) -> tuple[dict[str, float], Path]:
    """Seconds of each stage on the digits model, and of logging it all; the saved model."""
    import digits
    import mlflow

    import mlflow_e2eai
    from mlflow_e2eai.pytorch.runner import torch_runner
    from mlflow_e2eai.runtime.ort import onnxruntime_runner

    made = digits.build()
    model, example = made.pop("model"), made["input_example"]
    taken: dict[str, float] = {}

    def timed(name: str, run: Callable[[], Value]) -> Value:
        started = time.perf_counter()
        result = run()
        taken[name] = time.perf_counter() - started
        return result

    axes = made["dynamic_axes"]
    mlflow_e2eai.export(model, example, out=work / "warm.onnx", dynamic_axes=axes)
    raw, _ = timed(
        "export (dynamo)",
        lambda: mlflow_e2eai.export(model, example, out=work / "raw.onnx", dynamic_axes=axes),
    )
    clean, _ = timed(
        "clean", lambda: mlflow_e2eai.clean(raw, out=work / "clean.onnx", samples=[example])
    )
    half, _ = timed(
        "convert to fp16", lambda: mlflow_e2eai.convert(clean, "fp16", out=work / "h.onnx")
    )
    timed("compile fp16 for sm89", lambda: mlflow_e2eai.compile(half, "sm89", out=work / "e"))
    with (
        torch_runner(model, inputs=["x"], outputs=["output"]) as reference,
        onnxruntime_runner(half.path) as candidate,
    ):
        timed(
            "compare (one sample, 10 repeats)",
            lambda: mlflow_e2eai.compare(reference, candidate, [example], precision="fp16"),
        )
    mlflow.set_tracking_uri(f"sqlite:///{work}/mlflow.db")
    mlflow.set_experiment("bench")
    timed(
        "log_model, all of it, three targets, SQLite",
        lambda: mlflow_e2eai.log_model(model, "digits", targets=("sm86", "sm89", "sm120"), **made),
    )
    mlflow_e2eai.save_model(model, work / "saved", **{**made, "precisions": ("fp32",)})
    return taken, work / "saved"


def calls(saved: Path) -> dict[str, dict[str, float]]:
    """Median microseconds of one call at batch 1, all ways in turns, by what was called.

    Every session has ONNX Runtime's own defaults.
    """
    import digits
    import onnxruntime
    import pandas as pd

    import mlflow_e2eai

    x = digits.data()[1][:1]
    path = saved / "bundle" / "model.onnx"
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    native = mlflow_e2eai.load_model(str(saved))
    pyfuncs = loaded(saved)
    frame = pd.DataFrame({"x": list(x)})
    table = pd.DataFrame(np.ones((1, COLUMNS), np.float32))
    table.columns = [f"c{at}" for at in range(COLUMNS)]
    ways: dict[str, dict[str, Callable[[Tensors], Any]]] = {
        "digits, arrays": {
            BARE: lambda tensors: {"output": session.run(None, tensors)[0]},
            NATIVE: native,
            **{name: model.predict for name, model in pyfuncs.items()},
        },
        "digits, a DataFrame of arrays": {
            name: partial(on_frame, model, frame) for name, model in pyfuncs.items()
        },
        f"{COLUMNS} columns, a DataFrame, no signature": {
            name: partial(on_frame, model, table) for name, model in tabular(saved.parent).items()
        },
    }
    return {
        what: {
            variant.name: 1e3 * variant.p50_ms
            for variant in benchmark(
                {name: Turn(call) for name, call in some.items()},
                {"x": x},
                rounds=TURNS,
                budget_s=30,
            ).variants
        }
        for what, some in ways.items()
    }


class Turn:
    """A callable that is timed by the median of several calls, one after the other."""

    def __init__(self, call: Callable[[Tensors], Any]) -> None:
        self._call = call

    def __call__(self, tensors: Tensors) -> Tensors:
        """Call it once."""
        answer: Tensors = self._call(tensors)
        return answer

    def timed(self, tensors: Tensors) -> Timing:
        """Call it again and again."""
        times_ms = Touched(self._call).series(tensors, fill_ms=math.inf, calls=CALLS)
        return Timing(host_ms=statistics.median(times_ms))


def on_frame(model: Any, frame: Any, _: Tensors) -> Tensors:
    """Ask a pyfunc a DataFrame, whatever the benchmark asks."""
    return {"output": model.predict(frame)}


def loaded(saved: Path) -> dict[str, Any]:
    """A saved model as pyfuncs: ours, what mlflow.onnx makes of its graph, and no model at all."""
    import mlflow.onnx
    import mlflow.pyfunc

    peer = saved.parent / f"{saved.name}-peer"
    mlflow.onnx.save_model(
        mlflow.onnx.load_model(str(saved)),
        str(peer),
        signature=mlflow.models.Model.load(str(saved)).signature,
        pip_requirements=[],
    )
    alone = mlflow.pyfunc.load_model(str(saved))
    return {
        OURS: mlflow.pyfunc.load_model(str(saved)),
        PEER: mlflow.pyfunc.load_model(str(peer)),
        ALONE: mlflow.pyfunc.PyFuncModel(alone.metadata, Nothing()),
    }


class Nothing:
    """A model that answers at once, and carries the signature that MLflow asks for."""

    def __init__(self) -> None:
        def predict(data: Any, params: Any = None) -> Any:  # noqa: ARG001 - MLflow's signature
            return None

        predict.__signature__ = inspect.signature(predict)  # type: ignore[attr-defined]
        self.predict = predict


def tabular(work: Path) -> dict[str, Any]:
    """A model of one row of numbers, without a signature, so that MLflow lets tables through."""
    import torch

    import mlflow_e2eai

    model = torch.nn.Sequential(
        torch.nn.Linear(COLUMNS, 16), torch.nn.ReLU(), torch.nn.Linear(16, 1)
    )
    axes = {"x": {0: mlflow_e2eai.Axis("N", min=1, opt=8, max=64)}}
    mlflow_e2eai.save_model(
        model.eval(),
        work / "table",
        input_example={"x": np.ones((8, COLUMNS), np.float32)},
        dynamic_axes=axes,
        precisions=("fp32",),
        signature=False,
    )
    return loaded(work / "table")


def goals(by_call: Mapping[str, Mapping[str, float]]) -> list[str]:
    """What was to be reached, what was, and what can be: a line for each.

    Args:
        by_call: Microseconds by what is called and by way.
    """
    lines = []
    for what, ways in by_call.items():
        if BARE in ways:
            limit = 1.05 * ways[BARE] + 3
            word = "holds" if ways[NATIVE] <= limit else "does not hold"
            lines.append(
                f"- {what}: {NATIVE} at most 1.05 times the bare call plus 3 µs, which is "
                f"{limit:.1f}: {word}, {ways[NATIVE]:.1f}."
            )
        times = 3 if "DataFrame" in what else 1
        word = "holds" if times * ways[OURS] <= ways[PEER] else "does not hold"
        lines.append(
            f"- {what}: ours at least {times} times as fast as mlflow.onnx: {word}, "
            f"{ways[PEER] / ways[OURS]:.2f} times. A model that answers at once would be "
            f"{ways[PEER] / ways[ALONE]:.2f} times."
        )
    return lines


def main() -> None:
    """Measure and write."""
    os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    alone, ratio = import_ratio()
    with tempfile.TemporaryDirectory() as folder:
        taken, saved = stages(Path(folder))
        by_call = calls(saved)
    lines = [
        "### Import",
        "",
        f"`import mlflow` takes {alone:.2f} s (median of {IMPORTS}, in turns); with",
        f"`import mlflow_e2eai` it takes {ratio:.3f} times that.",
        "",
        "### Stages, on the digits model (5 k parameters in the head, two convolutions)",
        "",
        "| stage | s |",
        "|---|---|",
        *(f"| {name} | {seconds:.2f} |" for name, seconds in taken.items()),
        "",
        f"### One call, batch 1, median of {TURNS} turns of {CALLS} calls",
        "",
        "| what is called | way | µs | times the first of its kind |",
        "|---|---|---|---|",
        *(
            f"| {what} | {way} | {us:.1f} | {us / next(iter(ways.values())):.2f} |"
            for what, ways in by_call.items()
            for way, us in ways.items()
        ),
        "",
        *goals(by_call),
    ]
    page.write("cpu", "What it costs", "\n".join(lines))


if __name__ == "__main__":
    main()
