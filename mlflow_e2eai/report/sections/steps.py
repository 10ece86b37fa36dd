"""Parity per stage: the effect of each step on the numbers and on the time."""

from __future__ import annotations

from mlflow_e2eai.bundle.manifest import Manifest
from mlflow_e2eai.report.facts import Ratios, Section, in_order, step_name
from mlflow_e2eai.report.sections.intervals import interval_signs


def steps_section(manifest: Manifest, ratios: Ratios) -> Section | None:
    """Each step on the way to a variant, compared with the reference and the step before it."""
    entries = [entry for entry in in_order(manifest.evidence) if entry.measured]
    if not any(entry.before for entry in entries):
        return None
    files = {file.sha256: file for file in manifest.files}
    by_variant = {entry.variant: ratios.of(entry.variant, entry.before) for entry in entries}
    steps = [
        {"entry": entry, "name": step_name(entry, files), "ratio": by_variant[entry.variant]}
        for entry in entries
    ]
    signs = interval_signs({name: r for name, r in by_variant.items() if r is not None})
    context = {"subject": manifest.subject, "steps": steps, "signs": signs}
    return Section("steps", "Step by step", context)
