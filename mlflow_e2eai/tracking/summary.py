"""The values of a stage in a few words each, for its line on the terminal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from logging import DEBUG, INFO
from pathlib import Path
from typing import Any

from mlflow_e2eai.artifacts.values import OnnxArtifact
from mlflow_e2eai.evaluation.evidence import Evidence
from mlflow_e2eai.precision.stage import PrecisionReport
from mlflow_e2eai.pytorch.stage import ExportReport
from mlflow_e2eai.runtime.progress import timed_stage
from mlflow_e2eai.surgery.report import SurgeryReport
from mlflow_e2eai.tracking.recorder import Measurement, NotReusable, Output, Reused

_MOST_BYTES = 64 << 20
"""Graphs up to this size are read for the number of their nodes: a choice, 0.1 s of reading."""


@contextmanager
def stage_line(name: str) -> Iterator[list[str]]:
    """Report a stage as a line when the block ends.

    Variants are measured together before their stages begin: their lines are details.

    Yields:
        The parts of the result, to be added to.
    """
    with timed_stage(
        name, level=DEBUG if name.startswith(("evaluate ", "not measured")) else INFO
    ) as line:
        yield line


def add_value(line: list[str], value: Any) -> None:
    """Add a value of a stage to its line: reports in front of the files."""
    if isinstance(value, Output):
        line += summarize(value)
    else:
        line[:0] = summarize(value)


def summarize(value: Any) -> list[str]:  # noqa: C901 - one for each kind of value
    """Describe a value that a stage logs; nothing for one that is a detail."""
    words: list[str] = []
    match value:
        case Output(artifact=OnnxArtifact(stage="export") as graph):
            words = [f"opset {graph.opset}", *_nodes(graph.path), _size(graph.path)]
            words += ["INPUTS ASSUMED, see the report"] if graph.assumptions else []
        case Output(artifact=artifact):
            words = [_size(artifact.path)]
        case ExportReport():
            words = [value.exporter, *_describe_samples(value)]
            if value.max_abs_error is not None:
                words.append(f"parity {value.max_abs_error:.1e}")
        case SurgeryReport():
            words = [f"{value.nodes_before} to {value.nodes_after} nodes"]
            if value.max_abs_error is not None:
                words.append(f"parity {value.max_abs_error:.1e}")
            words += value.notes
        case PrecisionReport(refused=None):
            words = [f"{len(value.kept)} of {value.nodes} nodes in fp32"]
        case PrecisionReport():
            words = [f"refused: {value.refused}"]
        case Measurement(evidence=evidence):
            words = [outcome(evidence)]
        case Reused() | NotReusable():
            words = [value.sentence]
    return words


def _describe_samples(report: ExportReport) -> list[str]:
    """The number of samples that an export was compared on, and the doubts about it."""
    if report.unverified:
        return ["not compared"]
    left_out = f", {len(report.left_out)} left out" if report.left_out else ""
    words = [f"{len(report.samples)} samples{left_out}"] if report.samples else []
    if report.sizes is not None and report.sizes.refused:
        words.append(f"{len(report.sizes.refused)} sizes refused by PyTorch, see the report")
    words += [] if report.frozen is None else ["VALUES FROZEN, see the report"]
    return words + ([] if report.fast_path is None else ["fast path differs"])


def summarize_evidence(evidence: Sequence[Evidence]) -> list[str]:
    """Count the outcomes of the bundle's variants that were evaluated together."""
    outcomes = [outcome(entry) for entry in evidence if entry.is_shipped]
    counts = [(word, outcomes.count(word)) for word in ("passed", "failed", "not measured")]
    number = len(outcomes)
    variants = f"{number} variant{'' if number == 1 else 's'}"
    return [variants, *(f"{count} {word}" for word, count in counts if count)]


def outcome(evidence: Evidence) -> str:
    """The outcome of a variant in a word or two."""
    return "passed" if evidence.passed else "failed" if evidence.measured else "not measured"


def _nodes(path: Path) -> list[str]:
    import onnx

    if path.stat().st_size > _MOST_BYTES:
        return []
    number = len(onnx.load(path, load_external_data=False).graph.node)
    return [f"{number} node{'' if number == 1 else 's'}"]


def _size(path: Path) -> str:
    return f"{path.stat().st_size / 1e6:.2f} MB"
