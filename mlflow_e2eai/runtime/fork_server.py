"""Processes that begin with their imports done: forks of a server that does nothing else.

A worker process imports NumPy and this package for 0.16 s before its first call, and an evaluation
starts a dozen. The server has imported them once, has one thread and no GPU, so that forking it is
safe. Written by hand as multiprocessing's server runs the user's `__main__` again.
"""

from __future__ import annotations

import atexit
import gc
import importlib
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Sequence
from contextlib import suppress
from multiprocessing.connection import wait  # select.select knows no file number above 1023
from typing import Never

_IDLE_S = 10.0

_BOOT = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "from mlflow_e2eai.runtime.fork_server import run; run(*map(int, sys.argv[2:]))"
)
_NUMBER = struct.Struct("i")
_FILES = 4
_LONGEST = 1 << 18
_POLL_S = 0.5


class Child:
    """A process that a server forked; has what `subprocess.Popen` has, as far as it is needed.

    Attributes:
        pid: Its process id.

    Args:
        status: The end of a pipe from which its process id comes, and its exit code in time.
    """

    def __init__(self, status: int) -> None:
        self._status = os.fdopen(status, "rb", buffering=0)
        self._lock = threading.Lock()
        self._code: int | None = None
        self.pid = self._read()

    def poll(self) -> int | None:
        """The exit code, negative for a signal; None while it runs."""
        return self._code if self._is_over(0) else None

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the exit code.

        Raises:
            TimeoutExpired: The time is up.
        """
        if not self._is_over(timeout) or self._code is None:
            command = f"process {self.pid}"
            raise subprocess.TimeoutExpired(command, timeout or 0)
        return self._code

    def kill(self) -> None:
        """Kill it, unless it has ended."""
        if self.poll() is None:
            with suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)

    def _is_over(self, timeout: float | None) -> bool:
        if self._code is None and wait([self._status.fileno()], timeout):
            with self._lock:
                if self._code is None:
                    self._code = self._read()
                    self._status.close()
        return self._code is not None

    def _read(self) -> int:
        """The next number; a server that was killed took its processes with it."""
        data = self._status.read(_NUMBER.size)
        return int(_NUMBER.unpack(data)[0]) if data else -signal.SIGKILL


class ForkServer:
    """The server of this process; it starts with the first request, and anew where it has ended.

    A process begins with the environment, the module path and the folder that this process has when
    it asks. A change of the environment or the folder ends the server for a new one.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._requests = socket.socket()
        self._servers: list[subprocess.Popen[bytes]] = []
        self._surroundings: object = None
        atexit.register(self.close)

    def prepare(self, *imports: str) -> None:
        """Start the server, unless it runs, for it to import what processes will need.

        Args:
            *imports: Names of modules.
        """
        with self._lock:
            self._send(json.dumps(imports))

    def fork(self, connection: int, note: int, log: int) -> Child:
        """Start a process that serves as `worker.serve` does.

        Args:
            connection: File number of its end of the connection.
            note: File number of the progress note.
            log: File number of the file that it writes stdout and stderr to.
        """
        status, end = os.pipe()
        try:
            with self._lock:
                self._send(json.dumps(sys.path), [connection, note, log, end])
        except BaseException:
            os.close(status)
            raise
        finally:
            os.close(end)
        return Child(status)

    def _send(self, text: str, files: Sequence[int] = ()) -> None:
        """Send a request to the server, or to a new one where it has ended or begun elsewhere."""
        surroundings = (os.getpid(), dict(os.environ), _folder())
        if surroundings == self._surroundings:
            try:
                self._send_now(text, files)
            except OSError:  # it was idle for long, or killed
                pass
            else:
                return
        self._start()
        self._surroundings = surroundings
        self._send_now(text, files)

    def _send_now(self, text: str, files: Sequence[int]) -> None:
        socket.send_fds(self._requests, [text.encode()], files)
        if files and not self._requests.recv(1):
            msg = "The server has ended."
            raise ConnectionResetError(msg)

    def _start(self) -> None:
        own, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with other:
            server = subprocess.Popen(  # noqa: S603 - this interpreter
                [
                    *(sys.executable, "-c", _BOOT, json.dumps(sys.path)),
                    *(str(other.fileno()), str(os.getpid())),
                ],
                pass_fds=[other.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
        self._requests.close()  # the server before ends once its processes have
        self._requests = own
        self._servers = [each for each in self._servers if each.poll() is None] + [server]

    def close(self) -> None:
        """End the server."""
        self._requests.close()
        for server in self._servers:
            server.wait()


def _folder() -> tuple[int, int]:
    """The working folder, by its number: its name may be gone."""
    folder = os.stat(".")  # noqa: PTH116 - a path would be no shorter
    return folder.st_dev, folder.st_ino


# The other side.


def run(control: int, parent: int, *, idle_s: float = _IDLE_S) -> Never:
    """Fork for the process at the other end of a socket until it disconnects or asks no more.

    Args:
        control: File number of the socket.
        parent: Process id of that process. With its end all others end.
        idle_s: Seconds without a process and without a request after which it ends.
    """
    # ONNX Runtime's telemetry (since 1.29, PR 27379) is a thread and an upload beside timed calls;
    # and with a thread there is no safe fork.
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    import onnxruntime  # noqa: F401 - most processes need it; no cold start has its import

    from mlflow_e2eai.runtime import isolation  # noqa: F401

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which then disconnects
    ended, wake = os.pipe()
    for end in (ended, wake):
        os.set_blocking(end, False)
    signal.set_wakeup_fd(wake)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    statuses: dict[int, int] = {}
    sources = [ended, control]
    with socket.socket(fileno=control) as requests:
        while os.getppid() == parent and (statuses or control in sources):
            ready = wait(sources, _POLL_S if statuses else idle_s)
            if not (ready or statuses):
                break
            if ended in ready:
                os.read(ended, 1 << 16)
                _report_ended(statuses)
            if control in ready:
                text, files, *_ = socket.recv_fds(requests, _LONGEST, _FILES)
                if files:
                    _fork(json.loads(text), files, statuses, requests)
                elif text:
                    _import(json.loads(text), requests)
                else:
                    sources.remove(control)
    os._exit(0)  # processes that are left end with this one


def _import(names: Sequence[str], requests: socket.socket) -> None:
    """Import modules as long as there is no further request."""
    for name in names:
        if wait([requests], 0):
            return
        with suppress(ImportError):  # whoever needs it says so
            importlib.import_module(name)


def _fork(
    path: list[str], files: list[int], statuses: dict[int, int], requests: socket.socket
) -> None:
    from mlflow_e2eai.runtime.worker import serve

    connection, note, log, status = files
    server = os.getpid()
    gc.freeze()  # a collection in the process leaves alone, and shared, what was there before
    pid = os.fork()
    if pid == 0:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        requests.close()
        for end in (status, *statuses.values()):
            os.close(end)
        os.dup2(log, 1)
        os.dup2(log, 2)
        sys.path[:] = path
        serve(connection, note, server)
    os.write(status, _NUMBER.pack(pid))
    statuses[pid] = status
    for each in (connection, note, log):
        os.close(each)
    requests.send(b"\0")


def _report_ended(statuses: dict[int, int]) -> None:
    """Send the exit codes of processes that have ended."""
    for pid in list(statuses):
        ended, code = os.waitpid(pid, os.WNOHANG)
        if ended:
            status = statuses.pop(pid)
            with suppress(BrokenPipeError):  # nobody reads it
                os.write(status, _NUMBER.pack(os.waitstatus_to_exitcode(code)))
            os.close(status)
