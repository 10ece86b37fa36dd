"""Functions called in a worker process, whose crash or hang is an error that names the call.

Written by hand, as no pool does what is needed here: to kill a worker that makes no progress, to
run callbacks of it during a call (the reference of a comparison, the caller's turn in a benchmark),
and to report on which inputs it died. multiprocessing's spawn runs the user's `__main__`
again, and its fork is unsafe with threads and with CUDA; loky and concurrent.futures build on them.
"""

from __future__ import annotations

import math
import mmap
import os
import re
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from multiprocessing import Pipe
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from mlflow_e2eai.artifacts import machine
from mlflow_e2eai.artifacts.values import Tensors
from mlflow_e2eai.errors import RunnerError
from mlflow_e2eai.runtime.crashes import keep_crash
from mlflow_e2eai.runtime.fork_server import Child, ForkServer

if TYPE_CHECKING:
    from mlflow_e2eai.runtime.worker import Worker

TIMEOUT_S = 600.0
"""Seconds without progress after which a call is taken to hang. The first call of a large graph on
a GPU may compile for minutes; none was seen to take ten."""

SERVER = ForkServer()
"""Worker processes of this one are its forks."""

Reproduction: TypeAlias = Callable[[Path, str], None]
"""Writes a reproduction of a crash of a runner, by its name, into a folder."""

_MEMORY_SHARE = 0.8
"""Share of this machine's memory that a process may take by itself: the parent needs some too."""

_LOADING_BYTES = 3 << 29
"""Memory that loading and rewriting a small graph may take. ONNX Runtime 1.31 folds constants of up
to 1 GiB each."""

_LOADING_COPIES = 4
"""Copies of a graph and its weights that loading and rewriting it may make besides."""

_POLL_S = 0.1
"""So often is its memory looked at; it grows by up to 2 GB a second."""

_CLOSE_S = 5.0


def loading_bytes(graph_bytes: int) -> int:
    """Memory that a process may take to load or rewrite a graph of this size, weights included."""
    return _LOADING_BYTES + _LOADING_COPIES * graph_bytes


