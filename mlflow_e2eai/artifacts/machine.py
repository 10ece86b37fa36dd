"""This machine: its GPU, driver, processor and library versions.

MLflow imports this module during `import mlflow`, and any error at its import would break
`import mlflow` for the whole environment. So it holds the standard library only, reads what the
driver writes into /proc instead of loading the driver's library, and returns None where it is not
sure.
"""

from __future__ import annotations

import ctypes
import functools
import math
import os
import platform
import re
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

_DRIVER = Path("/proc/driver/nvidia")
_CAPABILITY = (75, 76)
"""CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR of cuda.h."""

_LIBRARIES = (
    "torch",
    "onnx",
    "onnxruntime-gpu",
    "onnxruntime",
    "tensorrt-cu13",
    "tensorrt-rtx-cu13",
)
"""Distributions whose version is recorded with measurements."""


@functools.cache
def gpu_name(driver: Path = _DRIVER) -> str | None:
    """Name of this machine's first NVIDIA GPU, as its driver reports it; None without one."""
    try:
        files = sorted(driver.glob("gpus/*/information"))
    except OSError:
        return None
    for information in files:
        if model := _search(r"^Model:[^\S\n]*(\S.*)$", information):
            return model
    return None


@functools.cache
def driver_version(driver: Path = _DRIVER) -> str | None:
    """Version of the NVIDIA driver; None where there is none."""
    return _search(r"Kernel Module\s.*?\s?(\d+(?:\.\d+)+)\s", driver / "version")


@functools.cache
def processor_name(file: Path = Path("/proc/cpuinfo")) -> str | None:
    """Name of this machine's processor, as the kernel reports it; None where it does not."""
    return _search(r"^model name\s*:\s*(\S.*)$", file)


def processors(cgroup: Path = Path("/sys/fs/cgroup")) -> int:
    """The processors that this process may use, by its affinity and the quota of its container.

    A quota of one and a half counts as two. Libraries look at the affinity alone, and start more
    threads than a quota lets run.
    """
    has_affinity = hasattr(os, "sched_getaffinity")
    allowed = len(os.sched_getaffinity(0)) if has_affinity else os.cpu_count() or 1
    v1 = cgroup / "cpu"
    quota, period = (
        pair.split()
        if (pair := _search(r"^(\d+ [1-9]\d*)$", cgroup / "cpu.max"))
        else (_search(r"^([1-9]\d*)$", v1 / f"cpu.cfs_{name}_us") for name in ("quota", "period"))
    )
    if quota is None or period is None:  # "max" and -1 are none
        return allowed
    return max(1, min(allowed, math.ceil(int(quota) / int(period))))


def memory_bytes(cgroup: Path = Path("/sys/fs/cgroup")) -> float:
    """The memory that this process may use, of the machine or its container; inf if unknown."""
    limits = (
        _search(r"^(\d+)$", cgroup / name)  # "max" is none
        for name in ("memory.max", "memory/memory.limit_in_bytes")
    )
    kilobytes = _memory_kilobytes()
    machine = math.inf if kilobytes is None else 1024.0 * int(kilobytes)
    return min([machine, *(float(limit) for limit in limits if limit)])


_INT8_INSTRUCTIONS = (
    *("amx_int8", "avx512_vnni", "avx_vnni", "avx512bw", "avx2"),  # x86, by the kernel's names
    *("i8mm", "asimddp"),  # Arm
)
"""Instruction sets that multiply int8, the best of each family first."""


@functools.cache
def int8_instructions(file: Path = Path("/proc/cpuinfo")) -> str | None:
    """The instruction set by which this machine's processor multiplies int8; None if unknown."""
    flags = (_search(r"^(?:flags|Features)\s*:\s*(\S.*)$", file) or "").split()
    return next((name for name in _INT8_INSTRUCTIONS if name in flags), None)


def int8_saturates() -> bool:
    """Whether sums of two products of int8 saturate at 16 bits in this machine's instructions.

    They do on x86 without VNNI, unless a kernel takes more instructions to avoid it.
    """
    is_x86 = platform.machine().lower() in ("x86_64", "amd64")
    return is_x86 and int8_instructions() not in ("amx_int8", "avx512_vnni", "avx_vnni")


@functools.cache
def local_compute_capability() -> str | None:
    """Compute capability of the first GPU, such as ``sm90``; None without driver or GPU.

    Not for tags: this loads the driver's library.
    """
    values = [ctypes.c_int() for _ in _CAPABILITY]
    device = ctypes.c_int()
    try:
        cuda = ctypes.CDLL("libcuda.so.1")
        failed = cuda.cuInit(0) or cuda.cuDeviceGet(ctypes.byref(device), 0)
        for value, attribute in zip(values, _CAPABILITY, strict=True):
            failed = failed or cuda.cuDeviceGetAttribute(ctypes.byref(value), attribute, device)
    except (OSError, AttributeError):
        return None
    return None if failed else "sm" + "".join(str(value.value) for value in values)


def has_gpu() -> bool:
    """Whether the driver sees an NVIDIA GPU. Not for tags: this loads the driver's library."""
    return local_compute_capability() is not None


THREAD_LIMITS = ("omp_num_threads", "mkl_num_threads")
"""Entries of `environment` that limit PyTorch's threads on a CPU; nothing else reads them."""

PASSING = ("measured", "host", "load")
"""Entries of `environment` that differ between two measurements on one kind of machine."""


def environment() -> dict[str, str]:
    """This machine as far as it is known: processor, GPU, driver, versions, load; and the time.

    ``cores`` are the `processors`, ``load`` the processes that ran or waited for one on average
    over the last minute, by the kernel, ``omp_num_threads`` and ``mkl_num_threads`` what the
    variables of these names limit PyTorch to. Not for tags: this loads the driver's library.
    """
    entries = {
        "measured": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "host": platform.node() or None,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "processor": processor_name(),
        "cores": str(processors()),
        "memory": _memory(),
        "load": _load(),
        **{name: os.environ.get(name.upper()) for name in THREAD_LIMITS},
        "int8_instructions": int8_instructions(),
        "gpu": gpu_name(),
        "compute_capability": local_compute_capability(),
        "driver": driver_version(),
        **{package: _version(package) for package in _LIBRARIES},
    }
    return {key: value for key, value in entries.items() if value is not None}


def _memory() -> str | None:
    kilobytes = _memory_kilobytes()
    return None if kilobytes is None else f"{int(kilobytes) / (1 << 20):.0f} GiB"


def _memory_kilobytes() -> str | None:
    return _search(r"^MemTotal:\s*(\d+) kB", Path("/proc/meminfo"))


def _load() -> str | None:
    try:
        return f"{os.getloadavg()[0]:.1f}"
    except OSError:
        return None


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _search(pattern: str, path: Path) -> str | None:
    try:
        match = re.search(pattern, path.read_text(encoding="utf-8", errors="replace"), re.MULTILINE)
    except OSError:
        return None
    return match.group(1).strip() if match else None
