"""Samples, labelled data and variants -> evidence.

What a variant's native code does to its process is a result: each runs in one of its own
(isolation/), where it is loaded, compared and timed. The PyTorch module stays here, as the
reference of all.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from mlflow_e2eai.artifacts import (
    Array,
    EngineArtifact,
    Infer,
    OnnxArtifact,
    Tensors,
    variant_name,
)
from mlflow_e2eai.bundle import ADVISORY, RAW, Evidence
from mlflow_e2eai.errors import (
    E2EAIError,
    EngineMismatchError,
    InvalidInputError,
    MissingDependencyError,
    RunnerError,
)
from mlflow_e2eai.isolation import Isolated, Opener, isolated
from mlflow_e2eai.latency import BUDGET_S, LatencyReport, Touched, benchmark
from mlflow_e2eai.parity import REPEATS, ParityReport, compare
from mlflow_e2eai.progress import progress
from mlflow_e2eai.runners import onnxruntime_devices
from mlflow_e2eai.samples import EvaluationData, edge_samples, profile_samples, scores
from mlflow_e2eai.samples import calls as in_calls
from mlflow_e2eai.variants import engine_variant, graph_variant, raw_runner, runner

LOAD_S = 0.2
"""Seconds for each number of callers at once."""

EXPORT = "export"
TORCH = variant_name("torch", "fp32")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Variant:
    """What is to be judged, and where it comes from.

    Attributes:
        name: A runner and what it runs.
        artifact: The file.
        step: What made it of the variant before.
        before: That variant.
        opener: Opens its runner.
    """

    name: str
    artifact: OnnxArtifact | EngineArtifact
    step: str
    before: str
    opener: Opener

    @property
    def precision(self) -> str:
        """The one whose tolerance it is held to."""
        artifact = self.artifact
        return artifact.arithmetic if isinstance(artifact, EngineArtifact) else artifact.precision

    @property
    def shipped(self) -> bool:
        """Whether it goes into the bundle; the graph as it was exported does not."""
        return self.step != EXPORT

    @property
    def takes_threads(self) -> bool:
        """ONNX Runtime does; an engine has one execution context."""
        return isinstance(self.artifact, OnnxArtifact)


def evaluate(
    reference: Infer,
    graphs: Sequence[OnnxArtifact],
    engines: Sequence[EngineArtifact],
    example: Tensors,
    *,
    raw: OnnxArtifact | None = None,
    evaluation: EvaluationData | None = None,
    budget_s: float | None = None,
) -> tuple[list[Evidence], dict[str, LatencyReport]]:
    """Judge every variant against the PyTorch module, and measure all of them together.

    Args:
        reference: The PyTorch module, under the names of the graphs.
        graphs: The graphs; ONNX Runtime runs each on every device that it has here.
        engines: Engines. One that this machine cannot run is recorded as not measured.
        example: One array for each input.
        raw: The graph as it was exported, to tell what export did from what cleaning did.
        evaluation: Labelled data.
        budget_s: As `benchmark` takes it, for each corner of the profile.

    Returns:
        Evidence for each variant, the PyTorch module first, and latency by corner of the profile.
    """
    corners = profile_samples(example, graphs[0])
    questions = _Questions(
        reference=reference,
        corners=corners,
        edges=_edges(example, graphs[0], reference),
        usual=_magnitudes(reference(next(iter(corners.values())))),
        graph=graphs[0],
        evaluation=evaluation,
    )
    variants = _variants(graphs, engines, raw)
    infers: dict[str, Infer] = {TORCH: Touched(reference)}
    evidence = {TORCH: questions.of_the_reference()}
    with ExitStack() as stack:
        for name, variant in progress(variants.items(), "evaluate", unit="variants"):
            try:
                there = stack.enter_context(isolated(variant.opener))
            except (EngineMismatchError, MissingDependencyError, RunnerError) as error:
                evidence[name] = _not_measured(variant, error)
                continue
            before = infers.get(variant.before)
            evidence[name] = questions.of(variant, there, before)
            infers[name] = there
        latency = _timed(infers, evidence, corners, BUDGET_S if budget_s is None else budget_s)
    return _blamed(evidence, variants), latency


def _edges(example: Tensors, graph: OnnxArtifact, reference: Infer) -> dict[str, list[Tensors]]:
    """Edge samples by kind of evidence."""
    found: dict[str, list[Tensors]] = {}
    for name, sample in edge_samples(example, graph, reference).items():
        found.setdefault(name if name in ADVISORY else "edges", []).append(sample)
    return found


def _magnitudes(answers: Tensors) -> dict[str, float]:
    """Largest finite magnitude of each floating output."""
    return {
        name: float(np.max(np.abs(array[np.isfinite(array)]), initial=0.0))
        for name, array in answers.items()
        if array.dtype.kind == "f"
    }


def _variants(
    graphs: Sequence[OnnxArtifact], engines: Sequence[EngineArtifact], raw: OnnxArtifact | None
) -> dict[str, _Variant]:
    """All variants by name, each after the one that it was made of."""
    plain = {graph.sha256: graph_variant(graph, "cpu") for graph in graphs}
    found: dict[str, _Variant] = {}

    def add(name: str, artifact: OnnxArtifact | EngineArtifact, step: str, before: str) -> None:
        opener = partial(runner, name, graphs, engines)
        found[name] = _Variant(
            name=name, artifact=artifact, step=step, before=before, opener=opener
        )

    if raw is not None:
        name = variant_name("onnxruntime-cpu", RAW)
        opener = partial(raw_runner, raw, graphs[0])
        found[name] = _Variant(name=name, artifact=raw, step=EXPORT, before=TORCH, opener=opener)
        plain[raw.sha256] = name
    for graph in graphs:
        before = plain.get(graph.parent_sha256 or "", TORCH)
        step = f"convert {graph.precision}" if graph.stage == "convert" else "clean"
        step = "export or clean" if before == TORCH and step == "clean" else step
        add(graph_variant(graph, "cpu"), graph, step, before)
    for device in onnxruntime_devices():
        for graph in graphs if device != "cpu" else ():
            step = f"run on onnxruntime-{device}"
            add(graph_variant(graph, device), graph, step, plain[graph.sha256])
    for engine in engines:
        step = f"compile {engine.arithmetic} {engine.target}"
        add(engine_variant(engine), engine, step, plain.get(engine.parent_sha256, TORCH))
    return found


def _not_measured(variant: _Variant, error: E2EAIError) -> Evidence:
    return Evidence(
        variant=variant.name, sha256=variant.artifact.sha256, measured=False, reason=str(error)
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Questions:
    """What every variant is asked.

    Attributes:
        reference: Gives the right answers.
        corners: The input example at every corner of the profile.
        edges: Edge samples by kind.
        usual: Largest magnitude of each floating output on the first corner. At an edge little may
            be left of an output, and an error is then a share of what it is as a rule.
        graph: The graph whose profile that is.
        evaluation: Labelled data.
    """

    reference: Infer
    corners: Mapping[str, Tensors]
    edges: Mapping[str, Sequence[Tensors]]
    usual: Mapping[str, float]
    graph: OnnxArtifact
    evaluation: EvaluationData | None

    def of_the_reference(self) -> Evidence:
        """The module against itself tells whether it answers one question the same way twice."""
        report = compare(
            self.reference, self.reference, self.corners.values(), repeats=2, threads=1
        )
        return Evidence(
            variant=TORCH,
            sha256=None,
            measured=True,
            parity={"profile": report},
            task=self.task(self.reference),
        )

    def of(self, variant: _Variant, there: Isolated, before: Infer | None) -> Evidence:
        """Ask a variant everything. One that breaks down keeps what was seen until then."""
        seen: dict[str, Any] = {"before": variant.before if before is not None else None}
        try:
            for more in self._asked(variant, there, before):
                seen |= more
        except (RunnerError, InvalidInputError) as error:
            seen["reason"] = str(error)
        sha256 = variant.artifact.sha256
        return Evidence(variant=variant.name, sha256=sha256, measured=True, **seen)

    def _asked(
        self, variant: _Variant, there: Isolated, before: Infer | None
    ) -> Iterator[dict[str, Any]]:
        """Fields of the evidence, as they become known."""
        sample = next(iter(self.corners.values()))
        yield {"cold_start": there.cold_start(sample)}
        parity: dict[str, ParityReport] = {}
        for kind, samples, options in self._comparisons(variant):
            parity[kind] = there.compare(
                self.reference, samples, precision=variant.precision, **options
            )
            yield {"parity": dict(parity)}
        if variant.before != TORCH and before is not None:
            yield {"against_before": self._against(before, variant, there)}
        if variant.shipped and self.evaluation is not None:
            yield {"task": self.task(there)}
        if variant.shipped and variant.takes_threads:
            yield {"loads": there.throughput(sample, budget_s=LOAD_S)}

    def _comparisons(
        self, variant: _Variant
    ) -> Iterator[tuple[str, Iterable[Tensors], dict[str, Any]]]:
        """Samples by kind, and how they are asked."""
        threads = 2 if variant.takes_threads else 1
        yield "profile", self.corners.values(), {"repeats": REPEATS, "threads": threads}
        for kind, samples in self.edges.items():
            yield kind, samples, {"repeats": 1, "scales": self.usual}
        if variant.shipped and self.evaluation is not None:
            data = (batch for batch, _, _ in self.calls(self.evaluation))
            yield "data", data, {"repeats": 1}

    def _against(self, before: Infer, variant: _Variant, there: Isolated) -> ParityReport | None:
        """The comparison with what came before the last step; None where that breaks down."""
        try:
            return there.compare(
                before, self.corners.values(), precision=variant.precision, repeats=1
            )
        except RunnerError:
            if there.failure is not None:
                raise
            return None

    def calls(self, data: EvaluationData) -> Iterator[tuple[Tensors, Array | None, int]]:
        """The evaluation data, in calls that the profile admits."""
        return in_calls(data, self.graph, next(iter(self.corners.values())))

    def task(self, infer: Infer) -> dict[str, float]:
        """The task metrics of a callable."""
        if self.evaluation is None:
            return {}
        return scores(infer, self.calls(self.evaluation), self.evaluation.metrics)


def _timed(
    infers: Mapping[str, Infer],
    evidence: dict[str, Evidence],
    corners: Mapping[str, Tensors],
    budget_s: float,
) -> dict[str, LatencyReport]:
    """Measure all that did not break down; what breaks down here is left out from then on.

    What gave wrong numbers is timed all the same.
    """
    latency: dict[str, LatencyReport] = {}
    for label, sample in progress(corners.items(), "measure latency", unit="corners"):
        while label not in latency:
            sound = {n: infer for n, infer in infers.items() if evidence[n].reason is None}
            try:
                latency[label] = benchmark(sound, sample, budget_s=budget_s)
            except RunnerError:
                broken = {n: i.failure for n, i in sound.items() if isinstance(i, Isolated)}
                if not any(broken.values()):
                    raise
                for name, reason in broken.items():
                    evidence[name] = dataclasses.replace(evidence[name], reason=reason)
    return latency


def _blamed(evidence: Mapping[str, Evidence], variants: Mapping[str, _Variant]) -> list[Evidence]:
    """The evidence, with the step that lost the accuracy for each variant that failed."""
    return [
        dataclasses.replace(entry, lost_at=_lost_at(name, variants, evidence))
        if name in variants and entry.measured and not entry.passed
        else entry
        for name, entry in evidence.items()
    ]


def _lost_at(name: str, variants: Mapping[str, _Variant], evidence: Mapping[str, Evidence]) -> str:
    """Walk back from a variant that failed to the first step whose input still passed."""
    step, before = variants[name].step, variants[name].before
    if before not in variants or evidence[before].passed:
        return step
    earlier = _lost_at(before, variants, evidence)
    return earlier if evidence[before].measured else f"{earlier} or {step}"
