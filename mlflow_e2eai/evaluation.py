"""Samples, labelled data and variants -> evidence."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack

from mlflow_e2eai.artifacts import (
    Array,
    EngineArtifact,
    Infer,
    OnnxArtifact,
    Tensors,
    variant_name,
)
from mlflow_e2eai.bundle import Evidence
from mlflow_e2eai.errors import (
    E2EAIError,
    EngineMismatchError,
    InvalidInputError,
    MissingDependencyError,
    RunnerError,
)
from mlflow_e2eai.latency import LatencyReport, benchmark
from mlflow_e2eai.parity import REPEATS, compare
from mlflow_e2eai.runners import onnxruntime_devices
from mlflow_e2eai.samples import EvaluationData, profile_samples, scores
from mlflow_e2eai.samples import calls as in_calls
from mlflow_e2eai.variants import engine_variant, graph_variant, runner


def evaluate(
    reference: Infer,
    graphs: Sequence[OnnxArtifact],
    engines: Sequence[EngineArtifact],
    example: Tensors,
    *,
    evaluation: EvaluationData | None = None,
) -> tuple[list[Evidence], dict[str, LatencyReport]]:
    """Judge every variant against the PyTorch module, and measure all of them together.

    Args:
        reference: The PyTorch module, under the names of the graphs.
        graphs: The graphs; ONNX Runtime runs each on every device that it has here.
        engines: Engines. One that this machine cannot run is recorded as not measured.
        example: One array for each input.
        evaluation: Labelled data.

    Returns:
        Evidence for each variant, the PyTorch module first, and latency by corner of the profile.
    """
    samples = profile_samples(example, graphs[0])
    variants: dict[str, OnnxArtifact | EngineArtifact] = {engine_variant(e): e for e in engines}
    for device in onnxruntime_devices():
        variants |= {graph_variant(graph, device): graph for graph in graphs}

    def calls() -> Iterator[tuple[Tensors, Array | None, int]]:
        if evaluation is not None:
            yield from in_calls(evaluation, graphs[0], next(iter(samples.values())))

    skipped: list[Evidence] = []
    with ExitStack() as stack:
        infers = {variant_name("torch", "fp32"): reference}
        for name, artifact in variants.items():
            try:
                infers[name] = stack.enter_context(runner(name, graphs, engines))
            except (EngineMismatchError, MissingDependencyError, RunnerError) as error:
                skipped.append(_not_measured(name, artifact, error))
        evidence = [
            _judge(name, infer, reference, variants.get(name), samples, evaluation, calls)
            for name, infer in infers.items()
        ]
        # What gave wrong numbers is timed all the same, what broke down is not.
        sound = {e.variant: infers[e.variant] for e in evidence if e.reason is None}
        latency = {label: benchmark(sound, sample) for label, sample in samples.items()}
    return [*_blamed(evidence, variants), *skipped], latency


def _blamed(
    evidence: Sequence[Evidence], variants: Mapping[str, OnnxArtifact | EngineArtifact]
) -> list[Evidence]:
    """The evidence, with the step that lost the accuracy for each variant that failed."""
    passed = {entry.variant for entry in evidence if entry.passed}
    return [
        entry
        if entry.passed or entry.variant not in variants
        else dataclasses.replace(entry, lost_at=_lost_at(entry.variant, variants, passed))
        for entry in evidence
    ]


def _lost_at(
    name: str, variants: Mapping[str, OnnxArtifact | EngineArtifact], passed: Collection[str]
) -> str:
    """Walk back from a variant that failed to the first step whose input still passed."""
    artifact = variants[name]
    before: str | None
    if isinstance(artifact, EngineArtifact):
        step, before = f"compile {artifact.arithmetic} {artifact.target}", artifact.parent_sha256
    elif name.startswith("onnxruntime-cuda"):
        step, before = "ONNX Runtime on cuda", artifact.sha256
    elif artifact.stage == "convert":
        step, before = f"convert {artifact.precision}", artifact.parent_sha256
    else:
        return "export or clean"
    # The CPU's answer stands for a file: it is the plainest run that there is.
    for other, candidate in variants.items():
        if candidate.sha256 == before and other.startswith("onnxruntime-cpu"):
            return step if other in passed else _lost_at(other, variants, passed)
    return step


def _not_measured(
    name: str, artifact: OnnxArtifact | EngineArtifact, error: E2EAIError
) -> Evidence:
    return Evidence(variant=name, sha256=artifact.sha256, measured=False, reason=str(error))


def _judge(
    name: str,
    infer: Infer,
    reference: Infer,
    artifact: OnnxArtifact | EngineArtifact | None,
    samples: Mapping[str, Tensors],
    evaluation: EvaluationData | None,
    calls: Callable[[], Iterator[tuple[Tensors, Array | None, int]]],
) -> Evidence:
    precision: str = "fp32" if artifact is None else artifact.precision
    if isinstance(artifact, EngineArtifact):
        precision = artifact.arithmetic
    sha256 = None if artifact is None else artifact.sha256
    parity, task = {}, {}
    try:
        # The module against itself tells whether it answers one question the same way twice.
        parity["profile"] = compare(
            reference,
            infer,
            samples.values(),
            precision=precision,
            repeats=2 if artifact is None else REPEATS,
            # An engine has one context, and a module may keep state; ONNX Runtime takes threads.
            threads=2 if isinstance(artifact, OnnxArtifact) else 1,
        )
        if evaluation is not None:
            batches = (batch for batch, _, _ in calls())
            parity["data"] = compare(reference, infer, batches, precision=precision, repeats=1)
            task = scores(infer, calls(), evaluation.metrics)
    except (RunnerError, InvalidInputError) as error:
        if artifact is None and isinstance(error, InvalidInputError):
            raise  # what the reference's own outputs break is the caller's error
        return Evidence(
            variant=name, sha256=sha256, measured=True, reason=str(error), parity=parity
        )
    return Evidence(variant=name, sha256=sha256, measured=True, parity=parity, task=task)
