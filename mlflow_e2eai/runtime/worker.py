"""The process that runs a runner: it is told what to do until its caller hangs up."""

from __future__ import annotations

import os
import resource
import signal
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Never

from mlflow_e2eai.artifacts.values import Infer, Tensors
from mlflow_e2eai.errors import E2EAIError, RunnerError
from mlflow_e2eai.latency.concurrency import Opened, throughput, timed_open
from mlflow_e2eai.latency.measure import benchmark
from mlflow_e2eai.latency.report import ColdStart, LatencyReport, Throughput, Timing
from mlflow_e2eai.latency.timing import Touched
from mlflow_e2eai.parity.comparison import compare
from mlflow_e2eai.parity.report import ParityReport
from mlflow_e2eai.runtime.process import Note

_LOOK_S = 0.5


def serve(connection: int, note: int) -> None:
    """Do what the caller says until it hangs up.

    Args:
        connection: File number of the caller's connection.
        note: File number of the caller's note.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the caller, who then hangs up
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with suppress(OSError):  # where memory runs out, this process is the one to go
        Path("/proc/self/oom_score_adj").write_text("1000", encoding="ascii")
    with Connection(connection) as caller, ExitStack() as stack:
        worker = Worker(caller, Note(note), stack)
        with suppress(EOFError, BrokenPipeError, ConnectionResetError):
            while True:
                worker.work()
    os._exit(0)  # the runner is closed; taking the interpreter down would keep the caller waiting


class Worker:
    """The tasks that there are, by name."""

    def __init__(self, caller: Connection, note: Note, stack: ExitStack) -> None:
        self._caller = caller
        self._note = note
        self._stack = stack
        self._opened: Opened
        self._runners: dict[str, Infer] = {}
        self._watching = False
        self._tasks: Mapping[str, Callable[..., Any]] = {
            "open": self.open,
            "open_all": self.open_all,
            "infer": self.infer,
            "watched": self.watched,
            "cold_start": self.cold_start,
            "benchmark": self.benchmark,
            "throughput": self.throughput,
            "compare": self.compare,
            "call": self.call,
        }

    def work(self) -> None:
        """Do one task, and say how it went.

        Raises:
            EOFError: The caller hung up.
        """
        try:
            task, options = self._caller.recv()
            result = ("done", self._tasks[task](**options))
        except EOFError:
            raise
        except E2EAIError as error:
            result = ("failed", error)
        except Exception as error:  # noqa: BLE001 - whatever a library raises is the answer
            text = str(error).strip().partition("\n")[0]
            result = ("failed", RunnerError(f"{type(error).__name__}: {text}"))
        self._caller.send(result)

    def open(self, opener: Callable[[], Any]) -> list[tuple[str, type[Warning]]]:
        """Open the runner; what that warned of."""
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            self._opened = self._stack.enter_context(timed_open(opener))
        return [(str(one.message), one.category) for one in caught]

    def open_all(self, openers: Mapping[str, Callable[[], Any]]) -> None:
        """Open runners that are to take turns."""
        for name, opener in openers.items():
            self._note.label(name)
            self._runners[name] = self._stack.enter_context(opener())

    def infer(self, tensors: Tensors) -> Tensors:
        """Ask once."""
        return self._noted(tensors)

    def watched(self, function: Callable[..., Any]) -> Any:
        """Call a function that is long in native code, with what it says and asks the caller by.

        It ends with the caller, even where it neither says nor asks anything.
        """
        if not self._watching:
            self._watching = True
            threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
        return function(self._note.doing, self._ask)

    def cold_start(self, tensors: Tensors) -> ColdStart:
        """The first two answers."""
        return self._opened.cold_start(self._noted, tensors)

    def benchmark(
        self, own: Mapping[str, Tensors], order: Sequence[str], **options: Any
    ) -> LatencyReport:
        """Let runners that were opened together take turns, and the caller's among them."""
        candidates = {
            name: _Noted(self._runners[name], own[name], name, self._note)
            if name in own
            else _Foreign(self._ask, name)
            for name in order
        }
        return benchmark(candidates, next(iter(own.values())), **options)

    def throughput(self, tensors: Tensors, **options: Any) -> Throughput:
        """Ask from many threads."""
        self._note.asking(tensors)
        return throughput(self._opened.infer, tensors, **options)

    def compare(self, **options: Any) -> ParityReport:
        """Hold the runner's answers against the caller's reference, on the caller's samples."""
        return compare(
            lambda tensors: self._ask("reference", tensors),
            self._noted,
            self._samples(),
            progress=self._note.sample,
            **options,
        )

    def call(self, function: Callable[[], Any]) -> Any:
        """Call a function that can be imported, or a partial of one."""
        return function()

    def _samples(self) -> Iterator[Tensors]:
        while (sample := self._ask("sample")) is not None:
            yield sample

    def _noted(self, tensors: Tensors) -> Tensors:
        self._note.asking(tensors)
        return self._opened.infer(tensors)

    def _ask(self, name: str, *arguments: Any) -> Any:
        """Have something of the caller's called over there."""
        self._caller.send(("ask", name, arguments))
        kind, answer = self._caller.recv()
        return answer if kind == "answer" else _unwind()


class _Noted:
    """A runner that times itself, and leaves a note of what it is asked."""

    def __init__(self, infer: Infer, sample: Tensors, name: str, note: Note) -> None:
        self._touched = Touched(infer)
        self._sample, self._name, self._note = sample, name, note

    def __call__(self, _: Tensors, /) -> Tensors:
        return self._touched(self._sample)

    def timed(self, _: Tensors, /) -> Timing:
        self._note.label(self._name)
        self._note.asking(self._sample)
        return self._touched.timed(self._sample)


class _Foreign:
    """A callable of the caller's, which is timed over there."""

    def __init__(self, ask: Callable[..., Any], name: str) -> None:
        self._ask, self._name = ask, name

    def __call__(self, tensors: Tensors, /) -> Tensors:
        raise NotImplementedError  # it is only ever timed

    def timed(self, _: Tensors, /) -> Timing:
        timing: Timing = self._ask("timed", self._name)
        return timing

    def series(self, _: Tensors, /, *, fill_ms: float, calls: int) -> list[float]:
        times: list[float] = self._ask("series", self._name, fill_ms, calls)
        return times


def _end_with(parent: int) -> Never:
    """End this process when its parent has: it is then another's child."""
    while os.getppid() == parent:
        time.sleep(_LOOK_S)
    os._exit(1)


def _unwind() -> Never:
    """The caller's own function failed; it knows why, and waits for the task to end."""
    msg = "The caller's function failed."
    raise RunnerError(msg)
