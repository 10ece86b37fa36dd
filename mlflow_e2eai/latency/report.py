"""Results of a benchmark, as frozen values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np

from mlflow_e2eai.artifacts.files import Real, Summary, Table
from mlflow_e2eai.latency.ratios import NOISY, Ratio, paired_ratio

FindingKind: TypeAlias = Literal["unsettled", "drift", "stall", "clock_jump", "throttled", "busy"]


@dataclass(frozen=True, slots=True, kw_only=True)
class LatencyFinding:
    """A reason to doubt the numbers.

    Attributes:
        kind: ``unsettled``: the warm-up ended before the calls had become steady. ``drift``: the
            calls became slower or faster from the first rounds to the last. ``stall``: single calls
            took so long that something was compiled or loaded in the middle of the measure.
            ``clock_jump``: the clock moved where nothing ran. ``throttled``: the GPU lowered its
            clock. ``busy``: other work had the processor, so that the numbers are of that work.
        variant: The callable, or None when the whole run is meant.
        sentence: The observation, for people.
    """

    kind: FindingKind
    variant: str | None
    sentence: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """Duration of one call.

    Attributes:
        host_ms: On the clock of the processor that made it, copies to and from the device included.
        device_ms: On the device's own clock, copies not included; None where there is none.
    """

    host_ms: Real
    device_ms: Real | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Latency:
    """Durations of the calls of one callable, on the host's clock, copies included.

    Attributes:
        name: The callable.
        p50_ms: Median.
        p90_ms: 90th percentile.
        p95_ms: 95th percentile.
        p99_ms: 99th percentile.
        mean_ms: Mean.
        std_ms: Standard deviation.
        throughput_items_per_s: Items a second that one caller gets.
        rounds_ms: Every call, in order; no outlier is dropped.
        outliers: How many of them are above the outer fence; see `findings.fence`.
        warmup_calls: Calls that were made before the first that counted.
        settled: Whether the warm-up ended because the calls had become steady. False also where it
            was too short for a decision.
        device_p50_ms: Median of `device_rounds_ms`.
        device_rounds_ms: Every call on the device's own clock, copies not included; empty where the
            callable does not measure it.
        cpu_share: Share of the processor that three quarters of its calls got at least, of the time
            in which they could have used it; see `cpu`. None where that is not known.
    """

    name: str
    p50_ms: Real
    p90_ms: Real
    p95_ms: Real
    p99_ms: Real
    mean_ms: Real
    std_ms: Real
    throughput_items_per_s: Real
    rounds_ms: tuple[Real, ...]
    outliers: int = 0
    warmup_calls: int = 0
    settled: bool = False
    device_p50_ms: Real | None = None
    device_rounds_ms: tuple[Real, ...] = ()
    cpu_share: Real | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuRecord:
    """State of a GPU during a measurement, by NVML.

    Attributes:
        name: The GPU; like all that follows, None where NVML does not report it.
        samples: Number of readings: before the first round, after the last, and between.
        sm_clock_min_mhz: Lowest clock of its multiprocessors.
        sm_clock_max_mhz: Highest.
        power_max_w: Highest power.
        temperature_max_c: Highest temperature.
        throttle_reasons: Why it lowered its clock, in NVML's words; empty when it did not.
    """

    name: str | None
    samples: int
    sm_clock_min_mhz: Real | None
    sm_clock_max_mhz: Real | None
    power_max_w: Real | None
    temperature_max_c: Real | None
    throttle_reasons: tuple[str, ...] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class CpuRecord:
    """The processors of a measurement, and how many wanted them.

    Attributes:
        cpus: Processors that the process may use.
        load_average: Threads that ran or were ready to, on average over the last minute of the
            measure; None where the system does not count them.
        stolen_share: Share of the machine's working time that the hypervisor gave to others.
        others_share: Share of the machine's whole time that other processes had, or the hypervisor
            gave to others; None where that is not known.
    """

    cpus: int
    load_average: Real | None
    stolen_share: Real = 0.0
    others_share: Real | None = None


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class LatencyReport(Summary):
    """Result of `benchmark`.

    Attributes:
        items: Items in one call.
        warmup: Calls of each at most before the first that counted.
        variants: One entry for each callable, in the order given.
        findings: Reasons to doubt the numbers; empty when all went well.
        gpu: The GPU over the run; None without NVML.
        cpu: The processors over the run; None in reports of before they were recorded.
    """

    items: int
    warmup: int
    variants: tuple[Latency, ...]
    findings: tuple[LatencyFinding, ...] = ()
    gpu: GpuRecord | None = None
    cpu: CpuRecord | None = None

    def __getitem__(self, name: str) -> Latency:
        """The entry of one callable."""
        return self.variants[self._at(name)]

    def ratio(self, name: str, baseline: str) -> Ratio:
        """Compare two callables round by round; see `ratios.paired_ratio`.

        Args:
            name: The candidate.
            baseline: The callable that it is divided by.

        Returns:
            The ratio; `NOISY` where the machine was busy while one of both was measured, or one
            has no rounds.

        Raises:
            KeyError: There is no such callable.
        """
        one, other = self._at(name), self._at(baseline)
        if one != other and (self.is_busy(name) or self.is_busy(baseline)):
            return NOISY
        times = self.variants[one].rounds_ms, self.variants[other].rounds_ms
        if not all(times):
            return NOISY
        return paired_ratio(*times, positions=(one, other), size=len(self.variants))

    def is_busy(self, name: str) -> bool:
        """Whether the times of a callable are those of a busy machine, by the findings."""
        return any(
            finding.kind == "busy" and finding.variant in (None, name) for finding in self.findings
        )

    def _at(self, name: str) -> int:
        for at, variant in enumerate(self.variants):
            if variant.name == name:
                return at
        raise KeyError(name)

    def _line(self) -> str:
        times = [
            f"{entry.name} {entry.p50_ms:.3g} ms{self._ratio_text(entry)}"
            for entry in self.variants
        ]
        doubts = f"; {self.findings[0].sentence}" if self.findings else ""
        return f"p50 of a call of {self.items}: {', '.join(times)}{doubts}"

    def _ratio_text(self, entry: Latency) -> str:
        first = self.variants[0]
        if entry is first:
            return ""
        with np.errstate(all="ignore"):  # with a clock too coarse the divisors are zero
            ratio = self.ratio(entry.name, first.name)
        return "" if ratio.noisy else f" ({ratio.value:.3g} times {first.name})"

    def _table(self) -> Table:
        return Latency, self.variants


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """Throughput and latency under a number of concurrent callers.

    Attributes:
        threads: Callers, a thread each.
        calls: Calls that all of them finished.
        seconds: From the common start to the end of the last call.
        items_per_s: Items a second, of all together.
        cpu_share: Share of the processor that the callers got, of the time that they could have
            used; they wait for each other, too. None in reports of before it was recorded.
        busy: Whether other processes had the rest, so that the rate is too noisy to tell.
    """

    threads: int
    calls: int
    seconds: Real
    items_per_s: Real
    cpu_share: Real | None = None
    busy: bool = False


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Throughput(Summary):
    """Result of a concurrency sweep.

    Attributes:
        items: Items in one call.
        loads: One entry for each number of threads, in the order given.
    """

    items: int
    loads: tuple[Load, ...]

    def __getitem__(self, threads: int) -> Load:
        """The entry of one number of threads."""
        for load in self.loads:
            if load.threads == threads:
                return load
        raise KeyError(threads)

    def _line(self) -> str:
        loads = [f"{load.items_per_s:.4g}/s by {load.threads}" for load in self.loads]
        return f"items per second by concurrent callers: {', '.join(loads)}"

    def _table(self) -> Table:
        return Load, self.loads


@dataclass(frozen=True, slots=True, kw_only=True)
class ColdStart:
    """Cost of the first outputs of a freshly opened runner.

    Attributes:
        load_s: Seconds from nothing to a callable.
        first_call_ms: The first call, which may compile.
        second_call_ms: The second, for comparison.
        peak_memory_bytes: The most memory that the process ever used (its peak resident set),
            loading and calling included.
        peak_memory_growth_bytes: How much of that the loading and calling added to the peak of
            before. 0 where the process had used as much before: measure in a fresh process.
        device_memory_bytes: GPU memory that it took; None without a GPU.
        profile_memory_bytes: What an execution context of an engine takes of it for each profile,
            the dynamic one first, its inputs and outputs apart; empty for what has no profiles.
        cpu_share: Share of the processor that loading and calling got, of the time that they could
            have used; None in reports of before it was recorded.
        busy: Whether other processes had the rest, so that the times are too noisy to tell.
    """

    load_s: Real
    first_call_ms: Real
    second_call_ms: Real
    peak_memory_bytes: int
    peak_memory_growth_bytes: int
    device_memory_bytes: int | None = None
    profile_memory_bytes: tuple[int, ...] = ()
    cpu_share: Real | None = None
    busy: bool = False
