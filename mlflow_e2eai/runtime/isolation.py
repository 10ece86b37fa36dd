"""Runners in worker processes: a crash, hang or kill of native code ends the worker alone.

The functions that work in a worker process begin with an underscore; the classes call them from
here. Comparisons run in the worker, so that only samples and the reference's outputs travel.
"""

from __future__ import annotations

import math
import os
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, closing, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

from mlflow_e2eai.artifacts.values import Infer, Library, Tensors
from mlflow_e2eai.artifacts.weight_files import bytes_beside
from mlflow_e2eai.errors import RunnerError, warn_caller
from mlflow_e2eai.latency import cpu
from mlflow_e2eai.latency.concurrency import Opened, throughput, timed_open
from mlflow_e2eai.latency.measure import benchmark
from mlflow_e2eai.latency.report import ColdStart, LatencyReport, Throughput, Timing
from mlflow_e2eai.latency.timing import Touched
from mlflow_e2eai.parity.comparison import WINDOW, compare
from mlflow_e2eai.parity.report import ParityReport
from mlflow_e2eai.runtime.crashes import native_calls_written
from mlflow_e2eai.runtime.ort import Device, onnxruntime_runner
from mlflow_e2eai.runtime.process import TIMEOUT_S, WorkerProcess, loading_bytes
from mlflow_e2eai.runtime.worker import Worker

Opener: TypeAlias = Callable[[], AbstractContextManager[Infer]]
"""Opens a runner. It is pickled: a function that can be imported, or a partial of one."""

REPRODUCTION_S = 120.0
"""Seconds that a runner may take to open for a reproduction."""

_OPENED = "opened"
_RUNNERS = "runners"


@contextmanager
def worker_process() -> Iterator[WorkerProcess]:
    """Open a worker process during the block, for calls of native code that may crash."""
    with closing(WorkerProcess()) as process:
        yield process


@contextmanager
def isolated(opener: Opener, *, opening_bytes: float = math.inf) -> Iterator[IsolatedRunner]:
    """Open a runner in a worker process during the block.

    Args:
        opener: Opens the runner in the worker.
        opening_bytes: Memory that the worker may take meanwhile.

    Yields:
        The runner, as an `Infer` whose measurements and comparisons run in the worker.

    Raises:
        E2EAIError: Opening the runner raised it in the worker; a `RunnerError` where the worker
            crashed, hung, took too much memory or was killed, or where another library's error was
            raised.
    """
    with closing(WorkerProcess()) as process:
        process.reproduction = partial(_reproduce, {"": opener}, opening_bytes=opening_bytes)
        with process.limited_to(opening_bytes):
            raised = process.call(partial(_open, opener=opener))
        for text, category in raised:
            warn_caller(text, category)
        yield IsolatedRunner(process)


def isolated_onnxruntime(
    path: Path,
    *,
    device: Device = "cpu",
    precision: str = "fp32",
    rounded: bool = False,
    libraries: Sequence[Library] = (),
) -> AbstractContextManager[IsolatedRunner]:
    """Open `onnxruntime_runner` in a worker process: a graph that it cannot run may crash it."""
    opener = partial(
        onnxruntime_runner,
        path,
        device=device,
        precision=precision,
        rounded=rounded,
        libraries=libraries,
    )
    # On a GPU its libraries and their copies of the weights are there too.
    most = loading_bytes(bytes_beside(path)) if device == "cpu" else math.inf
    return isolated(opener, opening_bytes=most)


