"""Order of calls: samples in turns, warm, repeated, and from several threads."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, TypeAlias

import numpy as np

from mlflow_e2eai.artifacts.values import Infer, Tensors
from mlflow_e2eai.errors import InvalidInputError
from mlflow_e2eai.parity.answers import Circumstances, Comparison, OutputCopy
from mlflow_e2eai.parity.judge import OutputComparer, poison
from mlflow_e2eai.parity.measure import BLOCK, same_bits
from mlflow_e2eai.parity.report import ParityReport
from mlflow_e2eai.parity.tolerances import limits_for

REPEATS = 10
"""Times that each sample is asked."""

WINDOW = 4
"""Samples that are held together, to be asked in turns: as many as the corners of most profiles."""

THREADED_ROUNDS = 4
"""Times that all threads ask at once."""

Progress: TypeAlias = Callable[[int], None]
Asked: TypeAlias = tuple[Tensors, Comparison]


def compare(
    reference: Infer,
    candidate: Infer,
    samples: Iterable[Tensors],
    *,
    precision: str = "fp32",
    tolerance: float | Mapping[str, float] | None = None,
    repeats: int = REPEATS,
    threads: int = 2,
    stop_when_failed: bool = False,
    scales: Mapping[str, float] | None = None,
    progress: Progress | None = None,
) -> ParityReport:
    """Hold a candidate's answers against a reference's.

    Integers, booleans and texts must be equal. A number that is NaN or infinite in the reference
    must be the same in the candidate. Outputs may be lists of arrays of any shapes.

    A candidate is judged warm and repeatedly, because an engine was seen (TensorRT-RTX 1.6.1 on an
    H100) whose first two answers were right and whose next 148 were not. Up to `WINDOW` samples are
    asked in turns, there and back, so that every sample comes after itself, after another and,
    where their shapes differ, after a change of shape: an answer of the call before is then seen to
    be one. A buffer in which the candidate gives several answers is filled with NaN before each
    call. It gets inputs of its own, which it must leave as they are. Give at least two samples with
    different answers: with one, an old answer cannot be told from a new one.

    Args:
        reference: Gives the right answers; asked twice for each sample, to learn how far its own
            answers differ, and once where `repeats` is 1.
        candidate: Gives the answers to judge.
        samples: Named inputs; read as they are needed, at most `WINDOW` held together, and one
            where `repeats` is 1.
        precision: The candidate's, one of `TOLERANCES`, which it chooses among.
        tolerance: Largest error as a share of the reference output's largest magnitude, in place
            of the precision's limits; or such numbers by output, the others keeping theirs.
        repeats: Times to ask the candidate for each sample. All answers must agree with the
            reference, and with each other: to a quarter of the tolerance, or three times what the
            reference's own differ by. At 1 the candidate is no suspect: each sample is asked once,
            from this thread.
        threads: Threads that ask the first samples at once, a few times, where all was right so
            far. Give 1 for a candidate that is made for one thread.
        stop_when_failed: Stop at the first thing that is wrong; the numbers are of what was asked.
        scales: By output, a magnitude that errors are a share of where the reference's own in the
            sample is smaller, such as that of its usual answers: of zeros there is little to be a
            share of.
        progress: Called with the number of the sample, from 0, just before each call of the
            candidate: for a progress bar, or to know on which sample a candidate brought down its
            process. Always from the thread that called `compare`: before several threads ask at
            once, it is called for the sample of each. What it raises ends the comparison.

    Returns:
        The report. It did not pass when there were no samples: nothing seen is not nothing wrong.

    Raises:
        InvalidInputError: `repeats` or `threads` is not positive, the precision is unknown, or a
            tolerance is not a number of at least 0 or is of an output that the reference does not
            give.
    """
    limits = limits_for(precision, tolerance, scales)
    if repeats < 1 or threads < 1:
        msg = f"repeats={repeats} and threads={threads}; give at least 1."
        raise InvalidInputError(msg)
    judge = OutputComparer(limits, stop_when_failed=stop_when_failed)
    asker = _Caller(candidate, judge, progress or _ignore)
    at_once = threads if repeats > 1 else 1
    count = 0
    for window in _windows(reference, samples, judge, WINDOW if repeats > 1 else 1):
        if not count:
            limits.check(window[0][1].right)
        count += len(window)
        asker.ask_in_turns(window, repeats)
        if count == len(window) and at_once > 1 and not judge.findings:
            asker.ask_at_once(window, at_once)
        window.clear()  # or it would be held while the next is read
        if judge.is_decided:
            break
    asker.stack.flush()
    outputs = judge.results()
    if not count:
        judge.add("no_samples", sentence="There were no samples, so nothing was compared.")
    elif not outputs and not judge.findings:
        judge.add("no_outputs", sentence="The reference has no outputs, so nothing was compared.")
    return ParityReport(
        outputs=outputs,
        findings=tuple(judge.findings.values()),
        samples=count,
        repeats=repeats,
        tolerance=limits.default,
        calls=judge.calls,
        threads=at_once,
    )


def _windows(
    reference: Infer, samples: Iterable[Tensors], judge: OutputComparer, size: int
) -> Iterator[list[Asked]]:
    """Samples in lists, with the reference's answers; asked twice where there is to be noise."""
    numbered = enumerate(samples)
    while window := [
        (sample, Comparison(number, _copy_outputs(reference(_copies(sample)))))
        for number, sample in itertools.islice(numbered, size)
    ]:
        if size > 1:
            for sample, question in window:
                judge.reference(question, _copy_outputs(reference(_copies(sample))))
            del sample, question
        yield window


