"""This side: starts the process, tells it what to do, and notices its end."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from multiprocessing import Pipe
from pathlib import Path
from typing import Any, Self, TypeAlias

from mlflow_e2eai.artifacts import Infer, Tensors
from mlflow_e2eai.errors import RunnerError
from mlflow_e2eai.isolation.note import SIZE, Note
from mlflow_e2eai.latency import ColdStart, Throughput, Timing
from mlflow_e2eai.parity import ParityReport
from mlflow_e2eai.runners import Device, onnxruntime_runner

Opener: TypeAlias = Callable[[], AbstractContextManager[Infer]]
"""Opens a runner. It is pickled: a function that can be imported, or a partial of one."""

PATIENCE_S = 600.0
"""Seconds without a sign of life after which a process is taken to hang. The first call of a large
graph on a GPU may compile for minutes; none was seen to take ten."""

_BOOT = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "from mlflow_e2eai.isolation.worker import serve; serve(int(sys.argv[2]), int(sys.argv[3]))"
)
_LOOK_S = 0.5
_GOODBYE_S = 5.0


@contextmanager
def isolated(opener: Opener, *, patience_s: float = PATIENCE_S) -> Iterator[Isolated]:
    """Open a runner in a process of its own, for the block.

    Args:
        opener: Opens it there.
        patience_s: Seconds without a sign of life after which the process is killed.

    Yields:
        The runner, as an `Infer` that can also be told to work there.

    Raises:
        E2EAIError: What opening it raised there; a `RunnerError` where it crashed, hung or was
            killed, or where another library's error was raised.
    """
    with Isolated(opener, patience_s=patience_s) as there:
        yield there


def isolated_onnxruntime(
    path: Path, *, device: Device = "cpu", rounded: bool = False
) -> AbstractContextManager[Isolated]:
    """`onnxruntime_runner` in a process of its own: a graph that it does not take may crash it."""
    return isolated(partial(onnxruntime_runner, path, device=device, rounded=rounded))


class Isolated:
    """A runner in another process; see `isolated`.

    Every method raises what is raised over there: an `E2EAIError` as it is, any other error as a
    `RunnerError` with its text. When the process ends, that is a `RunnerError` too, now and for
    every later question.
    """

    def __init__(self, opener: Opener, *, patience_s: float) -> None:
        self._opener = opener
        self._patience_s = patience_s
        self._held: Tensors | None = None
        self._death: str | None = None
        self._failure: str | None = None
        with ExitStack() as stack:
            self._log = stack.enter_context(tempfile.TemporaryFile())
            paper = stack.enter_context(tempfile.TemporaryFile())
            paper.truncate(SIZE)
            self._note = Note(paper.fileno())
            self._connection, theirs = Pipe()
            with theirs:
                self._process = _start(theirs.fileno(), paper.fileno(), self._log)
            stack.callback(self._end)
            self._stack = stack.pop_all()

    def __enter__(self) -> Self:
        try:
            for text, category in self._do("open", {}, opener=self._opener):
                warnings.warn(text, category, stacklevel=2)
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @property
    def failure(self) -> str | None:
        """What the runner raised last, or how its process ended; None while all goes well."""
        return self._failure

    def __call__(self, tensors: Tensors) -> Tensors:
        """Ask once."""
        answer: Tensors = self._do("infer", {}, tensors=tensors)
        return answer

    def timed(self, tensors: Tensors) -> Timing:
        """Ask once, timed where it runs. The same arrays are sent once, not for every call."""
        self._hold(tensors)
        timing: Timing = self._do("time", {})
        return timing

    def series(self, tensors: Tensors, *, fill_ms: float, calls: int) -> list[float]:
        """Ask until the calls fill so many milliseconds; the time of each."""
        self._hold(tensors)
        times: list[float] = self._do("series", {}, fill_ms=fill_ms, calls=calls)
        return times

    def cold_start(self, tensors: Tensors) -> ColdStart:
        """What opening the runner cost, and what its first two answers do: to be asked first."""
        cold: ColdStart = self._do("cold_start", {}, tensors=tensors)
        return cold

    def throughput(self, tensors: Tensors, **options: Any) -> Throughput:
        """As `latency.throughput`, with the callers over there."""
        found: Throughput = self._do("throughput", {}, tensors=tensors, **options)
        return found

    def compare(self, reference: Infer, samples: Iterable[Tensors], **options: Any) -> ParityReport:
        """As `parity.compare`, with this runner as the candidate; the reference is asked here."""
        left = iter(samples)
        here: dict[str, Callable[..., Any]] = {
            "reference": reference,
            "sample": lambda: next(left, None),
        }
        report: ParityReport = self._do("compare", here, **options)
        return report

    def _hold(self, tensors: Tensors) -> None:
        if tensors is not self._held:
            self._do("hold", {}, tensors=tensors)
            self._held = tensors

    def _do(self, task: str, here: Mapping[str, Callable[..., Any]], **options: Any) -> Any:
        """Have a task done there; what it asks of `here` is answered meanwhile."""
        if self._death is not None:
            raise RunnerError(self._death)
        failed: Exception | None = None
        self._send((task, options))
        while True:
            kind, *said = self._receive()
            if kind == "done":
                return said[0]
            if kind == "failed":
                if failed is None:
                    self._failure = str(said[0])
                raise failed or said[0]
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
        while not self._connection.poll(_LOOK_S):
            if (now := self._note.read()) != seen:
                seen, since = now, time.monotonic()
            if time.monotonic() - since > self._patience_s:
                self._process.kill()
                self._process.wait()
                silent = f"gave no sign of life for {self._patience_s:g} s"
                raise self._ended(silent)
        try:
            return self._connection.recv()
        except (EOFError, ConnectionResetError) as error:
            raise self._ended(_how(self._process.wait())) from error

    def _ended(self, how: str) -> RunnerError:
        self._log.seek(0)
        lines = self._log.read().decode(errors="replace").strip().splitlines()
        last = f" Its last words: {lines[-1].strip()}" if lines else ""
        place = self._note.place() or "while it was opened"
        self._failure = self._death = f"Its process {how} {place}.{last}"
        return RunnerError(self._death)

    def _end(self) -> None:
        self._connection.close()
        try:
            self._process.wait(_GOODBYE_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def _start(connection: int, note: int, log: Any) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-c", _BOOT, json.dumps(sys.path), str(connection), str(note)]
    return subprocess.Popen(  # noqa: S603 - ourselves
        command, pass_fds=(connection, note), stdin=subprocess.DEVNULL, stdout=log, stderr=log
    )


def _how(code: int) -> str:
    """How a process ended, from its exit code."""
    if code == -signal.SIGKILL:
        return "was killed (SIGKILL, as Linux does when memory runs out)"
    if code < 0:
        return f"crashed ({signal.Signals(-code).name})"
    return f"ended (exit code {code})"
