"""Who finds the faults that tests/faults plants, and who sees faults where there are none.

    python benchmarks/faults.py [seeds]

Writes its section of BENCHMARKS.md. Polygraphy judges for itself where it is installed, else by its
rule as tests/faults/peers.py has it; the others are their rules, from their sources.
"""

from __future__ import annotations

import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "faults"))
sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "support"))

import page
import peers
import pytest
import threaded_workers
from harmless import HARMLESS
from healthy import MODELS, runners
from planted import FAULTS
from staged import STAGED
from timed import HEALTHY, TIMED, Timed, healthy
from unusual import UNUSUAL, alarms

from mlflow_e2eai.evaluation.effort import EFFORTS
from mlflow_e2eai.parity.comparison import compare

SEEDS = 10


def markdown(seeds: int = SEEDS) -> str:
    """All tables.

    Args:
        seeds: Seeds of each healthy model and latency.
    """
    parts = [
        "A fault is *found* when it is refused and rightly named. The others give no names.",
        _LEVELS,
        _table(["Wrong numbers", "mlflow_e2eai", "quick", *_JUDGES], _numbers()),
        _table(["Wrong latencies", "mlflow_e2eai", "quick", *_PROFILERS], _latencies()),
        _table(["Met by a stage", "mlflow_e2eai"], _stages()),
        _table(["Healthy: false alarms", "mlflow_e2eai", *_JUDGES], _healthy(seeds)),
        _table(["Healthy, from export to evidence: false alarms", "mlflow_e2eai"], _unusual(seeds)),
        _table(["Healthy: false alarms", "mlflow_e2eai", *_PROFILERS], _healthy_latencies(seeds)),
    ]
    return "\n\n".join(parts)


_LEVELS = """
`mlflow_e2eai` is what the levels standard and thorough run at opt. `quick` runs each sample twice,
from one caller, and 100 rounds of latency, as standard does at other sizes than opt: what happens
at call 200 is not in them.
""".strip()

_QUICK = EFFORTS["quick"]
_QUICK_CALLS = {"repeats": _QUICK.repeats, "threads": _QUICK.threads}
_QUICK_ROUNDS = {"rounds": _QUICK.rounds, "budget_s": _QUICK.latency_s}

_JUDGES = {peers.polygraphy_title(): peers.polygraphy, "Model Navigator's rule": peers.navigator}
_PROFILERS = {
    "perf_analyzer's rule": peers.perf_analyzer,
    "Model Navigator's rule": peers.navigator_profiler,
}


def _numbers() -> Iterator[list[str]]:
    rows = []
    for fault in FAULTS:
        found, quick = (
            {finding.kind for finding in compare(*fault.make(), **options).findings}
            for options in (fault.options, {**_QUICK_CALLS, **fault.options})
        )
        others = [
            _word(passed=_passes(judge, fault.make), wanted=not fault.kinds)
            for judge in _JUDGES.values()
        ]
        ours = [_ours(kinds, fault.kinds) for kinds in (found, quick)]
        rows.append([fault.name, *ours, *others])
    yield from _counted(rows)


def _latencies() -> Iterator[list[str]]:
    rows = []
    for timed in TIMED:
        ours = [_latency(timed, **options) for options in ({}, _QUICK_ROUNDS)]
        steady = [rule(timed.script.calls_ms()) for rule in _PROFILERS.values()]
        rows.append([timed.name, *ours, *(_word(passed=one, wanted=False) for one in steady)])
    yield from _counted(rows)


def _latency(timed: Timed, **options: float) -> str:
    """What is found of a latency."""
    said = {(finding.kind, finding.variant) for finding in timed.script.run(**options).findings}
    wanted = {timed.finding[0]} if said <= {timed.finding} else {"another"}
    return _ours({kind for kind, _ in said}, wanted)


def _stages() -> Iterator[list[str]]:
    rows = []
    for fault in STAGED:
        with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if fault.can_be_planted:
                rows.append([fault.name, _ours(fault.found(Path(folder)), {fault.refused})])
    yield from _counted(rows)


