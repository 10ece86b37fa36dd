"""What a reader looks for first: the decision, what it rests on, and every variant in one line."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from mlflow_e2eai.bundle.manifest import Manifest
from mlflow_e2eai.evaluation.gates import Decision, Verdict
from mlflow_e2eai.latency.ratios import Ratio
from mlflow_e2eai.precision.stage import PrecisionReport
from mlflow_e2eai.report import html
from mlflow_e2eai.report.facts import (
    Row,
    came_to,
    is_raw,
    on_machines,
    reference_of,
    refused,
    rows_of,
    task_names,
    tuned,
)
from mlflow_e2eai.report.figures import interval_glyphs
from mlflow_e2eai.report.html import (
    NONE,
    Column,
    Markup,
    Section,
    cell,
    element,
    error_text,
    group,
    head,
    number,
    sentence,
    stack,
    time_text,
)
from mlflow_e2eai.report.sections.doubts import doubts_part, tag

# Decision


def decision_part(
    manifest: Manifest, decision: Decision | None, against: Sequence[Mapping[str, Ratio]]
) -> Markup:
    """The answer in a word and a sentence, what it rests on, and each gate.

    Args:
        manifest: The bundle's manifest.
        decision: What its gates said, if they were asked.
        against: For each machine, how many times as long as its reference each variant takes.
    """
    word, kind, why = _answer(manifest, decision)
    parts = [
        element("p", html.icon(kind), element("strong", word), class_=f"answer {kind}"),
        element("p", why, class_="lead"),
        doubts_part(manifest),
        _key_facts(manifest, against),
    ]
    if decision is not None and decision.verdicts:
        parts.append(_gates(decision))
    return element("div", *parts)


def _answer(manifest: Manifest, decision: Decision | None) -> tuple[str, str, str]:
    """The word, its sign, and the sentence that explains it."""
    if decision is None:
        return "Not decided yet", "open", f"No gates were held against this. {_summary(manifest)}"
    count = len(decision.verdicts)
    if decision.promoted:
        return "Promoted", "passed", f"{_all(count)} passed. {_summary(manifest)}"
    if not decision.verdicts:
        return "Rejected", "failed", decision.reasons[0]
    failed = sum(not verdict.passed for verdict in decision.verdicts)
    return "Rejected", "failed", f"{failed} of {count} gates did not pass. {_summary(manifest)}"


def _all(count: int) -> str:
    return "The only gate" if count == 1 else f"All {count} gates"


def _summary(manifest: Manifest) -> str:
    judged = (e for e in manifest.all_evidence if e.sha256 is not None and not is_raw(e))
    outcomes = [*came_to(judged).values()]
    passed, failed = outcomes.count("passed"), outcomes.count("failed")
    open_ = outcomes.count("unmeasured")
    if not outcomes:
        return "There is no evidence of any variant."
    text = f"Of {len(outcomes)} variants, {passed} passed and {failed} failed"
    return f"{text}; {open_} built and not measured here." if open_ else f"{text}."


def _gates(decision: Decision) -> Markup:
    # What did not pass is what the reader looks for.
    order = sorted(decision.verdicts, key=lambda verdict: verdict.passed)
    columns = [
        Column("Gate"),
        Column("Result"),
        Column("Found", number=True),
        Column("Wanted"),
    ]
    return html.table("gates", "The gates", columns, [html.body(map(_gate, order))])


def _gate(verdict: Verdict) -> tuple[Markup, ...]:
    found = "not measured" if verdict.found is None else _found(verdict.found)
    return (
        head(element("code", verdict.metric)),
        cell(html.verdict(passed=verdict.passed)),
        number(found),
        cell(verdict.wanted),
    )


def _found(value: float) -> str:
    if math.isnan(value):
        return "NaN (could not be told)"
    return f"{value:.4g}" if math.isfinite(value) else "infinite"


def _key_facts(manifest: Manifest, against: Sequence[Mapping[str, Ratio]]) -> Markup | None:
    """Three numbers that say how it stands."""
    wrong = [
        (row, where)
        for there, where in on_machines(manifest)
        for row in rows_of(there)
        if row.outcome in ("passed", "failed") and row.max_abs_error is not None
    ]
    facts: list[tuple[str, object, object]] = []
    if wrong:
        worst, where = max(wrong, key=lambda found: _badness(found[0].max_abs_error))
        said = error_text(worst.max_abs_error)
        facts.append(("Largest error", said, f"{worst.variant}{where}"))
    for (there, where), ratios in zip(on_machines(manifest), against, strict=True):
        facts += _fastest(there, ratios, where)
    if not facts:
        return None
    return html.facts(facts)


def _fastest(
    manifest: Manifest, ratios: Mapping[str, Ratio], where: str
) -> list[tuple[str, object, object]]:
    """The shortest time of a machine, and what it is of the reference's there."""
    timed = [
        row
        for row in rows_of(manifest)
        if row.outcome == "passed" and row.in_bundle and row.p50_ms is not None
    ]
    if not timed:
        return []
    best = min(timed, key=lambda row: row.p50_ms or 0.0)
    note = stack(best.variant, tag(tuned(manifest), best.variant))
    found: list[tuple[str, object, object]] = [
        (f"Fastest that passed{where}", f"{time_text(best.p50_ms)} ms", note)
    ]
    if (ratio := ratios.get(best.variant)) is not None:
        said = html.factor_text(ratio.value), html.bounds_text(ratio)
        found.append(("Its time against the reference's", *said))
    return found