class IsolatedRunner:
    """A runner in a worker process.

    Attributes:
        timeout_s: Seconds without progress of a call after which the worker is killed.
    """

    def __init__(self, process: WorkerProcess) -> None:
        self.timeout_s = TIMEOUT_S
        self._process = process

    @property
    def failure(self) -> str | None:
        """The last error of a call, or how the worker ended; None while all goes well."""
        return self._process.failure

    def __call__(self, tensors: Tensors) -> Tensors:
        """Run the model once."""
        self._process.sample = lambda _: tensors
        outputs: Tensors = self._call(partial(_run, tensors=tensors))
        return outputs

    def cold_start(self, tensors: Tensors) -> ColdStart:
        """Measure the cost of opening the runner and of two calls; must be the first call."""
        self._process.sample = lambda _: tensors
        cold: ColdStart = self._call(
            partial(_cold_start, tensors=tensors, least_cpu_share=cpu.LEAST_SHARE)
        )
        return cold

    def throughput(self, tensors: Tensors, **options: Any) -> Throughput:
        """Call `latency.throughput` in the worker."""
        self._process.sample = lambda _: tensors
        options.setdefault("least_cpu_share", cpu.LEAST_SHARE)
        result: Throughput = self._call(partial(_throughput, tensors=tensors, **options))
        return result

    def compare(self, reference: Infer, samples: Iterable[Tensors], **options: Any) -> ParityReport:
        """Call `parity.compare` in the worker, with this runner as the candidate.

        Args:
            reference: Runs in this process.
            samples: Taken one by one from this process.
            **options: Further arguments of `parity.compare`.
        """
        remaining = enumerate(samples)
        recent: deque[tuple[int | None, Tensors]] = deque(maxlen=WINDOW)

        def take() -> Tensors | None:
            if (numbered := next(remaining, None)) is None:
                return None
            recent.append(numbered)
            return numbered[1]

        self._process.sample = lambda note: dict(recent).get(note.sample)
        report: ParityReport = self._call(
            partial(_compare, **options), reference=reference, sample=take
        )
        return report

    def _call(self, function: Callable[[Worker], Any], **callbacks: Callable[..., Any]) -> Any:
        return self._process.call(function, callbacks=callbacks, timeout_s=self.timeout_s)


