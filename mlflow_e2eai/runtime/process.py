"""This side of another process: starts it, has work done there, and notices its end."""

from __future__ import annotations

import json
import math
import mmap
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from multiprocessing import Pipe
from typing import Any

from mlflow_e2eai.artifacts.values import Tensors
from mlflow_e2eai.errors import RunnerError

_BOOT = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "from mlflow_e2eai.runtime.worker import serve; serve(int(sys.argv[2]), int(sys.argv[3]))"
)
_LOOK_S = 0.5
_GOODBYE_S = 5.0


class Process:
    """Another process that does what it is told.

    Every task raises what is raised over there: an `E2EAIError` as it is, any other error as a
    `RunnerError` with its text. When the process ends, that is a `RunnerError` too, now and for
    every later task.

    Args:
        patience_s: Seconds without a sign of life after which it is killed.
        limit_s: Seconds after which it is killed whatever it does.
    """

    def __init__(self, *, patience_s: float, limit_s: float = math.inf) -> None:
        self._patience_s = patience_s
        self._limit_s, self._began = limit_s, time.monotonic()
        self._death: str | None = None
        self._failure: str | None = None
        with ExitStack() as stack:
            self._log = stack.enter_context(tempfile.TemporaryFile())
            paper = stack.enter_context(tempfile.TemporaryFile())
            paper.truncate(SIZE)
            self._note = Note(paper.fileno())
            self._connection, theirs = Pipe()
            with theirs:
                self._process = self._started(theirs.fileno(), paper.fileno(), self._log)
            stack.callback(self._end)
            self._stack = stack.pop_all()

    def _started(self, connection: int, note: int, log: Any) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-c", _BOOT, json.dumps(sys.path), str(connection), str(note)]
        return subprocess.Popen(  # noqa: S603 - ourselves
            command, pass_fds=(connection, note), stdin=subprocess.DEVNULL, stdout=log, stderr=log
        )

    @property
    def failure(self) -> str | None:
        """What was raised last over there, or how the process ended; None while all goes well."""
        return self._failure

    @property
    def ended(self) -> bool:
        """Whether it has ended: no task will be done there any more."""
        return self._death is not None or self._process.poll() is not None

    def log(self, since: int = 0) -> bytes:
        """What it has written to stdout and stderr, from a byte on."""
        # Its place in the file is ours too, and must stay where it is.
        fileno = self._log.fileno()
        return os.pread(fileno, os.fstat(fileno).st_size - since, since)

    def kill(self) -> None:
        """End it in the middle of what it does."""
        self._process.kill()

    def limit(self, seconds: float) -> None:
        """Kill it so many seconds from now, whatever it does then."""
        self._limit_s, self._began = seconds, time.monotonic()

    def close(self) -> None:
        """End it."""
        self._stack.close()

    def do(self, task: str, here: Mapping[str, Callable[..., Any]], **options: Any) -> Any:
        """Have a task done there; what it asks of `here` is answered meanwhile."""
        self.begin(task, **options)
        return self.finish(here)

    def begin(self, task: str, **options: Any) -> None:
        """Have a task begun there, which `finish` waits for."""
        if self._death is not None:
            raise RunnerError(self._death, runner=self._note.labelled() or None)
        self._send((task, options))

    def finish(self, here: Mapping[str, Callable[..., Any]]) -> Any:
        """Wait for what was begun; as `do`."""
        failed: Exception | None = None
        while True:
            kind, *said = self._receive()
            if kind == "done":
                return said[0]
            if kind == "failed":
                raise failed or self._failed(said[0])
            name, arguments = said
            try:
                answer = ("answer", here[name](*arguments))
            except Exception as error:  # noqa: BLE001 - raised again once the task has unwound
                failed, answer = error, ("raise", None)
            self._send(answer)

    def _send(self, message: Any) -> None:
        try:
            self._connection.send(message)
        except (BrokenPipeError, ConnectionResetError) as error:
            raise self._ended(_how(self._process.wait())) from error

    def _receive(self) -> Any:
        seen, since = self._note.read(), time.monotonic()
        while True:
            if time.monotonic() - self._began > self._limit_s:
                late = f"was not done within {self._limit_s:g} s"
                raise self._stopped(late)
            if self._connection.poll(_LOOK_S):
                break
            if (now := self._note.read()) != seen:
                seen, since = now, time.monotonic()
            if time.monotonic() - since > self._patience_s:
                silent = f"gave no sign of life for {self._patience_s:g} s"
                raise self._stopped(silent)
        try:
            return self._connection.recv()
        except (EOFError, ConnectionResetError) as error:
            raise self._ended(_how(self._process.wait())) from error

    def _stopped(self, why: str) -> RunnerError:
        self._process.kill()
        self._process.wait()
        return self._ended(why)

    def _ended(self, how: str) -> RunnerError:
        self._log.seek(0)
        lines = self._log.read().decode(errors="replace").strip().splitlines()
        last = f" Its last words: {lines[-1].strip()}" if lines else ""
        place = self._note.place() or "while it was opened"
        self._failure = self._death = f"Its process {how} {place}.{last}"
        return RunnerError(self._death, runner=self._note.labelled() or None)

    def _failed(self, error: Exception) -> Exception:
        self._failure = str(error)
        if isinstance(error, RunnerError):
            error.runner = self._note.labelled() or None
        return error

    def _end(self) -> None:
        self._connection.close()
        try:
            self._process.wait(_GOODBYE_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def _how(code: int) -> str:
    """How a process ended, from its exit code."""
    if code == -signal.SIGKILL:
        return "was killed (SIGKILL, as Linux does when memory runs out)"
    if code < 0:
        return f"crashed ({signal.Signals(-code).name})"
    return f"ended (exit code {code})"


# What a worker is at, in memory that two processes share and that outlives one of them.


SIZE = 1000


class Note:
    """A line of text in a file that both processes have open.

    Args:
        fileno: The file, of at least `SIZE` bytes.
    """

    def __init__(self, fileno: int) -> None:
        self._memory = mmap.mmap(fileno, SIZE)
        self._calls = 0
        self._sample: int | None = None
        self._label = ""

    def sample(self, number: int) -> None:
        """The calls that follow are about this sample."""
        self._sample = number

    def label(self, text: str) -> None:
        """What follows is about one of several runners."""
        self._label = text
        self._write("")

    def asking(self, tensors: Tensors) -> None:
        """A call with these inputs begins."""
        self._calls += 1
        sizes = ", ".join(f"{name} {list(array.shape)}" for name, array in tensors.items())
        which = "" if self._sample is None else f"sample {self._sample}, "
        self._write(f"on {which}{sizes}")

    def doing(self, text: str) -> None:
        """Something else than a call begins."""
        self._calls += 1
        self._write(text)

    def _write(self, text: str) -> None:
        # The count tells calls apart, so that a long series of one kind is seen to go on.
        line = f"{self._calls}|{self._label}|{text}".encode()[: SIZE - 1]
        self._memory[: len(line) + 1] = line + b"\0"

    def read(self) -> bytes:
        """All of it, to be compared with what was read before."""
        return self._memory[:SIZE].partition(b"\0")[0]

    def place(self) -> str:
        """What the last call was about, for people; empty before the first."""
        return self._part(2)

    def labelled(self) -> str:
        """Which of several runners it was about; empty where there is one."""
        return self._part(1)

    def _part(self, number: int) -> str:
        parts = self.read().decode(errors="replace").split("|", 2)
        return parts[number] if number < len(parts) else ""
