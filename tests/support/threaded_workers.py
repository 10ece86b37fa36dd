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

from mlflow_e2eai.runtime.process import ProgressNote, WorkerProcess
from mlflow_e2eai.runtime.worker import Worker


class Threaded:
    """What `subprocess.Popen` is to a process that works, for a thread."""

    pid = 0
    """Its memory is that of the test's process, and is not looked at."""

    def __init__(self, connection: int, note: int) -> None:
        # The caller closes its own copies, as the other process has others.
        self._caller = Connection(os.dup(connection))
        self._note = os.dup(note)
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def poll(self) -> int | None:
        return None if self._thread.is_alive() else 0

    def wait(self, timeout: float | None = None) -> int:
        self._thread.join(timeout)
        if self._thread.is_alive():
            raise TimeoutExpired(self._thread.name, timeout)
        return 0

    def kill(self) -> None:
        msg = "A thread cannot be killed: this test wants a process."
        raise NotImplementedError(msg)

    def _serve(self) -> None:
        with self._caller as caller, ExitStack() as stack:
            worker = Worker(caller, ProgressNote(self._note), stack)
            os.close(self._note)
            with suppress(EOFError, BrokenPipeError, ConnectionResetError):
                while True:
                    worker.call_next()


class ThreadedProcess(WorkerProcess):
    """A `WorkerProcess` whose process is a thread of this one."""

    def _start(self, connection, note, log):
        return Threaded(connection, note)


_NAME = "mlflow_e2eai.runtime.isolation.WorkerProcess"


def instead_of_processes(patch):
    # Before a runner is opened there is nothing to collect in a new process; here it takes 0.2 s.
    patch.setattr("mlflow_e2eai.latency.concurrency.gc", SimpleNamespace(collect=lambda: 0))
    patch.setattr(_NAME, ThreadedProcess)


def processes_again(patch):
    patch.setattr(_NAME, WorkerProcess)