def _open(worker: Worker, opener: Opener) -> list[tuple[str, type[Warning]]]:
    """Open the runner; returns the warnings that this raised."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        worker.state[_OPENED] = worker.stack.enter_context(timed_open(opener))
    return [(str(warning.message), warning.category) for warning in caught]


def _reproduce(
    openers: Mapping[str, Opener], folder: Path, runner: str, *, opening_bytes: float = math.inf
) -> None:
    """Open the runner that crashed once more; the last session or engine is the reproduction."""
    with closing(WorkerProcess()) as process:
        process.saves_crashes = False
        call = partial(_open_and_write, opener=openers[runner], folder=folder)
        with suppress(RunnerError), process.limited_to(opening_bytes):  # it crashes alike
            process.call(call, time_limit_s=REPRODUCTION_S)


def _open_and_write(_: Worker, opener: Opener, folder: Path) -> None:
    with native_calls_written(folder), opener():
        pass


def _run(worker: Worker, tensors: Tensors) -> Tensors:
    worker.note.write_inputs(tensors)
    return _open_runner(worker).infer(tensors)


def _cold_start(worker: Worker, tensors: Tensors, **options: Any) -> ColdStart:
    return _open_runner(worker).cold_start(partial(_run, worker), tensors, **options)


def _throughput(worker: Worker, tensors: Tensors, **options: Any) -> Throughput:
    worker.note.write_inputs(tensors)
    return throughput(_open_runner(worker).infer, tensors, **options)


def _compare(worker: Worker, **options: Any) -> ParityReport:
    return compare(
        partial(worker.call_back, "reference"),
        partial(_run, worker),
        iter(partial(worker.call_back, "sample"), None),
        progress=worker.note.set_sample,
        **options,
    )


def _open_runner(worker: Worker) -> Opened:
    runner: Opened = worker.state[_OPENED]
    return runner


# Several runners in one worker process, which take turns.


@contextmanager
def isolated_together(openers: Mapping[str, Opener]) -> Iterator[IsolatedRunners]:
    """Open runners in one worker process during the block, where they can take turns.

    A disturbance of the machine then falls on neighbours in a round alike: in processes of their
    own, two runners of one file were seen to differ by 10 % where here they were equal.

    Args:
        openers: The openers of the runners, by name.

    Yields:
        The runners.

    Raises:
        E2EAIError: See `isolated`; a `RunnerError` names the runner.
    """
    with closing(WorkerProcess()) as process:
        process.reproduction = partial(_reproduce, openers)
        process.call(partial(_open_all, openers=dict(openers)))
        yield IsolatedRunners(process)


class IsolatedRunners:
    """Runners in one worker process."""

    def __init__(self, process: WorkerProcess) -> None:
        self._process = process

    def benchmark(
        self,
        samples: Mapping[str, Tensors],
        local: Mapping[str, Infer] | None = None,
        **options: Any,
    ) -> LatencyReport:
        """Call `latency.benchmark` in the worker.

        Args:
            samples: The inputs of each runner, by its name.
            local: Callables of this process that take turns with the runners, before the first of
                them; their inputs are those of the first runner.
            **options: Further arguments of `latency.benchmark`.
        """
        touched = {name: Touched(infer) for name, infer in (local or {}).items()}
        sample = next(iter(samples.values()))
        callbacks: dict[str, Callable[..., Any]] = {
            "timed": lambda name: touched[name].timed(sample),
            "series": lambda name, fill_ms, calls: touched[name].series(
                sample, fill_ms=fill_ms, calls=calls
            ),
            "cpu_shares": lambda name: touched[name].cpu_shares(),
        }
        options.setdefault("least_cpu_share", cpu.LEAST_SHARE)
        order = [*touched, *samples]
        self._process.sample = lambda note: samples.get(note.runner)
        report: LatencyReport = self._process.call(
            partial(_benchmark, samples=dict(samples), order=order, caller=os.getpid(), **options),
            callbacks=callbacks,
        )
        return report


def _open_all(worker: Worker, openers: Mapping[str, Opener]) -> None:
    runners: dict[str, Infer] = {}
    for name, opener in openers.items():
        worker.note.set_runner(name)
        runners[name] = worker.stack.enter_context(opener())
    worker.state[_RUNNERS] = runners


def _benchmark(
    worker: Worker,
    samples: Mapping[str, Tensors],
    order: Sequence[str],
    caller: int,
    **options: Any,
) -> LatencyReport:
    runners: dict[str, Infer] = worker.state[_RUNNERS]
    candidates = {
        name: _WorkerTurn(worker, name, runners[name], samples[name])
        if name in samples
        else _ParentTurn(worker, name)
        for name in order
    }
    with cpu.work_with(caller):
        return benchmark(candidates, next(iter(samples.values())), **options)


class _WorkerTurn:
    """A runner of the worker, which times itself and notes its inputs."""

    def __init__(self, worker: Worker, name: str, infer: Infer, sample: Tensors) -> None:
        self._touched = Touched(infer)
        self._note, self._name, self._sample = worker.note, name, sample

    def __call__(self, _: Tensors, /) -> Tensors:
        return self._touched(self._sample)

    def timed(self, _: Tensors, /) -> Timing:
        self._write_note()
        return self._touched.timed(self._sample)

    def series(self, _: Tensors, /, *, fill_ms: float, calls: int) -> list[float]:
        self._write_note()
        return self._touched.series(self._sample, fill_ms=fill_ms, calls=calls)

    def _write_note(self) -> None:
        self._note.set_runner(self._name)
        self._note.write_inputs(self._sample)

    def cpu_shares(self) -> list[float]:
        return self._touched.cpu_shares()


class _ParentTurn:
    """A callable of the parent, which is timed there."""

    def __init__(self, worker: Worker, name: str) -> None:
        self._call_back, self._name = worker.call_back, name

    def __call__(self, _: Tensors, /) -> Tensors:
        raise NotImplementedError  # it is only ever timed

    def timed(self, _: Tensors, /) -> Timing:
        timing: Timing = self._call_back("timed", self._name)
        return timing

    def series(self, _: Tensors, /, *, fill_ms: float, calls: int) -> list[float]:
        times: list[float] = self._call_back("series", self._name, fill_ms, calls)
        return times

    def cpu_shares(self) -> list[float]:
        shares: list[float] = self._call_back("cpu_shares", self._name)
        return shares
