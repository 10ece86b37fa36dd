"""A process that has imported what every worker imports, and is forked for each of them.

A fresh interpreter computes for a quarter of a second until it has NumPy and this package (Python
3.11), a fork for some milliseconds, and one bisection wants a hundred workers. What the server has
imported starts no driver and no runtime: each worker opens those for itself, as a fresh one does.
The way is that of Python's own `multiprocessing.forkserver`, which would run the caller's
``__main__`` again.
"""

from __future__ import annotations

import atexit
import gc
import importlib
import json
import os
import resource
import select
import signal
import socket
import subprocess
import sys
import threading
import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import Any, Never

_BOOT = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "from mlflow_e2eai.isolation.forkserver import serve_forks; serve_forks(int(sys.argv[2]))"
)
_READ_AT_START = (
    "GOTO_",
    "LD_",
    "MALLOC_",
    "MKL_",
    "NPY_",
    "NUMPY_",
    "OMP_",
    "OPENBLAS_",
    "PYTHON",
)
_FILES = 5
_GOODBYE_S = 5.0

_lock = threading.Lock()
_servers: list[_Server] = []


def forked(connection: int, note: int, log: Any) -> Forked:
    """Start a worker, in the working folder and with the environment of now.

    Args:
        connection: File number of its end of the connection.
        note: File number of the note.
        log: Takes what it writes to stdout and stderr.
    """
    status, theirs = Pipe()
    here = os.open(".", os.O_RDONLY)
    try:
        with theirs:
            _order((connection, note, log.fileno(), here, theirs.fileno()))
    finally:
        os.close(here)
    with suppress(BrokenPipeError):  # its end is told by `Forked`
        status.send((sys.path, dict(os.environ)))
    return Forked(status)


class Forked:
    """A worker of the fork server, with what is used of `subprocess.Popen`."""

    def __init__(self, status: Connection) -> None:
        self._status = status
        self._pid: int | None = None
        self._code: int | None = None

    @property
    def pid(self) -> int | None:
        """Its number; None where the server ended before it began."""
        if self._pid is None and self._code is None:
            self._hear()
        return self._pid

    def poll(self) -> int | None:
        """Its exit code; None as long as it runs."""
        while self._code is None and self._status.poll():
            self._hear()
        return self._code

    def wait(self, timeout: float | None = None) -> int:
        """Wait for its exit code.

        Raises:
            subprocess.TimeoutExpired: It still runs.
        """
        while self._code is None:
            if not self._status.poll(timeout):
                raise subprocess.TimeoutExpired(_BOOT, timeout or 0.0)
            self._hear()
        return self._code

    def kill(self) -> None:
        """End it in the middle of what it does."""
        if self.pid is not None and self.poll() is None:
            with suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)

    def _hear(self) -> None:
        """The server tells a worker's number, and then its exit code."""
        try:
            said = self._status.recv()
        except (EOFError, ConnectionResetError):
            # The server is gone, and nobody will tell; the worker may still be there.
            self._code = -signal.SIGKILL
            if self._pid is not None:
                with suppress(ProcessLookupError):
                    os.kill(self._pid, signal.SIGKILL)
            return
        if self._pid is None:
            self._pid = said
        else:
            self._code = said
            self._status.close()


class _Server:
    """The fork server, as its caller sees it."""

    def __init__(self) -> None:
        self.inherits = _inherited()
        self._orders, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        command = [sys.executable, "-c", _BOOT, json.dumps(sys.path), str(theirs.fileno())]
        with theirs:
            self._process = subprocess.Popen(  # noqa: S603 - ourselves
                command, pass_fds=(theirs.fileno(),), stdin=subprocess.DEVNULL
            )

    def order(self, files: Sequence[int]) -> None:
        socket.send_fds(self._orders, [b"fork"], files)

    def hang_up(self) -> None:
        """It ends once its workers have."""
        self._orders.close()

    def ended(self) -> bool:
        return self._process.poll() is not None

    def wait(self) -> None:
        with suppress(subprocess.TimeoutExpired):  # a worker hangs
            self._process.wait(_GOODBYE_S)


