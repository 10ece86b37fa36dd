"""Runners on threads of the test's process, for tests that are not about another process.

The same worker does the same tasks over the same pipe: whatever crosses it is pickled.
"""

from __future__ import annotations

import os
import threading
from contextlib import ExitStack, suppress
from multiprocessing.connection import Connection
from subprocess import TimeoutExpired
from types import SimpleNamespace

from mlflow_e2eai.runtime.isolation import Isolated, Together
from mlflow_e2eai.runtime.process import Note, Process
from mlflow_e2eai.runtime.worker import Worker


class Threaded:
    """What `subprocess.Popen` is to a process that works, for a thread."""

    def __init__(self, connection: int, note: int) -> None:
        # The caller closes its own copies, as the other process has others.
        self._caller = _Patient(os.dup(connection))
        self._note = os.dup(note)
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def go(self) -> None:
        self._caller.wanted.set()

    def poll(self) -> int | None:
        return None if self._thread.is_alive() else 0

    def wait(self, timeout: float | None = None) -> int:
        self._caller.over = True
        self.go()
        self._thread.join(timeout)
        if self._thread.is_alive():
            raise TimeoutExpired(self._thread.name, timeout)
        return 0

    def kill(self) -> None:
        msg = "A thread cannot be killed: this test wants a process."
        raise NotImplementedError(msg)

    def _serve(self) -> None:
        with self._caller as caller, ExitStack() as stack:
            worker = Worker(caller, Note(self._note), stack)
            os.close(self._note)
            with suppress(EOFError, BrokenPipeError, ConnectionResetError):
                while True:
                    worker.work()


class _Patient(Connection):
    """Hands on what it received when the caller waits for the answer.

    While the caller does something else, what a task does to warnings would reach it.
    """

    def __init__(self, handle: int) -> None:
        super().__init__(handle)
        self.wanted, self.over = threading.Event(), False

    def recv(self):
        message = super().recv()
        self.wanted.wait()
        self.wanted.clear()
        if self.over:
            raise EOFError
        return message


def _started(self, connection, note, log):
    return Threaded(connection, note)


def _receive(self):
    self._process.go()
    return Process._receive(self)


def instead_of_processes(patch):
    # Before a runner is opened there is nothing to collect in a new process; here it takes 0.2 s.
    patch.setattr("mlflow_e2eai.latency.concurrency.gc", SimpleNamespace(collect=lambda: 0))
    for kind in (Isolated, Together):
        patch.setattr(kind, "_started", _started)
        patch.setattr(kind, "_receive", _receive)


def processes_again(patch):
    for kind in (Isolated, Together):
        patch.setattr(kind, "_started", Process._started)
        patch.setattr(kind, "_receive", Process._receive)
