"""Latencies with a fault in them, and healthy ones, on a clock that goes by script.

Two callables are measured with the defaults of `benchmark`. The faults are in ``a``; ``b`` is as
healthy as ``a`` would be. Calls are numbered from the first that counts.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from types import SimpleNamespace
from unittest import mock

import numpy as np

import mlflow_e2eai
from mlflow_e2eai.latency import cpu

MS = 1e-3
LEAST_SHARE = 0.8  # that of the package; while its tests run it is another
SAMPLE = {"x": np.zeros((8, 3), np.float32)}


def busy(seed: int) -> Callable[[int], float]:
    """Seconds of calls on a busy machine: skewed, with a slow one now and then."""
    rng = np.random.default_rng(seed)
    late = (rng.random(4000) < 0.01) * rng.uniform(1, 20, size=4000)
    taken = (rng.lognormal(0, 0.15, size=4000) + late) * MS
    return lambda call: float(taken[call % taken.size])


@dataclass
class Script:
    """What the calls take, and what else the clock does.

    Attributes:
        a: Seconds of the calls of ``a``, by number.
        b: The same of ``b``.
        warm: Seconds of the calls of the warm-up of ``a``.
        jumps: Seconds that the clock moves behind a call of ``a``, by number.
        throttle: What a GPU says of its clock, in NVML's bits; None where there is no GPU.
        share_a: Shares of the processor that the calls of ``a`` got, by number.
        share_b: The same of ``b``.
    """

    a: Callable[[int], float] = field(default_factory=lambda: busy(1))
    b: Callable[[int], float] = field(default_factory=lambda: busy(2))
    warm: Callable[[int], float] = field(default_factory=lambda: busy(1))
    jumps: dict[int, float] = field(default_factory=dict)
    throttle: int | None = None
    share_a: Callable[[int], float] = lambda _: 1.0
    share_b: Callable[[int], float] = lambda _: 1.0

    def run(self, **options: float) -> mlflow_e2eai.LatencyReport:
        """Measure both, by default as `benchmark` does."""
        machine = _Machine(self)
        with _gpu(self.throttle), mock.patch.object(cpu, "_machine_ticks", cpu._Ticks):
            return mlflow_e2eai.benchmark(
                {
                    "a": _Counted(machine.a, self.share_a),
                    "b": _Counted(machine.b, self.share_b),
                },
                SAMPLE,
                clock=machine.clock,
                least_cpu_share=LEAST_SHARE,
                **options,
            )

    def calls_ms(self) -> list[float]:
        """Milliseconds from call to call of ``a`` alone, as others would see them."""
        return [(self.a(call) + self.jumps.get(call, 0.0)) / MS for call in range(500)]


class _Counted:
    """A callable that gives the shares of its calls, as one in another process does."""

    def __init__(self, infer, share):
        self._infer, self._share = infer, share
        self._made, self._taken = 0, 0

    def __call__(self, tensors):
        self._made += 1
        return self._infer(tensors)

    def cpu_shares(self):
        shares = [self._share(number) for number in range(self._made - self._taken)]
        self._taken = self._made
        return shares


class _Machine:
    """The clock and both callables. The measure has begun when ``a`` is called after ``b`` was."""

    def __init__(self, script: Script) -> None:
        self._script, self._now, self._due = script, 0.0, 0.0
        self._warm, self._calls, self._b_was_called, self._begun = 0, {"a": 0, "b": 0}, False, False

    def clock(self) -> float:
        """The reading right behind a call is right; a jump comes after it."""
        now, self._due, due = self._now, 0.0, self._due
        self._now += due
        return now

    def a(self, tensors):
        self._begun = self._begun or self._b_was_called
        script, call = self._script, self._calls["a"]
        if self._begun:
            self._now += script.a(call)
            self._due = script.jumps.get(call, 0.0)
            self._calls["a"] += 1
        else:
            self._now += script.warm(self._warm)
            self._warm += 1
        return tensors

    def b(self, tensors):
        self._b_was_called = True
        self._now += self._script.b(self._calls["b"])
        self._calls["b"] += self._begun
        return tensors


def _gpu(reasons):
    """A module pynvml whose GPU gives these reasons, or none."""
    if reasons is None:
        return nullcontext()
    module = SimpleNamespace(
        nvmlInit=lambda: None,
        nvmlShutdown=lambda: None,
        nvmlDeviceGetHandleByIndex=lambda _: "gpu",
        nvmlDeviceGetCurrentClocksEventReasons=lambda _: reasons,
    )
    return mock.patch.dict(sys.modules, {"pynvml": module})


# Faults


@dataclass(frozen=True)
class Timed:
    """A latency, and what must be said of it.

    Attributes:
        name: What is wrong.
        script: What the calls take.
        finding: Its kind, and the callable that it names; None where the run is meant.
        missed: Why it cannot be told from noise; None where it is found.
    """

    name: str
    script: Script
    finding: tuple[str, str | None]
    missed: str | None = None


def _times(factor):
    """The usual calls, times what a function gives for the number of a call."""
    usual = busy(1)
    return lambda call: usual(call) * factor(call)


def _and(extra):
    """The usual calls, and seconds that a dictionary gives for the number of a call."""
    usual = busy(1)
    return lambda call: usual(call) + extra.get(call, 0.0)


def _growing(seed):
    usual = busy(seed)
    return lambda call: usual(call) * (1 + call / 400)


TIMED = [
    Timed("a clock that jumps ahead by an hour", Script(jumps={200: 3600.0}), ("clock_jump", None)),
    Timed("a clock that jumps ahead by a second", Script(jumps={200: 1.0}), ("clock_jump", None)),
    Timed("a clock that jumps back by a second", Script(jumps={200: -1.0}), ("clock_jump", None)),
    Timed(
        "a clock that jumps back by a millisecond, again and again",
        Script(jumps=dict.fromkeys(range(0, 400, 40), -1 * MS)),
        ("clock_jump", None),
    ),
    Timed("a clock that jumps ahead in a call", Script(a=_and({200: 3600.0})), ("clock_jump", "a")),
    Timed(
        "a warm-up that compiles in the middle of the measure",
        Script(a=_and({200: 0.66})),
        ("stall", "a"),
    ),
    Timed(
        "a warm-up that compiles in the middle of the measure, twice",
        Script(a=_and({120: 1.8, 121: 0.7})),
        ("stall", "a"),
    ),
    Timed(
        "a warm-up that compiles at the first call of the measure",
        Script(a=_and({0: 1.8})),
        ("stall", "a"),
    ),
    Timed("a stall at the last call", Script(a=_and({399: 0.5})), ("stall", "a")),
    Timed("a latency that drifts to twice", Script(a=_growing(1)), ("drift", "a")),
    Timed(
        "a latency that drifts up by half", Script(a=_times(lambda n: 1 + n / 800)), ("drift", "a")
    ),
    Timed(
        "a latency that drifts down by half",
        Script(a=_times(lambda n: 1 - n / 800)),
        ("drift", "a"),
    ),
    Timed(
        "a latency that steps up by a third half-way",
        Script(a=_times(lambda n: 1 + (n > 200) / 3)),
        ("drift", "a"),
    ),
    Timed(
        "a latency that falls when the code is compiled at call 200",
        Script(a=_times(lambda n: 3 - 2 * (n > 200))),
        ("drift", "a"),
    ),
    Timed("a machine that drifts to twice", Script(a=_growing(1), b=_growing(2)), ("drift", None)),
    Timed(
        "a warm-up that never settles",
        Script(warm=lambda call: MS * 1.2**call),
        ("unsettled", "a"),
    ),
    Timed(
        "a warm-up that is still compiling when its time is up",
        Script(warm=lambda call: 0.8 - call / 10 if call < 8 else MS),
        ("unsettled", "a"),
    ),
    Timed("a GPU throttled by heat", Script(throttle=0x40), ("throttled", None)),
    Timed("a GPU throttled by its power cap", Script(throttle=0x4), ("throttled", None)),
    Timed(
        "a reference that got half of the processor, and was steady at that",
        Script(share_a=lambda _: 0.5),
        ("busy", "a"),
    ),
    Timed(
        "a reference for which load 19 left a tenth of two processors",
        Script(a=lambda _: 0.188, warm=lambda _: 0.188, share_a=lambda _: 0.1),
        ("busy", "a"),
    ),
    Timed(
        "a machine busy enough that a third of the calls waited for others",
        Script(share_a=lambda call: 0.4 if call % 3 == 0 else 1.0),
        ("busy", "a"),
    ),
    Timed(
        "a machine on which all got a third of the processor",
        Script(share_a=lambda _: 0.33, share_b=lambda _: 0.35),
        ("busy", None),
    ),
    Timed(
        "a reference for which every tenth call waited for others",
        Script(share_a=lambda call: 0.1 if call % 10 == 0 else 1.0),
        ("busy", "a"),
        missed="the medians of rounds withstand a tenth",
    ),
    Timed(
        "a latency that doubles in the last quarter",
        Script(a=_times(lambda call: 1 + (call >= 300))),
        ("drift", "a"),
        missed="a burst of other work at the end looks the same",
    ),
    Timed(
        "a latency of a third of a second that drifts to twice within ten rounds",
        Script(
            a=lambda call: 0.33 * (1 + min(call / 9, 1)),
            b=lambda _: 0.33,
            warm=lambda _: 0.33,
        ),
        ("drift", "a"),
        missed="of fewer than 40 rounds, noise looks like a drift too often",
    ),
]


# Health


def _autoregressive(rng, size, memory):
    values = np.zeros(size)
    shocks = rng.standard_normal(size) * np.sqrt(1 - memory**2)
    for at in range(1, size):
        values[at] = memory * values[at - 1] + shocks[at]
    return values


def _bursts(rng, size, often):
    """Ones for ten calls or so from where something starts, else zeros."""
    found = np.zeros(size)
    for start in np.flatnonzero(rng.random(size) < often):
        found[start : start + rng.integers(5, 15)] = 1
    return found


def _usual(rng, size):
    return rng.lognormal(0, 0.15, size)


_EVERY_50 = np.arange(8000) % 50 == 7

HEALTHY = {
    "skewed noise": lambda rng, n: MS * _usual(rng, n),
    "a heavy tail": lambda rng, n: MS * (_usual(rng, n) + 0.1 * rng.pareto(1.5, n)),
    "bursts of other work": lambda rng, n: MS * _usual(rng, n) * (1 + _bursts(rng, n, 0.01)),
    "a load that comes and goes": lambda rng, n: (
        MS * _usual(rng, n) * np.exp(0.1 * _autoregressive(rng, n, 0.95))
    ),
    "a share of the processor that is used up": lambda rng, n: (
        MS * _usual(rng, n) + 0.1 * (rng.random(n) < 0.005)
    ),
    "two speeds by chance": lambda rng, n: MS * _usual(rng, n) * (1 + (rng.random(n) < 0.5)),
    "garbage collection": lambda rng, n: MS * (_usual(rng, n) + 15 * _EVERY_50[:n]),
    "a tenth slower by the end": lambda rng, n: (
        MS * _usual(rng, n) * (1 + np.minimum(np.arange(n) / 4000, 0.1))
    ),
    "calls of 20 microseconds": lambda rng, n: 0.02 * MS * _usual(rng, n),
    "calls of 80 milliseconds": lambda rng, n: 80 * MS * rng.lognormal(0, 0.05, n),
    "a clock of coarse ticks": lambda rng, n: MS * np.round(4 * _usual(rng, n)) / 4,
}
"""Seconds of calls, by what makes them go up and down."""


def healthy(name: str, seed: int) -> Script:
    """A healthy latency: both callables alike."""
    one, other = (
        HEALTHY[name](np.random.default_rng((seed, part)), 8000).tolist() for part in (0, 1)
    )
    shares = np.random.default_rng((seed, 2)).beta(60, 2, 400).tolist()
    return Script(
        a=lambda call: one[call % 8000],
        b=lambda call: other[call % 8000],
        warm=lambda call: one[-1 - call % 8000],
        share_a=lambda call: shares[call % 400],
        share_b=lambda call: 0.05 if call % 20 == 0 else 1.0,
    )
