"""The share of the processor that calls got, and what is said of a measure that got too little."""

import dataclasses
import math
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import numpy as np
import pytest

from mlflow_e2eai.latency import cpu
from mlflow_e2eai.latency.concurrency import throughput, timed_open
from mlflow_e2eai.latency.cpu import CallShares, CpuTimes, read_times, share_between, typical_share
from mlflow_e2eai.latency.measure import benchmark
from mlflow_e2eai.latency.ratios import NOISY
from mlflow_e2eai.latency.report import CpuRecord, LatencyReport

SAMPLE = {"x": np.zeros((8, 3), np.float32)}
MS = 10**6  # nanoseconds
IDLE = CpuRecord(cpus=2, load_average=0.0)


class Shared:
    """A callable in another process, whose calls got these shares of the processor."""

    def __init__(self, *shares: float) -> None:
        self._shares = shares

    def __call__(self, tensors):
        return tensors

    def cpu_shares(self) -> list[float]:
        return list(self._shares)


def measured(least_cpu_share: float = 0.8, **callables) -> LatencyReport:
    return benchmark(callables, SAMPLE, rounds=20, warmup=0, least_cpu_share=least_cpu_share)


def at(
    clock_ms: int = 0,
    ran_ms: int = 0,
    *,
    switches: int = 0,
    turns: dict[int, int] | None = None,
    **waited_ms: int,
) -> CpuTimes:
    return CpuTimes(
        ran_ns=ran_ms * MS,
        waited_ns={int(name[1:]): ms * MS for name, ms in waited_ms.items()},
        turns=turns or {},
        switches=switches,
        clock_ns=clock_ms * MS,
    )


def busy(report: LatencyReport) -> list[tuple[str | None, str]]:
    return [(one.variant, one.sentence) for one in report.findings if one.kind == "busy"]


# Counters


def test_the_share_is_the_time_that_threads_ran_of_that_in_which_they_could():
    assert share_between(at(ran_ms=10, t1=5), at(ran_ms=40, t1=15)) == 0.75


def test_a_thread_that_began_in_between_counts_from_its_start_and_one_that_ended_does_not():
    assert share_between(at(t1=100, t2=5), at(ran_ms=10, t1=100, t3=30)) == 0.25


def test_what_a_switch_to_a_thread_takes_on_an_idle_machine_is_no_wait_for_others():
    often = at(ran_ms=10, t1=1, turns={1: 20})
    once = at(ran_ms=10, t1=10, turns={1: 1})

    assert share_between(at(), often) == 1.0
    assert share_between(at(), once) == pytest.approx(10 / (10 + 10 - cpu.SWITCH_NS / MS))


def test_a_call_that_only_waits_for_a_device_got_all_that_it_wanted():
    assert share_between(at(clock_ms=0, t1=7), at(clock_ms=5000, t1=7, switches=3)) == 1.0


def test_where_the_kernel_counts_no_waits_those_that_were_pushed_aside_had_what_they_ran():
    assert share_between(at(0), at(100, ran_ms=25, switches=2)) == 0.25
    assert share_between(at(0), at(100, ran_ms=25)) == 1.0
    assert share_between(at(0), at(100, ran_ms=180, switches=2)) == 1.0  # two threads


def test_the_waits_of_each_thread_are_those_of_the_kernel(tmp_path):
    for thread, text in {
        "71": "900 5000000 12\n",
        "72": "1 2 3\n",
        "73": "",
        "no": "1 2 3",
    }.items():
        (tmp_path / thread).mkdir()
        (tmp_path / thread / "schedstat").write_text(text)
    (tmp_path / "74").mkdir()  # it has ended

    read = read_times(str(tmp_path))
    assert (read.waited_ns, read.turns) == ({71: 5_000_000, 72: 2}, {71: 12, 72: 3})
    assert read_times(str(tmp_path / "nothing")).waited_ns == {}


@pytest.mark.skipif(sys.platform != "linux", reason="the counters are Linux's")
def test_this_process_is_counted_with_all_of_its_threads():
    done = threading.Event()
    threads = [threading.Thread(target=done.wait) for _ in range(3)]
    for thread in threads:
        thread.start()
    times = read_times()
    done.set()

    assert {os.getpid(), *(thread.native_id for thread in threads)} <= times.waited_ns.keys()
    assert times.ran_ns > 0


