"""Evaluation with its log: evidence of earlier runs is reused, each variant is a stage."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mlflow_e2eai.artifacts.machine import environment
from mlflow_e2eai.artifacts.values import EngineArtifact, OnnxArtifact, Tensors
from mlflow_e2eai.evaluation.data import EvaluationData
from mlflow_e2eai.evaluation.effort import EvidenceLevel
from mlflow_e2eai.evaluation.evidence import Evidence, MachineEvidence, now_text
from mlflow_e2eai.evaluation.quantized_gates import QUANTIZED_GATES, decide_quantized
from mlflow_e2eai.evaluation.stage import evaluate
from mlflow_e2eai.evaluation.variants import Reference, engine_variant, variants_of
from mlflow_e2eai.pipeline.earlier_runs import EarlierRuns
from mlflow_e2eai.pipeline.keys import example_parts, machine_kind, stage_key
from mlflow_e2eai.runtime.progress import timed_stage
from mlflow_e2eai.tracking.recorder import Measurement, NotMeasured, Recorder, Reused
from mlflow_e2eai.tracking.summary import summarize_evidence


def evaluate_on(
    recorder: Recorder,
    reference: Reference,
    graphs: Sequence[OnnxArtifact],
    engines: Sequence[EngineArtifact],
    example: Tensors,
    *,
    raw: OnnxArtifact,
    evaluation: EvaluationData | None,
    batch_sizes: Sequence[int],
    level: EvidenceLevel,
    keys: EvidenceKeys,
) -> MachineEvidence:
    """Evaluate every variant, and log its evidence, a stage for each variant that was measured.

    Variants whose comparisons are known are not compared again. Their latency is measured again
    with that of the others, as it says something only in turns with theirs.

    Args:
        recorder: The recorder: the variants are measured together, so that their stages come after.
        reference: The model that they are compared with.
        graphs: The cleaned graph and the converted ones.
        engines: The engines.
        example: An array for each input of the graphs.
        raw: The graph as it was exported.
        evaluation: Evaluation data under the names of the graphs.
        batch_sizes: See `mlflow_e2eai.log_model`.
        level: The same as ``evidence`` there.
        keys: Keys of the evidence, what is known of it, and engines that have none.
    """
    known = keys.known(graphs, engines, raw, reference.name)
    with timed_stage("evaluate") as line:
        evidence, latency, spans = evaluate(
            reference,
            graphs,
            engines,
            example,
            raw=raw,
            evaluation=evaluation,
            batch_sizes=batch_sizes,
            level=level,
            known={name: found.report for name, found in known.items()},
        )
        evidence += [
            Evidence(
                variant=engine_variant(engine), sha256=engine.sha256, measured=False, reason=reason
            )
            for engine, reason in keys.not_evaluated
        ]
        files: list[OnnxArtifact | EngineArtifact] = [
            *graphs,
            *engines,
            *(engine for engine, _ in keys.not_evaluated),
        ]
        evidence = decide_quantized(evidence, latency, files, QUANTIZED_GATES)
        line.extend(summarize_evidence(evidence))
        if known:
            line.append(f"comparisons of {len(known)} reused")
    whole = MachineEvidence(
        environment=environment(),
        evidence=tuple(evidence),
        latency=latency,
        measured_at=now_text(),
    )
    elsewhere = [entry for entry in evidence if not entry.measured]
    for entry in evidence:
        if entry.measured:
            name, inputs = f"evaluate {entry.variant}", [entry.sha256] if entry.sha256 else []
            span, key = spans.get(entry.variant), keys.of(entry)
            with recorder.stage(name, inputs=inputs, span=span, key=key) as log:
                log(Measurement(evidence=entry, latency=latency))
                if entry.sha256 is None:
                    log(whole)
                if entry.variant in known:
                    log(known[entry.variant])
    if elsewhere:
        inputs = [entry.sha256 for entry in elsewhere if entry.sha256]
        with recorder.stage("not measured here", inputs=inputs) as log:
            log(NotMeasured(evidence=tuple(elsewhere)))
    return whole


@dataclass(slots=True, kw_only=True)
class EvidenceKeys:
    """Keys of the evidence of a pipeline: of all of it, and of each variant's comparisons.

    Attributes:
        earlier: What was done before; None where nothing is reused.
        whole: The key of all evidence together.
        parts: Parts of the key of each variant.
        not_evaluated: Engines that are not evaluated, with the reason.
        variants: The keys of the variants, once `known` was called.
    """

    earlier: EarlierRuns | None = None
    whole: str | None = None
    parts: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    not_evaluated: Sequence[tuple[EngineArtifact, str]] = ()
    variants: dict[str, str | None] = dataclasses.field(default_factory=dict)

    @classmethod
    def for_pipeline(
        cls,
        earlier: EarlierRuns,
        graphs: Sequence[OnnxArtifact],
        engines: Sequence[EngineArtifact],
        example: Tensors,
        *,
        raw: OnnxArtifact,
        batch_sizes: Sequence[int],
        level: EvidenceLevel,
        not_evaluated: Sequence[tuple[EngineArtifact, str]],
    ) -> EvidenceKeys:
        """The keys of the evidence of these graphs and engines on this machine."""
        if earlier.cache is None:
            return cls(not_evaluated=not_evaluated)
        parts = {
            "source": earlier.source,
            "raw": raw.sha256,
            "cleaned": graphs[0].sha256,
            "axes": graphs[0].axes,
            "example": example_parts(example),
            "data": earlier.data,
            "level": level,
            "machine": machine_kind(),
            "libraries": [_libraries(graph) for graph in (raw, graphs[0])],
        }
        whole = stage_key(
            "evaluate",
            **parts,
            graphs=[graph.sha256 for graph in graphs],
            engines=[engine.sha256 for engine in engines],
            libraries_of_graphs=[_libraries(graph) for graph in graphs],
            libraries_of_engines=[_libraries(engine) for engine in engines],
            batch_sizes=list(batch_sizes),
            not_evaluated=[(engine.sha256, reason) for engine, reason in not_evaluated],
        )
        return cls(earlier=earlier, whole=whole, parts=parts, not_evaluated=not_evaluated)

    def take(self) -> Reused | None:
        """All evidence, where it is known and not too old."""
        return None if self.earlier is None else self.earlier.evidence(self.whole, MachineEvidence)

    def known(
        self,
        graphs: Sequence[OnnxArtifact],
        engines: Sequence[EngineArtifact],
        raw: OnnxArtifact,
        reference: str,
    ) -> dict[str, Reused]:
        """The variants whose comparisons are known and not too old."""
        if self.earlier is None:
            return {}
        for name, variant in variants_of(graphs, engines, raw, reference).items():
            self.variants[name] = stage_key(
                "compare",
                **self.parts,
                variant=name,
                before=variant.before,
                file=variant.artifact.sha256,
                libraries_of_file=_libraries(variant.artifact),
            )
        found = {name: self.earlier.evidence(key, Evidence) for name, key in self.variants.items()}
        return {name: each for name, each in found.items() if each is not None}

    def of(self, entry: Evidence) -> str | None:
        """The key by which the evidence of a variant is found; None where it broke off."""
        if entry.sha256 is None:
            return self.whole
        return None if entry.reason is not None else self.variants.get(entry.variant)


def _libraries(artifact: OnnxArtifact | EngineArtifact) -> list[str]:
    """The digests of the native code that a file is run with."""
    return [library.sha256 for library in artifact.libraries]
