"""Which step lost the accuracy?"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from mlflow_e2eai.evaluation.candidates import Variant
from mlflow_e2eai.evidence import Evidence


def blamed(evidence: Mapping[str, Evidence], variants: Mapping[str, Variant]) -> list[Evidence]:
    """The evidence, with the step that lost the accuracy for each variant that failed."""
    return [
        dataclasses.replace(entry, lost_at=lost_at(name, variants, evidence))
        if entry.sha256 is not None and entry.measured and not entry.passed
        else entry
        for name, entry in evidence.items()
    ]


def lost_at(name: str, variants: Mapping[str, Variant], evidence: Mapping[str, Evidence]) -> str:
    """Walk back from a variant that failed to the first step whose input still passed."""
    step, before = variants[name].step, variants[name].before
    if before not in variants or evidence[before].passed:
        return step
    earlier = lost_at(before, variants, evidence)
    return earlier if evidence[before].measured else f"{earlier} or {step}"
