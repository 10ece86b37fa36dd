"""One self-contained HTML page of a bundle's evidence, from the templates next to this file."""

from __future__ import annotations

import base64
import functools
import hashlib
from collections.abc import Iterable, Mapping
from importlib.resources import files
from typing import TYPE_CHECKING

from mlflow_e2eai.artifacts.names import shape_text
from mlflow_e2eai.bundle.manifest import Manifest
from mlflow_e2eai.evaluation.gates import Decision
from mlflow_e2eai.latency.report import ColdStart
from mlflow_e2eai.precision.stage import PrecisionReport
from mlflow_e2eai.report import formats
from mlflow_e2eai.report.background import Background
from mlflow_e2eai.report.facts import OUTCOMES, Origin, Ratios, Section, ratios_of
from mlflow_e2eai.report.formats import TIMES, time_text
from mlflow_e2eai.report.scale import drawable
from mlflow_e2eai.report.sections.changes import (
    background_facts,
    changes_section,
    history_section,
)
from mlflow_e2eai.report.sections.decision import decision_context, variants_section
from mlflow_e2eai.report.sections.doubts import findings_section
from mlflow_e2eai.report.sections.measurements import (
    latency_section,
    pareto_section,
    parity_section,
)
from mlflow_e2eai.report.sections.precision import conversion_context, precision_section
from mlflow_e2eai.report.sections.provenance import (
    environment_section,
    interface_section,
    lineage_section,
    location_of,
    measured_text,
    reproduce_section,
)
from mlflow_e2eai.report.sections.serving import serving_section
from mlflow_e2eai.report.sections.steps import steps_section
from mlflow_e2eai.report.sections.surgery import surgery_section
from mlflow_e2eai.surgery.report import SurgeryReport

if TYPE_CHECKING:
    from jinja2 import Environment
    from markupsafe import Markup

_ICONS = {
    "reference": "none",
    "unsteady": "failed",
    "passed": "passed",
    "failed": "failed",
    "unmeasured": "open",
}
_REASONS = {
    "overflow": "too large for fp16",
    "underflow": "too small for fp16",
    "asked for": "requested by name",
    "rounding": "loses too much to bf16",
    "all zero": "all values seen are zero",
    "library": "operator from a library",
}


def html(
    manifest: Manifest,
    decision: Decision | None = None,
    *,
    origin: Origin | None = None,
    background: Background | None = None,
) -> str:
    """A bundle's evidence as one page: the decision first, then its evidence.

    The page makes no network requests, and its own policy forbids them and any script but its one,
    which filters and sorts tables. The same arguments give the same page, byte for byte.

    Args:
        manifest: The bundle's manifest.
        decision: The outcome of its gates; None before they were evaluated.
        origin: Names and ids of the model in MLflow.
        background: The registry's part of the decision.

    Returns:
        The page's text, for a file in UTF-8.
    """
    origin = origin or Origin()
    ratios = [Ratios(there) for there in manifest.by_machine]
    by_machine = [ratios_of(*each) for each in zip(manifest.by_machine, ratios, strict=True)]
    groups = {
        "Result": (
            variants_section(manifest, by_machine),
            changes_section(manifest, background),
            history_section(background),
            findings_section(manifest),
        ),
        "Evidence": (
            steps_section(manifest, ratios[0]),
            latency_section(manifest),
            pareto_section(manifest),
            serving_section(manifest),
            parity_section(manifest),
        ),
        "Graph": (
            surgery_section(manifest.surgery),
            precision_section(manifest),
            interface_section(manifest),
        ),
        "Origin": (
            lineage_section(manifest, origin),
            environment_section(manifest),
            reproduce_section(manifest, origin),
        ),
    }
    context = decision_context(manifest, decision, by_machine)
    return _page(
        "report",
        origin.title,
        manifest=manifest,
        measured=measured_text(manifest),
        decision=_render(
            "decision", {**context, "background": background_facts(manifest, background)}
        ),
        groups={name: found for name, given in groups.items() if (found := _shown(given))},
    )


