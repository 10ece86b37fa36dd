"""Named callables and a sample -> LatencyReport.

The callables take turns, one call each a round, so that other load of the machine falls on all of
them alike, in an order in which none always follows the same neighbour. Two callables are
compared round by round.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Real
from typing import Any

import numpy as np

from mlflow_e2eai.artifacts.values import Infer, Tensors
from mlflow_e2eai.errors import (
    InvalidInputError,
    RunnerError,
    require_flags,
    require_function,
    require_kind,
)
from mlflow_e2eai.latency import cpu, findings
from mlflow_e2eai.latency.gpu_monitor import GpuWatch
from mlflow_e2eai.latency.ratios import paired_ratio, turns
from mlflow_e2eai.latency.report import GpuRecord, Latency, LatencyFinding, LatencyReport, Timing
from mlflow_e2eai.latency.timing import fill_series, time_on_host

WARMUP = 100_000
"""Calls of each callable at most that are not counted. Long before that the warm-up has settled,
or its time is up."""

MIN_WARMUP = 5
"""Such calls at least, where they do not settle, however slow they are."""

WINDOW_MS = 50.0
"""A window of the warm-up is the calls that fill this time, or a third of what a warm-up may take
where that is less; a slower call is one by itself. Three windows are the least, and cover what it
takes an idle GPU to raise its clock (about 90 ms); trtexec warms up for 200 ms."""

STEADY = 0.1
"""A window is steady within 10 % of those before it, as with perf_analyzer."""

ROUNDS = 400
"""Rounds at most. On a simulated machine that is busy in bursts a slow-down by a tenth was found in
97 of 100 tries with 400 rounds and in 73 with 200; benchmarks/aa.py tries a real one."""

ENOUGH = 1.05
"""Upper bound of a ratio by its lower bound from which more rounds tell little: half of a tenth."""

FIRST_LOOK = 100
"""Rounds after which the intervals are looked at, and then at twice as many each time. The 99th
percentile of fewer calls is their largest."""

MIN_ROUNDS = 10
"""Rounds at least, however slow the callables are."""

BUDGET_S = 5.0
"""Seconds after which no further round starts, once there are `MIN_ROUNDS`. A fifth of it is what
the warm-up of one callable may take, once there are `MIN_WARMUP` calls."""

_WINDOWS = 3


def benchmark(
    candidates: Mapping[str, Infer],
    sample: Tensors,
    *,
    items: int | None = None,
    warmup: int = WARMUP,
    rounds: int = ROUNDS,
    enough: float = ENOUGH,
    budget_s: float = BUDGET_S,
    clock: Callable[[], float] = time.perf_counter,
    strict: bool = False,
    least_cpu_share: float | None = None,
    window_ms: float = WINDOW_MS,
) -> LatencyReport:
    """Measure callables against each other on one sample.

    Each is warmed up until it is steady: until the median of a window of `WINDOW_MS` lies, give or
    take a tenth, among those of the two windows before. So calls that still become faster (lazy
    initialisation, kernels being compiled, caches, a clock that rises) or slower go on warming up,
    and calls that are only noisy do not: their windows go up and down. What is not steady after a
    fifth of the budget is measured all the same, and the report says so.

    Args:
        candidates: The callables, by name. Each must return only when its outputs are complete.
            Those that time themselves (`TimesItself`) do so.
        sample: Their inputs.
        items: Items in the sample; by default the leading size of its first array.
        warmup: Calls of each at most that are not counted.
        rounds: Rounds at most.
        enough: How narrow the ratios to the first callable must be for the measure to end before,
            as their upper bound by their lower one; at 1 all rounds are measured. Only the width
            counts, not where the interval lies, so that looking early favours no verdict.
        budget_s: Seconds for the rounds, and five times the seconds for each warm-up; see
            `BUDGET_S`.
        clock: Seconds that only grow; another one than the machine's makes tests exact.
        strict: Refuse to measure what does not settle.
        least_cpu_share: Share of the processor below which times are too noisy to tell; by default
            `cpu.LEAST_SHARE`.
        window_ms: Milliseconds of calls in each window of a warm-up; see `WINDOW_MS`.

    Returns:
        The report. It keeps every call; what makes its numbers doubtful is in its findings.

    Raises:
        InvalidInputError: There is nothing to measure, a count is not positive, or the clock went
            backwards in a call.
        RunnerError: `strict`, and a warm-up did not settle.

    Examples:
        >>> report = mlflow_e2eai.benchmark({"fp32": reference, "fp16": candidate}, {"x": x})
        >>> ratio = report.ratio("fp16", "fp32")
    """
    require_kind("candidates", candidates, Mapping, "a mapping of names to functions")
    for name, infer in candidates.items():
        require_function(f"candidates[{name!r}]", infer)
    require_kind("sample", sample, Mapping, "a mapping of input names to arrays")
    require_function("clock", clock, "a function that returns seconds")
    for name, count in {"warmup": warmup, "rounds": rounds}.items():
        require_kind(name, count, int, "a number of calls")
    require_flags(strict=strict)
    if least_cpu_share is not None:
        require_kind("least_cpu_share", least_cpu_share, Real, "a share, such as 0.8")
    for name, number in {"enough": enough, "budget_s": budget_s, "window_ms": window_ms}.items():
        if not require_kind(name, number, Real, "a number") > 0:  # nor is NaN
            msg = f"{name} is {number}; give a number above 0."
            raise InvalidInputError(msg)
    if not candidates or rounds < 1 or warmup < 0:
        msg = (
            f"There are {len(candidates)} callables, {warmup} warm-up calls and {rounds} rounds; "
            f"give at least one callable and one round."
        )
        raise InvalidInputError(msg)
    items = items_of(sample) if items is None else require_kind("items", items, int, "a number")
    watch = _Stopwatch(sample=sample, clock=clock)
    warm = {
        name: _warm_up(infer, watch, calls=warmup, budget_s=budget_s / 5, window_ms=window_ms)
        for name, infer in candidates.items()
    }
    doubts = [
        findings.unsteady_warmup(name, calls=seen.calls, windows_ms=seen.windows_ms)
        for name, seen in warm.items()
        if not seen.settled
    ]
    if strict and doubts:
        msg = f"{doubts[0].sentence} Raise budget_s, or measure on a quieter machine."
        raise RunnerError(msg)
    processors = cpu.CpuWatch()
    taken, gpu = _rounds(candidates, watch, rounds, enough, budget_s)
    machine = processors.close()
    shares = {
        name: cpu.typical_share(calls.cpu_shares, machine)
        for name, calls in zip(candidates, taken, strict=True)
    }
    variants = tuple(
        _latency(name, calls, items, warm[name], shares[name])
        for name, calls in zip(candidates, taken, strict=True)
    )
    doubts += _findings(variants, watch.gaps_s, gpu)
    least = cpu.LEAST_SHARE if least_cpu_share is None else least_cpu_share
    doubts += findings.busy_processors(shares, machine, least)
    return LatencyReport(
        items=items,
        warmup=warmup,
        variants=variants,
        findings=tuple(doubts),
        gpu=gpu,
        cpu=machine,
    )


def items_of(sample: Tensors) -> int:
    """Items in a sample: the leading size of its first array.

    Raises:
        InvalidInputError: It holds no array.
    """
    if not sample:
        msg = "The sample has no array to count items in; give items."
        raise InvalidInputError(msg)
    shape = np.shape(next(iter(sample.values())))
    return int(shape[0]) if shape else 1


@dataclass(slots=True, kw_only=True)
class _Calls:
    """The calls of one callable, in order, on both clocks, and some of their shares of the CPU."""

    host_ms: list[float] = field(default_factory=list)
    device_ms: list[float] = field(default_factory=list)
    cpu_shares: list[float] = field(default_factory=list)

    def add(self, timing: Timing) -> None:
        """Append one call."""
        self.host_ms.append(timing.host_ms)
        if timing.device_ms is not None:
            self.device_ms.append(timing.device_ms)


@dataclass(slots=True, kw_only=True)
class _Stopwatch:
    """Makes calls and times them; records the gaps between two, to find jumps of the clock."""

    sample: Tensors
    clock: Callable[[], float]
    gaps_s: list[float] = field(default_factory=list)
    _last: float | None = None

    def pause(self) -> None:
        """Mark that other work ran, so that what follows is no gap between two calls."""
        self._last = None

    def time(self, infer: Infer) -> Timing:
        """Make a call, and return its duration."""
        began, timing, ended = time_on_host(infer, self.sample, self.clock)
        if self._last is not None:
            self.gaps_s.append(began - self._last)
        self._last = ended
        return timing


@dataclass(frozen=True, slots=True, kw_only=True)
class _WarmUp:
    """The calls of a warm-up, the medians of its windows, and whether they were steady."""

    calls: int
    windows_ms: tuple[float, ...]
    settled: bool


def _warm_up(
    infer: Infer, watch: _Stopwatch, *, calls: int, budget_s: float, window_ms: float
) -> _WarmUp:
    windows: list[float] = []
    fill_ms = min(window_ms, 1e3 * budget_s / _WINDOWS)
    started = watch.clock()
    watch.pause()
    done, settled = 0, False
    while done < calls and not settled:
        if done >= MIN_WARMUP and watch.clock() - started > budget_s:
            break
        window = _window(infer, watch, calls - done, fill_ms)
        done += len(window)
        if sum(window) >= fill_ms:
            windows.append(float(np.median(window)))
            settled = _steady(windows)
    watch.pause()
    return _WarmUp(calls=done, windows_ms=tuple(windows), settled=settled)


def _window(infer: Any, watch: _Stopwatch, calls: int, fill_ms: float) -> Sequence[float]:
    """Times of the calls that fill a window, in milliseconds."""
    if (series := getattr(infer, "series", None)) is not None:
        watch.pause()
        times: Sequence[float] = series(watch.sample, fill_ms=fill_ms, calls=calls)
        return times
    return fill_series(lambda: watch.time(infer), fill_ms=fill_ms, calls=calls)


def _steady(windows_ms: Sequence[float]) -> bool:
    if len(windows_ms) < _WINDOWS:
        return False
    *before, last = windows_ms[-_WINDOWS:]
    return (1 - STEADY) * min(before) <= last <= (1 + STEADY) * max(before)


def _rounds(
    candidates: Mapping[str, Infer],
    watch: _Stopwatch,
    rounds: int,
    enough: float,
    budget_s: float,
) -> tuple[list[_Calls], GpuRecord | None]:
    """Call the callables in turns; returns their calls, in order, and the GPU's record."""
    infers, orders = list(candidates.values()), turns(len(candidates))
    taken, shares = [_Calls() for _ in infers], [cpu.shares_of(infer) for infer in infers]
    for each in shares:
        each.take()  # those of the warm-up
    gpu = GpuWatch(watch.clock)
    started, look = watch.clock(), FIRST_LOOK
    try:
        for number in range(rounds):
            if number >= MIN_ROUNDS and watch.clock() - started > budget_s:
                break
            if number == look:
                if _are_narrow([calls.host_ms for calls in taken], enough):
                    break
                look *= 2
                watch.pause()
            if gpu.due:
                gpu.poll()
                watch.pause()
            for at in orders[number % len(orders)]:
                shares[at].start()
                taken[at].add(watch.time(infers[at]))
                shares[at].stop()
        gpu.poll()
    finally:
        record = gpu.close()
    for calls, each in zip(taken, shares, strict=True):
        calls.cpu_shares = each.take()
    return taken, record


