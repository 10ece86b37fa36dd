"""State of a GPU while it is measured: clock, power, temperature, throttling.

NVML is read through the optional package nvidia-ml-py (module pynvml), between rounds and never in
one. Where the package, the driver or a value is missing, the result is None.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from importlib import import_module
from typing import Any

from mlflow_e2eai.latency.report import GpuRecord

PERIOD_S = 0.2
"""Seconds between two readings at least: NVML itself refreshes power every 25 to 100 ms."""

_REASONS = {
    0x04: "software power cap",
    0x08: "hardware slowdown",
    0x20: "software thermal slowdown",
    0x40: "hardware thermal slowdown",
    0x80: "hardware power brake",
}
"""NVML's nvmlClocksEventReason bits (nvml.h) that mean the GPU is slower than its settings.
The others (idle, application or display clocks, sync boost) are settings."""


class GpuWatch:
    """Reads the state of the GPU now and then, and returns a summary at the end."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._nvml, self._handle = _open_nvml()
        self._last: float | None = None
        self._samples: list[tuple[float | None, float | None, float | None, int | None]] = []

    @property
    def due(self) -> bool:
        """Whether there is a GPU, and its last reading is a while ago."""
        if self._nvml is None:
            return False
        return self._last is None or self._clock() - self._last >= PERIOD_S

    def poll(self) -> None:
        """Read the clocks, power, temperature and throttle reasons once."""
        if self._nvml is None:
            return
        nvml, handle = self._nvml, self._handle
        reasons = _query(nvml, "nvmlDeviceGetCurrentClocksEventReasons", handle)
        if reasons is None:  # its name before driver 535
            reasons = _query(nvml, "nvmlDeviceGetCurrentClocksThrottleReasons", handle)
        power_mw = _query(nvml, "nvmlDeviceGetPowerUsage", handle)
        # 1 is NVML_CLOCK_SM, 0 is NVML_TEMPERATURE_GPU.
        clock_mhz = _query(nvml, "nvmlDeviceGetClockInfo", handle, 1)
        celsius = _query(nvml, "nvmlDeviceGetTemperature", handle, 0)
        watts = None if power_mw is None else power_mw / 1e3
        self._samples.append((clock_mhz, watts, celsius, reasons))
        self._last = self._clock()

    def close(self) -> GpuRecord | None:
        """The GPU's record; None where it could not be queried."""
        if self._nvml is None:
            return None
        name = _query(self._nvml, "nvmlDeviceGetName", self._handle)
        _query(self._nvml, "nvmlShutdown")
        self._nvml = None
        clocks, powers, heats, reasons = (
            [value for value in column if value is not None]
            for column in (zip(*self._samples, strict=True) if self._samples else 4 * [()])
        )
        masks = [int(bits) for bits in reasons]
        return GpuRecord(
            name=name.decode() if isinstance(name, bytes) else name,
            samples=len(self._samples),
            sm_clock_min_mhz=min(map(float, clocks), default=None),
            sm_clock_max_mhz=max(map(float, clocks), default=None),
            power_max_w=max(map(float, powers), default=None),
            temperature_max_c=max(map(float, heats), default=None),
            throttle_reasons=tuple(
                word for bit, word in _REASONS.items() if any(bits & bit for bits in masks)
            )
            if masks
            else None,
        )


def used_memory_bytes() -> int | None:
    """Memory in use on the first GPU, by all processes; None if unknown.

    Read by NVML, which needs no CUDA context: one takes hundreds of MB of that memory.
    """
    nvml, handle = _open_nvml()
    if nvml is None:
        return None
    memory = _query(nvml, "nvmlDeviceGetMemoryInfo", handle)
    _query(nvml, "nvmlShutdown")
    return None if memory is None else int(memory.used)


def _open_nvml() -> tuple[Any, Any]:
    """NVML and the first GPU that this process may use, or None for both."""
    try:
        nvml = import_module("pynvml")
    except ImportError:
        return None, None
    try:
        nvml.nvmlInit()
    except Exception:  # noqa: BLE001 - no driver, no GPU, no permission: nothing to record
        return None, None
    handle = _first(nvml)
    if handle is None:
        _query(nvml, "nvmlShutdown")
        return None, None
    return nvml, handle


def _first(nvml: Any) -> Any:
    """NVML's handle of the first GPU that CUDA may use: NVML itself counts all of the machine."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0].strip()
    if visible.startswith("GPU-"):
        return _query(nvml, "nvmlDeviceGetHandleByUUID", visible)
    if not visible.isdecimal():  # hidden on purpose, or a part of one
        return None
    return _query(nvml, "nvmlDeviceGetHandleByIndex", int(visible))


def _query(nvml: Any, function: str, *arguments: Any) -> Any:
    """The result of an NVML function, or None where this driver or GPU has none."""
    try:
        return getattr(nvml, function)(*arguments)
    except Exception:  # noqa: BLE001 - NVMLError, and names that an old package lacks
        return None
