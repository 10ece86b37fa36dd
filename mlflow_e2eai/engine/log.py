"""What TensorRT says when it refuses: it returns None or False, and tells its log why."""

from __future__ import annotations

import logging
from typing import Any

_log = logging.getLogger(__name__)


def logger(trt: Any) -> Any:
    """A logger of TensorRT's, whose errors are Python's warnings too.

    Returns:
        An ``ILogger``, from any thread; its `why` gives the last error, and forgets it.
    """

    class Log(trt.ILogger):  # type: ignore[misc]  # the bindings ship no types
        def __init__(self) -> None:
            super().__init__()
            self._last = ""

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.INTERNAL_ERROR, trt.ILogger.ERROR):
                self._last = message.strip()
                _log.warning("TensorRT: %s", self._last)

        def why(self) -> str:
            said, self._last = self._last, ""
            return said.partition("\n")[0] or "it does not say why"

    return Log()
