"""Kernels that TensorRT-RTX compiled on this GPU, cached on disk for the next start."""

from __future__ import annotations

import logging
import os
import stat
import threading
from pathlib import Path
from typing import Any

from mlflow_e2eai.artifacts.files import atomic_write
from mlflow_e2eai.artifacts.values import EngineArtifact

_log = logging.getLogger(__name__)


def kernel_cache_path(engine: EngineArtifact, capability: str) -> Path | None:
    """Path of the cached kernels of an engine for a GPU of a compute capability.

    In the user's own cache (``XDG_CACHE_HOME``, else ``~/.cache``): compiled kernels are native
    code for this machine, and never part of a bundle.

    Returns:
        The file; None for a user who has no folder.
    """
    try:
        home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    except RuntimeError:
        return None
    name = f"{engine.sha256}-{capability}-{engine.target.backend}-{engine.backend_version}"
    return Path(home, "mlflow_e2eai", "kernels", name)


class KernelCache:
    """The runtime cache of an engine, read from a file and written to it.

    The first call of a shape in a dynamic profile took 0.7 to 1.8 s on an H100, and 0.1 s of those
    with the cache of another process. TensorRT-RTX refuses one of another machine. A cache that is
    refused, or could have been written by another user, is ignored and written anew.

    Args:
        runtime_config: The runtime configuration of the engine's contexts, which gets the cache.
        path: The file; None for no cache on disk.
    """

    def __init__(self, runtime_config: Any, path: Path | None) -> None:
        self._path, self._lock = path, threading.Lock()
        self._cache = runtime_config.create_runtime_cache()
        self._written = b""
        stored = _own(path)
        if stored and self._cache.deserialize(stored):
            self._written = stored
        runtime_config.set_runtime_cache(self._cache)

    def save(self) -> None:
        """Write the newly compiled kernels; if that fails, the next start compiles them again."""
        if self._path is None:
            return
        with self._lock:
            content = bytes(self._cache.serialize())
            if content == self._written:
                return
            try:
                self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
                with atomic_write(self._path) as temporary:
                    temporary.write_bytes(content)
            except OSError as error:
                _log.info("Compiled kernels cannot be cached in %s: %s", self._path, error)
                return
            self._written = content


def _own(path: Path | None) -> bytes:
    """Content of a file that only this user can write; empty where there is none."""
    if path is None:
        return b""
    try:
        about = path.stat()
        is_own = about.st_uid == os.getuid() and not about.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
        return path.read_bytes() if is_own else b""
    except OSError:
        return b""