def _shown(sections: Iterable[Section | None]) -> list[dict[str, str]]:
    """The sections that there are, with their content."""
    return [
        {"key": one.key, "title": one.title, "content": _render(one.key, one.context)}
        for one in sections
        if one is not None
    ]


def surgery_html(
    report: SurgeryReport, *, title: str = "Surgery", origin: Origin | None = None
) -> str:
    """The effect of surgery as one page of the same kind.

    Args:
        report: The plan's result.
        title: The page's heading.
        origin: The runs that it belongs to, which the page links.

    Returns:
        The page's text, for a file in UTF-8.
    """
    context = surgery_section(report, heading="h2").context
    return _part(title, _render("surgery", context), origin)


def precision_html(
    report: PrecisionReport, *, title: str = "Precision", origin: Origin | None = None
) -> str:
    """The effect of a conversion as one page of the same kind.

    Args:
        report: The conversion's result.
        title: The page's heading.
        origin: The runs that it belongs to, which the page links.

    Returns:
        The page's text, for a file in UTF-8.
    """
    return _part(title, _render("conversion", conversion_context(report)), origin)


def _part(title: str, content: Markup, origin: Origin | None) -> str:
    """A page of one stage."""
    location = [] if origin is None else list(location_of(origin))
    return _page("page", title, content=content, location=location)


def _page(name: str, title: str, **context: object) -> str:
    style, script = _file("page.css"), _file("page.js")
    return str(_render(name, {"title": title, "style": style, "script": script, **context}))


def _render(name: str, context: Mapping[str, object]) -> Markup:
    from markupsafe import Markup

    template = _environment().get_template(f"{name}.html.j2")
    return Markup(template.render(**context))  # noqa: S704 - a template has escaped it


@functools.cache
def _environment() -> Environment:
    """The templates: all values are escaped, and characters that cannot be shown replaced."""
    from jinja2 import Environment, FunctionLoader, StrictUndefined

    environment = Environment(
        autoescape=True,
        finalize=_finalize,
        loader=FunctionLoader(lambda name: str(_file(f"templates/{name}"))),
        lstrip_blocks=True,
        trim_blocks=True,
        undefined=StrictUndefined,
    )
    environment.filters |= {
        "bounds": formats.bounds_text,
        "decibels": formats.decibels_text,
        "digest": _digest,
        "error": formats.error_text,
        "factor": formats.factor_text,
        "first_call": _first_call,
        "gate": formats.gate_text,
        "rate": formats.rate_text,
        "sentence": formats.sentence,
        "shape": shape_text,
        "share": formats.share_text,
        "shortened": formats.shorten,
        "size": formats.size_text,
        "task": formats.task_text,
        "time": formats.time_text,
        "whole": formats.whole_text,
    }
    environment.globals |= {
        "ICONS": _ICONS,
        "MINUS": formats.MINUS,
        "NONE": formats.NONE,
        "OUTCOMES": OUTCOMES,
        "REASONS": _REASONS,
        "TIMES": formats.TIMES,
    }
    return environment


def _finalize(value: object) -> object:
    if hasattr(value, "__html__"):
        return value
    return "" if value is None else formats.printable(value)


def _first_call(start: ColdStart) -> str | None:
    """Ratio of the first call's time to the second's, as text."""
    if not drawable(start.first_call_ms) or not drawable(start.second_call_ms):
        return None
    return f"{time_text(start.first_call_ms / start.second_call_ms)} {TIMES} the second"


@functools.cache
def _file(name: str) -> Markup:
    """A file of this package, which is trusted as it is."""
    from markupsafe import Markup

    text = (files("mlflow_e2eai.report") / name).read_text(encoding="utf-8")
    return Markup(text)  # noqa: S704 - not of the caller's


def _digest(text: str) -> str:
    """The name of one inline text in a content security policy."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
