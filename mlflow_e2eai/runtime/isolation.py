"""Runners in other processes, as their caller sees them."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, closing, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Self, TypeAlias

from mlflow_e2eai.artifacts.values import Infer, Library, Tensors
from mlflow_e2eai.latency.report import ColdStart, LatencyReport, Throughput
from mlflow_e2eai.latency.timing import Touched, series
from mlflow_e2eai.parity.report import ParityReport
from mlflow_e2eai.runtime.ort import Device, onnxruntime_runner
from mlflow_e2eai.runtime.process import Process

Opener: TypeAlias = Callable[[], AbstractContextManager[Infer]]
"""Opens a runner. It is pickled: a function that can be imported, or a partial of one."""

Opened: TypeAlias = "Callable[[Path], AbstractContextManager[Isolated]]"
"""Opens a graph with ONNX Runtime in a process of its own; an `Ahead` is one."""

PATIENCE_S = 600.0
"""Seconds without a sign of life after which a process is taken to hang. The first call of a large
graph on a GPU may compile for minutes; none was seen to take ten."""


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
    with closing(Isolated(patience_s=patience_s)) as there:
        there.begin("open", opener=opener)
        yield there.opened()


@contextmanager
def onnxruntime_ahead(
    graph: Path | None = None, *, libraries: Sequence[Library] = ()
) -> Iterator[Ahead]:
    """`isolated_onnxruntime` on the CPU, for graphs that are still to be made in the block.

    The process for the first of them starts at once, so that nobody waits for it later.

    Args:
        graph: One that is there already: a process of its own loads it meanwhile.
        libraries: Libraries of operators, for all of them.
    """
    with closing(Ahead(partial(onnxruntime_runner, libraries=libraries))) as ahead:
        if graph is not None:
            ahead.load(graph)
            ahead.start()
        yield ahead


class Ahead:
    """Opens graphs in processes that were started before they were wanted.

    Args:
        opener: Opens a graph over there.
    """

    def __init__(self, opener: Callable[[Path], AbstractContextManager[Infer]]) -> None:
        self._opener = opener
        self._idle: list[Isolated] = []
        self._loading: dict[Path, Isolated] = {}
        self.start()

    def start(self) -> None:
        """Start a process for a graph that is still to be made."""
        self._idle.append(Isolated(patience_s=PATIENCE_S))

    def load(self, graph: Path) -> None:
        """Have a graph loaded over there while the caller does something else."""
        self._loading[graph] = self._started()
        self._loading[graph].begin("open", opener=partial(self._opener, graph))

    @contextmanager
    def __call__(self, graph: Path) -> Iterator[Isolated]:
        """Open a graph, for the block, from where `load` left it."""
        if graph not in self._loading:
            self.load(graph)
        with closing(self._loading.pop(graph)) as there:
            yield there.opened()

    def close(self) -> None:
        """End the processes that nobody wanted."""
        for there in (*self._idle, *self._loading.values()):
            there.close()

    def _started(self) -> Isolated:
        return self._idle.pop() if self._idle else Isolated(patience_s=PATIENCE_S)


@contextmanager
def isolated_together(
    openers: Mapping[str, Opener], *, patience_s: float = PATIENCE_S
) -> Iterator[Together]:
    """Open runners in one other process, for the block, where they can take turns.

    What the machine does to one call then falls on its neighbours in the round too: in processes
    of their own, two runners of one file were seen to differ by 10 % where here they were equal.

    Args:
        openers: What opens each, by name.
        patience_s: Seconds without a sign of life after which the process is killed.

    Yields:
        The runners.

    Raises:
        E2EAIError: As `isolated`; a `RunnerError` says which runner it was.
    """
    there = Together(patience_s=patience_s)
    with closing(there):
        yield there.opened(openers)


def isolated_onnxruntime(
    path: Path,
    *,
    device: Device = "cpu",
    rounded: bool = False,
    fused: bool = True,
    libraries: Sequence[Library] = (),
) -> AbstractContextManager[Isolated]:
    """`onnxruntime_runner` in a process of its own: a graph that it does not take may crash it."""
    return isolated(
        partial(
            onnxruntime_runner,
            path,
            device=device,
            rounded=rounded,
            fused=fused,
            libraries=libraries,
        )
    )


class Isolated(Process):
    """A runner in another process; see `isolated`."""

    def opened(self) -> Self:
        """Wait until it is open, and pass on what that warned of."""
        for text, category in self.finish({}):
            warnings.warn(text, category, stacklevel=4)
        return self

    def __call__(self, tensors: Tensors) -> Tensors:
        """Ask once."""
        answer: Tensors = self.do("infer", {}, tensors=tensors)
        return answer

    def cold_start(self, tensors: Tensors) -> ColdStart:
        """What opening the runner cost, and what its first two answers do: to be asked first."""
        cold: ColdStart = self.do("cold_start", {}, tensors=tensors)
        return cold

    def throughput(self, tensors: Tensors, **options: Any) -> Throughput:
        """As `latency.throughput`, with the callers over there."""
        found: Throughput = self.do("throughput", {}, tensors=tensors, **options)
        return found

    def compare(self, reference: Infer, samples: Iterable[Tensors], **options: Any) -> ParityReport:
        """As `parity.compare`, with this runner as the candidate; the reference is asked here."""
        left = iter(samples)
        here: dict[str, Callable[..., Any]] = {
            "reference": reference,
            "sample": lambda: next(left, None),
        }
        report: ParityReport = self.do("compare", here, **options)
        return report


class Together(Process):
    """Runners in one other process; see `isolated_together`."""

    def opened(self, openers: Mapping[str, Opener]) -> Self:
        """Open them, one after the other."""
        self.do("open_all", {}, openers=dict(openers))
        return self

    def benchmark(
        self,
        samples: Mapping[str, Tensors],
        here: Mapping[str, Infer] | None = None,
        **options: Any,
    ) -> LatencyReport:
        """As `latency.benchmark`.

        Args:
            samples: The runners that take turns, by name, and what each is asked.
            here: Callables on this side that take turns with them, before the first of them; they
                are asked what the first runner is asked.
            **options: As there.
        """
        foreign = {name: Touched(infer) for name, infer in (here or {}).items()}
        sample = next(iter(samples.values()))
        calls: dict[str, Callable[..., Any]] = {
            "timed": lambda name: foreign[name].timed(sample),
            "series": lambda name, fill_ms, calls: series(
                foreign[name], sample, fill_ms=fill_ms, calls=calls
            ),
        }
        report: LatencyReport = self.do(
            "benchmark", calls, own=dict(samples), order=[*foreign, *samples], **options
        )
        return report
