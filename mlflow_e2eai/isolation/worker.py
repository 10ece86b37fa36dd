"""The process that runs a runner: it is told what to do until its caller hangs up."""

from __future__ import annotations

import resource
import signal
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Never

from mlflow_e2eai.artifacts import Tensors
from mlflow_e2eai.errors import E2EAIError, RunnerError
from mlflow_e2eai.isolation.note import Note
from mlflow_e2eai.latency import (
    ColdStart,
    Opened,
    Throughput,
    Timing,
    Touched,
    opened,
    throughput,
    timed,
)
from mlflow_e2eai.parity import ParityReport, compare


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


class Worker:
    """The tasks that there are, by name."""

    def __init__(self, caller: Connection, note: Note, stack: ExitStack) -> None:
        self._caller = caller
        self._note = note
        self._stack = stack
        self._opened: Opened
        self._touched: Touched
        self._held: Tensors = {}
        self._tasks: Mapping[str, Callable[..., Any]] = {
            "open": self.open,
            "infer": self.infer,
            "cold_start": self.cold_start,
            "hold": self.hold,
            "time": self.time,
            "series": self.series,
            "throughput": self.throughput,
            "compare": self.compare,
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
        """Open the runner; what it warned of."""
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            self._opened = self._stack.enter_context(opened(opener))
        self._touched = Touched(self._opened.infer)
        return [(str(one.message), one.category) for one in caught]

    def infer(self, tensors: Tensors) -> Tensors:
        """Ask once."""
        return self._noted(tensors)

    def cold_start(self, tensors: Tensors) -> ColdStart:
        """The first two answers."""
        return self._opened.cold_start(self._noted, tensors)

    def hold(self, tensors: Tensors) -> None:
        """Keep what is to be asked again and again."""
        self._held = tensors
        self._note.asking(tensors)

    def time(self) -> Timing:
        """Ask what is held, timed."""
        return self._touched.timed(self._held)

    def series(self, fill_ms: float, calls: int) -> list[float]:
        """Ask what is held again and again."""
        times: list[float] = []
        filled_ms = 0.0
        while len(times) < calls and filled_ms < fill_ms:
            times.append(timed(self._opened.infer, self._held).host_ms)
            filled_ms += times[-1]
        return times

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


def _unwind() -> Never:
    """The caller's own function failed; it knows why, and waits for the task to end."""
    msg = "The caller's function failed."
    raise RunnerError(msg)
