"""Evidence and latency of all variants."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import NamedTuple

from mlflow_e2eai.artifacts.machine import gpu_name
from mlflow_e2eai.artifacts.values import EngineArtifact, Infer, OnnxArtifact, Tensors
from mlflow_e2eai.engine.runner import unsupported_here
from mlflow_e2eai.errors import E2EAIError, EngineMismatchError, MissingDependencyError, RunnerError
from mlflow_e2eai.evaluation.data import EvaluationData
from mlflow_e2eai.evaluation.effort import EFFORTS, Effort, EvidenceLevel
from mlflow_e2eai.evaluation.evidence import Evidence, Span
from mlflow_e2eai.evaluation.examination import Examination, edges_of, magnitudes_of
from mlflow_e2eai.evaluation.variants import FILE, TORCH, Reference, Variant, variants_of
from mlflow_e2eai.latency.measure import WINDOW_MS, benchmark
from mlflow_e2eai.latency.report import LatencyReport
from mlflow_e2eai.parity.samples import (
    batch_samples,
    inner_samples,
    profile_samples,
    turned_samples,
)
from mlflow_e2eai.parity.variations import taken_variations
from mlflow_e2eai.pytorch.state import fast_path
from mlflow_e2eai.runtime.isolation import Opener, isolated, isolated_together
from mlflow_e2eai.runtime.progress import progress

WARM_WINDOW_MS = 10.0
"""A window of the warm-up where clocks have risen: at every size but the first, and without a GPU,
as comparing has kept the processors busy. Three of them are long enough for 30 calls of a
millisecond."""


class Evaluation(NamedTuple):
    """The result of `evaluate`.

    Attributes:
        evidence: An entry for each variant, the reference first.
        latency: Reports by corner of the profile and by batch size.
        spans: When the comparisons of each variant ran; of the reference, the whole evaluation.
    """

    evidence: list[Evidence]
    latency: dict[str, LatencyReport]
    spans: dict[str, Span]


def evaluate(
    reference: Infer | Reference,
    graphs: Sequence[OnnxArtifact],
    engines: Sequence[EngineArtifact],
    example: Tensors,
    *,
    raw: OnnxArtifact | None = None,
    evaluation: EvaluationData | None = None,
    batch_sizes: Sequence[int] = (),
    level: EvidenceLevel = "standard",
    known: Mapping[str, Evidence] | None = None,
) -> Evaluation:
    """Compare every variant with a reference, and measure the latency of all in turns.

    Args:
        reference: The PyTorch module under the names of the graphs, or another reference.
        graphs: The graphs; ONNX Runtime runs each on every device that it has here.
        engines: Engines. One that this machine cannot run is recorded as not measured; nothing is
            started to learn that.
        example: One array for each input.
        raw: The graph as it was exported, to separate errors of export and of cleaning.
        evaluation: Labelled data.
        batch_sizes: Sizes of the leading axis at which latency is measured in addition to the
            corners of the profile.
        level: How much is compared and measured; see `effort`.
        known: Evidence by variant, in place of which nothing is compared again.

    Raises:
        InvalidInputError: The profile does not admit a batch size, or a task metric does not accept
            the reference's outputs.
    """
    if not isinstance(reference, Reference):
        reference = Reference(infer=reference, alone=reference, name=TORCH)
    name, alone, reference = reference.name, reference.alone, reference.infer
    effort = EFFORTS[level]
    sizes = batch_samples(example, graphs[0], batch_sizes)
    corners = profile_samples(example, graphs[0])
    usual = reference(next(iter(corners.values())))
    values, left_out = taken_variations(example, graphs[0], reference, usual)
    examination = Examination(
        name=name,
        reference=reference,
        corners=corners,
        inner=inner_samples(example, graphs[0], reference),
        values=values,
        left_out=left_out,
        turned=turned_samples(corners, reference),
        edges=edges_of(example, graphs[0], reference),
        usual=magnitudes_of(usual),
        graph=graphs[0],
        evaluation=evaluation,
        effort=effort,
    )
    # The raw graph that is the reference is a variant at every level.
    raw = raw if effort.exported or name == FILE else None
    variants = variants_of(graphs, engines, raw, name)
    began = time.time()
    spans: dict[str, Span] = {}
    infers: dict[str, Infer] = {name: reference}
    evidence = {name: examination.reference_evidence()}
    with ExitStack() as stack:
        for each, variant in progress(variants.items(), "evaluate", unit="variants"):
            if each == name:
                continue  # a file, which is only timed with the others
            started = time.time()
            if (reason := _why_not_here(variant, graphs)) is not None:
                evidence[each] = _not_measured(variant, reason)
                continue
            try:
                there = stack.enter_context(isolated(variant.opener))
            except (EngineMismatchError, MissingDependencyError, RunnerError) as error:
                evidence[each] = _not_measured(variant, error)
                continue
            before = infers.get(variant.before)
            infers[each] = there
            if known is not None and each in known:
                evidence[each] = known[each]
                continue
            evidence[each] = examination.of(variant, there, before)
            spans[each] = (started, time.time())
    here = {} if name in variants else {name: alone}
    with fast_path(enabled=True):  # as a caller of the module in evaluation mode has it
        measured = corners if effort.all_sizes else dict([next(iter(corners.items()))])
        latency = _measure_latency(here, variants, evidence, {**measured, **sizes}, effort)
    return Evaluation(
        evidence=name_lossy_steps(evidence, variants),
        latency=latency,
        # The reference runs in every comparison, and in every round of latency.
        spans={**spans, name: (began, time.time())},
    )


def _why_not_here(variant: Variant, graphs: Sequence[OnnxArtifact]) -> E2EAIError | None:
    artifact = variant.artifact
    return unsupported_here(artifact, graphs) if isinstance(artifact, EngineArtifact) else None


def _not_measured(variant: Variant, error: E2EAIError) -> Evidence:
    return Evidence(
        variant=variant.name, sha256=variant.artifact.sha256, measured=False, reason=str(error)
    )


def _measure_latency(
    reference: Mapping[str, Infer],
    variants: Mapping[str, Variant],
    evidence: dict[str, Evidence],
    samples: Mapping[str, Tensors],
    effort: Effort,
) -> dict[str, LatencyReport]:
    """Measure all variants that work; one that fails is left out from then on.

    Variants with wrong outputs are timed too.
    """
    latency: dict[str, LatencyReport] = {}
    while len(latency) < len(samples):
        left = {label: sample for label, sample in samples.items() if label not in latency}
        sound = {
            name: variant.opener
            for name, variant in variants.items()
            if evidence[name].measured
            and evidence[name].reason is None
            and evidence[name].untimed is None
        }
        if not sound:
            return latency | {
                label: benchmark(reference, sample, budget_s=effort.latency_s)
                for label, sample in left.items()
            }
        try:
            _together(reference, sound, left, latency, effort)
        except RunnerError as error:
            if error.runner is None:
                raise
            broken = dataclasses.replace(evidence[error.runner], reason=str(error))
            evidence[error.runner] = broken
    return latency


def _together(
    reference: Mapping[str, Infer],
    openers: Mapping[str, Opener],
    samples: Mapping[str, Tensors],
    latency: dict[str, LatencyReport],
    effort: Effort,
) -> None:
    """Fill `latency` sample by sample, so that measurements before a crash are retained."""
    window_ms = WARM_WINDOW_MS if gpu_name() is None else WINDOW_MS
    rounds, budget_s = effort.rounds, effort.latency_s
    with isolated_together(openers) as there:
        for label, sample in progress(samples.items(), "measure latency", unit="sizes"):
            latency[label] = there.benchmark(
                dict.fromkeys(openers, sample),
                reference,
                rounds=rounds,
                enough=effort.enough,
                budget_s=budget_s,
                window_ms=window_ms,
            )
            window_ms = WARM_WINDOW_MS
            rounds, budget_s = effort.other_rounds, effort.other_latency_s


# The step that lost the accuracy.


def name_lossy_steps(
    evidence: Mapping[str, Evidence], variants: Mapping[str, Variant]
) -> list[Evidence]:
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
