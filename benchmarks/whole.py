"""The whole call, against Olive and by level of evidence: writes its section of BENCHMARKS.md.

Each run is a process of its own, with a new store or cache. All take turns, and what is compared is
the ratio of two runs of one round.

    python benchmarks/whole.py [rounds] [--here]

With `--here` it prints the section and writes nothing.
"""

from __future__ import annotations

import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import page

HERE = Path(__file__).parent
OLIVE = HERE.parent / ".venv" / "olive" / "bin" / "python"
LEVELS = ("quick", "standard", "thorough")
ROUNDS = 5

PEER = "Olive"

GOALS_S = {("digits", "standard"): 6.0, ("digits", "quick"): 3.0, ("MiniLM", "standard"): 25.0}
"""Seconds that the call alone may take on two quiet cores."""

GOAL_RATIO = 0.5
"""Of Olive's run, for the CNN at the level standard."""

FP16_ERROR = 0.02
"""Of the largest output, for Olive's graph on the example: twenty times fp16's rounding error."""


class Run(NamedTuple):
    """Seconds of one run.

    Attributes:
        call: The call alone.
        whole: The process, with the interpreter's start and the imports, without `again`.
        again: A second call in the same process, with nothing left to import, and engines that are
            linked; None where there was none.
    """

    call: float
    whole: float
    again: float | None = None


