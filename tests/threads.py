"""A worker on a thread of the test's process, for tests that are not about its being another."""

from __future__ import annotations

import os
import threading
from contextlib import ExitStack, suppress
from multiprocessing.connection import Connection
from subprocess import TimeoutExpired

from mlflow_e2eai.isolation import Process
from mlflow_e2eai.isolation.note import Note
from mlflow_e2eai.isolation.worker import Worker


class Threaded:
    """What `subprocess.Popen` is to a process, for a thread that does the same over the same pipe.

    It takes a task when the caller waits for it, not while the caller does something else: what a
    task does to warnings would reach the caller.
    """

    def __init__(self, connection: int, note: int) -> None:
        # The caller closes its own copies, as the other process has others.
        self._connection, self._note = os.dup(connection), os.dup(note)
        self._wanted = threading.Event()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def go(self) -> None:
        self._wanted.set()

    def poll(self) -> int | None:
        return None if self._thread.is_alive() else 0

    def wait(self, timeout: float | None = None) -> int:
        self.go()
        self._thread.join(timeout)
        if self._thread.is_alive():
            raise TimeoutExpired(self._thread.name, timeout)
        return 0

    def kill(self) -> None:
        msg = "A thread cannot be killed: this test wants a process."
        raise NotImplementedError(msg)

    def _serve(self) -> None:
        with Connection(self._connection) as caller, ExitStack() as stack:
            worker = Worker(caller, Note(self._note), stack)
            os.close(self._note)
            with suppress(EOFError, BrokenPipeError, ConnectionResetError):
                while True:
                    self._wanted.wait()
                    self._wanted.clear()
                    worker.work()


def _started(self, connection, note, log):
    return Threaded(connection, note)


def _receive(self):
    self._process.go()
    return Process._receive(self)


def instead_of_processes(patch, kind):
    """Have runners of this kind, `Isolated` or `Together`, work on threads."""
    patch.setattr(kind, "_started", _started)
    patch.setattr(kind, "_receive", _receive)
