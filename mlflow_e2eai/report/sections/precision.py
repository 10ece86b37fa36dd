"""What conversions to another precision did, and why a node stays in fp32."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from mlflow_e2eai.bundle.manifest import Manifest
from mlflow_e2eai.evaluation.evidence import Evidence
from mlflow_e2eai.precision.ranges import Fp32Node
from mlflow_e2eai.precision.stage import PrecisionReport
from mlflow_e2eai.report import html
from mlflow_e2eai.report.html import (
    NONE,
    Column,
    Markup,
    Section,
    cell,
    element,
    error_text,
    head,
    join,
    number,
    sentence,
)

_REASONS = {
    "overflow": "too large for fp16",
    "underflow": "too small for fp16",
    "asked for": "asked for by name",
    "rounding": "loses too much to bf16",
    "all zero": "nothing but zero was seen",
    "library": "operator of a library",
}


def precision_section(manifest: Manifest) -> Section | None:
    """Every conversion, also those that were refused."""
    if not manifest.conversions:
        return None
    parts = [
        join(
            (
                element("h3", f"To {report.precision}"),
                precision_part(report),
                *_worths(report.precision, manifest.evidence),
            )
        )
        for report in manifest.conversions
    ]
    return "precision", "Precision", element("div", *parts)


def precision_part(report: PrecisionReport) -> Markup:
    """All that is known of a conversion."""
    guarded = f"on {report.samples:,} samples" if report.samples else "no ranges were seen"
    facts: tuple[tuple[str, str, str], ...] = (
        ("Nodes in fp32", f"{len(report.kept):,} of {report.nodes:,}", guarded),
        ("Casts", f"{report.casts:,}", "that came in"),
        ("Masks", f"{len(report.saturated):,}", "values that may stop at fp16's lowest number"),
    )
    if report.calibration is not None:
        calibrator = f"calibrated by {report.calibration.calibrator}, {guarded}"
        facts = (
            ("Nodes quantised", f"{report.quantized:,} of {report.nodes:,}", calibrator),
            ("Q/DQ pairs", f"{report.pairs:,}", "that came in"),
        )
    refused = (
        None
        if report.refused is None
        else element("p", element("strong", "Refused: ", class_="wrong"), sentence(report.refused))
    )
    return element("div", refused, html.facts(facts), _kept(report), _calibrated(report))


def _worths(precision: str, evidence: Sequence[Evidence]) -> Iterator[Markup]:
    """Whether each variant in a precision is kept, and what was measured for it."""
    for entry in evidence:
        if entry.worth is None or entry.variant.rpartition("/")[2] != precision:
            continue
        reasons = "; ".join(entry.worth.decision.reasons)
        measured = ", ".join(f"{name} {value:.3g}" for name, value in entry.worth.metrics.items())
        verdict = (
            element("strong", "Kept. ")
            if entry.worth.retained
            else element("strong", f"Rejected: {reasons}. ", class_="wrong")
        )
        yield element("p", element("code", entry.variant), " ", verdict, sentence(measured))


def _kept(report: PrecisionReport) -> Markup | None:
    if not report.kept:
        return None
    columns = [Column(name) for name in ("Node", "Operator", "Reason", "Value")]
    return html.table(
        f"kept-{report.precision}",
        "Nodes that stay in fp32, and the largest magnitude that was seen of what says so",
        [*columns, Column("Magnitude", number=True)],
        [html.body(_row(one) for one in report.kept)],
    )


def _calibrated(report: PrecisionReport) -> Markup | None:
    if report.calibration is None:
        return None
    columns = [Column(name, number=True) for name in ("Largest seen", "Range", "Clipped")]
    rows = [
        (
            head(element("code", one.value)),
            number(error_text(one.magnitude), value=one.magnitude),
            number(error_text(one.limit), value=one.limit),
            number(f"{one.clipped:.2%}", value=one.clipped),
        )
        for one in report.calibration.values
    ]
    return html.table(
        f"calibrated-{report.precision}",
        "Values that are quantised, the end of their range, and the share of numbers beyond it",
        [Column("Value"), *columns],
        [html.body(rows)],
    )


def _row(one: Fp32Node) -> tuple[Markup, ...]:
    return (
        head(element("code", one.node)),
        cell(element("code", one.operator)),
        cell(_REASONS[one.reason] + ("" if one.loss is None else f": {one.loss:.1%}")),
        cell(NONE if one.value is None else element("code", one.value)),
        number(error_text(one.magnitude), value=one.magnitude),
    )
