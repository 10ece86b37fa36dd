"""The measurements: latency, error against latency, and parity."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import TypeAlias

from mlflow_e2eai.artifacts.files import from_json, to_json
from mlflow_e2eai.bundle.manifest import Manifest
from mlflow_e2eai.evaluation.evidence import ADVISORY, SAMPLES
from mlflow_e2eai.latency.report import Latency, LatencyReport
from mlflow_e2eai.parity.report import Element, OutputParity, ParityReport
from mlflow_e2eai.report.canvas import Image, Picture, image
from mlflow_e2eai.report.facts import Section, benchmarks_by_size, median_interval
from mlflow_e2eai.report.formats import time_text
from mlflow_e2eai.report.plots import latency_picture, pareto_picture
from mlflow_e2eai.report.sections.doubts import tag

Draw: TypeAlias = Callable[[Manifest], Picture | None]


def latency_section(manifest: Manifest) -> Section | None:
    """The picture, and every number behind it."""
    if not manifest.latency:
        return None
    reports = benchmarks_by_size(manifest.latency)
    variants: dict[str, list[dict[str, object]]] = {}
    for size, report in reports:
        for entry in report.variants:
            variants.setdefault(entry.name, []).append(_line(size, report, entry))
    context = {
        "picture": _image(latency_picture, manifest),
        "device": any(
            e.device_p50_ms is not None for _, report in reports for e in report.variants
        ),
        "variants": variants,
        "gpus": [(size, report.gpu) for size, report in reports if report.gpu is not None],
    }
    return Section("latency", "Latency", context)


def _line(size: str, report: LatencyReport, entry: Latency) -> dict[str, object]:
    bounds = median_interval(entry.rounds_ms) if entry.rounds_ms else None
    return {
        "place": size,
        "entry": entry,
        "interval": None if bounds is None else " to ".join(map(time_text, bounds)),
        "tag": tag(report, entry.name),
    }


def _image(draw: Draw, manifest: Manifest) -> Image | None:
    """A picture, drawn once: a process that logs a model often promotes it too."""
    try:
        text = to_json(manifest)
    except ValueError:  # a hostile name is no text
        return _drawn(draw, manifest)
    return _drawn_once(draw, text)


@functools.lru_cache(maxsize=4)
def _drawn_once(draw: Draw, manifest: str) -> Image | None:
    return _drawn(draw, from_json(Manifest, manifest))


def _drawn(draw: Draw, manifest: Manifest) -> Image | None:
    picture = draw(manifest)
    return None if picture is None else image(picture)


def pareto_section(manifest: Manifest) -> Section | None:
    """The picture of the largest error against latency."""
    picture = _image(pareto_picture, manifest)
    if picture is None:
        return None
    context = {"picture": picture, "subject": manifest.subject}
    return Section("pareto", "Error and latency", context)


def parity_section(manifest: Manifest) -> Section | None:
    """Differences of each output from the reference's, by kind of sample."""
    variants = [
        {
            "name": entry.variant,
            "lines": [
                one
                for kind, report in entry.parity.items()
                for one in _lines(kind, report, entry.labels(kind))
            ],
        }
        for entry in manifest.evidence
        if entry.parity
    ]
    if not variants:
        return None
    left_out = {
        label: reason for entry in manifest.evidence for label, reason in entry.left_out.items()
    }
    context = {"subject": manifest.subject, "variants": variants, "left_out": left_out}
    return Section("parity", "Parity", context)


def _lines(kind: str, report: ParityReport, labels: Sequence[str]) -> Iterator[dict[str, object]]:
    """One line for each output, and one for its first wrong element."""
    words = SAMPLES.get(kind, kind)
    calls = f"{report.calls:,} calls" if report.calls else None
    threads = f"{report.threads} threads" if report.threads > 1 else None
    common = {
        "report": report,
        "samples": f"{words}: {'; '.join(labels)}" if labels else words,
        "calls": ", ".join(filter(None, (calls, threads))) or None,
        "advisory": kind in ADVISORY,
        "first_wrong": None,
    }
    for output in report.outputs:
        limit = report.tolerance if math.isnan(output.tolerance) else output.tolerance
        yield {**common, "output": output, "limit": limit, "nonfinite": _nonfinite(output)}
        if output.first_wrong is not None:
            yield {**common, "output": output, "first_wrong": _element(output.first_wrong)}
    if not report.outputs:
        yield {**common, "output": None}


def _nonfinite(output: OutputParity) -> str | None:
    reference, candidate = output.reference_nonfinite, output.candidate_nonfinite
    if not (reference or candidate or output.nonfinite_count):
        return None
    return f"not finite: {candidate:,}, reference {reference:,}"


def _element(element: Element) -> str:
    index = ", ".join(map(str, element.index))
    return (
        f"First wrong element: sample {element.sample}, [{index}] is {element.candidate}; the "
        f"reference has {element.reference}."
    )
