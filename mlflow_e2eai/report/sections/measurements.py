"""What was measured: latency, error against latency, and parity."""

from __future__ import annotations

import math

from mlflow_e2eai.bundle.manifest import Manifest
from mlflow_e2eai.evaluation.evidence import ADVISORY, SAMPLES, Evidence
from mlflow_e2eai.latency.report import GpuRecord, Latency, LatencyReport
from mlflow_e2eai.parity.report import Element, OutputParity, ParityReport
from mlflow_e2eai.report import html
from mlflow_e2eai.report.facts import median_interval, subject_of
from mlflow_e2eai.report.figures import latency_figure, pareto_figure, places
from mlflow_e2eai.report.html import (
    MINUS,
    NONE,
    TIMES,
    Column,
    Markup,
    Section,
    cell,
    element,
    error_text,
    group,
    head,
    number,
    stack,
    time_text,
)
from mlflow_e2eai.report.sections.doubts import tag

# Latency


def latency_section(manifest: Manifest) -> Section | None:
    """The picture, and every number behind it."""
    if not manifest.latency:
        return None
    found: dict[str, list[tuple[str, LatencyReport, Latency]]] = {}
    for place, report in places(manifest.latency):
        for entry in report.variants:
            found.setdefault(entry.name, []).append((place, report, entry))
    device = any(one[2].device_p50_ms is not None for many in found.values() for one in many)
    names = ("p90", "p95", "p99", "Mean", "Items a second", "Rounds")
    columns = [
        Column("Variant"),
        Column("Call of"),
        Column("Median", number=True),
        *([Column("On the device", number=True)] if device else []),
        *(Column(name, number=True) for name in names),
    ]
    bodies = (
        group(
            variant,
            [
                (
                    *([head(element("code", variant), rows=len(entries))] if not at else []),
                    *_timed(*one, device=device),
                )
                for at, one in enumerate(entries)
            ],
        )
        for variant, entries in found.items()
    )
    caption = (
        "Milliseconds of one call on the host's clock, copies included, with the 99 % interval of "
        "the median below it. The variants took turns, and no outlier was dropped."
    )
    if device:
        caption += " “On the device” is the median on the device's own clock, without copies."
    picture = _figure(
        "latency",
        latency_figure(manifest),
        "Bars are the 99 % interval of the median. Dashed lines and hollow marks are of other "
        "precisions than fp32; a cross marks what failed.",
    )
    numbers = html.table("latency-table", caption, columns, bodies)
    return "latency", "Latency", element("div", picture, numbers, _gpus(manifest))


def _timed(
    place: str, report: LatencyReport, entry: Latency, *, device: bool
) -> tuple[Markup, ...]:
    bounds = median_interval(entry.rounds_ms) if entry.rounds_ms else None
    said = None if bounds is None else f"{time_text(bounds[0])} to {time_text(bounds[1])}"
    high = (entry.p90_ms, entry.p95_ms, entry.p99_ms)
    outliers = f"{entry.outliers:,} outliers" if entry.outliers else None
    steady = ", steady" if entry.settled else ""
    warm = f"{entry.warmup_calls:,} warm-up{steady}" if entry.warmup_calls else None
    return (
        cell(place, kind="place"),
        number(stack(time_text(entry.p50_ms), said, tag(report, entry.name))),
        *([number(time_text(entry.device_p50_ms))] if device else []),
        *(number(time_text(value)) for value in high),
        number(stack(time_text(entry.mean_ms), f"± {time_text(entry.std_ms)}")),
        number(f"{entry.throughput_items_per_s:,.0f}"),
        number(stack(f"{len(entry.rounds_ms):,}", outliers, warm)),
    )


def _gpus(manifest: Manifest) -> Markup | None:
    """What the GPU did meanwhile."""
    found = [
        (place, report.gpu) for place, report in places(manifest.latency) if report.gpu is not None
    ]
    if not found:
        return None
    names = ("Call of", "GPU", "Clock, MHz", "Power up to, W", "Up to, °C", "Clock held down by")
    columns = [Column(name, number=name not in names[:2] + names[5:]) for name in names]
    rows = ((head(place), *_gpu(record)) for place, record in found)
    caption = "The GPU while it was measured"
    return html.table("gpu-table", caption, columns, [html.body(rows)])


def _gpu(record: GpuRecord) -> tuple[Markup, ...]:
    clocks = record.sm_clock_min_mhz, record.sm_clock_max_mhz
    low, high = (NONE if clock is None else f"{clock:.0f}" for clock in clocks)
    reasons = record.throttle_reasons
    return (
        cell(NONE if record.name is None else record.name),
        number(low if low == high else f"{low} to {high}"),
        number(NONE if record.power_max_w is None else f"{record.power_max_w:.0f}"),
        number(NONE if record.temperature_max_c is None else f"{record.temperature_max_c:.0f}"),
        cell("not known" if reasons is None else ", ".join(reasons) or "nothing"),
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
        f"latency; a cross marks what failed. The {subject_of(manifest)} is the measure, and not "
        "drawn.",
    )
    return None if picture is None else ("pareto", "Error against latency", picture)