def _are_narrow(times_ms: Sequence[Sequence[float]], enough: float) -> bool:
    """Whether the ratio of each callable to the first is known so well; there is one at least."""
    ratios = (
        paired_ratio(times, times_ms[0], positions=(at, 0), size=len(times_ms))
        for at, times in enumerate(times_ms)
        if at
    )
    return len(times_ms) > 1 and all(ratio.high <= enough * ratio.low for ratio in ratios)


def _findings(
    variants: Sequence[Latency], gaps_s: Sequence[float], gpu: GpuRecord | None
) -> list[LatencyFinding]:
    return [
        *findings.drifts({variant.name: variant.rounds_ms for variant in variants}),
        *(one for variant in variants for one in findings.stalls(variant.name, variant.rounds_ms)),
        *findings.clock_jumps(gaps_s),
        *findings.throttled_clock(gpu),
    ]


def _latency(
    name: str, calls: _Calls, items: int, warm: _WarmUp, cpu_share: float | None
) -> Latency:
    values = calls.host_ms
    p50, p90, p95, p99 = (float(p) for p in np.percentile(values, [50, 90, 95, 99]))
    mean = float(np.mean(values))
    return Latency(
        name=name,
        p50_ms=p50,
        p90_ms=p90,
        p95_ms=p95,
        p99_ms=p99,
        mean_ms=mean,
        std_ms=float(np.std(values)),
        throughput_items_per_s=1e3 * items / mean if mean else float("inf"),
        rounds_ms=tuple(values),
        outliers=findings.outliers(values),
        warmup_calls=warm.calls,
        settled=warm.settled,
        device_p50_ms=float(np.median(calls.device_ms)) if calls.device_ms else None,
        device_rounds_ms=tuple(float(value) for value in calls.device_ms),
        cpu_share=cpu_share,
    )