def test_a_reading_is_followed_by_calls_that_are_not_read():
    readings = iter(range(1000))

    def read() -> CpuTimes:
        until = time.thread_time() + 0.02  # that of the thread: to be kept waiting costs nothing
        while time.thread_time() < until:
            pass
        return at(ran_ms=next(readings))

    shares = CallShares(read)
    for _ in range(50):
        shares.start()
        shares.stop()

    assert shares.take() == [1.0]
    assert shares.take() == []


def test_the_share_of_a_measure_is_what_three_quarters_of_its_calls_got_at_least():
    assert typical_share([1.0, 1.0, 1.0, 0.5, 0.2], IDLE) == 0.5
    assert typical_share([1.0] * 9 + [0.1], IDLE) == 1.0
    assert typical_share([0.1] * 4, IDLE) is None  # too few to tell


def test_what_the_hypervisor_took_is_no_share_of_the_calls():
    stolen = dataclasses.replace(IDLE, stolen_share=0.25)

    assert typical_share([0.8] * 5, stolen) == pytest.approx(0.6)


def test_theft_is_told_from_the_ticks_of_the_machine_and_only_from_many(monkeypatch):
    def stolen(*readings):
        ticks = iter(readings)
        monkeypatch.setattr(cpu, "_machine_ticks", lambda: cpu._Ticks(*next(ticks)))
        return cpu.CpuWatch().close().stolen_share

    assert stolen((3000, 1000, 10), (3400, 1200, 60)) == 0.25
    assert stolen((3000, 1000, 10), (3002, 1002, 12)) == 0
    assert stolen((0, 0, 0), (0, 0, 0)) == 0


def test_what_others_had_is_what_the_machine_worked_beside_the_processes_of_the_measure(
    monkeypatch,
):
    def others(machine, own):
        ticks, mine = iter([(0, 0, 0), (*machine, 0)]), iter([0, own])
        monkeypatch.setattr(cpu, "_machine_ticks", lambda: cpu._Ticks(*next(ticks)))
        monkeypatch.setattr(cpu, "_process_ticks", lambda _: next(mine))
        return cpu.CpuWatch().close().others_share

    assert others((400, 300), 200) == 0.25
    assert others((400, 300), 301) == 0  # ticks are coarse
    assert others((40, 30), 20) is None


def test_a_process_that_works_with_the_measure_is_no_other(monkeypatch):
    counted = []
    monkeypatch.setattr(cpu, "_process_ticks", lambda processes: counted.append(processes) or 0)
    with cpu.work_with(7), cpu.work_with(8):
        cpu.CpuWatch().close()
    cpu.CpuWatch()
    assert counted == [{os.getpid(), 7, 8}] * 2 + [{os.getpid()}]


def test_the_work_of_a_process_is_counted_while_it_lives(tmp_path):
    (tmp_path / "7").mkdir()
    (tmp_path / "7" / "stat").write_text("7 (a) b) S 1 7 7 0 -1 4 5 6 7 8 300 40 1 1 20 0 3\n")

    assert cpu._process_ticks([7, 8], tmp_path) == 340


def test_ticks_are_those_of_all_processors_that_were_not_idle(tmp_path):
    (tmp_path / "stat").write_text("cpu  1 2 4 1000 500 8 16 32 1 0\ncpu0 9 9 9 9\n")
    (tmp_path / "other").write_text("none")

    assert cpu._machine_ticks(tmp_path / "stat") == (1563, 63, 32)
    assert cpu._machine_ticks(tmp_path / "other") == (0, 0, 0)
    assert cpu._machine_ticks(tmp_path / "nothing") == (0, 0, 0)


# What is said


def test_several_callables_that_are_busy_are_they():
    ((_, sentence),) = busy(measured(slow=Shared(*[0.125] * 20), slower=Shared(*[0.1] * 20)))
    assert "that they could have used (" in sentence
    assert sentence.endswith("and their times are too noisy to tell.")


def test_a_measure_below_the_least_share_is_named_busy_with_the_share_and_the_load():
    report = measured(slow=Shared(*[0.125] * 20), quick=Shared(*[0.95] * 20))

    ((variant, sentence),) = busy(report)
    assert variant == "slow"
    assert sentence.startswith("'slow' got 12% of the processor time that it could have used (")
    assert "load average" in sentence
    assert "too noisy to tell" in sentence
    assert (report["slow"].cpu_share, report["quick"].cpu_share) == (0.125, 0.95)
    assert report.cpu is not None
    assert report.cpu.cpus >= 1


def test_where_all_got_too_little_it_is_said_once_of_the_run():
    ((variant, sentence),) = busy(measured(a=Shared(*[0.5] * 9), b=Shared(*[0.25] * 9)))

    assert variant is None
    assert sentence.startswith("The callables got 25% to 50% of the processor time")


