"""Order of calls: samples in turns, warm, repeated, and from several threads."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, TypeAlias

import numpy as np

from mlflow_e2eai.artifacts.values import Infer, Tensors
from mlflow_e2eai.errors import (
    InvalidInputError,
    require_flags,
    require_function,
    require_kind,
    require_samples,
)
from mlflow_e2eai.parity.comparer import OutputComparer, poison
from mlflow_e2eai.parity.measure import BLOCK, same_bits
from mlflow_e2eai.parity.outputs import Circumstances, Comparison, OutputCopy
from mlflow_e2eai.parity.report import ParityReport
from mlflow_e2eai.parity.tolerances import limits_for

REPEATS = 10
"""Calls for each sample."""

WINDOW = 4
"""Samples in memory at once, to be run in turns: as many as the corners of most profiles."""

THREADED_ROUNDS = 4
"""Times that all threads call at once."""

Progress: TypeAlias = Callable[[int], None]
Window: TypeAlias = list[tuple[Tensors, Comparison]]


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
    """Compare the outputs of a candidate with those of a reference.

    Integers, booleans and texts must be equal. A number that is NaN or infinite in the reference
    must be the same in the candidate. Outputs may be lists of arrays of any shapes.

    A candidate runs warm and repeatedly, because an engine was seen (TensorRT-RTX 1.6.1 on an H100)
    whose first two outputs were right and whose next 148 were not. Up to `WINDOW` samples run in
    turns, there and back, so that every sample comes after itself, after another and, where their
    shapes differ, after a change of shape; then with samples of the same shapes next to each other:
    outputs of the call before are then seen to be that. A
    buffer that the candidate returns again is filled with NaN before each call. It gets inputs of
    its own, which it must leave as they are. Give at least two samples with different outputs: with
    one, old outputs cannot be told from new ones.

    Args:
        reference: Gives the right outputs; called twice for each sample, to measure how far its own
            outputs differ, and once where `repeats` is 1.
        candidate: Gives the outputs to compare.
        samples: Named inputs; read as they are needed, at most `WINDOW` in memory at once, and one
            where `repeats` is 1.
        precision: The candidate's, one of `TOLERANCES`, which it chooses among.
        tolerance: Largest error as a share of the reference output's largest magnitude, in place
            of the precision's limits; or such numbers by output, the others keeping theirs.
        repeats: Calls of the candidate for each sample. All outputs must agree with the reference,
            and with each other: to a quarter of the tolerance, or three times what the reference's
            own differ by. At 1 the candidate is no suspect: each sample runs once, from this
            thread.
        threads: Threads that call with the first samples at once, a few times, where all was right
            so far. Give 1 for a candidate that is made for one thread.
        stop_when_failed: Stop at the first thing that is wrong; the numbers are of what was run.
        scales: By output, a magnitude that errors are a share of where the reference's own in the
            sample is smaller, such as that of its usual outputs: of zeros there is little to be a
            share of.
        progress: Called with the number of the sample, from 0, just before each call of the
            candidate: for a progress bar, or to know on which sample a candidate brought down its
            process. Always from the thread that called `compare`: before several threads call
            at once, it is called for the sample of each. What it raises ends the comparison.

    Returns:
        The report. It did not pass when there were no samples, or no items in any of them: nothing
        seen is not nothing wrong.

    Raises:
        InvalidInputError: `repeats` or `threads` is not positive, the precision is unknown, or a
            tolerance is not a number of at least 0 or is of an output that the reference does not
            give.

    Examples:
        >>> report = mlflow_e2eai.compare(reference, candidate, [{"x": x}], precision="fp16")
        >>> report.passed
        True
    """
    for name, infer in {"reference": reference, "candidate": candidate}.items():
        require_function(name, infer)
    require_flags(stop_when_failed=stop_when_failed)
    if progress is not None:
        require_function("progress", progress, "a function of the number of a sample")
    samples, limits = require_samples(samples), limits_for(precision, tolerance, scales)
    _check_counts(repeats=repeats, threads=threads)
    comparer = OutputComparer(limits, stop_when_failed=stop_when_failed)
    caller = _Caller(candidate, comparer, progress or _ignore)
    at_once = threads if repeats > 1 else 1
    count, is_empty = 0, True
    for window in _windows(reference, samples, comparer, WINDOW if repeats > 1 else 1):
        if not count:
            limits.check(window[0][1].right)
        count += len(window)
        is_empty &= all(_holds_no_items(*pair) for pair in window)
        caller.run_in_turns(window, repeats)
        if count == len(window) and at_once > 1 and not comparer.findings:
            caller.run_at_once(window, at_once)
        window.clear()  # or it would stay in memory while the next is read
        if comparer.is_decided:
            break
    caller.stack.flush()
    outputs = comparer.results()
    if not count:
        comparer.add("no_samples", sentence="There were no samples, so nothing was compared.")
    elif is_empty:
        comparer.add("no_samples", sentence="The samples are empty, so nothing was compared.")
    elif not outputs and not comparer.findings:
        comparer.add(
            "no_outputs", sentence="The reference has no outputs, so nothing was compared."
        )
    return ParityReport(
        outputs=outputs,
        findings=tuple(comparer.findings.values()),
        samples=count,
        repeats=repeats,
        tolerance=limits.default,
        calls=comparer.calls,
        threads=at_once,
    )


def _windows(
    reference: Infer, samples: Iterable[Tensors], comparer: OutputComparer, size: int
) -> Iterator[Window]:
    """Samples in lists with the reference's outputs, run twice where noise is to be measured."""
    numbered = enumerate(samples)
    while window := [
        (sample, Comparison(number, _copy_outputs(reference(_copies(sample)))))
        for number, sample in itertools.islice(numbered, size)
    ]:
        if size > 1:
            for sample, comparison in window:
                comparer.reference(comparison, _copy_outputs(reference(_copies(sample))))
            del sample, comparison
        yield window