@dataclass(slots=True)
class _Caller:
    """Asks the candidate, and keeps what the next call may be caught at."""

    candidate: Infer
    judge: OutputComparer
    progress: Progress
    stack: Batch = field(init=False)
    before: tuple[int, Mapping[str, OutputCopy]] = (-1, MappingProxyType({}))
    raw: Tensors = field(default_factory=dict)
    given: Mapping[str, OutputCopy] = field(default_factory=dict)
    reused: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        self.stack = Batch(self.judge)

    def ask_in_turns(self, window: Sequence[Asked], repeats: int) -> None:
        """Ask every question `repeats` times, there and back."""
        judge = self.stack.add_outputs if repeats == 1 else self.judge.add_call
        for turn in range(repeats):
            for sample, question in window if turn % 2 == 0 else reversed(window):
                if not self.judge.is_decided:
                    judge(question, *self.ask(sample, question))

    def ask(
        self, sample: Tensors, question: Comparison
    ) -> tuple[Mapping[str, OutputCopy], Circumstances]:
        """Ask once."""
        for name in self.reused:
            self.raw[name].fill(poison(self.raw[name]))
        inputs = _copies(sample)
        self.progress(question.number)
        raw = self.candidate(inputs)
        given = _copy_outputs(raw)
        self._check_inputs(question.number, sample, inputs)
        number, right = self.before
        around = Circumstances(right if number != question.number else {}, self.reused)
        self.reused = frozenset(name for name in raw if self._is_reused(name, raw[name]))
        self.before, self.raw, self.given = (question.number, question.right), raw, given
        return given, around

    def _check_inputs(self, number: int, sample: Tensors, inputs: Tensors) -> None:
        for name, array in inputs.items():
            if not same_bits(array, np.asarray(sample[name])):
                sentence = f"Sample {number}: the candidate wrote into its input {name!r}."
                self.judge.add("changed_input", output=name, sample=number, sentence=sentence)

    def _is_reused(self, name: str, value: Any) -> bool:
        """Whether an array is the buffer of the call before, with another answer in it.

        One that never changes may be a constant of the model, which poison would spoil.
        """
        old = self.raw.get(name)
        if not (isinstance(value, np.ndarray) and isinstance(old, np.ndarray)):
            return False
        if not value.flags.writeable or value.dtype.kind not in "fcbiu":
            return False
        if name in self.reused:
            return np.may_share_memory(value, old)
        return np.may_share_memory(value, old) and not same_bits(old, self.given[name].array)

    def ask_at_once(self, window: Sequence[Asked], threads: int) -> None:
        """Ask from several threads in the same moment, each another sample where there are several.

        Answers are copied when all have come, as whoever shares a candidate among threads would see
        them.
        """
        around = Circumstances(threads=threads)
        with ThreadPoolExecutor(threads) as pool:
            for turn in range(THREADED_ROUNDS):
                asked = [window[(turn + at) % len(window)] for at in range(threads)]
                for _, question in asked:
                    self.progress(question.number)
                together = threading.Barrier(threads)
                futures = [pool.submit(self._ask_together, one, together) for one, _ in asked]
                errors = [future.exception() for future in futures]
                for (_, question), error in zip(asked, errors, strict=True):
                    if error is not None:
                        sentence = f"It fails when {threads} threads ask at once: {error}"
                        self.judge.add("threads", sample=question.number, sentence=sentence)
                if any(error is not None for error in errors):
                    return
                for (_, question), future in zip(asked, futures, strict=True):
                    self.judge.add_call(question, _copy_outputs(future.result()), around)

    def _ask_together(self, sample: Tensors, together: threading.Barrier) -> Tensors:
        inputs = _copies(sample)
        together.wait()
        return self.candidate(inputs)


