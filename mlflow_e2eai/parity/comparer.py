"""Outputs -> sums and findings."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mlflow_e2eai.artifacts.values import Array
from mlflow_e2eai.parity.measure import Measure, is_exact, measure, same_bits
from mlflow_e2eai.parity.outputs import Circumstances, Comparison, OutputCopy
from mlflow_e2eai.parity.report import Element, Finding, Kind, OutputParity
from mlflow_e2eai.parity.slices import SliceSums
from mlflow_e2eai.parity.tolerances import FEW, NOISE_FACTOR, NOISE_SHARE, Limits


@dataclass(slots=True)
class _Totals:
    """Sums over one output.

    Those of calls from several threads are kept apart until the error over all samples is compared
    with its limit: they are of the first samples only, and the order of the samples must not change
    what passes.
    """

    sums: Measure = field(default_factory=Measure)
    at_once: Measure = field(default_factory=Measure)
    slices: SliceSums = field(default_factory=SliceSums)
    noise: float = 0.0
    first_wrong: Element | None = None
    exact: bool = False


@dataclass(slots=True)
class OutputComparer:
    """Running sums of one comparison, so that samples need not be kept."""

    limits: Limits
    stop_when_failed: bool = False
    totals: dict[str, _Totals] = field(default_factory=dict)
    reference_noise: dict[str, float] = field(default_factory=dict)
    findings: dict[tuple[Kind, str | None], Finding] = field(default_factory=dict)
    calls: int = 0

    @property
    def is_decided(self) -> bool:
        """Whether no further call can change the result."""
        return self.stop_when_failed and bool(self.findings)

    def add(
        self,
        kind: Kind,
        *,
        sentence: str,
        output: str | None = None,
        sample: int | None = None,
        index: tuple[int, ...] | None = None,
    ) -> None:
        """Keep the first finding of each kind for each output: the rest says the same again."""
        finding = Finding(kind=kind, output=output, sample=sample, index=index, sentence=sentence)
        self.findings.setdefault((kind, output), finding)

    def reference(self, comparison: Comparison, again: Mapping[str, OutputCopy]) -> None:
        """Compare the reference's second outputs with its first: the scale of all noise."""
        for name, right in comparison.right.items():
            least = self.limits.scale_of(name)
            noise = _noise(right, again[name], least) if name in again else math.inf
            self.reference_noise[name] = max(noise, self.reference_noise.get(name, 0.0))
            if noise > (0.0 if is_exact(right.array) else self.limits.of(name)):
                sentence = (
                    f"Sample {comparison.number}, output {name!r}: two outputs of the reference "
                    f"differ by {noise:.3g} of their largest magnitude; make it deterministic."
                )
                self.add(
                    "noisy_reference", output=name, sample=comparison.number, sentence=sentence
                )

    def add_call(
        self, comparison: Comparison, given: Mapping[str, OutputCopy], around: Circumstances
    ) -> None:
        """Compare one call's outputs with the reference's, and with the candidate's own first."""
        self.calls += 1
        number, right = comparison.number, comparison.right
        for name in right.keys() - given.keys():
            sentence = f"Sample {number}: output {name!r} is missing; there are {sorted(given)}."
            self.add("missing_output", output=name, sample=number, sentence=sentence)
        for name in given.keys() - right.keys():
            sentence = f"Sample {number}: output {name!r} is not one of {sorted(right)}."
            self.add("unexpected_output", output=name, sample=number, sentence=sentence)
        for name in right:
            if name in given:
                self._output(comparison, name, given, around)

    def all_right(
        self, calls: Sequence[tuple[Comparison, Mapping[str, OutputCopy], Circumstances]]
    ) -> bool:
        """Add calls whose outputs have one form, if all are right; else none."""
        measures: dict[str, Measure] = {}
        rights, givens = dict[str, Array](), dict[str, Array]()
        for name in calls[0][0].right:
            rights[name] = np.concatenate([one.right[name].array for one, _, _ in calls])
            givens[name] = np.concatenate([given[name].array for _, given, _ in calls])
            measures[name] = measure(
                rights[name],
                givens[name],
                self.limits.of(name),
                calls=len(calls),
                least=self.limits.scale_of(name),
            )
            if not measures[name].right:
                return False
        for name, sums in measures.items():
            self._totals(name, calls[0][0].right[name]).sums.add(sums)
            self._add_slices(name, rights[name], givens[name])
        self.calls += len(calls)
        return True

    def results(self) -> tuple[OutputParity, ...]:
        """The sums of every output, after a check of its error over all samples."""
        for name, totals in self.totals.items():
            self._total_error(name, totals)
            self._slice_error(name, totals)
            totals.sums.add(totals.at_once)
        return tuple(
            totals.sums.result(
                name,
                tolerance=0.0 if totals.exact else self.limits.of(name),
                noise=totals.noise,
                reference_noise=self.reference_noise.get(name, 0.0),
                first_wrong=totals.first_wrong,
            )
            for name, totals in self.totals.items()
        )

    def _total_error(self, name: str, totals: _Totals) -> None:
        """Find an error that shows in no one element, but in all together."""
        sums, limit = totals.sums, self.limits.noise_to_signal_of(name)
        known = {("tolerance", name), ("nonfinite", name)} & self.findings.keys()
        if known or totals.exact or sums.elements < FEW or sums.noise_to_signal <= limit:
            return
        sentence = (
            f"Output {name!r}: over all samples the error's root mean square is "
            f"{sums.noise_to_signal:.3g} of the reference's (limit {limit:g})."
        )
        self.add("snr", output=name, sentence=sentence)

    def _slice_error(self, name: str, totals: _Totals) -> None:
        """Find an error that is large in one slice, and small beside the rest of the output."""
        known = {("tolerance", name), ("nonfinite", name), ("snr", name)} & self.findings.keys()
        worst = totals.slices.worst(self.limits.slices_of(name))
        if known or worst is None or worst.noise_to_signal <= worst.limit:
            return
        sentence = (
            f"Output {name!r}, index {worst.index} along axis {worst.axis}: over all samples the "
            f"error's root mean square is {worst.noise_to_signal:.3g} of the slice's own "
            f"(limit {worst.limit:.3g})."
        )
        self.add("slice", output=name, index=(worst.axis, worst.index), sentence=sentence)

    def _output(
        self,
        comparison: Comparison,
        name: str,
        given: Mapping[str, OutputCopy],
        around: Circumstances,
    ) -> None:
        right, actual, number = comparison.right[name], given[name], comparison.number
        if right.array.dtype != actual.array.dtype:
            dtypes = f"{actual.array.dtype}, not {right.array.dtype}"
            sentence = f"Sample {number}, output {name!r}: {dtypes}."
            self.add("dtype", output=name, sample=number, sentence=sentence)
        if not right.fits(actual):
            sentence = f"Sample {number}, output {name!r}: shape {actual.shape}, not {right.shape}."
            self.add("shape", output=name, sample=number, sentence=sentence)
            measured = None
        else:
            measured = self._measure_output(comparison, name, actual, around)
            self._wrong(comparison, name, actual, measured)
        if comparison.first.get(name, (actual,))[0] is not actual:
            self._again(comparison, name, actual)
        if measured is None or not measured.right:
            for kind, reason in reasons(
                comparison.right, name, given, around, self.limits.of(name)
            ):
                sentence = f"Sample {number}, output {name!r}: {reason}."
                self.add(kind, output=name, sample=number, sentence=sentence)

    def _measure_output(
        self, comparison: Comparison, name: str, actual: OutputCopy, around: Circumstances
    ) -> Measure:
        right = comparison.right[name].array
        first, measured = comparison.first.get(name, (None, None))
        if first is None or measured is None or not same_bits(first.array, actual.array):
            measured = measure(
                right, actual.array, self.limits.of(name), least=self.limits.scale_of(name)
            )
        if first is None:
            comparison.first[name] = (actual, measured)
            if comparison.right[name].items is None:
                self._add_slices(name, right, actual.array)
        totals = self._totals(name, comparison.right[name])
        (totals.sums if around.threads == 1 else totals.at_once).add(measured)
        return measured

    def _add_slices(self, name: str, right: Array, given: Array) -> None:
        """Add an output to the sums of its slices, unless none of them has a limit."""
        if right.dtype.kind == "f" == given.dtype.kind and math.isfinite(
            self.limits.slices_of(name)
        ):
            self._totals(name, OutputCopy(right, None)).slices.add(right, given)

    def _totals(self, name: str, right: OutputCopy) -> _Totals:
        if name not in self.totals:
            self.totals[name] = _Totals(exact=is_exact(right.array))
        return self.totals[name]

    def _wrong(
        self, comparison: Comparison, name: str, actual: OutputCopy, measured: Measure
    ) -> None:
        """Add a finding for the elements that are wrong."""
        right, number, limit = comparison.right[name], comparison.number, self.limits.of(name)
        totals = self.totals[name]
        first = [position for position in (measured.first, measured.bad) if position is not None]
        if first and totals.first_wrong is None:
            totals.first_wrong = Element(
                sample=number,
                index=actual.index_of(min(first)),
                reference=str(right.value(min(first))),
                candidate=str(actual.value(min(first))),
            )
        positions: dict[Kind, int | None] = {
            "nonfinite": measured.bad,
            "tolerance": measured.worst if measured.outside else None,
        }
        for kind, position in positions.items():
            if position is None:
                continue
            index = actual.index_of(position)
            values = f"{_text(actual.value(position))}, not {_text(right.value(position))}"
            sentence = (
                f"Sample {number}, output {name!r} at {list(index)}: {values} (limit {limit:g} of "
                f"the largest magnitude)."
            )
            self.add(kind, output=name, sample=number, index=index, sentence=sentence)

    def _again(self, comparison: Comparison, name: str, actual: OutputCopy) -> None:
        """Compare an output with the candidate's own first one for the same sample."""
        first, _ = comparison.first[name]
        noise = _noise(first, actual, self.limits.scale_of(name))
        if name in self.totals:
            self.totals[name].noise = max(self.totals[name].noise, noise)
        reference = NOISE_FACTOR * self.reference_noise.get(name, 0.0)
        allowed = 0.0 if is_exact(first.array) else NOISE_SHARE * self.limits.of(name)
        if noise > max(allowed, reference):
            sentence = (
                f"Sample {comparison.number}, output {name!r}: two outputs for the same inputs "
                f"differ by {noise:.3g} of their largest magnitude "
                f"(limit {max(allowed, reference):.3g})."
            )
            self.add("nondeterministic", output=name, sample=comparison.number, sentence=sentence)


