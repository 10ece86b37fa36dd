"""What this package costs, on the CPU: writes its section of BENCHMARKS.md.

Two things compared are measured in one run and in turns, and given as a ratio: absolute times on a
shared machine say little.
"""

from __future__ import annotations

import logging
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import page

Value = TypeVar("Value")

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "examples"))
IMPORTS = 9
CALLS = 3000


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
    from mlflow_e2eai.runners import onnxruntime_runner, torch_runner

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


def calls(saved: Path) -> dict[str, float]:
    """Median microseconds of one call at batch 1 of the digits model, all ways in turns."""
    import digits
    import mlflow.onnx
    import mlflow.pyfunc
    import onnxruntime

    import mlflow_e2eai
    from mlflow_e2eai.latency import benchmark

    x = digits.data()[1][:1]
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    path = saved / "bundle" / "model.onnx"
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    peer = saved.parent / "peer"
    shutil.rmtree(peer, ignore_errors=True)
    signature = mlflow.models.Model.load(str(saved)).signature
    mlflow.onnx.save_model(
        mlflow.onnx.load_model(str(saved)), str(peer), signature=signature, pip_requirements=[]
    )
    native = mlflow_e2eai.load_model(str(saved))
    ours, theirs = mlflow.pyfunc.load_model(str(saved)), mlflow.pyfunc.load_model(str(peer))
    report = benchmark(
        {
            "onnxruntime session.run": lambda tensors: {"output": session.run(None, tensors)[0]},
            "mlflow_e2eai.load_model": native,
            "mlflow.pyfunc, ours": ours.predict,
            "mlflow.pyfunc, mlflow.onnx": theirs.predict,
        },
        {"x": x},
        rounds=CALLS,
        budget_s=60,
    )
    return {variant.name: 1e3 * variant.p50_ms for variant in report.variants}


def main() -> None:
    """Measure and write."""
    os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    alone, ratio = import_ratio()
    with tempfile.TemporaryDirectory() as folder:
        taken, saved = stages(Path(folder))
        by_call = calls(saved)
    base = by_call["onnxruntime session.run"]
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
        f"### One call, batch 1, median of {CALLS} rounds in turns",
        "",
        "| way | µs | ratio |",
        "|---|---|---|",
        *(f"| {name} | {us:.1f} | {us / base:.2f} |" for name, us in by_call.items()),
    ]
    page.write("cpu", "What it costs", "\n".join(lines))


if __name__ == "__main__":
    main()
