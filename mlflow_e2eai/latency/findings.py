"""Calls in order -> findings: reasons to doubt their numbers.

Nothing here drops a call: a number that is wrong because the machine was busy and one that is right
because the model is slow at times look alike.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from mlflow_e2eai.artifacts.values import Array
from mlflow_e2eai.latency.cpu import OTHERS_SHARE
from mlflow_e2eai.latency.report import CpuRecord, GpuRecord, LatencyFinding

GAP_S = 0.25
"""Seconds between two calls, in which nothing ran, that no scheduler explains."""

STALL_MS = 250.0
"""Milliseconds beyond `STALL_TIMES` the median that make a call a stall. A container that has used
up its share of the processor waits for the rest of Linux's period of 100 ms, and two such waits in
one call were not seen; compiling kernels for a GPU took 660 to 1,835 ms."""

STALL_TIMES = 5.0

JUMP_MS = 60_000.0
"""The same beyond which it is the clock that is doubted: no call that is milliseconds as a rule
waits for a minute."""

DRIFT = 0.2
"""Relative change from the first rounds to the last that is a drift. Windows of a healthy model on
a busy machine with two cores change by a tenth as often as not."""

_BLOCKS = 10
_ENDS = 4

_MIN_BLOCK = 4
"""Calls in a block at least. Of 300 runs on the simulated machine of tests/latency/, noise looked
like a drift of one callable in 48 with 20 rounds in blocks of 2, in 14 with 40 rounds and in none
with 400."""


def fence(values_ms: Sequence[float]) -> float:
    """Above this a call is an outlier: third quartile + 3 interquartile ranges.

    This is the outer fence of Tukey, Exploratory Data Analysis, 1977. It is one-sided, as noise is:
    nothing makes a call faster than it can be.
    """
    low, high = np.percentile(values_ms, [25, 75])
    return float(high + 3 * (high - low))


def outliers(values_ms: Sequence[float]) -> int:
    """Number of calls above the outer fence."""
    return int(np.count_nonzero(np.asarray(values_ms) > fence(values_ms)))


def drift(values_ms: Sequence[float]) -> float | None:
    """Factor by which calls changed from the first rounds to the last; None when they did not.

    The rounds are cut into ten blocks. There is a drift when the medians of the first four all lie
    below, or all above, those of the last four, and the two groups are `DRIFT` apart. A machine
    that is busy for a while and then is not does not look like that.
    """
    if len(values_ms) < _BLOCKS * _MIN_BLOCK:
        return None
    medians = np.array([np.median(block) for block in np.array_split(values_ms, _BLOCKS)])
    first, last = medians[:_ENDS], medians[-_ENDS:]
    apart = max(first) < min(last) or max(last) < min(first)
    before, after = float(np.median(first)), float(np.median(last))
    if not apart or before <= 0 or after <= 0:
        return None
    factor = after / before
    return factor if max(factor, 1 / factor) > 1 + DRIFT else None


def unsteady_warmup(name: str, *, calls: int, windows_ms: Sequence[float]) -> LatencyFinding:
    """The finding that a warm-up ended before its calls were steady."""
    if windows_ms:
        seen = ", ".join(f"{value:.3g}" for value in windows_ms[-3:])
        what = f"the medians of its last windows were {seen} ms"
    else:
        what = "which is too few to tell"
    sentence = f"{name!r} was not steady after {calls} calls of warm-up: {what}."
    return LatencyFinding(kind="unsettled", variant=name, sentence=sentence)


def drifts(taken_ms: Mapping[str, Sequence[float]]) -> Iterator[LatencyFinding]:
    """Findings on callables that became slower or faster; on the machine where all did alike.

    Of several, one drifts by itself when it does so on the clock and against the others.
    """
    factors = {name: drift(values) for name, values in taken_ms.items()}
    drifting = {name: factor for name, factor in factors.items() if factor is not None}
    alone = {name: factor for name, factor in drifting.items() if _against_others(name, taken_ms)}
    for name, factor in alone.items():
        sentence = f"{name!r} took {factor:.2f} times as long in the last rounds as in the first."
        yield LatencyFinding(kind="drift", variant=name, sentence=sentence)
    if not alone and len(drifting) == len(taken_ms):
        factor = float(np.median(list(drifting.values())))
        sentence = (
            f"All callables took about {factor:.2f} times as long in the last rounds as in the "
            "first: the machine's speed changed."
        )
        yield LatencyFinding(kind="drift", variant=None, sentence=sentence)


def _against_others(name: str, taken_ms: Mapping[str, Sequence[float]]) -> bool:
    others = [values for other, values in taken_ms.items() if other != name]
    if not others:
        return True
    usual = np.median(others, axis=0)
    if not usual.all():  # the clock is too coarse
        return False
    return drift(np.divide(taken_ms[name], usual).tolist()) is not None


def stalls(name: str, values_ms: Sequence[float]) -> Iterator[LatencyFinding]:
    """Single calls that took so long that they are not of the same kind as the rest."""
    values = np.asarray(values_ms)
    median = float(np.median(values))
    beyond = values - STALL_TIMES * median
    jumped, stalled = beyond > JUMP_MS, (beyond > STALL_MS) & (beyond <= JUMP_MS)
    if jumped.any():
        reason = "the clock jumped, or the machine stalled"
        yield LatencyFinding(
            kind="clock_jump", variant=name, sentence=_slow(name, values, jumped, reason)
        )
    if stalled.any():
        reason = "something was compiled or loaded during the measurement, or the machine stalled"
        yield LatencyFinding(
            kind="stall", variant=name, sentence=_slow(name, values, stalled, reason)
        )


def _slow(name: str, values: Array, chosen: Array, reason: str) -> str:
    worst = int(np.argmax(np.where(chosen, values, -np.inf)))
    return (
        f"{int(chosen.sum())} of {values.size} calls of {name!r} took up to {values[worst]:.3g} ms "
        f"(call {worst}), where the median is {np.median(values):.3g} ms: {reason}."
    )


def clock_jumps(gaps_s: Sequence[float]) -> Iterator[LatencyFinding]:
    """A clock that went back, or far ahead, between two calls, while nothing ran."""
    wrong = [gap for gap in gaps_s if gap < 0 or gap > GAP_S]
    if wrong:
        worst = max(wrong, key=abs)
        sentence = (
            f"Between two calls, while nothing ran, the clock moved by {worst:.3g} s "
            f"({len(wrong)} such gaps): the clock jumped, or the machine stalled."
        )
        yield LatencyFinding(kind="clock_jump", variant=None, sentence=sentence)


def throttled_clock(gpu: GpuRecord | None) -> Iterator[LatencyFinding]:
    """The finding that a GPU throttled its clock; none if it did not."""
    if gpu is not None and gpu.throttle_reasons:
        reasons = ", ".join(gpu.throttle_reasons)
        sentence = f"The GPU throttled its clock during the measurement: {reasons}."
        yield LatencyFinding(kind="throttled", variant=None, sentence=sentence)


def busy_processors(
    shares: Mapping[str, float | None], cpu: CpuRecord, least_share: float
) -> Iterator[LatencyFinding]:
    """The findings that other work had the processor; one of the machine where all found it so.

    Args:
        shares: Share of the processor that each callable got; None where it is not known.
        cpu: The processors.
        least_share: The share below which a callable's times say nothing of it.
    """
    if cpu.others_share is not None and cpu.others_share < OTHERS_SHARE:
        return
    low = {
        name: share for name, share in shares.items() if share is not None and share < least_share
    }
    load = "" if cpu.load_average is None else f", load average {cpu.load_average:.1f}"
    where = f"{cpu.cpus} processor{'' if cpu.cpus == 1 else 's'}{load}"
    if len(low) == len(shares) > 1:
        text = f"The callables got {min(low.values()):.0%} to {max(low.values()):.0%}"
        yield _busy(None, text, where, "they")
        return
    for name, share in low.items():
        yield _busy(name, f"{name!r} got {share:.0%}", where)


def _busy(variant: str | None, text: str, where: str, subject: str = "it") -> LatencyFinding:
    times = "its" if subject == "it" else "their"
    sentence = (
        f"{text} of the processor time that {subject} could have used ({where}): other processes "
        f"had the rest, and {times} times are too noisy to tell."
    )
    return LatencyFinding(kind="busy", variant=variant, sentence=sentence)