class WorkerProcess:
    """A process that calls functions for this one, one at a time, and ends with it.

    It starts when it is constructed.

    Attributes:
        sample: Returns the inputs of a call of a runner, by what the progress note says of it.
        reproduction: Writes a reproduction of a crash; None where there is none.
        saves_crashes: Whether a crash of it is kept; see `crashes`.
        most_bytes: Memory of its own, which no file backs, with more of which it is killed.
    """

    def __init__(self) -> None:
        self.sample: Callable[[ProgressNote], Tensors | None] = lambda _: None
        self.reproduction: Reproduction | None = None
        self.saves_crashes = True
        self.most_bytes = _MEMORY_SHARE * machine.memory_bytes()
        self._end: str | None = None
        self._failure: str | None = None
        self._calling = threading.Lock()
        with ExitStack() as stack:
            self._log = stack.enter_context(tempfile.TemporaryFile())
            shared = stack.enter_context(tempfile.TemporaryFile())
            # A hole would end this process (SIGBUS) where it is filled on a full disk.
            shared.write(bytes(ProgressNote.SIZE))
            shared.flush()
            self._note = ProgressNote(shared.fileno())
            self._connection, other_end = Pipe()
            with other_end:
                self._process = self._start(other_end.fileno(), shared.fileno(), self._log.fileno())
            stack.callback(self._stop)
            self._stack = stack.pop_all()

    def _start(self, connection: int, note: int, log: int) -> Child:
        return SERVER.fork(connection, note, log)

    @property
    def failure(self) -> str | None:
        """The last error of a call, or how the process ended; None while all goes well."""
        return self._failure

    @property
    def has_ended(self) -> bool:
        """Whether the process has ended, so that each further call fails."""
        return self._end is not None or self._process.poll() is not None

    def log(self, since: int = 0) -> bytes:
        """Return what the process has written to stdout and stderr, from a byte on."""
        # Its position in the file is shared with this process, and must stay where it is.
        fileno = self._log.fileno()
        return os.pread(fileno, os.fstat(fileno).st_size - since, since)

    @contextmanager
    def limited_to(self, most_bytes: float) -> Iterator[None]:
        """Lower `most_bytes` during the block."""
        before = self.most_bytes
        self.most_bytes = min(before, most_bytes)
        try:
            yield
        finally:
            self.most_bytes = before

    def kill(self) -> None:
        """End the process in the middle of a call, from any thread; that is no crash to keep."""
        self.saves_crashes = False
        self._process.kill()

    def close(self) -> None:
        """End the process, after the contexts that its calls have entered."""
        self._stack.close()

    def call(
        self,
        function: Callable[[Worker], Any],
        *,
        callbacks: Mapping[str, Callable[..., Any]] | None = None,
        timeout_s: float = TIMEOUT_S,
        time_limit_s: float = math.inf,
    ) -> Any:
        """Call a function in the process; calls of several threads are one after the other.

        Args:
            function: A function that can be imported, or a partial of one: it is pickled.
            callbacks: Functions of this process that it may call by `Worker.call_back`.
            timeout_s: Seconds without progress after which the process is killed.
            time_limit_s: Seconds after which the process is killed in any case.

        Returns:
            The result, which is pickled too.

        Raises:
            E2EAIError: The function raised it.
            RunnerError: The function raised an error of another library; or the process crashed,
                hung, took too much memory or was killed, now or in an earlier call.
            Exception: A callback raised it.
        """
        with self._calling:
            return self._call(function, callbacks or {}, timeout_s, time_limit_s)

    def _call(
        self,
        function: Callable[[Worker], Any],
        callbacks: Mapping[str, Callable[..., Any]],
        timeout_s: float,
        time_limit_s: float,
    ) -> Any:
        if self._end is not None:
            raise RunnerError(self._end, runner=self._note.runner or None)
        deadline = time.monotonic() + time_limit_s
        self._send(function)
        callback_error: Exception | None = None
        while True:
            kind, *content = self._receive(timeout_s, deadline, time_limit_s)
            if kind == "result":
                return content[0]
            if kind == "error":
                raise callback_error or self._call_error(content[0])
            name, arguments = content
            try:
                reply = ("result", callbacks[name](*arguments))
            except Exception as error:  # noqa: BLE001 - raised again when the call has unwound
                callback_error, reply = error, ("error", None)
            self._send(reply)

    def _send(self, message: Any) -> None:
        try:
            self._connection.send(message)
        except (BrokenPipeError, ConnectionResetError) as error:
            raise self._end_error(_how_it_ended(self._process.wait())) from error

    def _receive(self, timeout_s: float, deadline: float, time_limit_s: float) -> Any:
        progress, since = self._note.read(), time.monotonic()
        while True:
            if time.monotonic() > deadline:
                late = f"did not finish within {time_limit_s:g} s"
                raise self._kill_error(late)
            if self._connection.poll(_POLL_S):
                break
            if (taken := _own_bytes(self._process.pid)) > self.most_bytes:
                greedy = (
                    f"took {taken / 1e9:.1f} GB of memory (at most {self.most_bytes / 1e9:.1f} GB "
                    "are expected; give a smaller graph or inputs)"
                )
                raise self._kill_error(greedy)
            if (now := self._note.read()) != progress:
                progress, since = now, time.monotonic()
            if time.monotonic() - since > timeout_s:
                silent = f"did not respond for {timeout_s:g} s"
                raise self._kill_error(silent)
        try:
            return self._connection.recv()
        except (EOFError, ConnectionResetError) as error:
            raise self._end_error(_how_it_ended(self._process.wait())) from error

    def _kill_error(self, reason: str) -> RunnerError:
        self._process.kill()
        self._process.wait()
        return self._end_error(reason)

    def _end_error(self, reason: str) -> RunnerError:
        log, note = self.log().decode(errors="replace"), self._note
        lines = log.strip().splitlines()
        last = f" Its last output: {lines[-1].strip()}" if lines else ""
        end = f"Its process {reason} {note.activity or 'while it was opened'}.{last}"
        self._failure = self._end = end  # also for a call of another thread meanwhile
        if self.saves_crashes:
            sample = self.sample(note) if note.activity else None
            self._failure = self._end = end + keep_crash(end, log, sample, self._write)
        return RunnerError(self._end, runner=note.runner or None)

    def _write(self, folder: Path) -> None:
        if self.reproduction is not None:
            self.reproduction(folder, self._note.runner)

    def _call_error(self, error: Exception) -> Exception:
        self._failure = str(error)
        if isinstance(error, RunnerError):
            error.runner = self._note.runner or None
        return error

    def _stop(self) -> None:
        self._connection.close()
        try:
            self._process.wait(_CLOSE_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def _how_it_ended(code: int) -> str:
    """Describe the end of a process by its exit code."""
    if code == -signal.SIGKILL:
        return "was killed (SIGKILL, as Linux does when memory runs out)"
    if code < 0:
        return f"crashed ({signal.Signals(-code).name})"
    return f"ended (exit code {code})"


def _own_bytes(pid: int) -> int:
    """Memory of a process that no file backs, by proc_pid_statm(5); 0 where it has ended."""
    try:
        _, resident, shared, *_ = Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()
    except (OSError, ValueError):  # ValueError: it ends right now, or this is no Linux
        return 0
    return (int(resident) - int(shared)) * mmap.PAGESIZE


class ProgressNote:
    """A line of text in a file that two processes share, and that outlives one of them.

    Args:
        fileno: The open file, of at least `SIZE` bytes.
    """

    SIZE = 1000

    def __init__(self, fileno: int) -> None:
        self._memory = mmap.mmap(fileno, self.SIZE)
        self._count = 0
        self._sample: int | None = None
        self._runner = ""

    def set_sample(self, number: int) -> None:
        """Write the number of the sample of the next calls."""
        self._sample = number

    def set_runner(self, name: str) -> None:
        """Write which of several runners works next."""
        self._runner = name
        self._write("")

    def write_inputs(self, tensors: Tensors) -> None:
        """Write the inputs of a call of a runner."""
        sizes = ", ".join(f"{name} {list(array.shape)}" for name, array in tensors.items())
        sample = "" if self._sample is None else f"sample {self._sample}, "
        self.write_activity(f"on {sample}{sizes}")

    def write_activity(self, text: str) -> None:
        """Write other work than a call of a runner, in words that continue "crashed ..."."""
        self._count += 1
        self._write(text)

    def _write(self, text: str) -> None:
        # The count makes each call of a series of equal ones a sign of progress.
        line = f"{self._count}|{self._runner}|{text}".encode()[: self.SIZE - 1]
        self._memory[: len(line) + 1] = line + b"\0"

    def read(self) -> bytes:
        """Return the whole line, which differs from an earlier one where there was progress."""
        return self._memory[: self.SIZE].partition(b"\0")[0]

    @property
    def activity(self) -> str:
        """The last activity, for people; empty before the first."""
        return self._part(2)

    @property
    def sample(self) -> int | None:
        """The number of the sample of the last activity, if it has one."""
        found = re.match(r"on sample (\d+)", self.activity)
        return None if found is None else int(found[1])

    @property
    def runner(self) -> str:
        """The runner of the last activity; empty where there is only one."""
        return self._part(1)

    def _part(self, number: int) -> str:
        parts = self.read().decode(errors="replace").split("|", 2)
        return parts[number] if number < len(parts) else ""
