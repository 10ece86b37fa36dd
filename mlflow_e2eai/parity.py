"""Two callables and samples -> ParityReport: does the candidate give the reference's numbers?

A candidate is judged warm and repeatedly: every sample is asked many times, because an engine was
seen (TensorRT-RTX 1.6.1 on an H100) whose first two answers were right and whose next 148 were not.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

import numpy as np

from mlflow_e2eai.artifacts import Array, Infer, Precision, Tensors
from mlflow_e2eai.errors import InvalidInputError

Kind: TypeAlias = Literal[
    "no_samples",
    "no_outputs",
    "missing_output",
    "unexpected_output",
    "dtype",
    "shape",
    "nonfinite",
    "tolerance",
    "nondeterministic",
]

TOLERANCES: Mapping[str, float] = {"fp32": 1e-3, "fp16": 1e-2}
"""Largest error by precision, as a share of the reference output's largest magnitude.

A rounding error grows with the numbers that were summed, not with the number that is left of them,
so the scale is the whole output's. The unit roundoff u is 2^-24 in fp32 and 2^-11 in fp16. A
network of L layers with sums of n terms drifts by about u·sqrt(n·L) in fp32 and, as sums are kept
in fp32 there, u·sqrt(L) in fp16: for ResNet-50 (L = 53, n <= 4608) 3e-5 and 3.6e-3. Seen on an H100
with ResNet-50 and BERT: 3e-4 to 6e-4 in fp32, 1.5e-3 to 3.4e-3 in fp16, and 1.1e-2 from an engine
that was wrong; the limits lie between.
"""

_TINY = float(np.finfo(np.float32).tiny)
REPEATS = 10
"""Times that each sample is asked."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One reason why a candidate did not pass.

    Attributes:
        kind: What is wrong.
        output: Which output, or None when it is about the whole answer.
        sample: Number of the sample, from 0, or None when it is about none.
        index: Position of the worst element in the output, or None.
        sentence: The same for people, with both values.
    """

    kind: Kind
    output: str | None = None
    sample: int | None = None
    index: tuple[int, ...] | None = None
    sentence: str


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputParity:
    """How one output of the candidate differs from the reference, over all samples and repeats.

    Attributes:
        name: The output.
        max_abs_error: Largest absolute difference.
        max_rel_error: Largest absolute difference, as a share of the largest magnitude that the
            reference has in the same sample.
        mean_abs_error: Mean absolute difference.
        rmse: Root of the mean squared difference.
        cosine: Cosine of the angle between all of the reference and all of the candidate; 1 where
            both are zero.
        nonfinite_count: Elements that are NaN or infinite in one of them and not the same in the
            other.
        elements: Elements compared.
    """

    name: str
    max_abs_error: float
    max_rel_error: float
    mean_abs_error: float
    rmse: float
    cosine: float
    nonfinite_count: int
    elements: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ParityReport:
    """Whether a candidate gives the reference's numbers, and why not.

    Attributes:
        outputs: One entry for each output that could be compared.
        findings: What is wrong, at most one of each kind for each output; empty when all is right.
        samples: Samples compared.
        repeats: Times that each was asked.
        tolerance: The limit on `OutputParity.max_rel_error`.
    """

    outputs: tuple[OutputParity, ...]
    findings: tuple[Finding, ...]
    samples: int
    repeats: int
    tolerance: float

    @property
    def passed(self) -> bool:
        """Whether there is nothing wrong."""
        return not self.findings

    @property
    def max_abs_error(self) -> float:
        """The largest absolute difference over all outputs; NaN when nothing could be compared."""
        return max((output.max_abs_error for output in self.outputs), default=math.nan)


def compare(
    reference: Infer,
    candidate: Infer,
    samples: Iterable[Tensors],
    *,
    precision: Precision = "fp32",
    tolerance: float | None = None,
    repeats: int = REPEATS,
) -> ParityReport:
    """Hold a candidate's answers against a reference's.

    Integers and booleans must be equal. A number that is NaN or infinite in the reference must be
    the same in the candidate.

    Args:
        reference: Gives the right answers; asked once for each sample.
        candidate: Gives the answers to judge.
        samples: Named inputs; read one at a time, never held together.
        precision: The candidate's, which chooses the tolerance.
        tolerance: Largest error as a share of the reference output's largest magnitude; by default
            `TOLERANCES` of the precision.
        repeats: Times to ask the candidate for each sample. All answers must agree with the
            reference, and with each other to within the tolerance.

    Returns:
        The report. It did not pass when there were no samples: nothing seen is not nothing wrong.

    Raises:
        InvalidInputError: `repeats` is not positive or the tolerance is not a positive number.
    """
    limit = TOLERANCES[precision] if tolerance is None else tolerance
    if not (math.isfinite(limit) and limit >= 0) or repeats < 1:
        msg = (
            f"tolerance={limit} and repeats={repeats}; give a number of at least 0, and at least 1."
        )
        raise InvalidInputError(msg)
    judge = _Judge(limit)
    count = 0
    for count, sample in enumerate(samples, start=1):
        right = {name: np.array(value) for name, value in reference(sample).items()}
        first: Tensors | None = None
        for _ in range(repeats):
            given = {name: np.array(value) for name, value in candidate(sample).items()}
            judge.answer(count - 1, right, given)
            if first is None:
                first = given
            else:
                judge.again(count - 1, first, given)
    if not count:
        judge.add("no_samples", sentence="There were no samples, so nothing was compared.")
    elif not judge.sums and not judge.findings:
        judge.add("no_outputs", sentence="The reference has no outputs, so nothing was compared.")
    return ParityReport(
        outputs=tuple(sums.result(name) for name, sums in judge.sums.items()),
        findings=tuple(judge.findings.values()),
        samples=count,
        repeats=repeats,
        tolerance=limit,
    )


@dataclass(slots=True)
class _Sums:
    """Running sums over one output, so that samples need not be kept."""

    max_abs: float = 0.0
    max_rel: float = 0.0
    absolute: float = 0.0
    squared: float = 0.0
    product: float = 0.0
    reference_squared: float = 0.0
    candidate_squared: float = 0.0
    nonfinite: int = 0
    elements: int = 0

    def result(self, name: str) -> OutputParity:
        norms = math.sqrt(self.reference_squared) * math.sqrt(self.candidate_squared)
        equal_zeros = self.reference_squared == self.candidate_squared == 0
        finite = max(self.elements - self.nonfinite, 1)
        return OutputParity(
            name=name,
            max_abs_error=math.inf if self.nonfinite else self.max_abs,
            max_rel_error=math.inf if self.nonfinite else self.max_rel,
            mean_abs_error=self.absolute / finite,
            rmse=math.sqrt(self.squared / finite),
            cosine=max(-1.0, min(1.0, self.product / norms)) if norms else float(equal_zeros),
            nonfinite_count=self.nonfinite,
            elements=self.elements,
        )


@dataclass(slots=True)
class _Judge:
    limit: float
    sums: dict[str, _Sums] = field(default_factory=dict)
    findings: dict[tuple[Kind, str | None], Finding] = field(default_factory=dict)

    def add(
        self,
        kind: Kind,
        *,
        sentence: str,
        output: str | None = None,
        sample: int | None = None,
        index: Sequence[int] | None = None,
    ) -> None:
        """Keep the first finding of each kind for each output: the rest says the same again."""
        place = None if index is None else tuple(int(position) for position in index)
        finding = Finding(kind=kind, output=output, sample=sample, index=place, sentence=sentence)
        self.findings.setdefault((kind, output), finding)

    def answer(self, sample: int, right: Tensors, given: Tensors) -> None:
        """Compare one answer with the reference's."""
        for name in right.keys() - given.keys():
            sentence = f"Sample {sample}: output {name!r} is missing; there are {sorted(given)}."
            self.add("missing_output", output=name, sample=sample, sentence=sentence)
        for name in given.keys() - right.keys():
            sentence = f"Sample {sample}: output {name!r} is not one of {sorted(right)}."
            self.add("unexpected_output", output=name, sample=sample, sentence=sentence)
        for name in right:
            if name in given and self._alike(sample, name, right[name], given[name]):
                self._numbers(sample, name, np.asarray(right[name]), given[name])

    def again(self, sample: int, first: Tensors, given: Tensors) -> None:
        """Compare an answer with the candidate's own first one to the same question."""
        for name in first.keys() & given.keys():
            old, new = first[name], given[name]
            if old.shape == new.shape and _relative_error(old, new) > self.limit:
                sentence = (
                    f"Sample {sample}, output {name!r}: two answers to the same question differ by "
                    f"more than {self.limit:g} of their largest magnitude."
                )
                self.add("nondeterministic", output=name, sample=sample, sentence=sentence)

    def _alike(self, sample: int, name: str, right: Array, given: Array) -> bool:
        right = np.asarray(right)
        if right.dtype != given.dtype:
            sentence = f"Sample {sample}, output {name!r}: {given.dtype}, not {right.dtype}."
            self.add("dtype", output=name, sample=sample, sentence=sentence)
        if right.shape != given.shape:
            sentence = (
                f"Sample {sample}, output {name!r}: shape {list(given.shape)}, not "
                f"{list(right.shape)}."
            )
            self.add("shape", output=name, sample=sample, sentence=sentence)
        return right.shape == given.shape

    def _numbers(self, sample: int, name: str, right: Array, given: Array) -> None:
        sums = self.sums.setdefault(name, _Sums())
        exact = right.dtype.kind in "biu"
        wide_right, wide_given = _wide(right), _wide(given)
        finite = np.isfinite(wide_right) & np.isfinite(wide_given)
        same = finite | (wide_right == wide_given) | (np.isnan(wide_right) & np.isnan(wide_given))
        sums.elements += right.size
        if not same.all():
            sums.nonfinite += int((~same).sum())
            index = np.argwhere(~same)[0]
            self._found("nonfinite", sample, name, index, wide_right, wide_given)
        wide_right, wide_given = np.where(finite, wide_right, 0), np.where(finite, wide_given, 0)
        difference = np.abs(wide_right - wide_given)
        if exact and given.dtype == right.dtype:
            # float64 cannot tell large neighbours apart.
            difference = np.where(right == given, 0, np.maximum(difference, 1))
        if not difference.size:
            return
        worst = tuple(int(i) for i in np.unravel_index(difference.argmax(), difference.shape))
        scale = max(float(np.abs(wide_right).max()), _TINY)
        relative = float(difference[worst]) / scale
        sums.max_abs = max(sums.max_abs, float(difference[worst]))
        sums.max_rel = max(sums.max_rel, relative)
        sums.absolute += float(difference.sum())
        sums.squared += float(np.square(difference).sum())
        sums.product += float((wide_right * wide_given).sum())
        sums.reference_squared += float(np.square(wide_right).sum())
        sums.candidate_squared += float(np.square(wide_given).sum())
        if relative > (0.0 if exact else self.limit):
            self._found("tolerance", sample, name, worst, wide_right, wide_given)

    def _found(
        self, kind: Kind, sample: int, name: str, index: Sequence[int], right: Array, given: Array
    ) -> None:
        place = tuple(int(position) for position in index)
        sentence = (
            f"Sample {sample}, output {name!r} at {list(place)}: {given[place]:g}, not "
            f"{right[place]:g} (limit {self.limit:g} of the largest magnitude)."
        )
        self.add(kind, output=name, sample=sample, index=place, sentence=sentence)


def _wide(array: Array) -> Array:
    return array.astype(np.float64, copy=False)


def _relative_error(right: Array, given: Array) -> float:
    """Largest difference as a share of the largest magnitude; infinite where one is not finite."""
    if not right.size or np.array_equal(right, given, equal_nan=right.dtype.kind == "f"):
        return 0.0
    wide_right, wide_given = _wide(right), _wide(given)
    finite = np.isfinite(wide_right) & np.isfinite(wide_given)
    same = finite | (wide_right == wide_given) | (np.isnan(wide_right) & np.isnan(wide_given))
    if not same.all():
        return math.inf
    wide_right, wide_given = np.where(finite, wide_right, 0), np.where(finite, wide_given, 0)
    scale = max(float(np.abs(wide_right).max()), _TINY)
    return float(np.abs(wide_right - wide_given).max()) / scale
