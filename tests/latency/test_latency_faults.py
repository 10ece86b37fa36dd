"""Faults planted in what is measured: each is found and rightly named, and health gives no alarm.

Also what the interval promises, on simulated machines: the same variant twice is equal, and a
slow-down by a tenth is found.
"""

import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import repeat
from types import SimpleNamespace

import numpy as np
import pytest

from mlflow_e2eai.artifacts.files import from_json, to_json
from mlflow_e2eai.artifacts.values import Tensors
from mlflow_e2eai.errors import InvalidInputError, RunnerError
from mlflow_e2eai.latency.concurrency import cold_start, throughput
from mlflow_e2eai.latency.measure import benchmark
from mlflow_e2eai.latency.ratios import paired_ratio, turns
from mlflow_e2eai.latency.report import GpuRecord, Latency, LatencyFinding, LatencyReport, Timing

SAMPLE = {"x": np.zeros((8, 3), np.float32)}
MS = 1e-3


class Clock:
    """Seconds that pass only while a callable works, or when they are made to."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def taking(self, seconds: Callable[[int], float]) -> Callable[[Tensors], Tensors]:
        """A callable whose call of a number, from 0, takes what a function says."""
        made = iter(range(10**9))

        def infer(tensors: Tensors) -> Tensors:
            self.now += seconds(next(made))
            return tensors

        return infer


def run(*, rounds: int = 200, **latencies: Callable[[int], float]) -> LatencyReport:
    """Measure callables, by what their calls take; what of it is the warm-up is another matter."""
    clock = Clock()
    candidates = {name: clock.taking(taken) for name, taken in latencies.items()}
    return benchmark(candidates, SAMPLE, clock=clock, warmup=0, rounds=rounds, budget_s=1e9)


def noise(seed: int, *, scale: float = 1 * MS) -> Callable[[int], float]:
    """A healthy callable on a busy machine: skewed, with a slow call now and then."""
    rng = np.random.default_rng(seed)
    usual = scale * rng.lognormal(0, 0.15, size=2000)
    late = rng.random(2000) < 0.01
    taken = usual + late * rng.uniform(1, 20, size=2000) * MS
    return lambda call: float(taken[call % taken.size])


def kinds(report: LatencyReport) -> list[tuple[str, str | None]]:
    return [(found.kind, found.variant) for found in serious(report)]


def serious(report: LatencyReport) -> list[LatencyFinding]:
    return [finding for finding in report.findings if finding.kind != "unsettled"]


# Findings


@pytest.mark.parametrize("seed", range(30))
def test_noise_is_no_finding(seed):
    assert kinds(run(a=noise(seed), b=noise(seed + 1000, scale=1.3 * MS))) == []


@pytest.mark.parametrize("compile_ms", [300, 1800])
def test_a_callable_that_compiles_in_the_middle_of_the_measure_is_found(compile_ms):
    usual = noise(0)
    report = run(a=lambda call: compile_ms * MS if call == 77 else usual(call), b=noise(1))

    assert kinds(report) == [("stall", "a")]
    assert f"1 of 200 calls of 'a' took up to {compile_ms:.3g} ms" in serious(report)[0].sentence
    assert "something was compiled" in serious(report)[0].sentence
    assert report["a"].outliers > 0
    assert max(report["a"].rounds_ms) == pytest.approx(compile_ms)


@pytest.mark.parametrize("growth", [0.5, 1.0, -0.5])
def test_a_latency_that_drifts_is_found(growth):
    usual = noise(0)
    report = run(a=lambda call: usual(call) * (1 + growth * call / 200), b=noise(1))

    assert kinds(report) == [("drift", "a")]
    assert ("times as long in the last rounds as in the first") in serious(report)[0].sentence


def test_a_latency_that_steps_up_half_way_is_a_drift():
    usual = noise(0)

    assert kinds(run(a=lambda call: usual(call) * (1 + (call > 100)), b=noise(1))) == [
        ("drift", "a")
    ]


def test_the_only_callable_that_drifts_is_found():
    assert kinds(run(a=lambda call: (1 + call / 200) * MS)) == [("drift", "a")]


def test_a_machine_that_drifts_is_told_from_a_callable_that_does():
    one, other = noise(0), noise(1)
    report = run(
        a=lambda call: one(call) * (1 + call / 200), b=lambda call: other(call) * (1 + call / 200)
    )

    assert kinds(report) == [("drift", None)]
    assert "the machine's speed changed" in serious(report)[0].sentence
    assert report.ratio("a", "b").equal


def test_a_machine_that_was_busy_for_a_while_is_no_drift():
    usual = noise(0)

    assert kinds(run(a=lambda call: usual(call) * (1 + (60 < call < 120)))) == []


@pytest.mark.parametrize("jump_s", [3600.0, 1.0, -1.0, -0.001])
def test_a_clock_that_jumps_between_two_calls_is_found(jump_s):
    clock = Clock()
    infer = clock.taking(lambda _: 1 * MS)
    calls = iter(range(10**9))
    due = []

    def candidate(tensors: Tensors) -> Tensors:
        if next(calls) == 300:
            due.append(jump_s)
        return infer(tensors)

    def read() -> float:
        # The reading that follows the call is right; the jump comes behind it.
        now = clock.now
        clock.now += due.pop() if due else 0.0
        return now

    report = benchmark({"a": candidate}, SAMPLE, clock=read, rounds=300, budget_s=1e9)

    assert kinds(report) == [("clock_jump", None)]
    assert f"the clock moved by {jump_s:.3g} s (1 such gaps)" in serious(report)[0].sentence
    assert report["a"].p99_ms == pytest.approx(1)


def test_a_share_of_the_processor_that_is_used_up_is_no_stall():
    # Linux makes a container wait for up to 100 ms then.
    report = run(a=lambda call: (101 if call == 50 else 1) * MS)

    assert kinds(report) == []
    assert report["a"].outliers == 1


def test_a_clock_that_jumps_ahead_in_a_call_is_found():
    report = run(a=lambda call: 3600.0 if call == 50 else 1 * MS)

    assert kinds(report) == [("clock_jump", "a")]
    assert "call 50" in serious(report)[0].sentence


def test_outliers_are_counted_and_kept():
    report = run(a=lambda call: 20 * MS if call % 40 == 7 else (1 + call % 2) * MS, rounds=200)

    assert report["a"].outliers == 5
    assert sum(value > 19 for value in report["a"].rounds_ms) == 5


def test_a_report_with_findings_survives_json():
    report = run(a=lambda call: (1 + call / 100) * MS)

    assert report.findings
    assert from_json(LatencyReport, to_json(report)) == report


def test_a_report_of_before_findings_can_still_be_read():
    old = (
        '{"items": 1, "warmup": 10, "variants": [{"name": "a", "p50_ms": 1, "p90_ms": 1, '
        '"p95_ms": 1, "p99_ms": 1, "mean_ms": 1, "std_ms": 0, "throughput_items_per_s": 1000, '
        '"rounds_ms": [1, 1]}]}'
    )

    assert from_json(LatencyReport, old).findings == ()


# What the interval promises


def machine(seed: int, rounds: int = 400) -> tuple[np.ndarray, np.ndarray]:
    """Two callables alike, in turns, on a simulated busy machine with two cores.

    A load that both feel, which changes slowly and by leaps; noise of each that is like that of its
    call before; heavy tails in bursts; and a tenth more for the one that goes first.
    """
    rng = np.random.default_rng(seed)
    load = 0.3 * _autoregressive(rng, rounds, 0.98) + 0.4 * _busy(rng, rounds, 0.01)
    both = []
    for first in (True, False):
        own = 0.05 * _autoregressive(rng, rounds, 0.6) + 0.05 * rng.standard_normal(rounds)
        bursts = _busy(rng, rounds, 0.02) * rng.pareto(1.5, rounds)
        place = 0.1 * (np.arange(rounds) % 2 != first)
        both.append(np.exp(load + own + place) + bursts)
    return both[0], both[1]


def _autoregressive(rng: np.random.Generator, rounds: int, memory: float) -> np.ndarray:
    values = np.zeros(rounds)
    shocks = rng.standard_normal(rounds) * np.sqrt(1 - memory**2)
    for at in range(1, rounds):
        values[at] = memory * values[at - 1] + shocks[at]
    return values


def _busy(rng: np.random.Generator, rounds: int, often: float) -> np.ndarray:
    """Ones for ten rounds or so from where something starts, else zeros."""
    starts = np.flatnonzero(rng.random(rounds) < often)
    busy = np.zeros(rounds)
    for start in starts:
        busy[start : start + rng.integers(5, 15)] = 1
    return busy


def test_the_same_variant_twice_is_equal_in_at_least_97_of_100_tries():
    tries = [paired_ratio(*machine(seed), positions=(0, 1), size=2) for seed in range(100)]

    assert sum(ratio.equal for ratio in tries) >= 97


def test_a_slow_down_by_a_tenth_is_found_in_at_least_95_of_100_tries():
    found = 0
    for seed in range(100):
        slow, fast = machine(seed)
        found += paired_ratio(1.1 * slow, fast, positions=(0, 1), size=2).low > 1

    assert found >= 95


@pytest.mark.parametrize("size", [3, 5])
def test_the_same_holds_among_more_callables(size):
    # What follows the first, which empties the caches, pays a tenth more.
    rng = np.random.default_rng(0)
    orders, equal, found = turns(size), 0, 0
    for _ in range(40):
        times = np.exp(0.07 * rng.standard_normal((400, size)))
        for number in range(400):
            order = orders[number % len(orders)]
            if (after := order.index(0) + 1) < size:
                times[number, order[after]] *= 1.1
        one, other = times[:, 1], times[:, 2]
        equal += paired_ratio(one, other, positions=(1, 2), size=size).equal
        found += paired_ratio(1.1 * one, other, positions=(1, 2), size=size).low > 1

    assert equal >= 39
    assert found >= 39


# Host and device


class TimingItself:
    """A callable that runs elsewhere for 7 s, of which it tells other times."""

    def __init__(self, clock: Clock, timings: Iterable[Timing]) -> None:
        self.clock = clock
        self.timings = iter(timings)

    def __call__(self, _: Tensors) -> Tensors:
        raise AssertionError

    def timed(self, _: Tensors) -> Timing:
        self.clock.now += 7.0
        return next(self.timings)


def test_a_callable_that_times_itself_is_believed():
    clock = Clock()
    timings = [Timing(host_ms=250.0, device_ms=device_ms) for device_ms in (3.0, 1.0, 2.0)]

    found = benchmark(
        {"a": TimingItself(clock, timings)}, SAMPLE, clock=clock, warmup=0, rounds=3, budget_s=60
    )["a"]

    assert found.rounds_ms == (250.0, 250.0, 250.0)
    assert found.device_rounds_ms == (3.0, 1.0, 2.0)
    assert found.device_p50_ms == 2.0


def test_what_such_a_call_takes_here_is_no_clock_jump():
    clock = Clock()
    candidates = {"a": TimingItself(clock, repeat(Timing(host_ms=250.0)))}
    assert benchmark(candidates, SAMPLE, clock=clock, budget_s=600).findings == ()


def test_without_a_device_there_are_no_device_times():
    found = run(a=noise(0))["a"]

    assert (found.device_p50_ms, found.device_rounds_ms) == (None, ())


# The GPU


class NVMLError(Exception):
    """As NVML raises."""


def fake_nvml(reasons: list[int], **functions: object) -> SimpleNamespace:
    """A module pynvml whose GPU gives these throttle reasons, the last again and again."""
    said = iter(reasons)
    last = [0]

    def current(_: object) -> int:
        last[0] = next(said, last[0])
        return last[0]

    clocks = iter([1980, 1755, *1000 * [1800]])
    module = SimpleNamespace(
        NVMLError=NVMLError,
        closed=0,
        nvmlInit=lambda: None,
        nvmlDeviceGetHandleByIndex=lambda index: ("gpu", index),
        nvmlDeviceGetHandleByUUID=lambda uuid: ("gpu", uuid),
        nvmlDeviceGetName=lambda handle: f"NVIDIA {handle[1]}",
        nvmlDeviceGetClockInfo=lambda _, __: next(clocks),
        nvmlDeviceGetPowerUsage=lambda _: 350_500,
        nvmlDeviceGetTemperature=lambda _, __: 61,
        nvmlDeviceGetCurrentClocksEventReasons=current,
    )
    module.nvmlShutdown = lambda: setattr(module, "closed", module.closed + 1)
    for name, function in functions.items():
        setattr(module, name, function)
    return module


def on_gpu(monkeypatch, module: SimpleNamespace | None, **settings: object) -> LatencyReport:
    monkeypatch.setitem(sys.modules, "pynvml", module)
    clock = Clock()
    candidates = {"a": clock.taking(lambda _: 0.05)}
    return benchmark(candidates, SAMPLE, clock=clock, **{"rounds": 20, **settings})


def test_the_gpu_is_recorded_over_the_run(monkeypatch):
    module = fake_nvml([0x1, 0x0])  # idle is no throttling
    report = on_gpu(monkeypatch, module)

    assert report.gpu == GpuRecord(
        name="NVIDIA 0",
        samples=6,  # a second of rounds, every fifth of a second, and at the end
        sm_clock_min_mhz=1755,
        sm_clock_max_mhz=1980,
        power_max_w=350.5,
        temperature_max_c=61,
        throttle_reasons=(),
    )
    assert report.findings == ()
    assert module.closed == 1
    assert from_json(LatencyReport, to_json(report)) == report


def test_a_run_under_throttling_says_so(monkeypatch):
    report = on_gpu(monkeypatch, fake_nvml([0x0, 0x4 | 0x20, 0x0]))

    assert kinds(report) == [("throttled", None)]
    assert report.gpu.throttle_reasons == ("software power cap", "software thermal slowdown")
    assert "software power cap, software thermal slowdown" in serious(report)[0].sentence


def test_the_gpu_is_the_one_that_the_process_may_use(monkeypatch):
    for visible, name in [("3,1", "NVIDIA 3"), ("GPU-ab", "NVIDIA GPU-ab")]:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        assert on_gpu(monkeypatch, fake_nvml([0])).gpu.name == name
    for hidden in ("", "-1", "MIG-ab"):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hidden)
        module = fake_nvml([0])
        assert on_gpu(monkeypatch, module).gpu is None
        assert module.closed == 1


def test_an_older_driver_is_asked_by_the_older_name(monkeypatch):
    module = fake_nvml([])
    del module.nvmlDeviceGetCurrentClocksEventReasons
    module.nvmlDeviceGetCurrentClocksThrottleReasons = lambda _: 0x40
    module.nvmlDeviceGetName = lambda _: b"Tesla T4"
    gpu = on_gpu(monkeypatch, module).gpu

    assert (gpu.name, gpu.throttle_reasons) == ("Tesla T4", ("hardware thermal slowdown",))


def test_what_a_gpu_does_not_say_is_none(monkeypatch):
    def refused(*_: object) -> None:
        raise NVMLError

    names = [name for name in vars(fake_nvml([])) if name.startswith("nvmlDeviceGet")]
    silent = {name: refused for name in names if "Handle" not in name}

    assert on_gpu(monkeypatch, fake_nvml([], **silent)).gpu == GpuRecord(
        name=None,
        samples=6,
        sm_clock_min_mhz=None,
        sm_clock_max_mhz=None,
        power_max_w=None,
        temperature_max_c=None,
        throttle_reasons=None,
    )


def test_without_nvml_or_a_driver_there_is_no_record(monkeypatch):
    def refused() -> None:
        raise NVMLError

    assert on_gpu(monkeypatch, None).gpu is None
    assert on_gpu(monkeypatch, fake_nvml([], nvmlInit=refused)).gpu is None


def test_nvml_is_closed_when_a_callable_breaks(monkeypatch):
    module = fake_nvml([0])
    monkeypatch.setitem(sys.modules, "pynvml", module)

    def broken(_: Tensors) -> Tensors:
        msg = "the engine is gone"
        raise RunnerError(msg)

    with pytest.raises(RunnerError):
        benchmark({"a": broken}, SAMPLE, warmup=0)
    assert module.closed == 1


# Many callers


def test_every_caller_calls_and_all_calls_count():
    threads = set()
    lock = threading.Lock()
    made = [0]

    def infer(tensors: Tensors) -> Tensors:
        with lock:
            made[0] += 1
            threads.add(threading.get_ident())
        time.sleep(0.001)
        return tensors

    found = throughput(infer, SAMPLE, threads=(1, 3), budget_s=0.05)

    assert [load.threads for load in found.loads] == [1, 3]
    assert len(threads) >= 3
    assert found.items == 8
    # Each caller makes one call that does not count.
    assert found[1].calls + found[3].calls == made[0] - 4
    for load in found.loads:
        assert load.seconds >= 0.05
        assert load.items_per_s == pytest.approx(8 * load.calls / load.seconds)
    with pytest.raises(KeyError):
        found[2]


def test_callers_are_there_at_the_same_time():
    together = threading.Barrier(4, timeout=30)

    def infer(tensors: Tensors) -> Tensors:
        together.wait()  # passes only when four callers are in it
        return tensors

    assert throughput(infer, SAMPLE, threads=[4], budget_s=0).loads[0].calls == 4


def test_the_throughput_on_a_known_clock_is_exact():
    clock = Clock()
    found = throughput(
        clock.taking(lambda _: 0.25), SAMPLE, threads=[1], items=3, budget_s=2.0, clock=clock
    )

    assert (found[1].calls, found[1].seconds, found[1].items_per_s) == (8, 2.0, 12.0)
    assert from_json(type(found), to_json(found)) == found


@pytest.mark.parametrize("breaks_at", [1, 3, 7])
def test_a_caller_that_breaks_stops_all_and_says_why(breaks_at):
    lock = threading.Lock()
    made = [0]

    def infer(tensors: Tensors) -> Tensors:
        with lock:
            made[0] += 1
            number = made[0]
        if number == breaks_at:
            msg = "out of memory"
            raise RunnerError(msg)
        return tensors

    with pytest.raises(RunnerError, match="out of memory"):
        throughput(infer, SAMPLE, threads=[3], budget_s=0.05)


@pytest.mark.parametrize("threads", [(), (0,), (1, -1)])
def test_no_callers_are_refused(threads):
    with pytest.raises(InvalidInputError, match="give at least one"):
        throughput(dict, SAMPLE, threads=threads)


# The first answer


def test_a_cold_start_on_a_known_clock_is_exact():
    clock = Clock()
    closed = []

    @contextmanager
    def opener() -> Iterator[object]:
        clock.now += 2.5
        yield clock.taking(lambda call: [0.75, 0.125][call])
        closed.append(True)

    found = cold_start(opener, SAMPLE, clock=clock)

    assert (found.load_s, found.first_call_ms, found.second_call_ms) == (2.5, 750, 125)
    assert closed == [True]
    assert found.peak_memory_bytes > 10 * 2**20
    assert 0 <= found.peak_memory_growth_bytes <= found.peak_memory_bytes
    assert from_json(type(found), to_json(found)) == found


def test_the_memory_that_loading_takes_is_in_the_peak():
    @contextmanager
    def opener() -> Iterator[object]:
        # More than this process has held so far.
        size = cold_start(idle, SAMPLE).peak_memory_bytes // 8
        weights = np.ones(size + 2**23)
        yield lambda _: {"y": weights[:1]}

    @contextmanager
    def idle() -> Iterator[object]:
        yield lambda tensors: tensors

    found = cold_start(opener, SAMPLE)
    assert found.peak_memory_growth_bytes >= 2**25


def test_a_latency_made_by_hand_needs_only_its_times():
    numbers = {f"p{q}_ms": 1.0 for q in (50, 90, 95, 99)}
    made = Latency(
        name="a", mean_ms=1, std_ms=0, throughput_items_per_s=1, rounds_ms=(1.0,), **numbers
    )

    assert (made.outliers, made.settled, made.device_rounds_ms) == (0, False, ())
