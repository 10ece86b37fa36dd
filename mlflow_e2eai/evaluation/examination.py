"""The comparisons of every variant, and their results."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import numpy as np

from mlflow_e2eai.artifacts.values import Array, Infer, OnnxArtifact, Tensors
from mlflow_e2eai.errors import InvalidInputError, RunnerError
from mlflow_e2eai.evaluation.data import EvaluationData
from mlflow_e2eai.evaluation.data import calls as in_calls
from mlflow_e2eai.evaluation.effort import Effort
from mlflow_e2eai.evaluation.evidence import ADVISORY, Evidence
from mlflow_e2eai.evaluation.metrics import scores
from mlflow_e2eai.evaluation.variants import Variant
from mlflow_e2eai.parity.comparison import compare
from mlflow_e2eai.parity.report import ParityReport
from mlflow_e2eai.parity.samples import edge_samples
from mlflow_e2eai.runtime.isolation import IsolatedRunner, isolated_onnxruntime

ROUNDED = frozenset({"rounded", "edges", "large"})
"""Kinds of sample that run with every value rounded as a GPU rounds it: they show overflows between
two nodes, which ONNX Runtime's CPU kernels hide."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Examination:
    """The comparisons of every variant.

    Attributes:
        name: The variant that is the reference.
        reference: Computes the expected outputs.
        corners: The input example at every corner of the profile.
        inner: The input example at sizes between, by label.
        values: Samples with other values of the inputs, by label.
        left_out: Reasons why the reference has none of other labels.
        turned: Samples with other numbers, by corner, where the model takes them.
        edges: Edge samples by kind.
        usual: Largest magnitude of each floating output on the first corner. At an edge an output
            may be nearly zero, and its error is then relative to this magnitude.
        graph: The graph with that profile.
        evaluation: Labelled data.
        effort: How much is compared and measured.
    """

    name: str
    reference: Infer
    corners: Mapping[str, Tensors]
    inner: Mapping[str, Tensors]
    values: Mapping[str, Tensors]
    left_out: Mapping[str, str]
    turned: Mapping[str, Tensors]
    edges: Mapping[str, Sequence[Tensors]]
    usual: Mapping[str, float]
    graph: OnnxArtifact
    evaluation: EvaluationData | None
    effort: Effort

    def reference_evidence(self) -> Evidence:
        """Compare the reference with itself: are its outputs the same twice?"""
        report = compare(
            self.reference, self.reference, self.corners.values(), repeats=2, threads=1
        )
        return Evidence(
            variant=self.name,
            sha256=None,
            measured=True,
            parity={"profile": report},
            task=self.task(self.reference),
            left_out=self.left_out,
        )

    def of(self, variant: Variant, there: IsolatedRunner, before: Infer | None) -> Evidence:
        """Run all comparisons of a variant; if it fails, the evidence is of those before."""
        seen: dict[str, Any] = {"before": variant.before if before is not None else None}
        try:
            for more in self._compare_all(variant, there, before):
                seen |= more
        except (RunnerError, InvalidInputError) as error:
            seen["reason"] = str(error)
        sha256 = variant.artifact.sha256
        return Evidence(variant=variant.name, sha256=sha256, measured=True, **seen)

    def _compare_all(
        self, variant: Variant, there: IsolatedRunner, before: Infer | None
    ) -> Iterator[dict[str, Any]]:
        """Fields of the evidence, as they become known."""
        sample = next(iter(self.corners.values()))
        if variant.untimed is None:
            yield {"cold_start": there.cold_start(sample)}
        else:
            yield {"untimed": variant.untimed}
        parity: dict[str, ParityReport] = {}
        with _open_emulated(variant, there) as rounding:
            for kind, samples, options in self._comparisons(variant):
                comparison = rounding if kind in ROUNDED else there
                parity[kind] = comparison.compare(
                    self.reference, samples, precision=variant.precision, **options
                )
                yield {"parity": dict(parity)}
                if kind in ("sizes", "values"):
                    yield {kind: tuple(self.inner if kind == "sizes" else self.values)}
        if variant.before != self.name and before is not None:
            yield {"against_before": self._against(before, variant, there)}
        if variant.shipped and self.evaluation is not None:
            yield {"task": self.task(there)}
        if variant.shipped and variant.untimed is None and self.effort.load_s:
            yield {"loads": there.throughput(sample, budget_s=self.effort.load_s)}

    def _comparisons(
        self, variant: Variant
    ) -> Iterator[tuple[str, Iterable[Tensors], dict[str, Any]]]:
        """Samples by kind, and options of their comparison."""
        # Each shape is next to itself with other numbers, and runs as often as one sample alone.
        by_shape = [
            sample
            for label in self.corners
            for sample in (self.corners[label], self.turned.get(label))
            if sample is not None
        ]
        repeats = self.effort.repeats
        if len(by_shape) > len(self.corners):
            repeats = max(2, repeats // 2)
        yield "profile", by_shape, {"repeats": repeats, "threads": self.effort.threads}
        if self.inner:
            yield "sizes", self.inner.values(), {"repeats": 1, "scales": self.usual}
        if self.values:
            yield "values", self.values.values(), {"repeats": 1, "scales": self.usual}
        if _is_rounded_late(variant):
            yield "rounded", self.corners.values(), {"repeats": 1}
        for kind, samples in self.edges.items():
            yield kind, samples, {"repeats": 1, "scales": self.usual}
        if variant.shipped and self.evaluation is not None:
            data = (batch for batch, _, _ in self.calls(self.evaluation))
            yield "data", data, {"repeats": 1}

    def _against(
        self, before: Infer, variant: Variant, there: IsolatedRunner
    ) -> ParityReport | None:
        """The comparison with the variant before the last step; None where that fails."""
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


def _is_rounded_late(variant: Variant) -> bool:
    """Whether its runner rounds less often than a GPU: ONNX Runtime on the CPU does, in fp16."""
    return variant.precision == "fp16" and variant.name.startswith("onnxruntime-cpu")


@contextmanager
def _open_emulated(variant: Variant, there: IsolatedRunner) -> Iterator[IsolatedRunner]:
    """The variant with every value rounded as a GPU rounds it."""
    if not _is_rounded_late(variant):
        yield there
        return
    graph = cast("OnnxArtifact", variant.artifact)  # an engine rounds as a GPU does
    opened = isolated_onnxruntime(
        graph.path, precision=graph.precision, rounded=True, libraries=graph.libraries
    )
    with opened as rounding:
        yield rounding


def edges_of(example: Tensors, graph: OnnxArtifact, reference: Infer) -> dict[str, list[Tensors]]:
    """Edge samples by kind of evidence."""
    samples_by_kind: dict[str, list[Tensors]] = {}
    for name, sample in edge_samples(example, graph, reference).items():
        samples_by_kind.setdefault(name if name in ADVISORY else "edges", []).append(sample)
    return samples_by_kind


def magnitudes_of(outputs: Tensors) -> dict[str, float]:
    """Largest finite magnitude of each floating output."""
    return {
        name: float(np.max(np.abs(array[np.isfinite(array)]), initial=0.0))
        for name, array in outputs.items()
        if array.dtype.kind == "f"
    }
