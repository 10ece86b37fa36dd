"""The description of a registered version: a sentence with the decision, then the table.

A description ends with a line that Markdown does not show, which has the digest of the text before
it. One that a user wrote or edited has another digest or none, and is never replaced.
"""

from __future__ import annotations

import hashlib
from datetime import date

from mlflow_e2eai.bundle.manifest import Manifest
from mlflow_e2eai.evaluation.gates import Decision
from mlflow_e2eai.report.facts import Row, rows_of, tuned_sizes, worst_outcomes
from mlflow_e2eai.report.formats import NOISY_TEXT, sentence, time_text
from mlflow_e2eai.report.text import markdown

_SEAL = "[//]: # (mlflow_e2eai wrote this, sha256 {})"
"""Markdown's form of a comment: the definition of a link that nothing uses."""


def version_description(
    manifest: Manifest,
    decision: Decision | None = None,
    *,
    alias: str = "champion",
    day: date | None = None,
    links: str = "",
) -> str:
    """Describe a version as Markdown: its decision, its fastest variant, then all of them.

    Args:
        manifest: The bundle.
        decision: The outcome of the gates; None before they were evaluated.
        alias: The alias that it was about.
        day: When it was decided.
        links: A paragraph with links to where it came from, in Markdown.

    Returns:
        The description; `is_own_description` recognizes it.
    """
    text = f"{_decision_text(decision, alias, day)}: {_fastest(manifest)}.{_not_measured(manifest)}"
    if decision is not None and not decision.promoted:
        first, *more = decision.reasons
        text += f" Reason: {sentence(first)}{f', and {len(more)} more' if more else ''}."
    text = "\n\n".join(filter(None, [text, markdown(manifest), links]))
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


def _fastest(manifest: Manifest) -> str:
    """The fastest variant of the bundle that passed, on the first machine that has timed one."""
    machines = [(there, _timed(there)) for there in manifest.by_machine]
    there, timed = next((each for each in machines if each[1]), machines[0])
    if not timed:
        passed = [row.variant for row in rows_of(there) if row.outcome == "passed"]
        return f"{', '.join(passed)} passed" if passed else "no variant passed"
    best = min(timed, key=lambda row: row.p50_ms or 0.0)
    report = tuned_sizes(there)
    at = "" if report is None else f" at batch {report.items}"
    time = f"latency{at} {NOISY_TEXT}" if best.busy else f"{time_text(best.p50_ms)} ms{at}"
    words = [best.variant, time]
    reference = next((row for row in rows_of(there) if row.variant == there.reference), None)
    for metric, value in best.task.items():
        known = None if reference is None else reference.task.get(metric)
        against = (
            "" if known is None or reference is None else f" ({reference.variant} {known:.4f})"
        )
        words.append(f"{metric} {value:.4f}{against}")
    return ", ".join(words)


def _timed(manifest: Manifest) -> list[Row]:
    rows = rows_of(manifest)
    return [row for row in rows if row.outcome == "passed" and row.in_bundle and row.p50_ms]


def _not_measured(manifest: Manifest) -> str:
    count = [*worst_outcomes(manifest.all_evidence).values()].count("unmeasured")
    return f" {count} engine{'' if count == 1 else 's'} not measured." if count else ""