# Parity


def parity_section(manifest: Manifest) -> Section | None:
    """How each output differs from the reference's, by kind of sample."""
    compared = [entry for entry in manifest.evidence if entry.parity]
    if not compared:
        return None
    names = ("Largest", "Relative", "SNR, dB", "Outside", "Same top class", "Noise")
    columns = [
        *map(Column, ("Variant", "Samples", "Output", "Outcome")),
        *(Column(name, number=True) for name in names),
    ]
    caption = (
        f"Differences from the {subject_of(manifest)}'s answers. “Relative” is the largest one as "
        "a share of the largest magnitude in its sample, and what the limit is on; “outside” is "
        "the share of elements beyond the limit; “noise” is what two answers to one question "
        "differ by. The corners of the profile are the input example at its smallest, usual and "
        "largest sizes. Large numbers are shown, and do not decide."
    )
    return (
        "parity",
        "Parity",
        html.table("parity-table", caption, columns, map(_parity, compared)),
    )


def _parity(entry: Evidence) -> Markup:
    rows = [row for kind, report in entry.parity.items() for row in _kind_rows(kind, report)]
    first = head(element("code", entry.variant), rows=len(rows))
    return group(entry.variant, [(first, *rows[0]), *rows[1:]])


def _kind_rows(kind: str, report: ParityReport) -> list[tuple[Markup, ...]]:
    asked = f"{report.samples:,} {TIMES} {report.repeats} asked"
    calls = f"{report.calls:,} answers" if report.calls else None
    threads = f"{report.threads} threads" if report.threads > 1 else None
    below = ", ".join(filter(None, (calls, threads))) or None
    samples = cell(stack(SAMPLES.get(kind, kind), asked, below), kind="place")
    verdict = cell(html.verdict(passed=report.passed, advisory=kind in ADVISORY))
    if not report.outputs:
        return [(samples, cell(NONE), verdict, cell("nothing could be compared", span=6))]
    rows: list[tuple[Markup, ...]] = []
    for output in report.outputs:
        name = cell(element("code", output.name))
        rows.append((samples, name, verdict, *_output(output, report.tolerance)))
        if output.first_wrong is not None:
            rows.append((cell(_element(output.first_wrong), span=9, kind="wrong"),))
    return rows


def _output(output: OutputParity, tolerance: float) -> tuple[Markup, ...]:
    limit = tolerance if math.isnan(output.tolerance) else output.tolerance
    strange = output.reference_nonfinite or output.candidate_nonfinite or output.nonfinite_count
    nonfinite = (
        f"not finite: {output.candidate_nonfinite:,}, reference {output.reference_nonfinite:,}"
        if strange
        else None
    )
    return (
        number(
            stack(error_text(output.max_abs_error), f"mean {error_text(output.mean_abs_error)}")
        ),
        number(stack(error_text(output.max_rel_error), f"limit {error_text(limit)}")),
        number(
            stack(
                _decibels(output.snr_db),
                f"RMSE {error_text(output.rmse)}",
                f"1{MINUS}cosine {error_text(1 - output.cosine)}",
            )
        ),
        number(stack(_share(output.outside_share), f"of {output.elements:,}", nonfinite)),
        number(stack(_share(output.argmax_agreement), _top5(output))),
        number(stack(error_text(output.noise), f"reference {error_text(output.reference_noise)}")),
    )


def _top5(output: OutputParity) -> str | None:
    return None if output.top5_agreement is None else f"top 5 {_share(output.top5_agreement)}"


def _decibels(value: float) -> str:
    if math.isnan(value):
        return NONE
    text = f"{value:.0f}" if math.isfinite(value) else f"{'-' * (value < 0)}infinite"
    return text.replace("-", MINUS)


def _share(value: float | None) -> str:
    """A share of a whole; what is nearly all or nearly none is not rounded to it."""
    if value is None or math.isnan(value):
        return NONE
    if value in (0, 1):
        return f"{value:.0%}"
    percent = 100 * value
    if percent < 0.01:  # noqa: PLR2004 - the smallest number that two digits show
        return f"{percent:.0e}%"
    return f"{min(percent, 99.99):.2f}%"


def _element(found: Element) -> str:
    place = ", ".join(map(str, found.index))
    return (
        f"First wrong element: sample {found.sample}, [{place}] is {found.candidate}; the "
        f"reference has {found.reference}."
    )
