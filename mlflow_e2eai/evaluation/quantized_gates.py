"""The decision whether a quantised variant is fast or small, and accurate, enough to retain."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence

from mlflow_e2eai.artifacts.graphs import size_of
from mlflow_e2eai.artifacts.values import EngineArtifact, OnnxArtifact
from mlflow_e2eai.evaluation.evidence import Evidence
from mlflow_e2eai.evaluation.gates import Gate, QuantizationVerdict, decide, drop
from mlflow_e2eai.latency.report import LatencyReport
from mlflow_e2eai.precision.quantize import TYPES

QUANTIZED_GATES = (
    Gate(metric="quantized/failed", bound="at_most", limit=0),
    Gate(metric="quantized/task_drop", bound="at_most", limit=0.01, optional=True),
    Gate(metric="quantized/gain_ratio", bound="at_most", limit=0.9),
)
"""The gates that a variant in int8 or fp8 must pass when it is made, to go into the bundle: it
passes its comparison with the PyTorch model (at its precision's tolerance), loses no more of any
task metric than this, and is a tenth smaller, or faster, than the best of the others."""


def decide_quantized(
    evidence: Sequence[Evidence],
    latency: Mapping[str, LatencyReport],
    artifacts: Sequence[OnnxArtifact | EngineArtifact],
    gates: Sequence[Gate],
) -> list[Evidence]:
    """The evidence, with the decision on each quantised variant that has others to compare with.

    It is compared with all variants of the same runner that are not quantised, and must be better
    than each of them. The metrics are:

    - ``quantized/failed``: 1 where it did not pass its comparison with the PyTorch module. An
      engine that was not run here is as accurate as ONNX Runtime was with its graph.
    - ``quantized/task_drop``: its largest drop of a task metric; missing where there is none.
    - ``quantized/size_ratio``: its file against the smallest of theirs.
    - ``quantized/latency_ratio``: its time at the profile's opt against the fastest of theirs, the
      upper bound of the interval.
    - ``quantized/gain_ratio``: the smaller of the two.

    Args:
        evidence: One entry for each variant, the PyTorch module first.
        latency: Latency reports of the variants.
        artifacts: The files.
        gates: The gates.
    """
    by_sha = {artifact.sha256: artifact for artifact in artifacts}
    report = latency.get("opt") or latency.get("static")
    entries = []
    for entry in evidence:
        artifact = by_sha.get(entry.sha256 or "")
        runner = entry.variant.rpartition("/")[0]
        plain = [
            other
            for other in evidence
            if other.sha256 in by_sha
            and by_sha[other.sha256].precision not in TYPES
            and other.variant.rpartition("/")[0] == runner
        ]
        if artifact is None or artifact.precision not in TYPES or not plain:
            entries.append(entry)
            continue
        accuracy = entry if entry.measured else _graph_evidence(artifact, evidence)
        sizes = [_size(by_sha[other.sha256 or ""]) for other in plain]
        metrics = {
            "quantized/failed": float(not accuracy.passed),
            "quantized/size_ratio": _size(artifact) / min(sizes),
            "quantized/latency_ratio": _latency_ratio(report, entry, plain),
        }
        ratios = (metrics["quantized/size_ratio"], metrics["quantized/latency_ratio"])
        metrics["quantized/gain_ratio"] = min(one for one in ratios if not math.isnan(one))
        if (dropped := drop(evidence[0].task, accuracy.task)) is not None:
            metrics["quantized/task_drop"] = dropped
        decision = decide(gates, metrics, has_champion=False)
        metrics = {name: value for name, value in metrics.items() if math.isfinite(value)}
        entries.append(
            dataclasses.replace(
                entry, worth=QuantizationVerdict(metrics=metrics, decision=decision)
            )
        )
    return entries


def is_retained(artifact: OnnxArtifact | EngineArtifact, evidence: Sequence[Evidence]) -> bool:
    """Whether the variants of a file were all retained, or not decided on."""
    decided = [
        entry.worth.retained
        for entry in evidence
        if entry.sha256 == artifact.sha256 and entry.worth is not None
    ]
    return not decided or any(decided)


def _graph_evidence(
    artifact: OnnxArtifact | EngineArtifact, evidence: Sequence[Evidence]
) -> Evidence:
    """Evidence of the graph that an engine was built from; empty if there is none."""
    known = [entry for entry in evidence if entry.sha256 == artifact.parent_sha256]
    return known[0] if known else Evidence(variant="", sha256=None, measured=False)


def _size(artifact: OnnxArtifact | EngineArtifact) -> int:
    return artifact.size_bytes if isinstance(artifact, EngineArtifact) else size_of(artifact)


def _latency_ratio(
    report: LatencyReport | None, entry: Evidence, plain: Sequence[Evidence]
) -> float:
    """The largest of the ratios; NaN where it, or none of the others, was measured, or is noisy."""
    names = set() if report is None else {variant.name for variant in report.variants}
    if report is None or entry.variant not in names:
        return math.nan
    ratios = [
        report.ratio(entry.variant, other.variant).high for other in plain if other.variant in names
    ]
    return math.nan if any(map(math.isnan, ratios)) else max(ratios, default=math.nan)
