"""Runners in other processes, as their caller sees them."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, closing, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Self, TypeAlias

from mlflow_e2eai.artifacts import Infer, Library, Tensors
from mlflow_e2eai.isolation.process import Process
from mlflow_e2eai.latency import ColdStart, LatencyReport, Throughput, Touched, series
from mlflow_e2eai.parity import ParityReport
from mlflow_e2eai.runners import Device, onnxruntime_runner

Opener: TypeAlias = Callable[[], AbstractContextManager[Infer]]
"""Opens a runner. It is pickled: a function that can be imported, or a partial of one."""

Opened: TypeAlias = "Callable[[Path], AbstractContextManager[Isolated]]"
"""Opens a graph with ONNX Runtime in a process of its own."""

PATIENCE_S = 600.0
"""Seconds without a sign of life after which a process is taken to hang. The first call of a large
graph on a GPU may compile for minutes; none was seen to take ten."""


def isolated(opener: Opener, *, patience_s: float = PATIENCE_S) -> AbstractContextManager[Isolated]:
    """Open a runner in a process of its own, for the block.

    Args:
        opener: Opens it there.
        patience_s: Seconds without a sign of life after which the process is killed.

    Returns:
        The runner, as an `Infer` that can also be told to work there.

    Raises:
        E2EAIError: What opening it raised there; a `RunnerError` where it crashed, hung or was
            killed, or where another library's error was raised.
    """
    return _opened(partial(Isolated, patience_s=patience_s), opener)


@contextmanager
def _opened(
    start: Callable[[], Isolated], opener: Opener, *, begun: bool = False
) -> Iterator[Isolated]:
    with closing(start()) as there:
        if not begun:
            there.begin("open", opener=opener)
        for text, category in there.finish({}):
            warnings.warn(text, category, stacklevel=3)
        yield there


@contextmanager
def onnxruntime_ahead(
    graph: Path | None = None, *, libraries: Sequence[Library] = ()
) -> Iterator[Opened]:
    """`isolated_onnxruntime` on the CPU, for graphs that are still to be made in the block.

    The process for the first of them starts at once, so that nobody waits for it later.

    Args:
        graph: One that is there already: a process of its own loads it meanwhile.
        libraries: Libraries of operators, for all of them.
    """
    opener = partial(onnxruntime_runner, libraries=libraries)
    waiting: dict[Path | None, Isolated] = {None: Isolated(patience_s=PATIENCE_S)}
    if graph is not None:
        waiting[graph] = Isolated(patience_s=PATIENCE_S)
        waiting[graph].begin("open", opener=partial(opener, graph))

    def opened(path: Path) -> AbstractContextManager[Isolated]:
        begun = path in waiting

        def start() -> Isolated:
            there = waiting.pop(path if begun else None, None)
            return there or Isolated(patience_s=PATIENCE_S)

        return _opened(start, partial(opener, path), begun=begun)

    try:
        yield opened
    finally:
        for there in waiting.values():
            there.close()


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
