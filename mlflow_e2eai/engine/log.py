"""What TensorRT says when it refuses: it returns None or False, and tells its log why."""

from __future__ import annotations

import logging
from collections import deque
from typing import Any

_log = logging.getLogger(__name__)

_MOST = 16
"""Errors that are kept: the last ones."""


def logger(trt: Any, *, is_quiet: bool = False) -> Any:
    """A logger of TensorRT's, which keeps errors for who has to tell why.

    Args:
        trt: TensorRT.
        is_quiet: Whether nothing else is made of them; else they are Python's warnings too.

    Returns:
        An ``ILogger``, for any thread; its `why` gives the errors since it was asked last.
    """

    class Log(trt.ILogger):  # type: ignore[misc]  # the bindings ship no types
        def __init__(self) -> None:
            super().__init__()
            self._errors: deque[str] = deque(maxlen=_MOST)

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.Severity.ERROR, trt.ILogger.Severity.INTERNAL_ERROR):
                self._errors.append(said := " ".join(message.split()))
                if not is_quiet:
                    _log.warning("TensorRT: %s", said)

        def why(self) -> str:
            said = "; ".join(self._errors) or "TensorRT gave no reason"
            self._errors.clear()
            return said

    return Log()
