"""Results of a comparison."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, TypeAlias

from mlflow_e2eai.artifacts.files import Real, Summary, Table

Kind: TypeAlias = Literal[
    "no_samples",
    "no_outputs",
    "missing_output",
    "unexpected_output",
    "dtype",
    "shape",
    "nonfinite",
    "tolerance",
    "snr",
    "slice",
    "nondeterministic",
    "noisy_reference",
    "threads",
    "stale",
    "unwritten",
    "swapped",
    "transposed",
    "changed_input",
]
"""What can be wrong.

``threads``, ``stale``, ``unwritten``, ``swapped`` and ``transposed`` are reasons for a wrong
output, reported with the kind that says that it is wrong: only when several threads call at once,
the output of the call before, elements that were never written, the numbers of another output, axes
in another order.
``snr`` is an error too small for any one element to show, ``slice`` one that is large for the
elements at one index along one axis, and small for the others. ``noisy_reference`` is a reference
that does not agree with itself, so that nothing can be compared with it.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One reason why a candidate did not pass.

    Attributes:
        kind: What is wrong.
        output: Which output; None when it is about all outputs. For ``changed_input``, which
            input.
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
class Element:
    """One element on both sides.

    Attributes:
        sample: Number of the sample, from 0.
        index: Position in the output; of a ragged output, the item comes first.
        reference: The right value, as text that holds every digit.
        candidate: The value given.
    """

    sample: int
    index: tuple[int, ...]
    reference: str
    candidate: str


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputParity:
    """Differences of one output from the reference, over all samples and repeats.

    Attributes:
        name: The output.
        max_abs_error: Largest absolute difference.
        max_rel_error: Largest absolute difference, as a share of the largest magnitude that the
            reference has in the same sample. The tolerance limits this.
        mean_abs_error: Mean absolute difference.
        rmse: Root of the mean squared difference.
        cosine: Cosine of the angle between all of the reference and all of the candidate; 1 where
            both are zero.
        nonfinite_count: Elements that are NaN or infinite in one of them and not the same in the
            other.
        elements: Elements compared.
        tolerance: The limit on `max_rel_error`; 0 for integers and booleans.
        max_elementwise_error: Largest difference as a share of the element's own magnitude, to
            which `tolerances.FLOOR` of the sample's largest is added.
        mean_elementwise_error: Mean of the same.
        snr_db: Signal-to-noise ratio, 10·log10(sum of squares of the reference / of the
            differences), in decibels; at most `tolerances.MAX_SNR_DB`, which equal numbers have.
        outside_share: Share of elements that differ by more than the tolerance allows.
        argmax_agreement: Share of rows of the last axis whose largest element is in the same place
            on both sides, ties given the benefit; None unless it may be a class axis (a floating
            output of at least two axes, the last of them of at least two elements).
        top5_agreement: Share of such rows where the reference's largest is among the candidate's
            five largest; None where there are no more than five.
        reference_nonfinite: Elements of the reference that are NaN or infinite.
        candidate_nonfinite: The same of the candidate.
        noise: Largest difference between two outputs of the candidate for the same inputs, as a
            share of the largest magnitude.
        reference_noise: The same of the reference; 0 where it was called once.
        first_wrong: The first element that is outside the tolerance, or None.
    """

    name: str
    max_abs_error: Real
    max_rel_error: Real
    mean_abs_error: Real
    rmse: Real
    cosine: Real
    nonfinite_count: int
    elements: int
    tolerance: Real = math.nan
    max_elementwise_error: Real = math.nan
    mean_elementwise_error: Real = math.nan
    snr_db: Real = math.nan
    outside_share: Real = math.nan
    argmax_agreement: Real | None = None
    top5_agreement: Real | None = None
    reference_nonfinite: int = 0
    candidate_nonfinite: int = 0
    noise: Real = 0.0
    reference_noise: Real = 0.0
    first_wrong: Element | None = None


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class ParityReport(Summary):
    """Whether a candidate computes the reference's numbers, with findings if not.

    Attributes:
        outputs: One entry for each output that could be compared.
        findings: What is wrong, at most one of each kind for each output; empty when all is right.
        samples: Samples compared.
        repeats: Calls for each, one at a time.
        tolerance: The limit on `OutputParity.max_rel_error` where an output has none of its own.
        calls: Calls of the candidate that were compared, those of several threads among them.
        threads: Threads that called at once; 1 where that was not tried.
    """

    outputs: tuple[OutputParity, ...]
    findings: tuple[Finding, ...]
    samples: int
    repeats: int
    tolerance: Real
    calls: int = 0
    threads: int = 1

    @property
    def passed(self) -> bool:
        """Whether there are no findings."""
        return not self.findings

    @property
    def max_abs_error(self) -> float:
        """The largest absolute difference over all outputs; NaN when nothing could be compared."""
        return max((output.max_abs_error for output in self.outputs), default=math.nan)

    def _line(self) -> str:
        findings = [finding.sentence for finding in self.findings]
        more = f" (and {len(findings) - 1} more)" if len(findings) > 1 else ""
        outcome = f"failed: {findings[0]}{more}" if findings else "passed"
        return (
            f"{outcome}; largest error {self.max_abs_error:.2g} in {len(self.outputs)} outputs and "
            f"{self.samples} samples"
        )

    def _table(self) -> Table:
        return OutputParity, self.outputs