def _noise(one: OutputCopy, other: OutputCopy, least: float) -> float:
    """Largest difference as a share of the largest magnitude; infinite for other shapes."""
    if not one.fits(other):
        return math.inf
    if same_bits(one.array, other.array):
        return 0.0
    return measure(one.array, other.array, math.inf, least=least).noise


def _text(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else repr(value)


# Why an output is wrong, where its numbers show it.


def _close(one: OutputCopy, other: OutputCopy, limit: float) -> bool:
    return one.fits(other) and measure(one.array, other.array, limit).right


def reasons(
    rights: Mapping[str, OutputCopy],
    name: str,
    given: Mapping[str, OutputCopy],
    around: Circumstances,
    limit: float,
) -> Iterator[tuple[Kind, str]]:
    """Kinds of finding, each with its reason.

    Args:
        rights: The right outputs by name.
        name: The output that is wrong.
        given: The candidate's outputs by name.
        around: What surrounded the call.
        limit: Largest difference between numbers that are called the same, as a share of the
            largest magnitude.
    """
    right, actual = rights[name], given[name]
    if around.threads > 1:
        yield "threads", f"wrong when {around.threads} threads call it concurrently"
    if name in around.before and _close(around.before[name], actual, limit):
        yield "stale", "the output of the previous call"
    if name in around.poisoned and _holds_poison(actual.array, right.array):
        yield "unwritten", "elements of a reused buffer were not written"
    for other, value in rights.items():
        if other != name and _close(value, actual, limit):
            yield "swapped", f"the numbers of output {other!r}"
    if right.items is None and actual.items is None and right.array.ndim == actual.array.ndim:
        for one, two in itertools.combinations(range(right.array.ndim), 2):
            if _close(OutputCopy(right.array.swapaxes(one, two), None), actual, limit):
                yield "transposed", f"axes {one} and {two} are swapped"


def poison(array: Array) -> Any:
    """The value that fills an output buffer before a call: NaN, or the largest integer."""
    if array.dtype.kind in "fc":
        return np.nan
    return np.iinfo(array.dtype).max if array.dtype.kind in "iu" else True


def _holds_poison(given: Array, right: Array) -> bool:
    """Whether elements are poison that are not in the right output; shapes that differ count."""
    if given.dtype.kind == "f":
        bad = np.isnan(given)
        return bool(bad.any()) and (
            given.shape != right.shape or bool((bad & ~np.isnan(right)).any())
        )
    bad = given == poison(given)
    return bool(bad.any()) and (given.shape != right.shape or bool((bad & (right != given)).any()))
