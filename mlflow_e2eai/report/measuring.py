"""What was measured: latency, error against latency, and parity."""

from __future__ import annotations

from collections.abc import Mapping

from mlflow_e2eai.bundle import Evidence, Manifest
from mlflow_e2eai.latency import Latency
from mlflow_e2eai.parity import OutputParity, ParityReport
from mlflow_e2eai.report import tables
from mlflow_e2eai.report.facts import median_interval
from mlflow_e2eai.report.figures import latency_figure, pareto_figure, places
from mlflow_e2eai.report.markup import NONE, TIMES, Markup, element, error_text, time_text
from mlflow_e2eai.report.tables import Column, Section, cell, group, head, number

_KINDS: Mapping[str, str] = {
    "profile": "corners of the profile",
    "data": "evaluation data",
}


# Latency


def latency_section(manifest: Manifest) -> Section | None:
    """The picture, and every number behind it."""
    if not manifest.latency:
        return None
    columns = [
        Column("Variant"),
        Column("Call of"),
        *(Column(name, number=True) for name in ("Median", "99 % interval", "p90", "p95", "p99")),
        *(Column(name, number=True) for name in ("Mean", "Deviation", "Items a second", "Rounds")),
    ]
    found: dict[str, list[tuple[str, Latency]]] = {}
    for place, report in places(manifest.latency):
        for entry in report.variants:
            found.setdefault(entry.name, []).append((place, entry))
    bodies = (
        group(
            variant,
            [
                (
                    *([head(element("code", variant), rows=len(entries))] if not at else []),
                    *_timed(*one),
                )
                for at, one in enumerate(entries)
            ],
        )
        for variant, entries in found.items()
    )
    caption = (
        "Milliseconds of one call on the host's clock, copies included. The variants took turns, "
        "and no outlier was dropped."
    )
    numbers = tables.table("latency-table", caption, columns, bodies)
    picture = _figure(
        "latency",
        latency_figure(manifest),
        "Bars are the 99 % interval of the median. Dashed lines and hollow marks are of other "
        "precisions than fp32; a cross marks what failed.",
    )
    return "latency", "Latency", element("div", picture, numbers)


def _timed(place: str, entry: Latency) -> tuple[Markup, ...]:
    bounds = median_interval(entry.rounds_ms) if entry.rounds_ms else None
    times = (entry.p90_ms, entry.p95_ms, entry.p99_ms, entry.mean_ms, entry.std_ms)
    said = NONE if bounds is None else f"{time_text(bounds[0])} to {time_text(bounds[1])}"
    return (
        cell(place, kind="place"),
        number(time_text(entry.p50_ms)),
        number(said),
        *(number(time_text(value)) for value in times),
        number(f"{entry.throughput_items_per_s:,.0f}"),
        number(len(entry.rounds_ms)),
    )


def _figure(key: str, picture: Markup | None, caption: str) -> Markup | None:
    if picture is None:
        return None
    # On a narrow screen a picture scrolls, as letters that shrink with it could not be read.
    title = f"{key}-title"
    inner = element(
        "div", picture, class_="scroll", role="group", aria_labelledby=title, tabindex=0
    )
    return element("figure", inner, element("figcaption", caption))


def pareto_section(manifest: Manifest) -> Section | None:
    """What speed costs in error."""
    picture = _figure(
        "pareto",
        pareto_figure(manifest),
        "Lower left is better. The line joins what passed and no other beats in both error and "
        "latency; a cross marks what failed. The PyTorch module is the measure, and not drawn.",
    )
    return None if picture is None else ("pareto", "Error against latency", picture)


# Parity


def parity_section(manifest: Manifest) -> Section | None:
    """How each output differs from the PyTorch module's, by kind of sample."""
    compared = [entry for entry in manifest.evidence if entry.parity]
    if not compared:
        return None
    columns = [
        Column("Variant"),
        Column("Samples"),
        Column("Output"),
        Column("Outcome"),
        *(Column(name, number=True) for name in ("Largest", "Relative", "Limit", "Mean", "RMSE")),
        *(Column(name, number=True) for name in ("1 - cosine", "Not finite", "Elements")),
    ]
    caption = (
        "Differences from the PyTorch module's answers. “Relative” is the largest one as a share "
        "of the largest magnitude in its sample, and what the limit is on. The corners of the "
        "profile are the input example at its smallest, usual and largest sizes."
    )
    return (
        "parity",
        "Parity",
        tables.table("parity-table", caption, columns, map(_parity, compared)),
    )


def _parity(entry: Evidence) -> Markup:
    rows = [row for kind, report in entry.parity.items() for row in _kind_rows(kind, report)]
    first = head(element("code", entry.variant), rows=len(rows))
    return group(entry.variant, [(first, *rows[0]), *rows[1:]])


def _kind_rows(kind: str, report: ParityReport) -> list[tuple[Markup, ...]]:
    times = f"{report.samples:,} {TIMES} {report.repeats}"
    samples = element(
        "span", _KINDS.get(kind, kind), element("small", f"{times} asked"), class_="stack"
    )
    verdict = cell(tables.verdict(passed=report.passed))
    if not report.outputs:
        return [(cell(samples), cell(NONE), verdict, cell("nothing could be compared", span=8))]
    return [
        (
            cell(samples),
            cell(element("code", output.name)),
            verdict,
            *_output(output, report.tolerance),
        )
        for output in report.outputs
    ]


def _output(output: OutputParity, tolerance: float) -> tuple[Markup, ...]:
    return (
        number(error_text(output.max_abs_error)),
        number(error_text(output.max_rel_error)),
        number(error_text(tolerance)),
        number(error_text(output.mean_abs_error)),
        number(error_text(output.rmse)),
        number(error_text(1 - output.cosine)),
        number(f"{output.nonfinite_count:,}"),
        number(f"{output.elements:,}"),
    )