def run(command: Sequence[str | Path], folder: Path, **environment: str) -> Run:
    """Run a program in a folder, whose last line is JSON with its seconds."""
    inherited = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    # As in the Makefile: without it, each process compiles all that it imports anew.
    inherited.pop("PYTHONDONTWRITEBYTECODE", None)
    started = time.perf_counter()
    done = subprocess.run(  # noqa: S603 - programs of this folder
        command,
        cwd=folder,
        env={**inherited, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    whole = time.perf_counter() - started
    if done.returncode:
        sys.exit(f"{' '.join(map(str, command))} failed:\n{done.stderr[-2000:]}")
    seconds = json.loads(done.stdout.splitlines()[-1])
    again = seconds.get("again")
    return Run(call=seconds["call"], whole=whole - (again or 0), again=again)


def olive() -> Run:
    """One run of Olive on the CNN.

    A continuous integration asks for no heartbeat: elsewhere its telemetry, even turned off, sends
    one, and waits for it at the end of the process.
    """
    with tempfile.TemporaryDirectory() as folder:
        ran = run(
            (OLIVE, HERE / "whole_olive.py", folder),
            Path(folder),
            CI="true",
            OLIVE_DISABLE_TELEMETRY="1",
        )
        check_fp16(Path(folder, "model", "model.onnx"))
    return ran


def check_fp16(path: Path) -> None:
    """Refuse a graph that is not the CNN in fp16.

    Raises:
        SystemExit: A weight is in fp32, or the numbers are not the module's.
    """
    import numpy as np
    import onnx
    import onnxruntime
    import torch
    import whole_model

    weights = [w for w in onnx.load(path).graph.initializer if len(w.dims) > 1]
    if not weights or {w.data_type for w in weights} != {onnx.TensorProto.FLOAT16}:
        sys.exit(f"Olive's graph {path} has weights that are not in fp16.")
    sample = whole_model.example()
    with torch.no_grad():
        right = whole_model.build()(sample).numpy()
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (output,) = session.run(None, {whole_model.NAME: sample.numpy()})
    error = np.abs(output - right).max() / np.abs(right).max()
    if not error <= FP16_ERROR:
        sys.exit(f"Olive's graph {path} is off by {error:.2g} of the largest output.")


def ours(case: str, level: str) -> Run:
    """One call of `log_model` on a case; its numbers are checked by itself."""
    with tempfile.TemporaryDirectory() as folder:
        command = (sys.executable, HERE / "whole_ours.py", case, level, folder)
        return run(command, Path(folder), PYTHONPATH=str(HERE.parent), HF_HUB_OFFLINE="1")


def measure(rounds: int) -> dict[tuple[str, str], list[Run]]:
    """All runs in turns, by case and level; the first round warms the disk, and does not count."""
    ways: dict[tuple[str, str], Callable[[], Run]] = {
        ("CNN", PEER): olive,
        **{
            (case, level): partial(ours, case, level)
            for case in ("CNN", "digits", "MiniLM")
            for level in LEVELS
        },
    }
    runs: dict[tuple[str, str], list[Run]] = {way: [] for way in ways}
    for turn in range(rounds + 1):
        for way, once in ways.items():
            taken = once()
            print(f"{turn} {' '.join(way)}: {taken.call:.1f} s, {taken.whole:.1f} s", flush=True)
            if turn:
                runs[way].append(taken)
    return runs


def spread(values: Sequence[float], digits: int = 1) -> str:
    """The median, with the smallest and the largest; nothing for NaN."""
    if math.isnan(values[0]):
        return ""
    middle, low, high = (
        f"{value:.{digits}f}" for value in (statistics.median(values), min(values), max(values))
    )
    return f"{middle} ({low} to {high})"


def table(runs: Mapping[tuple[str, str], Sequence[Run]]) -> list[str]:
    """A row for each case and level."""
    peer = runs["CNN", PEER]
    lines = [
        (
            "| model | way | s, the call | s, its process | s, the next call | times Olive's call "
            "| and process |"
        ),
        "|---|---|---|---|---|---|---|",
    ]
    for (case, level), taken in runs.items():
        cells = [
            case,
            PEER if level == PEER else f"log_model, {level}",
            spread([each.call for each in taken]),
            spread([each.whole for each in taken]),
            spread([each.again for each in taken if each.again is not None] or [math.nan]),
        ]
        if case == "CNN":
            cells += [
                spread([one.call / other.call for one, other in zip(taken, peer, strict=True)], 2),
                spread(
                    [one.whole / other.whole for one, other in zip(taken, peer, strict=True)], 2
                ),
            ]
        else:
            cells += ["", ""]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def goals(runs: Mapping[tuple[str, str], Sequence[Run]]) -> list[str]:
    """What was to be reached, and what was: a line for each."""
    lines = []
    for way, what in (("whole", "whole process"), ("call", "call alone")):
        pairs = zip(runs["CNN", "standard"], runs["CNN", PEER], strict=True)
        ratio = statistics.median(getattr(one, way) / getattr(other, way) for one, other in pairs)
        lines.append(
            f"- CNN, standard, the {what}: at most {GOAL_RATIO} times Olive's: "
            f"{_word(reached=ratio <= GOAL_RATIO)}, {ratio:.2f}."
        )
    for (case, level), limit_s in GOALS_S.items():
        taken = runs[case, level]
        again = [each.again for each in taken if each.again is not None]
        for name, values in (("first", [each.call for each in taken]), ("next", again)):
            if values:
                seconds = statistics.median(values)
                lines.append(
                    f"- {case}, {level}, the {name} call of a process: at most {limit_s:g} s: "
                    f"{_word(reached=seconds <= limit_s)}, {seconds:.1f}."
                )
    return lines


def _word(*, reached: bool) -> str:
    return "holds" if reached else "does not hold"


def versions() -> str:
    """What Olive's environment has, of what its time depends on."""
    program = (
        "from importlib.metadata import version as v; "
        "print(f\"Olive {v('olive-ai')}, PyTorch {v('torch')}, ONNX Runtime {v('onnxruntime')}\")"
    )
    done = subprocess.run([OLIVE, "-c", program], capture_output=True, text=True, check=True)  # noqa: S603
    return done.stdout.strip()


def text(runs: Mapping[tuple[str, str], Sequence[Run]], rounds: int) -> str:
    """The section."""
    return "\n".join(
        [
            "`make bench-whole`. Each run is a process of its own with a new store or cache; median of",
            f"{rounds} rounds in turns (smallest to largest). The CNN has 320,058 parameters, an",
            "example of 8 x 3 x 64 x 64, and no engines. Olive converts (its default exporter,",
            "TorchScript), runs its peephole optimizer, converts to fp16, and times PyTorch and the",
            "result at one size (10 calls to warm up, 20 timed); it compares no numbers. `log_model`",
            "makes fp32 and fp16, compares each with PyTorch, times them in turns, and logs and",
            "registers all of it. Digits has engines for three GPUs and 360 labelled images. What each",
            "imports only in the call is in the call.",
            "",
            *table(runs),
            "",
            *goals(runs),
        ]
    )


def main(*, here: bool, rounds: int = ROUNDS) -> None:
    """Measure, and write or print."""
    if not OLIVE.exists():
        sys.exit("Olive has no environment yet: `make bench-whole` makes it.")
    section = text(measure(rounds), rounds)
    if here:
        print(section)
        return
    page.write(
        "whole", "The whole call", section, machine=f"{page.here()}; {versions()} of their own"
    )


if __name__ == "__main__":
    given = [int(word) for word in sys.argv[1:] if word.isdigit()]
    usual = 1 if "--here" in sys.argv else ROUNDS
    main(here="--here" in sys.argv, rounds=given[0] if given else usual)
