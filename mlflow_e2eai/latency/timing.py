"""One call, timed here or by the callable itself."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Protocol

from mlflow_e2eai.artifacts.values import Infer, Tensors
from mlflow_e2eai.errors import InvalidInputError
from mlflow_e2eai.latency.cpu import CallShares
from mlflow_e2eai.latency.report import Timing

TOUCH_MS = 1.0
"""A call shorter than this depends on what ran before it; see `Touched`."""


class TimesItself(Protocol):
    """A callable that measures the duration of its own calls.

    One that runs on a device has the device's clock (CUDA events), one that runs in another process
    the time there. Where each call is a round trip to that process, it may also have a method
    ``series(tensors, *, fill_ms, calls)``: make at most `calls` calls until they fill `fill_ms`,
    and return the time of each on the host in milliseconds. One whose calls run in another process
    reads their shares of the processor there (`cpu.ReadsShares`).
    """

    def timed(self, tensors: Tensors, /) -> Timing:
        """Make one call; return when the outputs are complete."""


class Touched:
    """A callable that times itself, a short call after another one that is not timed.

    Between two turns of a round other processes run, and the processor's caches fill with what is
    theirs: a call of 10 µs was seen to take 25 then. With this, callables in other processes and in
    this one are measured alike.

    Args:
        infer: The callable.
    """

    def __init__(self, infer: Infer) -> None:
        self._infer = infer
        self._last_ms = 0.0
        self._shares = CallShares()

    def __call__(self, tensors: Tensors) -> Tensors:
        """Run the callable."""
        return self._infer(tensors)

    def timed(self, tensors: Tensors) -> Timing:
        """Time a call, after an untimed one where the last call was shorter than `TOUCH_MS`."""
        self._shares.start()
        if self._last_ms < TOUCH_MS:
            self._infer(tensors)
        timing = timed(self._infer, tensors)
        self._shares.stop()
        self._last_ms = timing.host_ms
        return timing

    def series(self, tensors: Tensors, *, fill_ms: float, calls: int) -> list[float]:
        """Time calls in a row, each of which has the one before it as its untimed call.

        Args:
            tensors: The inputs.
            fill_ms: Milliseconds to fill with calls.
            calls: Calls at most.

        Returns:
            Milliseconds of each on the host.
        """
        return fill_series(lambda: timed(self._infer, tensors), fill_ms=fill_ms, calls=calls)

    def cpu_shares(self) -> list[float]:
        """Return the shares of the processor that calls got since this was last called."""
        return self._shares.take()


def timed(
    infer: Infer, sample: Tensors, *, clock: Callable[[], float] = time.perf_counter
) -> Timing:
    """Make one call, and return its duration.

    Args:
        infer: The callable; one that times itself does so.
        sample: Its inputs.
        clock: Seconds that only grow.

    Raises:
        InvalidInputError: The clock went backwards during the call.
    """
    return time_on_host(infer, sample, clock)[1]


def fill_series(call: Callable[[], Timing], *, fill_ms: float, calls: int) -> list[float]:
    """A series of calls whose timing the caller defines."""
    times: list[float] = []
    filled_ms = 0.0
    while len(times) < calls and filled_ms < fill_ms:
        times.append(call().host_ms)
        filled_ms += times[-1]
    return times


def time_on_host(
    infer: Any, sample: Tensors, clock: Callable[[], float]
) -> tuple[float, Timing, float]:
    """Time a call by the readings of the clock before and after it."""
    itself: Callable[[Tensors], Timing] | None = getattr(infer, "timed", None)
    timing = None
    before = clock()
    if itself is None:
        infer(sample)
    else:
        timing = itself(sample)
    after = clock()
    if timing is None:
        timing = Timing(host_ms=1e3 * (after - before))
        if after < before:
            msg = "The clock ran backwards during the measurement; give a monotonic one."
            raise InvalidInputError(msg)
    return before, timing, after