def test_where_nobody_else_worked_threads_of_its_own_had_the_rest(monkeypatch):
    for others_share, wanted in ((0.0, []), (0.2, [None])):
        machine = dataclasses.replace(IDLE, others_share=others_share)
        monkeypatch.setattr(cpu.CpuWatch, "close", lambda _, machine=machine: machine)
        report = measured(a=Shared(*[0.5] * 9), b=Shared(*[0.5] * 9))
        assert [variant for variant, _ in busy(report)] == wanted
        assert report["a"].cpu_share == 0.5


def use(monkeypatch, *, others: float | None, crowded: bool, waited_ms: int = 30) -> cpu.Use:
    """The use of a processor by a thread that ran for 10 ms."""
    machine = dataclasses.replace(IDLE, others_share=others, stolen_share=0.2)
    monkeypatch.setattr(cpu.CpuWatch, "close", lambda _: machine)
    readings = iter([at(ran_ms=5, t1=0), at(ran_ms=15, t1=waited_ms)])
    return cpu.UseWatch(crowded=crowded, read=lambda: next(readings)).close(0.8)


@pytest.mark.parametrize("crowded", [False, True])
def test_a_while_in_which_others_had_the_processor_is_busy(monkeypatch, crowded):
    assert use(monkeypatch, others=0.2, crowded=crowded) == (0.25 * 0.8, True)
    assert use(monkeypatch, others=0.0, crowded=crowded) == (0.25 * 0.8, False)
    assert use(monkeypatch, others=0.2, crowded=crowded, waited_ms=0) == (0.8, False)


def test_callers_that_wait_for_each_other_are_not_blamed_on_others_that_nobody_saw(monkeypatch):
    assert use(monkeypatch, others=None, crowded=False).busy
    assert not use(monkeypatch, others=None, crowded=True).busy


def test_the_ratio_to_a_busy_callable_is_no_number_and_passes_no_bound():
    report = measured(a=Shared(*[0.1] * 9), b=Shared(*[1.0] * 9), c=Shared(*[1.0] * 9))

    assert report.ratio("b", "a") is NOISY
    assert report.ratio("a", "b").noisy
    assert report.ratio("a", "b").equal  # nothing tells them apart
    assert not report.ratio("a", "b").high < 1
    assert not report.ratio("b", "c").noisy
    assert math.isfinite(report.ratio("b", "c").value)
    assert report.ratio("a", "a").value == 1


def test_a_share_that_nobody_knows_is_no_doubt():
    report = measured(a=Shared(), b=Shared(*[1.0] * 9))

    assert busy(report) == []
    assert report["a"].cpu_share is None


def test_calls_of_this_process_are_read_here():
    # A reading takes a while where there are many threads, and the next few calls are not read.
    report = benchmark(
        {"a": lambda tensors: time.sleep(0.001) or tensors}, SAMPLE, rounds=200, warmup=0
    )

    share = report["a"].cpu_share
    assert share is None or 0 <= share <= 1
    assert sys.platform != "linux" or share is not None


# A real machine


@contextmanager
def busy_processes(count: int) -> Iterator[None]:
    """Processes that want a processor without a pause."""
    code = "while True: pass"
    processes = [subprocess.Popen([sys.executable, "-c", code]) for _ in range(count)]
    try:
        time.sleep(0.5)
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


@pytest.mark.slow
def test_a_callable_that_shares_each_processor_with_four_others_is_named_busy():
    def work(tensors):
        until = time.thread_time() + 0.02
        while time.thread_time() < until:
            pass
        return tensors

    with busy_processes(4 * len(os.sched_getaffinity(0))):
        report = benchmark(
            {"a": work, "b": work}, SAMPLE, rounds=20, budget_s=10, least_cpu_share=0.8
        )

        sweep = throughput(work, SAMPLE, threads=[1, 2], least_cpu_share=0.8)
        with timed_open(lambda: nullcontext(work)) as runner:
            start = runner.cold_start(work, SAMPLE, least_cpu_share=0.8)

    uses = [(load.busy, load.cpu_share) for load in sweep.loads]
    for is_busy, share in [*uses, (start.busy, start.cpu_share)]:
        assert is_busy
        assert share is not None
        assert share < 0.5
    assert [variant for variant, _ in busy(report)] == [None]
    assert report["a"].cpu_share < 0.5
    assert report.ratio("a", "b").noisy
