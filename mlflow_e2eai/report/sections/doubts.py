"""Failures and doubts: in short, in a word next to the numbers, and in full."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from mlflow_e2eai.artifacts.axes import label_of
from mlflow_e2eai.bundle.manifest import Manifest
from mlflow_e2eai.evaluation.evidence import ADVISORY, Evidence, prefix_kind
from mlflow_e2eai.latency.report import ColdStart, LatencyReport, Load
from mlflow_e2eai.pytorch.stage import ExportReport
from mlflow_e2eai.report.facts import (
    Section,
    benchmarks_by_size,
    is_raw,
    on_machines,
    worst_outcomes,
)
from mlflow_e2eai.report.formats import sentence

_TAGS: Mapping[str, str] = {
    "unsettled": "not steady",
    "drift": "drift",
    "stall": "stalls",
    "clock_jump": "clock moved",
    "throttled": "GPU throttled",
    "busy": "machine busy",
}

_SHORT: Mapping[str, str] = {
    "unsettled": "the warm-up ended before the calls were steady",
    "drift": "calls became slower or faster during the measurement",
    "stall": "single calls stalled",
    "clock_jump": "the clock moved while nothing ran",
    "throttled": "the GPU throttled its clock",
    "busy": "other processes used the processor: too noisy to tell",
}


_MOST_SIZES = 2
"""Refused sizes that a sentence names."""


def basic_doubts(manifest: Manifest) -> Iterator[str]:
    """Doubts about what all numbers rest on: the inputs, their sizes, the graph and the labels."""
    for assumption in manifest.graphs[0].assumptions:
        yield f"{assumption} The numbers say little about real inputs."
    if manifest.export is not None:
        yield from _export_doubts(manifest.export)
    for name in manifest.zero_scores:
        yield (
            f"The {manifest.subject} itself scores 0 by {name}, so that no variant can be worse: "
            "check the labels and the metric, unless 0 is its best value."
        )


def _export_doubts(report: ExportReport) -> Iterator[str]:
    if report.unverified is not None:
        yield f"The exported graph was not compared with the model: {report.unverified}."
    if report.sizes is not None and (refused := report.sizes.refused):
        count, tried = len(refused), len(refused) + len(report.sizes.taken)
        few = "; ".join(map(label_of, refused[:_MOST_SIZES]))
        more = f"; {count - _MOST_SIZES} more" if count > _MOST_SIZES else ""
        yield (
            f"PyTorch itself refuses {count} of the {tried} sizes within the dynamic axes that "
            f"were tried ({few}{more}). {report.sizes.advice}"
        )
    if report.frozen is not None:
        compared = len(report.samples)
        yield (
            f"The {report.exporter} exporter took values of the input example for constants "
            f"({report.frozen}): the graph may be wrong for inputs unlike the {compared} samples "
            "that it was compared on."
        )


def doubts(manifest: Manifest) -> Iterator[tuple[str, bool]]:
    """Each doubt that a reader should know before the numbers, and whether findings explain it."""
    yield from ((text, False) for text in basic_doubts(manifest))
    if manifest.level == "quick":
        text = (
            "The evidence is quick: each variant ran a few times, from one caller, and latency "
            "was measured at one batch size."
        )
        yield text, False
    evidence = manifest.all_evidence
    outcomes = [*worst_outcomes(evidence).values()]
    if "unsteady" in outcomes:
        subject = manifest.subject
        text = f"Two runs of the {subject} differ: comparisons with it mean little."
        yield text, False
    if any(is_raw(entry) and not entry.passed for entry in evidence):
        text = (
            "The graph differs from the PyTorch module as it was exported, before any other step."
        )
        yield text, False
    if count := outcomes.count("unmeasured"):
        verb = "was" if count == 1 else "were"
        where = "any" if manifest.elsewhere else "this"
        yield f"{_variants(count)} {verb} built and not measured on {where} machine.", False
    if count := len({entry.variant for entry in evidence if _fails_advisory(entry)}):
        verb = "differs" if count == 1 else "differ"
        text = (
            f"{_variants(count)} {verb} on numbers larger than those of the input example; this is "
            "shown, but decides nothing."
        )
        yield text, False
    yield from _latency_doubts(
        report for there in manifest.by_machine for report in there.latency.values()
    )
    for what in ("Cold start", "Throughput"):
        count = len({entry.variant for entry in evidence if _busy_sentences(entry, what)})
        if count:
            yield f"{what} of {_variants(count)}: {_SHORT['busy']}", True


def _busy_sentences(entry: Evidence, *about: str) -> list[str]:
    """The measures of serving a variant that a busy machine took, with the share it got."""
    measures: list[tuple[str, ColdStart | Load | None]] = [("Cold start", entry.cold_start)]
    for load in () if entry.loads is None else entry.loads.loads:
        callers = "1 caller" if load.threads == 1 else f"{load.threads} callers"
        measures.append((f"Throughput of {callers}", load))
    return [
        f"{name}: the variant got {_share(measure.cpu_share)} of the processor time that it could "
        "have used: other processes had the rest, and its numbers are too noisy to tell."
        for name, measure in measures
        if name.startswith(about) and measure is not None and measure.busy
    ]


def _share(share: float | None) -> str:
    return "a part" if share is None else f"{share:.0%}"


def _variants(count: int) -> str:
    return "1 variant" if count == 1 else f"{count} variants"


def _fails_advisory(entry: Evidence) -> bool:
    return any(not report.passed for kind, report in entry.parity.items() if kind in ADVISORY)


def _latency_doubts(reports: Iterable[LatencyReport]) -> Iterator[tuple[str, bool]]:
    """One line for each kind of doubt about the times."""
    variants_by_kind: dict[str, set[str | None]] = {}
    for report in reports:
        for finding in report.findings:
            variants_by_kind.setdefault(finding.kind, set()).add(finding.variant)
    for kind, variants in variants_by_kind.items():
        whose = "the whole run" if None in variants else _variants(len(variants))
        yield f"Latency of {whose}: {_SHORT.get(kind, kind)}", True


BUSY = _TAGS["busy"]
"""Words next to a number that was measured on a busy machine."""


def tag(report: LatencyReport | None, variant: str) -> str | None:
    """A word or two next to a variant's times, where something makes them doubtful."""
    if report is None:
        return None
    kinds = dict.fromkeys(
        finding.kind for finding in report.findings if finding.variant in (None, variant)
    )
    return ", ".join(_TAGS.get(kind, kind) for kind in kinds) or None


