"""MLflow's bars and INFO lines, silenced while this package is the caller."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

_BARS = "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR"

_LOGGERS = ("mlflow", "alembic")

_LOCK = threading.Lock()
_open = 0
_before: tuple[str | None, list[int]] = (None, [])


@contextmanager
def quiet_mlflow() -> Iterator[None]:
    """Show neither MLflow's bars nor its INFO lines inside the block; warnings stay.

    Blocks may be nested, and open in several threads: the first one silences, the last restores.
    """
    global _open, _before  # noqa: PLW0603 - one process has one environment and one of each logger
    with _LOCK:
        if _open == 0:
            _before = os.environ.get(_BARS), [logging.getLogger(n).level for n in _LOGGERS]
            os.environ[_BARS] = "false"
            _set_levels([max(level, logging.WARNING) for level in _before[1]])
        _open += 1
    try:
        yield
    finally:
        with _LOCK:
            _open -= 1
            if _open == 0:
                bars, levels = _before
                if bars is None:
                    del os.environ[_BARS]
                else:
                    os.environ[_BARS] = bars
                _set_levels(levels)


def _set_levels(levels: list[int]) -> None:
    for name, level in zip(_LOGGERS, levels, strict=True):
        logging.getLogger(name).setLevel(level)
