"""The evidence of each variant, and the machine that it was measured on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Literal, TypeAlias

from mlflow_e2eai.artifacts.files import Real, Summary, Table
from mlflow_e2eai.evaluation.gates import QuantizationVerdict
from mlflow_e2eai.latency.report import ColdStart, LatencyReport, Throughput
from mlflow_e2eai.parity.report import ParityReport

SAMPLES: Mapping[str, str] = {
    "profile": "corners of the profile",
    "sizes": "sizes between the corners",
    "values": "other masks, integers and numbers",
    "edges": "zeros and denormals",
    "large": "large numbers",
    "rounded": "rounded as a GPU rounds",
    "data": "evaluation data",
}
"""Kinds of sample that variants are compared on, in words."""

RAW = "raw"
"""Ends the name of the graph as it was exported, which is measured and not in the bundle."""

Outcome: TypeAlias = Literal["reference", "unsteady", "passed", "failed", "unmeasured"]
"""The outcome of a variant; of the reference, whether it agrees with itself."""

ADVISORY = frozenset({"large"})
"""Kinds of sample that are reported and do not decide: only the caller knows how large numbers may
become, and the range of fp16 is limited."""


Span: TypeAlias = tuple[float, float]
"""When something began and ended, in seconds since the epoch."""


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Evidence(Summary):
    """The evidence of one variant.

    Attributes:
        variant: A runner and a precision, for example ``onnxruntime-cpu/fp16``.
        sha256: Digest of the file that it runs; None for the PyTorch module.
        measured: Whether it was run here. What was not measured has not passed.
        reason: Why it was not measured, or how the measurement failed; None when all went well.
        parity: Against the PyTorch module, by kind of sample: ``profile`` for the input example at
            every corner of the profile, ``sizes`` for it at sizes between, ``values`` for other
            masks, integers and numbers, ``edges`` for zeros and denormal numbers in its place,
            ``large`` for numbers larger than any in it, ``rounded`` for the corners again with
            every fp16 value rounded to fp16, as a GPU does and the CPU does not, ``data`` for the
            caller's evaluation data.
        before: The variant before the last step: the file that this one's was made from, on the
            plainest runner. None for the PyTorch module and where that did not run.
        against_before: The same comparison on the profile's corners, with `before` as the
            reference.
        cold_start: Cost of loading it and of its first call in a fresh process.
        loads: Items a second by number of callers at once, at the profile's opt.
        task: Task metrics on the evaluation data, by name; greater is better.
        lost_at: The step that lost the accuracy, where it failed: the first on the way to this
            variant whose result fails while the one before passes.
        worth: Whether a quantised variant is retained; None for others. The file of one that is
            not stays out of the bundle.
        untimed: Reason why it has no latency; None where it was timed, or not measured.
        sizes: Labels of the sizes between the corners that it was compared at, such as ``N=3``.
        values: Labels of the other values that it was compared on, such as ``mask: some False``.
        left_out: Reasons why other values were not compared, by label; of the reference.
    """

    variant: str
    sha256: str | None
    measured: bool
    reason: str | None = None
    parity: Mapping[str, ParityReport] = field(default_factory=dict)
    before: str | None = None
    against_before: ParityReport | None = None
    cold_start: ColdStart | None = None
    loads: Throughput | None = None
    task: Mapping[str, Real] = field(default_factory=dict)
    lost_at: str | None = None
    worth: QuantizationVerdict | None = None
    untimed: str | None = None
    sizes: tuple[str, ...] = ()
    values: tuple[str, ...] = ()
    left_out: Mapping[str, str] = field(default_factory=dict)

    def labels(self, kind: str) -> tuple[str, ...]:
        """Labels of the samples of a kind, where they have any."""
        return {"sizes": self.sizes, "values": self.values}.get(kind, ())

    @property
    def passed(self) -> bool:
        """Whether it was measured to the end and every deciding comparison passed."""
        compared = self.measured and self.reason is None and bool(self.parity)
        return compared and all(report.passed for report in self.deciding.values())

    @property
    def outcome(self) -> Outcome:
        """The outcome in a word."""
        if self.sha256 is None:
            return "reference" if self.passed else "unsteady"
        if not self.measured:
            return "unmeasured"
        return "passed" if self.passed else "failed"

    @property
    def is_shipped(self) -> bool:
        """Whether it is of a variant of the bundle: no reference, and not the exported graph."""
        return self.sha256 is not None and self.variant.rpartition("/")[2] != RAW

    @property
    def rejected(self) -> bool:
        """Whether it is a quantised variant that is not worth it; it is loaded by name only."""
        return self.worth is not None and not self.worth.retained

    @property
    def deciding(self) -> dict[str, ParityReport]:
        """The comparisons that decide."""
        return {kind: report for kind, report in self.parity.items() if kind not in ADVISORY}

    @property
    def findings(self) -> tuple[str, ...]:
        """The findings of the comparisons, a sentence each, the advisory ones last.

        A finding has the kind of sample in front, where that was not the profile's corners.
        """
        kinds = sorted(self.parity, key=lambda kind: kind in ADVISORY)
        return tuple(
            prefix_kind(kind, finding.sentence)
            for kind in kinds
            for finding in self.parity[kind].findings
        )

    def _line(self) -> str:
        errors = [report.max_abs_error for report in self.deciding.values()]
        error = f", largest error {max(errors):.2g}" if errors else ""
        why = self.reason or next(iter(self.findings), None)
        return f"{self.variant} {self.outcome}{error}{f'; {why}' if why else ''}"

    def _table(self) -> Table:
        return _Comparison, [
            _Comparison(SAMPLES.get(kind, kind), report.passed, report.max_abs_error)
            for kind, report in self.parity.items()
        ]


@dataclass(frozen=True, slots=True)
class _Comparison:
    """A row about one kind of sample."""

    samples: str
    passed: bool
    max_abs_error: Real


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class MachineEvidence(Summary):
    """Evidence that was measured together on one machine.

    Attributes:
        environment: The machine: processor, GPU, versions; see `artifacts.machine.environment`.
        evidence: One entry for each variant that was evaluated there, the reference first.
        latency: Reports by corner of the profile and by batch size; their variants took turns.
        measured_at: When that was, see `now_text`; None where that was not recorded.
    """

    environment: Mapping[str, str]
    evidence: tuple[Evidence, ...]
    latency: Mapping[str, LatencyReport]
    measured_at: str | None = None

    def _line(self) -> str:
        shipped = [entry for entry in self.evidence if entry.is_shipped]
        passed = sum(entry.passed for entry in shipped)
        return f"{machine_name(self.environment)}, {passed} of {len(shipped)} variants passed"

    def _table(self) -> Table:
        return _VariantLine, [
            _VariantLine(entry.variant, entry.outcome, entry.reason) for entry in self.evidence
        ]


@dataclass(frozen=True, slots=True)
class _VariantLine:
    """A row about one variant."""

    variant: str
    outcome: str
    reason: str | None


def now_text() -> str:
    """The time in UTC, to the second, by ISO 8601."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def machine_name(environment: Mapping[str, str]) -> str:
    """A machine for people: its GPU, or its processor where it has none."""
    return environment.get("gpu") or environment.get("processor") or "an unknown machine"


def prefix_kind(kind: str, sentence: str) -> str:
    """A finding, with the kind of sample in front where it is not the usual one."""
    return sentence if kind == "profile" else f"{sentence} ({SAMPLES.get(kind, kind)})"