@dataclass(frozen=True, slots=True)
class _Group:
    """Sentences of one kind, each with its variants."""

    key: str
    title: str
    sentences: dict[str, list[str]] = field(default_factory=dict)

    def add(self, text: str, variant: str) -> None:
        """Add a variant to a sentence, once."""
        variants = self.sentences.setdefault(sentence(text), [])
        if variant not in variants:
            variants.append(variant)


def findings_section(manifest: Manifest) -> Section | None:
    """Every finding: each sentence once, with its variants."""
    wrong = _Group("wrong", "Failures")
    slow = _Group("doubtful", "Why latencies may be unreliable")
    advisory = _Group("advisory", "For information only")
    unmeasured = _Group("unmeasured", "Built, but not measured here")
    untimed = _Group("untimed", "Compared, but latency not measured here")
    for there, where in on_machines(manifest):
        for entry in there.evidence:
            name = f"{entry.variant}{where}"
            if entry.untimed is not None:
                untimed.add(entry.untimed, name)
            if entry.reason is not None:
                (wrong if entry.measured else unmeasured).add(entry.reason, name)
            for text in _busy_sentences(entry, "Cold start", "Throughput"):
                slow.add(text, name)
            for kind, report in entry.parity.items():
                group = advisory if kind in ADVISORY else wrong
                for finding in report.findings:
                    group.add(prefix_kind(kind, finding.sentence), name)
        for size, timed in benchmarks_by_size(there.latency):
            for doubt in timed.findings:
                name = f"{doubt.variant or 'the whole run'}{where}"
                slow.add(f"{doubt.sentence} ({size})", name)
    every = (wrong, slow, advisory, unmeasured, untimed)
    groups = [group for group in every if group.sentences]
    return Section("findings", "Findings", {"groups": groups}) if groups else None
