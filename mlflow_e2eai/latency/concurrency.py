"""Throughput under concurrent callers, and cold start of a runner."""

from __future__ import annotations

import gc
import resource
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from mlflow_e2eai.artifacts.values import Infer, Tensors
from mlflow_e2eai.errors import InvalidInputError
from mlflow_e2eai.latency.cpu import UseWatch
from mlflow_e2eai.latency.gpu_monitor import used_memory_bytes
from mlflow_e2eai.latency.measure import items_of
from mlflow_e2eai.latency.report import ColdStart, Load, Throughput
from mlflow_e2eai.latency.timing import timed

THREADS = (1, 2, 4)
"""Callers at once."""

LOAD_S = 1.0
"""Seconds for each number of callers; no call starts later."""

ENOUGH_CALLS = 500
"""Calls of one caller after which more tell nothing: at 50 µs each they outlast five turns of
Python's threads (5 ms, `sys.getswitchinterval`)."""


def throughput(
    infer: Infer,
    sample: Tensors,
    *,
    threads: Sequence[int] = THREADS,
    items: int | None = None,
    budget_s: float = LOAD_S,
    clock: Callable[[], float] = time.perf_counter,
    least_cpu_share: float | None = None,
) -> Throughput:
    """Measure how many items a second a callable processes for several callers at once.

    Every caller is a thread that makes one call for itself, waits until all are there, and then
    calls without a pause until the time is up. All calls count, and the time runs until the last
    of them returns.

    Args:
        infer: The callable; it must be safe to call from several threads.
        sample: Its inputs.
        threads: Numbers of callers, one measurement each.
        items: Items in the sample; by default the leading size of its first array.
        budget_s: Seconds for each number, of which less is used once a caller has made
            `ENOUGH_CALLS`; every caller makes at least one call that counts. A call that never
            returns is not ended.
        clock: Seconds that only grow.
        least_cpu_share: Share of the processor below which rates are too noisy to tell; by default
            `cpu.LEAST_SHARE`.

    Returns:
        Items a second by number of callers.

    Raises:
        InvalidInputError: There is no number of callers, or one is not positive.
    """
    if not threads or min(threads) < 1:
        msg = f"The numbers of callers are {list(threads)}; give at least one, of at least 1 each."
        raise InvalidInputError(msg)
    items = items_of(sample) if items is None else items
    loads = tuple(
        _load(infer, sample, count, items, budget_s, clock, least_cpu_share) for count in threads
    )
    return Throughput(items=items, loads=loads)


@dataclass(slots=True, kw_only=True)
class _Race:
    """The common start of all callers, and its time."""

    callers: int
    clock: Callable[[], float]
    started: float = 0.0
    over: bool = False
    barrier: threading.Barrier = field(init=False)

    def __post_init__(self) -> None:
        self.barrier = threading.Barrier(self.callers, action=self._start)

    def _start(self) -> None:
        self.started = self.clock()


