"""Who finds the faults that tests/faults plants: writes tables in Markdown.

The others are their rules, as documented, not their packages: Polygraphy's simple comparator
(rtol = atol = 1e-5, one call a sample) and Model Navigator's correctness step (nothing missing, NaN
or infinite, one call a sample).
"""

from __future__ import annotations

import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "faults"))

from healthy import MODELS, runners
from planted import FAULTS
from rules import elementwise, finite

from mlflow_e2eai.parity import compare

SEEDS = int(sys.argv[1]) if len(sys.argv) > 1 else 10


def verdict(passes: Callable[[], bool]) -> bool:
    """Whether it passes; a candidate that fails to answer does not."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return passes()
        except Exception:  # noqa: BLE001 - how a planted fault fails is its own matter
            return False


def planted() -> None:
    """One line for each fault, and how many each of the three got right."""
    print("| Planted | mlflow_e2eai | elementwise 1e-5, one call | NaN, Inf or missing, one call |")
    print("|---|---|---|---|")
    right = [0, 0, 0]
    for fault in FAULTS:
        report = compare(*fault.make(), **fault.options)
        kinds = ", ".join(sorted({finding.kind for finding in report.findings}))
        passed = [
            report.passed,
            verdict(lambda fault=fault: elementwise(*fault.make())),
            verdict(lambda fault=fault: finite(*fault.make())),
        ]
        wanted = not fault.kinds
        right = [n + (found == wanted) for n, found in zip(right, passed, strict=True)]
        words = [_word(found, wanted=wanted) for found in passed]
        words[0] += f" ({kinds})" if kinds else ""
        print(f"| {fault.name} | {' | '.join(words)} |")
    print(f"| right of {len(FAULTS)} | {' | '.join(map(str, right))} |")


def healthy() -> None:
    """How often each of the three refuses a healthy model."""
    alarms = {precision: [0, 0, 0] for precision in ("fp32", "fp16")}
    for name in MODELS:
        for seed in range(SEEDS):
            with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
                warnings.simplefilter("ignore")
                with runners(name, seed, Path(folder)) as (reference, candidates, samples):
                    for precision, candidate in candidates.items():
                        passed = (
                            compare(reference, candidate, samples, precision=precision).passed,
                            elementwise(reference, candidate, samples),
                            finite(reference, candidate, samples),
                        )
                        before = alarms[precision]
                        alarms[precision] = [
                            n + (not one) for n, one in zip(before, passed, strict=True)
                        ]
    print("| Healthy, false alarms | mlflow_e2eai | elementwise 1e-5 | NaN, Inf or missing |")
    print("|---|---|---|---|")
    for precision, counts in alarms.items():
        title = f"{len(MODELS)} models of {SEEDS} seeds in {precision}"
        print(f"| {title} | {' | '.join(map(str, counts))} |")


def _word(passed: bool, *, wanted: bool) -> str:  # noqa: FBT001
    if passed == wanted:
        return "passes, rightly" if wanted else "found"
    return "**missed**" if passed else "**false alarm**"


if __name__ == "__main__":
    planted()
    print()
    healthy()