def _healthy(seeds: int) -> Iterator[list[str]]:
    refused: dict[str, Counter[str]] = {}
    for name in MODELS:
        for seed in range(seeds):
            for precision, refusals in _refusals(name, seed):
                refused.setdefault(precision, Counter()).update(refusals)
    names = ["ours", *_JUDGES]
    for precision, counts in refused.items():
        title = f"{len(MODELS)} models of {seeds} seeds in {precision}"
        yield [title, *(str(counts[name]) for name in names)]
    for model in HARMLESS:
        counts = Counter()
        for seed in range(seeds):
            counts["ours"] += not compare(*model.make(seed), **model.options).passed
            for title, judge in _JUDGES.items():
                counts[title] += not _passes(judge, partial(model.make, seed))
        yield [f"{model.name}, {seeds} seeds", *(str(counts[name]) for name in names)]


def _refusals(name: str, seed: int) -> Iterator[tuple[str, list[str]]]:
    """Who refuses a healthy model, by precision."""
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with runners(name, seed, Path(folder)) as (reference, candidates, samples):
            for precision, candidate in candidates.items():
                report = compare(reference, candidate, samples, precision=precision)
                made = (reference, candidate, samples)
                others = [
                    title for title, judge in _JUDGES.items() if not peers.passes(judge, *made)
                ]
                yield precision, [*([] if report.passed else ["ours"]), *others]


def _unusual(seeds: int) -> Iterator[list[str]]:
    """Models that are exported, cleaned, converted and evaluated, on threads for speed."""
    with pytest.MonkeyPatch.context() as patch:
        threaded_workers.instead_of_processes(patch)
        for model in UNUSUAL:
            count = 0
            for seed in range(seeds):
                with tempfile.TemporaryDirectory() as folder:
                    count += bool(alarms(model, seed, Path(folder)))
            yield [
                f"{model.name}, {seeds} seeds, {'fp32 and fp16' if model.half else 'fp32'}",
                str(count),
            ]


def _healthy_latencies(seeds: int) -> Iterator[list[str]]:
    for name in HEALTHY:
        scripts = [healthy(name, seed) for seed in range(seeds)]
        ours = sum(bool(script.run().findings) for script in scripts)
        others = [
            sum(not rule(script.calls_ms()) for script in scripts) for rule in _PROFILERS.values()
        ]
        yield [f"{name}, {seeds} seeds", str(ours), *map(str, others)]


def _passes(judge: Callable[..., bool], make: Callable[[], Iterable[object]]) -> bool:
    """Whether a case passes; a candidate that fails to answer does not."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return bool(peers.passes(judge, *make()))
        except Exception:  # noqa: BLE001 - how a planted fault fails is its own matter
            return False


def _ours(found: Collection[str], wanted: Collection[str]) -> str:
    word = _word(passed=not found, wanted=not wanted)
    if found and wanted and not set(wanted) <= set(found):
        word = "wrongly named"
    return f"{word} ({', '.join(sorted(found))})" if found else word


def _word(*, passed: bool, wanted: bool) -> str:
    if passed == wanted:
        return "passes, rightly" if wanted else "found"
    return "missed" if passed else "false alarm"


def _counted(rows: Sequence[list[str]]) -> Iterator[list[str]]:
    """The rows, and how often each word stands in each column."""
    yield from rows
    for word in ("found", "wrongly named", "missed", "passes, rightly", "false alarm"):
        counts = [sum(row[at].startswith(word) for row in rows) for at in range(1, len(rows[0]))]
        if any(counts):
            yield [f"**{word}**, of {len(rows)}", *(f"**{count}**" for count in counts)]


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


if __name__ == "__main__":
    found = markdown(int(sys.argv[1]) if len(sys.argv) > 1 else SEEDS)
    print(found)
    page.write("faults", "Who finds the faults", found)
