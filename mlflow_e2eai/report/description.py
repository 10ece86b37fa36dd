"""The description of a registered version: a sentence with the decision, then the table.

A description ends with a line that Markdown does not show, which has the digest of the text before
it. One that a user wrote or edited has another digest or none, and is never replaced.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from datetime import date

from mlflow_e2eai.bundle.manifest import Manifest
from mlflow_e2eai.evaluation.gates import Decision
from mlflow_e2eai.report.background import Background
from mlflow_e2eai.report.facts import fastest_row, rows_of, timed_rows, tuned_sizes, worst_outcomes
from mlflow_e2eai.report.formats import NOISY_TEXT, sentence, time_text
from mlflow_e2eai.report.sections.changes import summary
from mlflow_e2eai.report.sections.doubts import basic_doubts
from mlflow_e2eai.report.text import markdown

_ALIASES = "Aliases: "
"""Begins the paragraph with the last move of each alias."""

_SEAL = "[//]: # (mlflow_e2eai wrote this, sha256 {})"
"""Markdown's form of a comment: the definition of a link that nothing uses."""


def version_description(
    manifest: Manifest,
    decision: Decision | None = None,
    *,
    alias: str = "champion",
    day: date | None = None,
    links: str = "",
    background: Background | None = None,
    aliases: str = "",
) -> str:
    """Describe a version as Markdown: its decision, its fastest variant, caveats, all variants.

    Args:
        manifest: The bundle.
        decision: The outcome of the gates; None before they were evaluated.
        alias: The alias that it was about.
        day: When it was decided.
        links: A paragraph with links to where it came from, in Markdown.
        background: The registry's part of the decision.
        aliases: The last moves of its aliases; see `aliases_of`.

    Returns:
        The description; `is_own_description` recognizes it.
    """
    decided, fastest = _decision_text(decision, alias, day), fastest_text(manifest)
    text = f"{decided}: {fastest}.{_not_measured(manifest)}"
    if decision is not None and not decision.promoted:
        first, *more = decision.reasons
        text += f" Reason: {sentence(first)}{f', and {len(more)} more' if more else ''}."
    caveats = " ".join(basic_doubts(manifest))
    parts = [text, caveats and f"Caveats: {caveats}", _background_text(manifest, background)]
    parts += [markdown(manifest), links]
    parts += [f"{_ALIASES}{aliases}"] if aliases else []
    return _seal("\n\n".join(filter(None, parts)))


def _background_text(manifest: Manifest, background: Background | None) -> str:
    """Approvals, and the changes against each version before, in a paragraph."""
    if background is None:
        return ""
    parts = [sentence(text) for text in background.approvals]
    for each in background.before:
        changed = "" if each.manifest is None else f": {summary(manifest, each.manifest)}"
        parts.append(f"Before: version {each.version}{changed}")
    return "".join(f"{part}. " for part in parts).rstrip()


def with_aliases(text: str, moves: Mapping[str, str]) -> str:
    """A description with the last move of some aliases; one that a user wrote is left as it is.

    Args:
        text: The description of a version.
        moves: A phrase by alias.
    """
    if not text or not is_own_description(text):
        return text
    entries = {
        entry.partition(" ")[0].removeprefix("@"): entry
        for entry in aliases_of(text).split("; ")
        if entry
    }
    entries |= {alias: f"@{alias} {phrase}" for alias, phrase in moves.items()}
    parts = [part for part in text.rstrip().split("\n\n")[:-1] if not part.startswith(_ALIASES)]
    return _seal("\n\n".join([*parts, f"{_ALIASES}{'; '.join(entries.values())}"]))


def aliases_of(text: str | None) -> str:
    """The last moves of aliases in a description that nobody changed."""
    parts = (text or "").split("\n\n") if is_own_description(text) else []
    return next((p.removeprefix(_ALIASES) for p in parts if p.startswith(_ALIASES)), "")


def _seal(text: str) -> str:
    return f"{text}\n\n{_SEAL.format(_digest(text))}"


def model_description(name: str, alias: str = "champion") -> str:
    """Describe a registered model that has no description: what its versions are.

    Args:
        name: Name of the registered model.
        alias: The alias that the example loads.
    """
    return (
        "Each version is a bundle of mlflow_e2eai: a cleaned ONNX model, its TensorRT engines if "
        "any, and the measurements on which it is promoted. "
        f'`mlflow_e2eai.load_model("models:/{name}@{alias}")` loads the one in use.'
    )


def is_own_description(text: str | None) -> bool:
    """Whether `version_description` wrote a text and nobody changed it since; or there is none."""
    if not text:
        return True
    above, _, last = text.rstrip().rpartition("\n\n")
    return last == _SEAL.format(_digest(above))


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()[:16]


def _decision_text(decision: Decision | None, alias: str, day: date | None) -> str:
    if decision is None:
        return "Not evaluated against any gates yet"
    on = "" if day is None else f" {day.day} {day:%b %Y}"
    return f"Promoted{on} to {alias}" if decision.promoted else f"Rejected{on} for {alias}"


def fastest_text(manifest: Manifest) -> str:
    """The fastest variant of the bundle that passed, on the first machine that has timed one."""
    machines = [(there, timed_rows(there)) for there in manifest.by_machine]
    there, timed = next((each for each in machines if each[1]), machines[0])
    if not timed:
        passed = [row.variant for row in rows_of(there) if row.outcome == "passed"]
        return f"{', '.join(passed)} passed" if passed else "no variant passed"
    best, is_known = timed[0], fastest_row(there) is not None
    report = tuned_sizes(there)
    at = "" if report is None else f" at batch {report.items}"
    time = f"{time_text(best.p50_ms)} ms{at}" if is_known else f"latency{at} {NOISY_TEXT}"
    words = [best.variant, time]
    reference = next((row for row in rows_of(there) if row.variant == there.reference), None)
    for metric, value in best.task.items():
        known = None if reference is None else reference.task.get(metric)
        against = (
            "" if known is None or reference is None else f" ({reference.variant} {known:.4f})"
        )
        words.append(f"{metric} {value:.4f}{against}")
    return ", ".join(words)


def _not_measured(manifest: Manifest) -> str:
    count = [*worst_outcomes(manifest.all_evidence).values()].count("unmeasured")
    return f" {count} engine{'' if count == 1 else 's'} not measured." if count else ""
