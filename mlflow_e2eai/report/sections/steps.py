"""Parity per stage: what each step did to the numbers and to the time."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

from mlflow_e2eai.artifacts.values import EngineArtifact, OnnxArtifact
from mlflow_e2eai.bundle.manifest import Manifest
from mlflow_e2eai.evaluation.evidence import Evidence
from mlflow_e2eai.evaluation.variants import FILE, step_of
from mlflow_e2eai.parity.report import ParityReport
from mlflow_e2eai.report import html
from mlflow_e2eai.report.facts import Ratios, is_raw, subject_of
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
)


def steps_section(manifest: Manifest, ratios: Ratios) -> Section | None:
    """Each step on the way to a variant, held against the reference and the step before it."""
    entries = [entry for entry in in_order(manifest.evidence) if entry.measured]
    if not any(entry.before for entry in entries):
        return None
    files = {file.sha256: file for file in manifest.files}
    found = {entry.variant: ratios.of(entry.variant, entry.before) for entry in entries}
    glyphs = interval_glyphs({name: ratio for name, ratio in found.items() if ratio is not None})
    columns = [
        Column("Step"),
        Column("Variant"),
        Column("Against the reference"),
        Column("Largest error", number=True),
        Column("Step before"),
        Column("Against it"),
        Column("Largest error", number=True),
        Column("Time ratio to it", number=True),
        Column(element("span", "Interval", class_="unseen")),
    ]
    caption = (
        "What each step did, on the corners of the profile: its answers against those of the "
        f"{subject_of(manifest)}, and against those of the step before it, with the 99 % interval "
        "of the ratio of their times; “equal” where it holds 1."
    )
    bodies = (
        group(
            entry.variant,
            [
                (
                    head(_step(entry, files)),
                    cell(element("code", entry.variant)),
                    *_compared(entry.parity.get("profile"), entry.reason),
                    cell(element("code", entry.before) if entry.before else NONE),
                    *_compared(entry.against_before),
                    number(html.ratio(found[entry.variant])),
                    cell(glyphs.get(entry.variant, ""), kind="glyphs"),
                )
            ],
        )
        for entry in entries
    )
    return "steps", "Step by step", html.table("steps-table", caption, columns, bodies)


def in_order(evidence: Sequence[Evidence]) -> list[Evidence]:
    """Each variant behind the one that came before it; those that have no such order, last."""
    known = {entry.variant for entry in evidence}
    followers: dict[str | None, list[Evidence]] = defaultdict(list)
    for entry in evidence:
        followers[entry.before if entry.before in known else None].append(entry)
    ordered: list[Evidence] = []
    waiting = followers.pop(None, [])[::-1]
    while waiting:
        entry = waiting.pop()
        ordered.append(entry)
        waiting += followers.pop(entry.variant, [])[::-1]
    return ordered + [entry for entries in followers.values() for entry in entries]


def step_name(entry: Evidence, files: Mapping[str, OnnxArtifact | EngineArtifact]) -> str:
    """The step that a variant is the result of.

    Args:
        entry: The variant.
        files: The files of the bundle by digest.
    """
    if entry.sha256 is None:
        return "ONNX file" if entry.variant == FILE else "PyTorch module"
    if is_raw(entry):
        return "export"
    file = files.get(entry.sha256)
    return NONE if file is None else step_of(file, entry.variant.partition("/")[0])


def _step(entry: Evidence, files: Mapping[str, OnnxArtifact | EngineArtifact]) -> Markup:
    name = step_name(entry, files)
    lost = element("span", "the accuracy was lost here", class_="wrong")
    return stack(name, lost if entry.lost_at == name else None)


def _compared(report: ParityReport | None, reason: str | None = None) -> tuple[Markup, Markup]:
    """Outcome and largest error of one comparison."""
    if report is None:
        return cell(NONE if reason is None else sentence(reason)), number(NONE)
    said = html.verdict(passed=report.passed)
    if report.findings:
        kinds = dict.fromkeys(finding.kind for finding in report.findings)
        said = stack(said, ", ".join(kinds))
    error = report.max_abs_error
    return cell(said, kind="said"), number(error_text(error), value=error)