@dataclass(slots=True)
class _Caller:
    """Calls the candidate, and keeps what shows a fault in the next call."""

    candidate: Infer
    comparer: OutputComparer
    progress: Progress
    stack: Batch = field(init=False)
    before: tuple[int, Mapping[str, OutputCopy]] = (-1, MappingProxyType({}))
    raw: Tensors = field(default_factory=dict)
    given: Mapping[str, OutputCopy] = field(default_factory=dict)
    reused: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        self.stack = Batch(self.comparer)

    def run_in_turns(self, window: Window, repeats: int) -> None:
        """Run every sample `repeats` times, there and back, then so with equal shapes together."""
        add = self.stack.add_outputs if repeats == 1 else self.comparer.add_call
        together = sorted(window, key=lambda pair: _shapes(pair[0])) if repeats > 1 else window
        turns = (window, window[::-1], together, together[::-1])
        for turn in range(repeats):
            for sample, comparison in turns[turn % len(turns)]:
                if not self.comparer.is_decided:
                    add(comparison, *self._run(sample, comparison))

    def _run(
        self, sample: Tensors, comparison: Comparison
    ) -> tuple[Mapping[str, OutputCopy], Circumstances]:
        """Call the candidate once, with copies of the inputs."""
        for name in self.reused:
            self.raw[name].fill(poison(self.raw[name]))
        inputs = _copies(sample)
        self.progress(comparison.number)
        raw = self.candidate(inputs)
        given = _copy_outputs(raw)
        self._check_inputs(comparison.number, sample, inputs)
        number, right = self.before
        around = Circumstances(right if number != comparison.number else {}, self.reused)
        self.reused = frozenset(name for name in raw if self._is_reused(name, raw[name]))
        self.before, self.raw, self.given = (comparison.number, comparison.right), raw, given
        return given, around

    def _check_inputs(self, number: int, sample: Tensors, inputs: Tensors) -> None:
        for name, array in inputs.items():
            if not same_bits(array, np.asarray(sample[name])):
                sentence = f"Sample {number}: the candidate changed its input {name!r}."
                self.comparer.add("changed_input", output=name, sample=number, sentence=sentence)

    def _is_reused(self, name: str, value: Any) -> bool:
        """Whether an array is the buffer of the call before, with another output in it.

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

    def run_at_once(self, window: Window, threads: int) -> None:
        """Call from several threads at once, each with another sample where there are several.

        Outputs are copied when all calls have ended, as a caller that shares a candidate among
        threads would see them.
        """
        around = Circumstances(threads=threads)
        with ThreadPoolExecutor(threads) as pool:
            for turn in range(THREADED_ROUNDS):
                turns = [window[(turn + at) % len(window)] for at in range(threads)]
                for _, comparison in turns:
                    self.progress(comparison.number)
                together = threading.Barrier(threads)
                futures = [pool.submit(self._run_together, one, together) for one, _ in turns]
                errors = [future.exception() for future in futures]
                for (_, comparison), error in zip(turns, errors, strict=True):
                    if error is not None:
                        sentence = f"It fails when {threads} threads call it concurrently: {error}"
                        self.comparer.add("threads", sample=comparison.number, sentence=sentence)
                if any(error is not None for error in errors):
                    return
                for (_, comparison), future in zip(turns, futures, strict=True):
                    self.comparer.add_call(comparison, _copy_outputs(future.result()), around)

    def _run_together(self, sample: Tensors, together: threading.Barrier) -> Tensors:
        inputs = _copies(sample)
        together.wait()
        return self.candidate(inputs)


def _holds_no_items(sample: Tensors, comparison: Comparison) -> bool:
    """Whether an input is empty and so are all outputs, so that there is nothing to compare."""
    if any(output.array.size for output in comparison.right.values()):
        return False
    return any(np.size(value) == 0 for value in sample.values())


def _shapes(sample: Tensors) -> str:
    """A key that samples of the same shapes share."""
    return str({name: np.shape(value) for name, value in sample.items()})


def _ignore(_: int) -> None:
    """No progress is wanted."""


def _check_counts(**counts: int) -> None:
    for name, count in counts.items():
        if require_kind(name, count, int, "a number of at least 1") < 1:
            msg = f"{name} is {count}; give at least 1."
            raise InvalidInputError(msg)


def _copies(sample: Tensors) -> dict[str, Any]:
    return {name: np.array(value) for name, value in sample.items()}


def _copy_outputs(raw: Tensors) -> dict[str, OutputCopy]:
    require_kind("What a function returned", raw, Mapping, "a function that returns named arrays")
    return {name: OutputCopy.of(value) for name, value in raw.items()}


# Small outputs are collected and compared in one go: a call of NumPy costs more than their numbers.


MOST = 256
"""Calls collected at most, however small: by then the cost of each no longer shrinks."""

Form = tuple[tuple[str, Any, tuple[int, ...]], ...]
"""Name, dtype and shape of each output."""


@dataclass(slots=True)
class Batch:
    """Collects small outputs of one form until they fill a block, to compare them in one go.

    Only whether all of them are right is decided together. Where one is not, each is compared on
    its own, so that no finding depends on how calls were collected.
    """

    comparer: OutputComparer
    pending: list[tuple[Comparison, Mapping[str, OutputCopy], Circumstances]] = field(
        default_factory=list
    )
    form: Form | None = None
    most: int = 1

    def add_outputs(
        self, comparison: Comparison, given: Mapping[str, OutputCopy], around: Circumstances
    ) -> None:
        """Collect the outputs of one call, and compare them once the block is full."""
        form = _form(comparison.right, given)
        if form != self.form:
            self.flush()
            self.form = form
            self.most = self._room(comparison)
        self.pending.append((comparison, given, around))
        if len(self.pending) >= self.most:
            self.flush()

    def flush(self) -> None:
        """Compare all outputs that are collected."""
        pending, self.pending = self.pending, []
        if len(pending) < 2 or not self.comparer.all_right(pending):  # noqa: PLR2004 - one is not several
            for each in pending:
                self.comparer.add_call(*each)

    def _room(self, comparison: Comparison) -> int:
        """Number of outputs of this form that fit a block."""
        if self.form is None or self.comparer.stop_when_failed:
            return 1
        largest = max((output.array.size for output in comparison.right.values()), default=0)
        return min(BLOCK // max(largest, 1), MOST)


def _form(right: Mapping[str, OutputCopy], given: Mapping[str, OutputCopy]) -> Form | None:
    """Names, dtypes and shapes that both sides share; None if they cannot be stacked."""
    if right.keys() != given.keys():
        return None
    for name, output in right.items():
        one, other = output.array, given[name].array
        if one.shape != other.shape or one.dtype != other.dtype:
            return None
        if output.items is not None or given[name].items is not None:
            return None
        if not (one.ndim and one.size) or one.dtype.kind not in "fiub":
            return None
    return tuple((name, output.array.dtype, output.array.shape) for name, output in right.items())
