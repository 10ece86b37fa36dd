"""One temporary folder for a process, which others find and remove once the process is dead.

Whether it lives is known by a lock that the kernel releases at its death, whatever ended it: also
in another container, and after the number of the process has been given to another one.
"""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import functools
import getpass
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from mlflow_e2eai.runtime.progress import NestedBlocks

_PREFIX, _SUFFIX = "mlflow_e2eai-", ".lock"

_CACHE = "TORCHINDUCTOR_CACHE_DIR"

_BLOCKS = NestedBlocks()


@contextmanager
def temporary_files_together() -> Iterator[None]:
    """Put temporary files of the block into one folder of this process, those of libraries too.

    Where no lock can be taken, they lie where they lie without this.
    """
    with _BLOCKS.enter(folder=_redirect):
        yield


def _redirect() -> Callable[[], None] | None:
    base = tempfile.gettempdir()
    if Path(base).name.startswith(_PREFIX):  # of the process that started this one
        return None
    folder = _folder_in(base, os.getpid())
    if folder is None:
        return None
    tempdir, before = tempfile.tempdir, {name: os.environ.get(name) for name in ("TMPDIR", _CACHE)}
    tempfile.tempdir = os.environ["TMPDIR"] = str(folder)
    # As PyTorch has it, where it would be without this block: it is for later processes too.
    os.environ.setdefault(_CACHE, str(Path(base, f"torchinductor_{getpass.getuser()}")))

    def restore() -> None:
        tempfile.tempdir = tempdir
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value

    return restore


@functools.cache
def _folder_in(base: str, pid: int) -> Path | None:
    """Make and lock the folder of a process; it goes with the process, unless that is killed."""
    with contextlib.suppress(OSError):
        while True:
            handle, name = tempfile.mkstemp(_SUFFIX, _PREFIX, base)
            fcntl.flock(handle, fcntl.LOCK_EX)
            if _is_at(handle, Path(name)):  # else another took it for that of a dead process
                break
            os.close(handle)
        folder = Path(name.removesuffix(_SUFFIX))
        folder.mkdir(mode=0o700)
        atexit.register(_leave, folder, pid)
        return folder
    return None


def _leave(folder: Path, pid: int) -> None:
    """Remove the folder at the end of its process; a forked one is another, and leaves it."""
    if os.getpid() == pid:
        _remove(folder)


def remove_dead_folders() -> int:
    """Remove the temporary folders of dead processes; returns their number."""
    return sum(_remove_if_dead(lock) for lock in temporary_folder().glob(f"{_PREFIX}*{_SUFFIX}"))


def temporary_folder() -> Path:
    """The folder with those of all processes: in a block it is above this process's own."""
    folder = Path(tempfile.gettempdir())
    return folder.parent if folder.name.startswith(_PREFIX) else folder


def _remove_if_dead(lock: Path) -> bool:
    try:
        handle = os.open(lock, os.O_RDWR | os.O_NOFOLLOW)
    except OSError:  # another user's, or removed meanwhile
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if is_dead := _is_at(handle, lock):
            _remove(lock.with_suffix(""))
    except OSError:  # a living process has it
        return False
    finally:
        os.close(handle)
    return is_dead


def _remove(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    Path(f"{folder}{_SUFFIX}").unlink(missing_ok=True)


def _is_at(handle: int, path: Path) -> bool:
    """Whether a path still leads to an open file."""
    try:
        return os.path.samestat(os.fstat(handle), path.stat())
    except FileNotFoundError:
        return False
