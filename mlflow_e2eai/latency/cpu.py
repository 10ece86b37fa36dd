"""Share of the processor that timed calls got.

The kernel counts for each thread how long it was ready to run and waited, as others ran (Linux,
Documentation/scheduler/sched-stats.rst). A thread that waits for a GPU, a lock or a pipe is not
ready, so that only work for the same processors lowers the share. What the hypervisor took from the
whole machine is in /proc/stat. psutil has none of the threads' waits, and so
this module reads them itself: before and after a call, never in it, and not at every call.
"""

from __future__ import annotations

import os
import resource
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeAlias

import numpy as np

from mlflow_e2eai.artifacts.machine import processors
from mlflow_e2eai.latency.report import CpuRecord

LEAST_SHARE = 0.8
"""Share of the processor below which the times of a callable say nothing of it: it takes a quarter
longer then, which is all that promotion allows by default.

Measured with two linear layers in PyTorch and ONNX Runtime on a machine of two processors. With
real-time priority all calls got 1.00. Among 3 to 16 other threads, calls of 2.4 ms got 0.04 to 0.61
and took 1.2 to 87 times as long, and the ratio of both fell from 0.78 to 0.007. Calls of 7 to 30 µs
got 1.00 among as many: they end before another's turn comes, and their ratio stayed within 0.29 and
0.34. What other work takes of caches is no share of a processor, and is not seen.
"""

OTHERS_SHARE = 0.05
"""Share of the machine's time for other processes from which a low share is their doing. Below, it
is threads of the callables themselves that wait for each other: PyTorch's spin for 8 ms after a
call, in case that another one follows."""

_QUARTILE = 25

_FEWEST = 5
"""Calls whose share is known, at least."""

_APART = 10
"""Times as long as a reading took that the next one waits, so that readings take a tenth of a
measure at most; one takes 10 µs for each thread of the process."""

SWITCH_NS = 50_000
"""Nanoseconds that a thread may wait each time that it gets a processor, which is no other work's
doing. On an idle machine of two processors the two threads of a call waited 3 to 13 µs each time, a
fifth of a call of 85 µs; among six busy threads half of them waited 64 µs and more."""

_LEAST_TICKS = 50
"""Ticks of the machine from which the shares that others had are told."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CpuTimes:
    """Counters of a process at one moment; they only grow.

    Attributes:
        ran_ns: Nanoseconds that its threads ran.
        waited_ns: Nanoseconds that each of its threads was ready and did not run, by its id; empty
            where the kernel does not count them.
        turns: How often each of them got a processor.
        switches: How often it was made to give up a processor.
        clock_ns: The moment.
    """

    ran_ns: int
    waited_ns: Mapping[int, int]
    turns: Mapping[int, int]
    switches: int
    clock_ns: int


ReadTimes: TypeAlias = Callable[[], CpuTimes]


def read_times(tasks: str = "/proc/self/task") -> CpuTimes:
    """Read the counters of this process.

    Args:
        tasks: The folder in which the kernel shows its threads.
    """
    waited, turns = {}, {}
    with suppress(OSError):
        for thread in os.listdir(tasks):  # noqa: PTH208 - pathlib takes three times as long
            with suppress(OSError, ValueError, IndexError):  # of a thread that has ended meanwhile
                file = os.open(f"{tasks}/{thread}/schedstat", os.O_RDONLY)
                try:
                    _, ns, count = map(int, os.read(file, 128).split())
                    waited[int(thread)], turns[int(thread)] = ns, count
                finally:
                    os.close(file)
    return CpuTimes(
        ran_ns=time.process_time_ns(),
        waited_ns=waited,
        turns=turns,
        switches=resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw,
        clock_ns=time.perf_counter_ns(),
    )


class CallShares:
    """The shares of the processor that calls got, some of them.

    A reading takes longer than a short call, and what follows it finds the processor's caches full
    of other things; so that one call is read, and the next few are not.

    Args:
        read: Reads the counters of the process that makes the calls.
    """

    def __init__(self, read: ReadTimes = read_times) -> None:
        self._read = read
        self._before: CpuTimes | None = None
        self._next_ns = self._spent_ns = 0
        self._shares: list[float] = []

    def start(self) -> None:
        """Read the counters before a call, where the last reading is a while ago."""
        self._before = None
        if time.perf_counter_ns() >= self._next_ns:
            began = time.thread_time_ns()
            self._before = self._read()
            self._spent_ns = time.thread_time_ns() - began

    def stop(self) -> None:
        """Read them after it."""
        if self._before is None:
            return
        began = time.thread_time_ns()
        self._shares.append(share_between(self._before, self._read()))
        spent_ns = self._spent_ns + time.thread_time_ns() - began
        self._next_ns = time.perf_counter_ns() + _APART * spent_ns

    def take(self) -> list[float]:
        """Return the shares that were read since this was last called."""
        shares, self._shares = self._shares, []
        return shares


def share_between(before: CpuTimes, after: CpuTimes) -> float:
    """The share of the time that a process was ready to run in which it ran.

    Where the kernel does not count that, a process that was made to give up a processor had it for
    as long as its threads ran, of the time that went by.

    Args:
        before: Its counters before its calls.
        after: Those after.
    """
    ran = after.ran_ns - before.ran_ns
    if after.waited_ns:
        waited = sum(_wait_between(before, after, thread) for thread in after.waited_ns)
    elif after.switches > before.switches:
        waited = max(after.clock_ns - before.clock_ns - ran, 0)
    else:
        waited = 0
    return ran / (ran + waited) if waited > 0 else 1.0


def _wait_between(before: CpuTimes, after: CpuTimes, thread: int) -> int:
    """Nanoseconds that a thread waited for other work between two moments."""
    waited = after.waited_ns[thread] - before.waited_ns.get(thread, 0)
    turns = after.turns.get(thread, 0) - before.turns.get(thread, 0)
    return max(waited - turns * SWITCH_NS, 0)


class ReadsShares(Protocol):
    """A callable whose calls run in another process, which reads their shares there."""

    def cpu_shares(self) -> list[float]:
        """Return the shares that were read since this was last called."""


class _SharesByCallable:
    """Shares that the callable itself reads."""

    def __init__(self, infer: ReadsShares) -> None:
        self.take = infer.cpu_shares

    def start(self) -> None:
        """The callable does it."""

    def stop(self) -> None:
        """The callable does it."""


def shares_of(infer: Any) -> CallShares | _SharesByCallable:
    """Shares of the calls of a callable: to be read around them, or read by the callable itself."""
    return _SharesByCallable(infer) if hasattr(infer, "cpu_shares") else CallShares()


_PARTNERS: ContextVar[tuple[int, ...]] = ContextVar("_PARTNERS", default=())


@contextmanager
def work_with(process: int) -> Iterator[None]:
    """Count what another process does in the block as the measure's own work.

    Args:
        process: Its id.
    """
    token = _PARTNERS.set((*_PARTNERS.get(), process))
    try:
        yield
    finally:
        _PARTNERS.reset(token)


class CpuWatch:
    """The machine's processors, from now until it is closed."""

    def __init__(self) -> None:
        self._processes = {os.getpid(), *_PARTNERS.get()}
        self._ticks, self._own = _machine_ticks(), _process_ticks(self._processes)

    def close(self) -> CpuRecord:
        """The record of the processors."""
        ticks = _machine_ticks() - self._ticks
        own = _process_ticks(self._processes) - self._own
        try:
            load = os.getloadavg()[0]
        except OSError:
            load = None
        return CpuRecord(
            cpus=processors(),
            load_average=load,
            stolen_share=ticks.stolen / ticks.busy if ticks.busy >= _LEAST_TICKS else 0.0,
            others_share=max(ticks.busy - own, 0) / ticks.all
            if ticks.all >= _LEAST_TICKS
            else None,
        )


