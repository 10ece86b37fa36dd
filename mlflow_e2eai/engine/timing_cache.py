"""Never run on its hardware yet: timings of kernels, which TensorRT reuses in later builds.

They are files in a folder. A build reads all of them, writes all that it read and measured as one
new file, and then removes those that it read: builders that share a folder lose none of each
other's timings, and need no lock.
"""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from mlflow_e2eai.artifacts.build_settings import BuildSettings
from mlflow_e2eai.artifacts.files import atomic_write
from mlflow_e2eai.artifacts.machine import gpu_name
from mlflow_e2eai.artifacts.values import Target
from mlflow_e2eai.engine import backends

SUFFIX = ".timings"


def timings_key(target: Target, settings: BuildSettings) -> str | None:
    """Key of timings: the GPU model in this machine, and the exact version of the backend.

    Returns:
        Both, for people; None where the backend has no timings, or the settings want none.

    Raises:
        MissingDependencyError: The target's TensorRT is not installed.
    """
    backend, gpu = backends.BACKENDS[target.backend], gpu_name()
    if not settings.timing_cache or backend.timing_cache is None or gpu is None:
        return None
    return f"{gpu}, {backend.title} {backends.load(backend).__version__}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Timings:
    """The timings of one build.

    Attributes:
        measured: TensorRT's timing cache, which must outlive the build.
        used: The files that were loaded into it.
        refused: The files that TensorRT refused: of another GPU or version, or damaged.
    """

    measured: Any
    used: tuple[Path, ...]
    refused: tuple[Path, ...]


def load_timings(config: Any, folder: Path) -> Timings:
    """Load all timings of a folder that fit into a builder's configuration."""
    measured: Any = None
    used: list[Path] = []
    refused: list[Path] = []
    for path in sorted(folder.glob(f"*{SUFFIX}")):
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            continue  # another build has just merged it
        other = config.create_timing_cache(data)
        if other is None:
            fits = False
        elif measured is None:
            # Setting it compares it with the GPU in this machine.
            fits = config.set_timing_cache(other, ignore_mismatch=False)
            measured = other if fits else None
        else:
            fits = measured.combine(other, ignore_mismatch=False)
        (used if fits else refused).append(path)
    if measured is None:
        measured = config.create_timing_cache(b"")
        config.set_timing_cache(measured, ignore_mismatch=False)
    return Timings(measured=measured, used=tuple(used), refused=tuple(refused))


def save_timings(timings: Timings, folder: Path) -> None:
    """Write the loaded and the measured timings as one file, and remove the loaded files."""
    measured = timings.measured
    data = bytes(memoryview(measured.serialize()))
    path = folder / f"{sha256(data).hexdigest()[:16]}{SUFFIX}"
    with atomic_write(path) as temporary:
        temporary.write_bytes(data)
    for used in timings.used:
        if used != path:
            used.unlink(missing_ok=True)  # another build may have loaded it too