def _order(files: Sequence[int]) -> None:
    with _lock:
        inherits = _inherited()
        if not _servers or _servers[-1].inherits != inherits:
            _start()
        try:
            _servers[-1].order(files)
        except (BrokenPipeError, ConnectionResetError):  # it was killed
            _start()
            _servers[-1].order(files)


def _start() -> None:
    for server in _servers:
        server.hang_up()
    # One that still has workers is kept: it is to be waited for when it has ended.
    _servers[:] = [*(server for server in _servers if not server.ended()), _Server()]


@atexit.register
def _hang_up() -> None:
    for server in _servers:
        server.hang_up()
    for server in _servers:
        server.wait()


def _inherited() -> Any:
    """What a worker gets from the server that it would get from the caller otherwise."""
    limits = [name for name in dir(resource) if name.startswith("RLIMIT_")]
    return (
        os.getpid(),
        sys.executable,
        sorted(os.sched_getaffinity(0)),
        os.getpriority(os.PRIO_PROCESS, 0),
        [resource.getrlimit(getattr(resource, name)) for name in limits],
        {name: value for name, value in os.environ.items() if name.startswith(_READ_AT_START)},
    )


# In the server


def serve_forks(orders: int) -> None:
    """Fork a worker for each order, and tell its exit code, until the caller hangs up.

    Args:
        orders: File number of the socket that the orders come from.
    """
    from mlflow_e2eai.isolation.worker import serve

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the caller, who then hangs up
    woken, wake = os.pipe()
    for end in (woken, wake):
        os.set_blocking(end, False)
    signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    gc.freeze()  # collecting what all share would copy it
    workers: dict[int, Connection] = {}
    with socket.socket(fileno=orders) as caller:
        sources: list[Any] = [woken, caller]
        while len(sources) > 1 or workers:
            ready = select.select(sources, [], [])[0]
            if woken in ready:
                os.read(woken, 1 << 16)
                _tell_who_ended(workers)
            if caller in ready:
                order, files, _, _ = socket.recv_fds(caller, 16, _FILES)
                if not order:
                    sources.remove(caller)
                    continue
                *given, status = files
                if (pid := _fork()) == 0:
                    for each in workers.values():
                        each.close()
                    caller.close()
                    _become(Connection(status), *given, serve=serve)
                workers[pid] = Connection(status)
                with suppress(BrokenPipeError):
                    workers[pid].send(pid)
                for file in given:
                    os.close(file)


def _fork() -> int:
    with warnings.catch_warnings():
        # Of threads, there are OpenBLAS's, which takes care of a fork itself.
        warnings.simplefilter("ignore", DeprecationWarning)
        return os.fork()


def _tell_who_ended(workers: dict[int, Connection]) -> None:
    for pid in list(workers):
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            with workers.pop(pid) as caller, suppress(BrokenPipeError):
                caller.send(os.waitstatus_to_exitcode(status))


def _become(
    status: Connection, connection: int, note: int, log: int, folder: int, *, serve: Any
) -> Never:
    """Be the worker that a fresh interpreter would be."""
    try:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        for standard in (1, 2):
            os.dup2(log, standard)
        os.close(log)
        with status:
            path, environment = status.recv()
        _surround(path, environment, folder)
        serve(connection, note)
    except BaseException:  # noqa: BLE001 - whatever it is, this must not go on as a server
        sys.excepthook(*sys.exc_info())
        os._exit(1)
    os._exit(0)


def _surround(path: Sequence[str], environment: Mapping[str, str], folder: int) -> None:
    sys.path[:] = path
    os.environ.clear()
    os.environ.update(environment)
    os.fchdir(folder)
    os.close(folder)
    importlib.invalidate_caches()