class Use(NamedTuple):
    """The use of the processor over a while.

    Attributes:
        share: Share of the processor that the process got, of the time that it could have used.
        busy: Whether it is less than the least, and the doing of other processes.
    """

    share: float
    busy: bool


class UseWatch:
    """The use of the processor by this process, from now until it is closed.

    Args:
        crowded: Whether threads of this process wait for each other by design, so that a low share
            is blamed on others only where they are known to have worked.
        read: Reads the counters of this process.
    """

    def __init__(self, *, crowded: bool = False, read: ReadTimes = read_times) -> None:
        self._crowded, self._read = crowded, read
        self._machine, self._before = CpuWatch(), read()

    def close(self, least_share: float | None = None) -> Use:
        """The use so far.

        Args:
            least_share: The share below which it is busy; by default `LEAST_SHARE`.
        """
        least = LEAST_SHARE if least_share is None else least_share
        share = share_between(self._before, self._read())
        machine = self._machine.close()
        share *= 1 - machine.stolen_share
        others = machine.others_share
        theirs = not self._crowded if others is None else others >= OTHERS_SHARE
        return Use(share, share < least and theirs)


def typical_share(shares: Sequence[float], cpu: CpuRecord) -> float | None:
    """The share that three quarters of the calls got at least; None where too few are known.

    A median of calls withstands a quarter of them that were disturbed.
    """
    if len(shares) < _FEWEST:
        return None
    return float(np.percentile(shares, _QUARTILE)) * (1 - cpu.stolen_share)


class _Ticks(NamedTuple):
    """Ticks of all processors: all, those in which they worked, and those that were stolen."""

    all: int = 0
    busy: int = 0
    stolen: int = 0

    def __sub__(self, before: _Ticks) -> _Ticks:
        return _Ticks(*(now - then for now, then in zip(self, before, strict=True)))


def _machine_ticks(stat: Path = Path("/proc/stat")) -> _Ticks:
    """Ticks of the machine so far (proc_stat(5)); a stolen one counts as busy."""
    try:
        first = stat.read_text(encoding="ascii", errors="replace").partition("\n")[0]
        user, nice, system, idle, waiting, irq, soft, stolen, *_ = map(int, first.split()[1:])
    except (OSError, ValueError):
        return _Ticks()
    busy = user + nice + system + irq + soft + stolen
    return _Ticks(all=busy + idle + waiting, busy=busy, stolen=stolen)


def _process_ticks(processes: Collection[int], folder: Path = Path("/proc")) -> int:
    """Ticks in which processes ran so far (proc_pid_stat(5)); one that has ended counts nothing."""
    ticks = 0
    for process in processes:
        with suppress(OSError, ValueError, IndexError):
            stat = Path(folder, str(process), "stat").read_bytes().rpartition(b") ")[2].split()
            ticks += int(stat[11]) + int(stat[12])
    return ticks
