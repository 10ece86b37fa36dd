"""Lines that C++ writes to stderr past Python's streams, taken out and logged.

`contextlib.redirect_stderr` moves Python's `sys.stderr` alone, while C++ writes to the descriptor
2. That is moved to a file in the block: a pipe would have to be read by a thread, which cannot run
while C++ holds Python's lock, and C++ would wait for it for ever.
"""

from __future__ import annotations

import fcntl
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import IO, Any

from mlflow_e2eai.runtime.progress import NestedBlocks

_STDERR = 2
_COPIES = 10
"""Copies of descriptors get this number or a larger one: 0 to 2 may be free, and have a meaning."""

_WATCH = 'read -r done || cat "$0" >&2'
"""Waits for a line on stdin. Where the pipe ends before, this process has crashed, and what it
wrote to the file is not lost."""

_BLOCKS = NestedBlocks()


@contextmanager
def stderr_lines_logged(ours: re.Pattern[bytes], log: Callable[[str], None]) -> Iterator[None]:
    """Log lines of a kind that are written to the descriptor 2 in the block.

    Other lines, of other threads for instance, are written when it ends. Where the descriptor is
    closed, nothing is done. Blocks may be nested, and open in several threads: the first one
    decides.

    Args:
        ours: Matches the beginning of a line that is to be logged.
        log: Takes such a line.
    """
    with _BLOCKS.enter(stderr=partial(_catch, ours, log)):
        yield


def _catch(ours: re.Pattern[bytes], log: Callable[[str], None]) -> Callable[[], None]:
    try:
        screen = fcntl.fcntl(_STDERR, fcntl.F_DUPFD_CLOEXEC, _COPIES)
    except OSError:
        return lambda: None
    file = tempfile.TemporaryFile()  # noqa: SIM115 - closed by `restore`
    watcher = _watch(file)
    _flush()
    os.dup2(file.fileno(), _STDERR)

    def restore() -> None:
        _flush()
        os.dup2(screen, _STDERR)
        os.close(screen)
        if watcher is not None:
            watcher.communicate(b"done\n")
        file.seek(0)
        lines = file.read().splitlines(keepends=True)
        file.close()
        with suppress(OSError), open(_STDERR, "wb", closefd=False) as stderr:
            stderr.writelines(line for line in lines if not ours.match(line))
        for line in lines:
            if ours.match(line):
                log(line.decode(errors="replace").rstrip())

    return restore


def _watch(file: IO[bytes]) -> subprocess.Popen[bytes] | None:
    """Start a shell that shows the file if this process crashes; None where there is no shell."""
    number = file.fileno()
    try:
        return subprocess.Popen(  # noqa: S603 - a constant
            ["/bin/sh", "-c", _WATCH, f"/dev/fd/{number}"],
            pass_fds=(number,),
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C is for this process
        )
    except OSError:
        return None


def _flush() -> None:
    stream: Any = sys.__stderr__
    if stream is not None:
        with suppress(OSError, ValueError):
            stream.flush()
