"""The other side of a `WorkerProcess`: calls functions until its parent disconnects or ends.

Written by hand with `mlflow_e2eai.runtime.process`, which says why.
"""

from __future__ import annotations

import os
import resource
import signal
import threading
import time
from contextlib import ExitStack, suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Never

from mlflow_e2eai.errors import E2EAIError, RunnerError
from mlflow_e2eai.runtime.process import ProgressNote

_POLL_S = 0.5


def serve(connection: int, note: int, parent: int) -> None:
    """Call functions for the parent until it disconnects.

    Args:
        connection: File number of the connection to the parent.
        note: File number of the parent's progress note.
        parent: Process id of the parent.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which then disconnects
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with suppress(OSError):  # where memory runs out, this process is the one to go
        Path("/proc/self/oom_score_adj").write_text("1000", encoding="ascii")
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    with Connection(connection) as to_parent, ExitStack() as stack:
        worker = Worker(to_parent, ProgressNote(note), stack)
        with suppress(EOFError, BrokenPipeError, ConnectionResetError):
            while True:
                worker.call_next()
    os._exit(0)  # the runners are closed; taking the interpreter down would keep the parent waiting


class Worker:
    """A worker process, as seen by the functions that are called in it.

    Attributes:
        note: The progress note, which the parent reads when this process ends.
        stack: Contexts that stay entered for further calls, until the parent disconnects.
        state: Values that stay for further calls, by name.
    """

    def __init__(self, connection: Connection, note: ProgressNote, stack: ExitStack) -> None:
        self._connection = connection
        self.note = note
        self.stack = stack
        self.state: dict[str, Any] = {}

    def call_next(self) -> None:
        """Receive a function, call it, and send its result or error.

        Raises:
            EOFError: The parent has disconnected.
        """
        try:
            function = self._connection.recv()
            reply = ("result", function(self))
        except EOFError:
            raise
        except E2EAIError as error:
            reply = ("error", error)
        except Exception as error:  # noqa: BLE001 - errors of all libraries become one kind
            text = str(error).strip().partition("\n")[0]
            reply = ("error", RunnerError(f"{type(error).__name__}: {text}"))
        self._connection.send(reply)

    def call_back(self, name: str, *arguments: Any) -> Any:
        """Call a function of the parent, one of the `callbacks` of this call.

        Raises:
            RunnerError: It failed; the parent raises the error itself when this call has unwound.
        """
        self._connection.send(("ask", name, arguments))
        kind, result = self._connection.recv()
        if kind == "error":
            msg = f"The caller's function {name!r} failed."
            raise RunnerError(msg)
        return result


def _end_with(parent: int) -> Never:
    """End this process once its parent has ended, so that it has another one."""
    while os.getppid() == parent:
        time.sleep(_POLL_S)
    os._exit(1)
