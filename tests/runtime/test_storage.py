"""Errors about files that cannot be written, whoever raises them, are one sentence."""

from __future__ import annotations

import errno
import sqlite3
import subprocess
import sys

import numpy as np
import pytest

from mlflow_e2eai.errors import InvalidInputError, RunnerError, StorageError, TrackingError
from mlflow_e2eai.runtime.storage import READ_ONLY, check_room, storage_error, storage_errors


def caused(error, cause):
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (OSError(errno.ENOSPC, "full"), "No space left on device"),
        (OSError(errno.EDQUOT, "full"), "Disk quota exceeded"),
        (OSError(errno.EFBIG, "large"), "File too large"),
        (OSError(errno.EROFS, "read-only", "/models/x"), "Read-only file system"),
        (PermissionError(errno.EACCES, "no", "/models/x"), "Permission denied"),
        (FileExistsError(errno.EEXIST, "there", "/models/x"), "File exists"),
        (sqlite3.OperationalError("attempt to write a readonly database"), "readonly database"),
        (RuntimeError("write failed: No space left on device"), "No space left on device"),
        (OSError("4096 requested and 96 written"), "4096 requested and 96 written"),
        (FileNotFoundError(2, "No usable temporary directory found in ['/t']"), "No usable"),
        (caused(RunnerError("It failed."), OSError(errno.ENOSPC, "full")), "No space left"),
    ],
)
def test_a_file_that_cannot_be_written_is_one_sentence_with_the_reason(error, reason):
    with pytest.raises(StorageError, match=reason) as raised, storage_errors():
        raise error
    assert str(raised.value).count(". ") == 0
    assert raised.value.resumable
    name = getattr(error, "filename", None)
    assert name is None or str(raised.value).startswith(f"{name} cannot be written")


@pytest.mark.parametrize(
    "error",
    [
        caused(InvalidInputError("Cannot read x.onnx."), PermissionError(errno.EACCES, "no")),
        FileNotFoundError(errno.ENOENT, "no such file", "x"),
        ConnectionResetError(errno.ECONNRESET, "reset"),
        caused(TrackingError("It is read-only."), RuntimeError(READ_ONLY)),
        KeyError("size"),
        StorageError("A file cannot be written."),
        caused(SystemExit(), OSError(errno.ENOSPC, "full")),
    ],
)
def test_another_error_stays(error):
    assert storage_error(error) is None


def test_numpy_says_it_as_it_is_known_here(tmp_path):
    code = (
        "import resource, numpy as np\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))\n"
        "np.zeros(100_000).tofile('x')"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], check=False, cwd=tmp_path, capture_output=True, text=True
    )
    sentence = done.stderr.splitlines()[-1]
    assert storage_error(OSError(sentence.partition(": ")[2])) is not None, sentence
    assert np.__version__


def test_room_is_checked_before_it_is_needed_and_nothing_is_left(tmp_path):
    check_room(tmp_path, 1 << 20)
    assert not any(tmp_path.iterdir())
    code = (
        "import resource\n"
        "from pathlib import Path\n"
        "from mlflow_e2eai.runtime.storage import READ_ONLY, check_room\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))\n"
        "check_room(Path(), 9_000)\n"
        "check_room(Path(), 1 << 20)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], check=False, cwd=tmp_path, capture_output=True, text=True
    )
    last = done.stderr.splitlines()[-1]
    assert "StorageError: A file cannot be written (File too large)" in last
    assert not any(tmp_path.iterdir())
