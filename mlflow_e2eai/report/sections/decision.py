"""The decision, its key figures, and every variant in one line."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from mlflow_e2eai.bundle.manifest import Manifest
from mlflow_e2eai.evaluation.gates import Decision, Verdict
from mlflow_e2eai.latency.ratios import Ratio
from mlflow_e2eai.report.facts import (
    Row,
    Section,
    on_machines,
    refused_conversions,
    rows_of,
    task_names,
    timed_rows,
    tuned_sizes,
    worst_outcomes,
)
from mlflow_e2eai.report.formats import (
    NOISY_TEXT,
    bounds_text,
    error_text,
    speed_text,
    time_text,
)
from mlflow_e2eai.report.sections.doubts import doubts, tag
from mlflow_e2eai.report.sections.intervals import interval_signs


def decision_context(
    manifest: Manifest, decision: Decision | None, ratios: Sequence[Mapping[str, Ratio]]
) -> dict[str, object]:
    """The decision in a word and a sentence, its key figures, and each gate.

    Args:
        manifest: The bundle's manifest.
        decision: The outcome of its gates; None before they were evaluated.
        ratios: For each machine, how many times as long as its reference each variant takes.
    """
    word, kind, reason = _headline(manifest, decision)
    verdicts = () if decision is None else decision.verdicts
    return {
        "word": word,
        "kind": kind,
        "reason": reason,
        "doubts": list(doubts(manifest)),
        "key_facts": _key_facts(manifest, ratios),
        # Failures first, those that decide before those that warn.
        "verdicts": sorted(verdicts, key=lambda one: (one.passed, _warns(one))),
        "inapplicable": [
            (metric, why)
            for reason in (() if decision is None else decision.inapplicable)
            for metric, _, why in [reason.partition(": ")]
        ],
        "excluded": () if decision is None else decision.excluded,
    }


def _warns(verdict: Verdict) -> bool:
    """Whether it did not pass, and decides nothing."""
    return not verdict.passed and verdict.severity == "warn"


def _headline(manifest: Manifest, decision: Decision | None) -> tuple[str, str, str]:
    """The word, its sign, and the sentence that explains it."""
    if decision is None:
        return (
            "Not decided yet",
            "open",
            f"Not evaluated against any gates yet. {_summary(manifest)}",
        )
    count = len(decision.verdicts)
    if decision.promoted:
        warned = len(decision.warnings)
        gates = "The only gate" if count == 1 else f"All {count} gates"
        gates = f"{count - warned} of {count} gates" if warned else gates
        which = " that applied" if decision.inapplicable else ""
        rest = f", {warned} warned" if warned else ""
        return "Promoted", "passed", f"{gates}{which} passed{rest}. {_summary(manifest)}"
    failed = sum(not verdict.passed and not _warns(verdict) for verdict in decision.verdicts)
    if not failed:
        return "Rejected", "failed", decision.reasons[0]
    return "Rejected", "failed", f"{failed} of {count} gates did not pass. {_summary(manifest)}"


def _summary(manifest: Manifest) -> str:
    shipped = (entry for entry in manifest.all_evidence if entry.is_shipped)
    outcomes = [*worst_outcomes(shipped).values()]
    passed, failed = outcomes.count("passed"), outcomes.count("failed")
    unmeasured = outcomes.count("unmeasured")
    if not outcomes:
        return "There is no evidence of any variant."
    text = f"Of {len(outcomes)} variants, {passed} passed and {failed} failed"
    return f"{text}; {unmeasured} built and not measured here." if unmeasured else f"{text}."


def _key_facts(
    manifest: Manifest, ratios: Sequence[Mapping[str, Ratio]]
) -> list[dict[str, str | None]]:
    """Key figures: the largest error, and the fastest variant of each machine."""
    errors = [
        (row, where)
        for there, where in on_machines(manifest)
        for row in rows_of(there)
        if row.outcome in ("passed", "failed") and row.max_abs_error is not None
    ]
    facts = []
    if errors:
        worst, where = max(errors, key=lambda error: _badness(error[0]))
        note = f"{worst.variant}{where}"
        facts.append(_fact("Largest error", error_text(worst.max_abs_error), note))
    for (there, where), own in zip(on_machines(manifest), ratios, strict=True):
        facts += _fastest(there, own, where)
    return facts


def _badness(row: Row) -> float:
    error = row.max_abs_error
    return -1.0 if error is None else (math.inf if math.isnan(error) else error)


def _fastest(
    manifest: Manifest, ratios: Mapping[str, Ratio], where: str
) -> list[dict[str, str | None]]:
    """The shortest time on a machine, and its ratio to the reference's there.

    No number, where the machine was busy while one of them was measured.
    """
    timed = timed_rows(manifest)
    if not timed:
        return []
    best = timed[0]
    report = tuned_sizes(manifest)
    title = f"Fastest that passed{where}"
    if busy := [row.variant for row in timed if row.busy]:
        return [_fact(title, NOISY_TEXT, ", ".join(busy), tag(report, busy[0]))]
    time, note = f"{time_text(best.p50_ms)} ms", best.variant
    if len(timed) > 1 and report is not None:
        second = timed[1].variant
        if report.ratio(best.variant, second).equal:
            note = f"{note}, within the noise of {second}"
    facts = [_fact(title, time, note, tag(report, best.variant))]
    if (ratio := ratios.get(best.variant)) is not None:
        name = f"Speed against {manifest.reference}"
        facts.append(_fact(name, speed_text(ratio), f"time: {bounds_text(ratio)}"))
    return facts


def _fact(name: str, value: str, note: str, doubt: str | None = None) -> dict[str, str | None]:
    return {"name": name, "value": value, "note": note, "doubt": doubt}


def variants_section(manifest: Manifest, ratios: Sequence[Mapping[str, Ratio]]) -> Section | None:
    """Every variant in one line, with a table for each machine that measured any.

    Args:
        manifest: The bundle's manifest.
        ratios: See `decision_context`.
    """
    if not manifest.evidence:
        return None
    machines = [
        _machine(there, where, own)
        for (there, where), own in zip(on_machines(manifest), ratios, strict=True)
    ]
    count = len({entry.variant for entry in manifest.all_evidence})
    context = {"count": count, "machines": machines, "refused": refused_conversions(manifest)}
    return Section("variants", "Variants", context)


def _machine(manifest: Manifest, where: str, ratios: Mapping[str, Ratio]) -> dict[str, object]:
    """The variants of one machine, whose times are compared with each other only."""
    rows, report = rows_of(manifest), tuned_sizes(manifest)
    unmeasured = [row.variant for row in rows if row.outcome == "unmeasured"]
    folded = unmeasured if len(unmeasured) > 1 else []  # there are no numbers to tell them apart
    size = "" if report is None else f" at {report.items}"
    caption = (
        f"Largest absolute error over all comparisons, and latency{size} against "
        f"{manifest.reference or 'the reference'}, with the 99 % interval of the ratio; "
        f"“within the noise” where it holds 1.{f' Measured{where}.' if where else ''}"
    )
    return {
        "caption": caption,
        "tasks": task_names(manifest),
        "median": f"Median{size}, ms",
        "rows": [row for row in rows if row.variant not in folded],
        "unmeasured": folded,
        "lost": {entry.variant: entry.lost_at for entry in manifest.evidence},
        "tags": {entry.variant: tag(report, entry.variant) for entry in manifest.evidence},
        "ratios": ratios,
        "signs": interval_signs(ratios),
    }