def _load(
    infer: Infer,
    sample: Tensors,
    callers: int,
    items: int,
    budget_s: float,
    clock: Callable[[], float],
    least_cpu_share: float | None,
) -> Load:
    race = _Race(callers=callers, clock=clock)
    watch = UseWatch(crowded=True)

    def call() -> tuple[int, float]:
        try:
            infer(sample)  # the set-up of each thread
            race.barrier.wait()
            calls = 0
            while calls == 0 or not race.over:
                infer(sample)
                calls += 1
                if calls == ENOUGH_CALLS or clock() - race.started >= budget_s:
                    race.over = True
        except threading.BrokenBarrierError:
            return 0, race.started  # another caller failed, and raises its error
        except BaseException:
            race.barrier.abort()  # the others must not wait for this one
            raise
        return calls, clock()

    with ThreadPoolExecutor(max_workers=callers) as pool:
        futures = [pool.submit(call) for _ in range(callers)]
        wait(futures)
        use = watch.close(least_cpu_share)  # while the threads are there, whose waits count
    results = [future.result() for future in futures]
    calls = sum(done for done, _ in results)
    seconds = max(ended for _, ended in results) - race.started
    rate = calls * items / seconds if seconds > 0 else float("inf")
    return Load(
        threads=callers,
        calls=calls,
        seconds=seconds,
        items_per_s=rate,
        cpu_share=use.share,
        busy=use.busy,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Opened:
    """A runner that was just opened, and the cost of opening it.

    Attributes:
        infer: The callable.
        load_s: Seconds from nothing to the callable.
        memory_before_bytes: Peak resident set of the process before.
        device_memory_before_bytes: GPU memory in use before; None where there is none.
        watch: The use of the processor since before.
    """

    infer: Infer
    load_s: float
    memory_before_bytes: int
    device_memory_before_bytes: int | None
    watch: UseWatch

    def cold_start(
        self,
        infer: Infer,
        sample: Tensors,
        *,
        clock: Callable[[], float] = time.perf_counter,
        least_cpu_share: float | None = None,
    ) -> ColdStart:
        """Make the first two calls, and return the cost of a cold start.

        Args:
            infer: The runner's callable, or a wrapper of it.
            sample: Its inputs.
            clock: Seconds that only grow.
            least_cpu_share: See `throughput`.
        """
        first, second = (timed(infer, sample, clock=clock).host_ms for _ in range(2))
        use = self.watch.close(least_cpu_share)
        peak, used = _peak_memory_bytes(), used_memory_bytes()
        before = self.device_memory_before_bytes
        return ColdStart(
            load_s=self.load_s,
            first_call_ms=first,
            second_call_ms=second,
            peak_memory_bytes=peak,
            peak_memory_growth_bytes=max(peak - self.memory_before_bytes, 0),
            device_memory_bytes=None if used is None or before is None else max(used - before, 0),
            profile_memory_bytes=getattr(self.infer, "profile_memory_bytes", ()),
            cpu_share=use.share,
            busy=use.busy,
        )


@contextmanager
def timed_open(
    opener: Callable[[], AbstractContextManager[Infer]],
    *,
    clock: Callable[[], float] = time.perf_counter,
) -> Iterator[Opened]:
    """Open a runner for the block, and measure the cost of opening it.

    Args:
        opener: Opens it, for example ``lambda: onnxruntime_runner(path)``.
        clock: Seconds that only grow.
    """
    gc.collect()
    memory, device_memory = _peak_memory_bytes(), used_memory_bytes()
    watch = UseWatch()
    started = clock()
    with opener() as infer:
        yield Opened(
            infer=infer,
            load_s=clock() - started,
            memory_before_bytes=memory,
            device_memory_before_bytes=device_memory,
            watch=watch,
        )


def cold_start(
    opener: Callable[[], AbstractContextManager[Infer]],
    sample: Tensors,
    *,
    clock: Callable[[], float] = time.perf_counter,
) -> ColdStart:
    """Measure the cost of the first outputs of a runner.

    Args:
        opener: Opens it, for example ``lambda: onnxruntime_runner(path)``. Imports and files that
            this process, or the machine, has used before are warm (ONNX Runtime's import always
            is, in a worker process): measure the cold start of a
            process in a fresh process.
        sample: Its inputs.
        clock: Seconds that only grow.

    Returns:
        Seconds to load, milliseconds of the first calls, and the process's memory.
    """
    with timed_open(opener, clock=clock) as runner:
        return runner.cold_start(runner.infer, sample, clock=clock)


def _peak_memory_bytes() -> int:
    """The largest resident set that the process ever had.

    Read from /proc (proc_pid_status(5), VmHWM), as getrusage(2) on Linux includes the process that
    started this one.
    """
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
        return 1024 * int(status.partition("VmHWM:")[2].split()[0])
    except (OSError, IndexError, ValueError):
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else 1024 * peak
