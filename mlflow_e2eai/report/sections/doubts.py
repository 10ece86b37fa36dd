"""What is wrong, and what is doubtful: at the top in short, beside the numbers, and in full."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from mlflow_e2eai.bundle.manifest import Manifest
from mlflow_e2eai.evaluation.evidence import ADVISORY, Evidence, prefix_kind
from mlflow_e2eai.latency.report import LatencyReport
from mlflow_e2eai.report.facts import came_to, is_raw, on_machines, subject_of
from mlflow_e2eai.report.figures import places
from mlflow_e2eai.report.html import Markup, Section, element, icon, join, sentence

_TAGS: Mapping[str, str] = {
    "unsettled": "not steady",
    "drift": "drift",
    "stall": "stalls",
    "clock_jump": "clock moved",
    "throttled": "GPU held down",
}

_SHORT: Mapping[str, str] = {
    "unsettled": "the warm-up ended before the calls were steady",
    "drift": "calls became slower or faster during the measure",
    "stall": "single calls stalled",
    "clock_jump": "the clock moved where nothing ran",
    "throttled": "the GPU held its clock down",
}


def doubts_part(manifest: Manifest) -> Markup | None:
    """What a reader should know before the numbers, in a few lines."""
    said = list(_doubts(manifest))
    if not said:
        return None
    items = (element("li", icon("doubt"), element("span", text)) for text in said)
    return element(
        "div",
        element("h2", "What is doubtful", class_="small"),
        element("ul", *items),
        class_="doubts",
    )


def _doubts(manifest: Manifest) -> Iterator[object]:
    evidence = manifest.all_evidence
    outcomes = [*came_to(evidence).values()]
    if "unsteady" in outcomes:
        subject = subject_of(manifest)
        yield f"The {subject} does not agree with itself: what is held against it means little."
    if any(is_raw(entry) and not entry.passed for entry in evidence):
        yield "The graph differs from the PyTorch module as it was exported, before any other step."
    if count := outcomes.count("unmeasured"):
        verb = "was" if count == 1 else "were"
        where = "any" if manifest.elsewhere else "this"
        yield f"{_variants(count)} {verb} built and not measured on {where} machine."
    if count := len({entry.variant for entry in evidence if _differs_advisedly(entry)}):
        verb = "differs" if count == 1 else "differ"
        yield (
            f"{_variants(count)} {verb} on numbers larger than those of the input example; this is "
            "shown, and does not decide."
        )
    yield from _timing(report for there in manifest.by_machine for report in there.latency.values())


def _variants(count: int) -> str:
    return "1 variant" if count == 1 else f"{count} variants"


def _differs_advisedly(entry: Evidence) -> bool:
    return any(not report.passed for kind, report in entry.parity.items() if kind in ADVISORY)


def _timing(reports: Iterable[LatencyReport]) -> Iterator[object]:
    """One line for each kind of doubt about the times."""
    found: dict[str, set[str | None]] = {}
    for report in reports:
        for finding in report.findings:
            found.setdefault(finding.kind, set()).add(finding.variant)
    for kind, variants in found.items():
        whose = "the whole run" if None in variants else _variants(len(variants))
        text = f"Latency of {whose}: {_SHORT.get(kind, kind)}"
        yield join((text, " (", element("a", "findings", href="#findings"), ")."))


def tag(report: LatencyReport | None, variant: str) -> Markup | None:
    """What makes a variant's times doubtful, in a word or two to stand beside them."""
    if report is None:
        return None
    kinds = dict.fromkeys(
        finding.kind for finding in report.findings if finding.variant in (None, variant)
    )
    if not kinds:
        return None
    words = ", ".join(_TAGS.get(kind, kind) for kind in kinds)
    return element("span", icon("doubt"), words, class_="doubt")


# In full


@dataclass(frozen=True, slots=True)
class _Said:
    """Sentences of one sort, each with the variants that it is of."""

    key: str
    title: str
    sentences: dict[str, list[str]] = field(default_factory=dict)

    def add(self, text: str, variant: str) -> None:
        """A sentence of a variant, once."""
        variants = self.sentences.setdefault(sentence(text), [])
        if variant not in variants:
            variants.append(variant)


def findings_section(manifest: Manifest) -> Section | None:
    """Every finding: each sentence once, with the variants that it is of."""
    wrong = _Said("wrong", "What is wrong")
    slow = _Said("doubtful", "What makes the times doubtful")
    advisory = _Said("advisory", "Shown, and does not decide")
    unmeasured = _Said("unmeasured", "Built, and not measured here")
    untimed = _Said("untimed", "Judged, and not timed here")
    for there, where in on_machines(manifest):
        for entry in there.evidence:
            name = f"{entry.variant}{where}"
            if entry.untimed is not None:
                untimed.add(entry.untimed, name)
            if entry.reason is not None:
                (wrong if entry.measured else unmeasured).add(entry.reason, name)
            for kind, report in entry.parity.items():
                for finding in report.findings:
                    said = advisory if kind in ADVISORY else wrong
                    said.add(prefix_kind(kind, finding.sentence), name)
        for place, timed in places(there.latency):
            for doubt in timed.findings:
                name = f"{doubt.variant or 'the whole run'}{where}"
                slow.add(f"{doubt.sentence} ({place})", name)
    parts = [_list(said) for said in (wrong, slow, advisory, unmeasured, untimed) if said.sentences]
    return ("findings", "Findings", element("div", *parts)) if parts else None


def _list(said: _Said) -> Markup:
    key = f"{said.key}-findings"
    items = (
        element(
            "div",
            *(element("dt", element("code", name)) for name in variants),
            element("dd", text),
        )
        for text, variants in said.sentences.items()
    )
    scroll = element(
        "div",
        element("dl", *items, class_=f"findings {said.key}"),
        class_="scroll long",
        role="region",
        aria_labelledby=key,
        tabindex=0,
    )
    return element("div", element("h3", said.title, id=key), scroll)