def _badness(error: float | None) -> float:
    return -1.0 if error is None else (math.inf if math.isnan(error) else error)


# Variants


def variants_section(manifest: Manifest, against: Sequence[Mapping[str, Ratio]]) -> Section:
    """Every variant in one line, with a table for each machine that it was asked on.

    Args:
        manifest: The bundle's manifest.
        against: See `decision_part`.
    """
    found = []
    for at, (there, where) in enumerate(on_machines(manifest)):
        tasks = len(task_names(there))
        missing = [] if at else [_no_graph(report, tasks) for report in refused(manifest)]
        key = f"variants-table-{at + 1}" if at else "variants-table"
        found.append(_variants(there, where, against[at], key, missing))
    names = {entry.variant for entry in manifest.all_evidence}
    return "variants", "Variants", element("div", _filter(len(names)), *found)


def _variants(
    manifest: Manifest,
    where: str,
    ratios: Mapping[str, Ratio],
    key: str,
    more: Sequence[Markup],
) -> Markup:
    """The variants of a machine; no time of another's is held against one of them."""
    tasks, report = task_names(manifest), tuned(manifest)
    glyphs = interval_glyphs(ratios)
    size = "" if report is None else f" at {report.items}"
    reference = reference_of(manifest)
    against = "the reference" if reference is None else reference
    columns = [
        Column("Variant"),
        Column("Outcome"),
        Column("Largest error", number=True),
        *(Column(name, number=True) for name in tasks),
        Column(f"Median{size}, ms", number=True),
        Column("Ratio to reference", number=True),
        Column(element("span", "Interval", class_="unseen")),
    ]
    caption = (
        f"Largest absolute error over all comparisons, and latency{size} against {against}, with "
        "the 99 % interval of the ratio; “equal” where it holds 1."
        f"{f' Measured{where}.' if where else ''}"
    )
    lost = {entry.variant: entry.lost_at for entry in manifest.evidence}
    rows = (
        group(
            row.variant,
            [
                (
                    *_named(row, lost.get(row.variant)),
                    *(_task(row.task.get(name)) for name in tasks),
                    number(
                        stack(time_text(row.p50_ms), tag(report, row.variant)), value=row.p50_ms
                    ),
                    _ratio(ratios.get(row.variant)),
                    cell(glyphs.get(row.variant, ""), kind="glyphs"),
                )
            ],
        )
        for row in rows_of(manifest)
    )
    return html.table(key, caption, columns, (*rows, *more), kind="variants sortable")


def _no_graph(report: PrecisionReport, tasks: int) -> Markup:
    """The line of a precision in which there is no graph, and why."""
    refusal = stack(html.verdict(passed=False), sentence(f"refused: {report.refused}"))
    named = (head(element("code", report.precision)), cell(refusal))
    return group(report.precision, [(*named, *[number(NONE)] * (tasks + 3), cell(""))])


def _named(row: Row, lost_at: str | None) -> tuple[Markup, ...]:
    """Name, outcome and error of a variant."""
    apart = None if row.in_bundle else "as exported, not in the bundle"
    lost = None if lost_at is None else f"lost at {lost_at}"
    return (
        head(stack(element("code", row.variant), apart)),
        cell(stack(html.outcome(row.outcome), lost)),
        number(error_text(row.max_abs_error), value=row.max_abs_error),
    )


def _ratio(ratio: Ratio | None) -> Markup:
    return number(html.ratio(ratio), value=None if ratio is None else ratio.value)


def _task(value: float | None) -> Markup:
    return number(NONE if value is None else f"{value:.4f}", value=value)


def _filter(count: int) -> Markup:
    """A field that narrows every table to some variants; shown by the script that serves it."""
    return element(
        "p",
        element("label", "Show variants with", for_="filter"),
        element("input", type="search", id="filter", autocomplete="off", spellcheck="false"),
        element("output", f"{count} shown", for_="filter", id="filter-count"),
        class_="filter",
        id="filter-line",
        hidden=True,
    )
