"""MLflow's bars, INFO lines and addresses of runs, silent while we are the caller."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from mlflow_e2eai.errors import brief
from mlflow_e2eai.runtime.progress import NestedBlocks

_SILENT = {
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    # It prints two lines for each run that ends, on the stream of our results.
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}
"""Settings of MLflow while it is silent."""

_log = logging.getLogger(__name__)

_BLOCKS = NestedBlocks()


@contextmanager
def quiet_mlflow() -> Iterator[None]:
    """Hide MLflow's bars, INFO lines and addresses inside the block; its warnings are logged.

    Blocks may be nested, and open in several threads: the first one silences, the last restores.
    """
    with _BLOCKS.enter(settings=_set_silent, lines=_silence_lines, waits=_explain_waits):
        yield


def _set_silent() -> Callable[[], None]:
    before = {name: os.environ.get(name) for name in _SILENT}
    os.environ.update(_SILENT)

    def restore() -> None:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value

    return restore


def _explain_waits() -> Callable[[], None]:
    logger = logging.getLogger("urllib3.connectionpool")
    level = logger.level
    logger.setLevel(logging.WARNING)  # a library that the export imports hides warnings of all
    logger.addFilter(_explain_wait)

    def restore() -> None:
        logger.setLevel(level)
        logger.removeFilter(_explain_wait)

    return restore


def _explain_wait(record: logging.LogRecord) -> bool:
    """Log in a sentence that a request is sent again, in place of urllib3's line."""
    if not str(record.msg).startswith("Retrying (") or not isinstance(record.args, tuple):
        return True
    retries, error, *_ = record.args
    reason = brief(error) if isinstance(error, Exception) else str(error)
    left = getattr(retries, "total", None)
    _log.warning(
        "MLflow's server does not respond (%s); trying again, up to %s times",
        reason.rpartition(": ")[2],
        "some" if left is None else left + 1,
    )
    return False


_OF_RAISED = "mlflow.store.db.utils"
"""Logger of MLflow's lines about errors of a database, each of which it raises too."""


class _Warnings(logging.Handler):
    """Pass MLflow's warnings to this package's logger."""

    def emit(self, record: logging.LogRecord) -> None:
        level = logging.DEBUG if record.name == _OF_RAISED else record.levelno
        _log.log(level, "%s: %s", record.name, record.getMessage())


def _silence_lines() -> Callable[[], None] | None:
    if "mlflow" not in sys.modules:
        return None
    from mlflow.utils import logging_utils

    # What MLflow prints of registered versions has no logger: all of its lines share one stream.
    # MLflow's autologging sets the stream's own switch back, so that it is not used here.
    stream, handler = vars(logging_utils.MLFLOW_LOGGING_STREAM), _Warnings(logging.WARNING)
    logger, alembic = logging.getLogger("mlflow"), logging.getLogger("alembic")
    level = alembic.level
    stream["write"] = lambda _: None
    logger.addHandler(handler)
    alembic.setLevel(max(level, logging.WARNING))

    def restore() -> None:
        del stream["write"]
        logger.removeHandler(handler)
        alembic.setLevel(level)

    return restore
