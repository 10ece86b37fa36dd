"""Folders that cannot be written to: a full disk, a limit of the process, no permission.

An OSError says so, but so do errors of C++, of SQLite and of numpy, by their text alone; all of
them become one sentence at the edge of this package.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mlflow_e2eai.errors import E2EAIError, InvalidInputError, StorageError
from mlflow_e2eai.runtime.scratch import temporary_folder
from mlflow_e2eai.runtime.termination import causes, interruption_of

_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS}
"""Numbers of errors that come from writing only."""

_DENIED = {errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EEXIST, errno.EIO}
"""Those that reading gives too: the package's own errors with such a cause have their sentence."""

READ_ONLY = "attempt to write a readonly database"
"""Text of SQLite's error: the package's own errors with such a cause have their sentence."""

_TEXT = re.compile(
    "No space left on device|Disk quota exceeded|File too large|Read-only file system"
    f"|database or disk is full|{READ_ONLY}|unable to open database file"
    "|disk I/O error|No usable temporary directory found|[0-9]+ requested and [0-9]+ written"
)
"""How C++, SQLite, Python's tempfile and numpy say it."""


@contextmanager
def storage_errors() -> Iterator[None]:
    """Turn errors of the block about files that cannot be written into one of this package.

    It is a decorator too.

    Raises:
        StorageError: A file cannot be written.
    """
    try:
        yield
    except Exception as error:
        if (failure := storage_error(error)) is not None:
            raise failure from error
        raise


def storage_error(error: BaseException) -> StorageError | None:
    """The error as one about a file that cannot be written; None for all others."""
    if isinstance(error, InvalidInputError | StorageError) or interruption_of(error) is not None:
        return None  # the first has a sentence about the folder that the caller gave
    is_own = isinstance(error, E2EAIError)
    for each in causes(error):
        number = each.errno if isinstance(each, OSError) else None
        if number in _NO_ROOM or (number in _DENIED and not is_own):
            name = each.filename if isinstance(each, OSError) else None
            return _sentence(name, os.strerror(number or 0))
        found = _TEXT.search(str(each))
        if found is not None and not (found[0] == READ_ONLY and is_own):
            return _sentence(None, found[0])
    return None


def _sentence(name: object, reason: str) -> StorageError:
    about = "A file" if name is None else str(name)
    folder = Path(os.environ.get("TMPDIR", "TMPDIR"))
    with contextlib.suppress(FileNotFoundError):
        folder = temporary_folder()
    return StorageError(
        f"{about} cannot be written ({reason}); make room, or give a folder that you may write to "
        f"(temporary files lie in {folder}, which TMPDIR sets), and repeat the call."
    )


def check_room(folder: Path, size: int) -> None:
    """Check that a file of a size can be written to a folder, before C++ writes it.

    PyTorch's writer ends the process where a write fails.

    Raises:
        StorageError: There is no room for it.
    """
    with storage_errors(), tempfile.TemporaryFile(dir=folder) as file:
        os.posix_fallocate(file.fileno(), 0, size)
