"""Kernels that TensorRT-RTX compiled on this GPU, kept for the next start."""

from __future__ import annotations

import logging
import os
import threading
from pathlib import Path
from typing import Any

from mlflow_e2eai.artifacts import EngineArtifact
from mlflow_e2eai.files import written

_log = logging.getLogger(__name__)


def kept_at(engine: EngineArtifact, capability: str) -> Path:
    """Where the kernels of an engine are kept for a GPU of a compute capability.

    In the user's own cache (``XDG_CACHE_HOME``, else ``~/.cache``): what was compiled here is
    native code for here, and never part of a bundle.
    """
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    name = f"{engine.sha256}-{capability}-{engine.target.backend}-{engine.backend_version}"
    return Path(home, "mlflow_e2eai", "kernels", name)


class Kernels:
    """The runtime cache of an engine, read from a file and written to it.

    The first call of a shape in a dynamic profile took 0.7 to 1.8 s on an H100, and 0.1 s of those
    with the cache of another process. TensorRT-RTX refuses one that was made elsewhere; what is
    broken or refused is ignored, and written anew.

    Args:
        runtime_config: The runtime configuration of the engine's contexts, which gets the cache.
        path: The file.
    """

    def __init__(self, runtime_config: Any, path: Path) -> None:
        self._path, self._lock = path, threading.Lock()
        self._cache = runtime_config.create_runtime_cache()
        self._written = b""
        try:
            stored = path.read_bytes()
        except OSError:
            stored = b""
        if stored and self._cache.deserialize(stored):
            self._written = stored
        runtime_config.set_runtime_cache(self._cache)

    def keep(self) -> None:
        """Write what was compiled since; where that cannot be, the next start compiles it again."""
        with self._lock:
            content = bytes(self._cache.serialize())
            if content == self._written:
                return
            try:
                self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
                with written(self._path) as temporary:
                    temporary.write_bytes(content)
            except OSError as error:
                _log.info("Compiled kernels are not kept in %s: %s", self._path, error)
                return
            self._written = content