def _ignore(_: int) -> None:
    """No progress is wanted."""


def _copies(sample: Tensors) -> dict[str, Any]:
    return {name: np.array(value) for name, value in sample.items()}


def _copy_outputs(raw: Tensors) -> dict[str, OutputCopy]:
    return {name: OutputCopy.of(value) for name, value in raw.items()}


# Small answers, held to be judged in one go: a call of NumPy costs more than their numbers.


MOST = 256
"""Answers held at most, however small: by then what each costs no longer shrinks."""

Form = tuple[tuple[str, Any, tuple[int, ...]], ...]
"""Name, dtype and shape of each output."""


@dataclass(slots=True)
class Batch:
    """Collects small outputs of one form until they fill a block, to compare them in one go.

    What is judged together is only whether all of them are right. Where one is not, each is judged
    on its own, so that nothing of what is said depends on what was held.
    """

    judge: OutputComparer
    held: list[tuple[Comparison, Mapping[str, OutputCopy], Circumstances]] = field(
        default_factory=list
    )
    form: Form | None = None
    most: int = 1

    def add_outputs(
        self, question: Comparison, given: Mapping[str, OutputCopy], around: Circumstances
    ) -> None:
        """Collect the outputs of one call, and compare them once the block is full."""
        form = _form(question.right, given)
        if form != self.form:
            self.flush()
            self.form = form
            self.most = self._room(question)
        self.held.append((question, given, around))
        if len(self.held) >= self.most:
            self.flush()

    def flush(self) -> None:
        """Compare all outputs that are collected."""
        held, self.held = self.held, []
        if len(held) < 2 or not self.judge.all_right(held):  # noqa: PLR2004 - one is not several
            for each in held:
                self.judge.add_call(*each)

    def _room(self, question: Comparison) -> int:
        """Number of outputs of this form that fit a block."""
        if self.form is None or self.judge.stop_when_failed:
            return 1
        largest = max((answer.array.size for answer in question.right.values()), default=0)
        return min(BLOCK // max(largest, 1), MOST)


def _form(right: Mapping[str, OutputCopy], given: Mapping[str, OutputCopy]) -> Form | None:
    """Names, dtypes and shapes that both sides share; None if they cannot be stacked."""
    if right.keys() != given.keys():
        return None
    for name, answer in right.items():
        one, other = answer.array, given[name].array
        if one.shape != other.shape or one.dtype != other.dtype:
            return None
        if answer.items is not None or given[name].items is not None:
            return None
        if not (one.ndim and one.size) or one.dtype.kind not in "fiub":
            return None
    return tuple((name, answer.array.dtype, answer.array.shape) for name, answer in right.items())
