"""Ctrl-C and SIGTERM as exceptions, so that both close what is open and leave a reason."""

from __future__ import annotations

import gc
import signal
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

from mlflow_e2eai.errors import without_secrets

INTERRUPTED, TERMINATED = 128 + signal.SIGINT, 128 + signal.SIGTERM
"""Exit codes of processes that Ctrl-C and SIGTERM ended, as shells have them."""


class Termination(SystemExit):
    """SIGTERM told the process to end: the end of a pod, ``scancel``, ``kill``.

    Uncaught, it ends the process quietly with `TERMINATED`.
    """

    def __init__(self) -> None:
        super().__init__(TERMINATED)

    def __str__(self) -> str:
        """The reason, for people."""
        return "Ended by SIGTERM."


@contextmanager
def raised_on_sigterm() -> Iterator[None]:
    """Raise `Termination` where SIGTERM comes in the block.

    Only where the caller has no handler of its own, and on the main thread: Python allows no other.
    """
    main = threading.current_thread() is threading.main_thread()
    if not main or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return

    def end(_number: int, _frame: object) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a second one would end the cleaning up
        raise Termination

    signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def interruption_of(error: BaseException) -> KeyboardInterrupt | SystemExit | None:
    """Ctrl-C or SIGTERM as the error, or as the cause of it; None for other errors.

    A library that is interrupted while it is imported raises an ImportError.
    """
    exits = (KeyboardInterrupt, SystemExit)
    return next((each for each in causes(error) if isinstance(each, exits)), None)


def causes(error: BaseException) -> Iterator[BaseException]:
    """The error, what it was raised from, and so on."""
    seen: BaseException | None = error
    while seen is not None:
        yield seen
        seen = seen.__cause__ or seen.__context__


def release_frames(error: BaseException) -> None:
    """Release what the frames of an interruption hold; other errors are left alone.

    A cursor of SQLite that was interrupted amid its rows locks the database as long as it lives.
    """
    if interruption_of(error) is None:
        return
    for each in causes(error):
        traceback.clear_frames(each.__traceback__)
    gc.collect(1)  # SQLAlchemy's results refer to themselves; what is so young is found at once


def reason_of(error: BaseException) -> str:
    """The message of an error without passwords and tokens; never empty."""
    error = interruption_of(error) or error
    if isinstance(error, KeyboardInterrupt):
        return "Interrupted by Ctrl-C."
    return without_secrets(str(error)) or type(error).__name__
