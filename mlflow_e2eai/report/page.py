"""One self-contained HTML page of a bundle's evidence."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from importlib.resources import files

from mlflow_e2eai.bundle.manifest import Manifest
from mlflow_e2eai.evaluation.gates import Decision
from mlflow_e2eai.latency.ratios import Ratio
from mlflow_e2eai.precision.stage import PrecisionReport
from mlflow_e2eai.report import html as report_html
from mlflow_e2eai.report.facts import Origin, Ratios, ratios_of
from mlflow_e2eai.report.html import Markup, Section, element
from mlflow_e2eai.report.sections import decision as sections_decision
from mlflow_e2eai.report.sections import doubts, measurements, provenance, serving, steps
from mlflow_e2eai.report.sections.precision import precision_part, precision_section
from mlflow_e2eai.report.sections.surgery import surgery_part
from mlflow_e2eai.surgery.stage import SurgeryReport


def html(
    manifest: Manifest, decision: Decision | None = None, *, origin: Origin | None = None
) -> str:
    """A bundle's evidence as one page: the decision first, then all that it rests on.

    The page asks nothing of the network, and its own policy forbids that and any script but its
    one, which filters and sorts tables. The same arguments give the same page, byte for byte.

    Args:
        manifest: The bundle's manifest.
        decision: What its gates said, if they were asked.
        origin: Where the model stands in MLflow.

    Returns:
        The page's text, for a file in UTF-8.
    """
    origin = origin or Origin()
    ratios = [Ratios(there) for there in manifest.by_machine]
    against = [ratios_of(*each) for each in zip(manifest.by_machine, ratios, strict=True)]
    parts = _sections(manifest, origin, ratios[0], against)
    decided = sections_decision.decision_part(manifest, decision, against)
    return _document(
        f"{origin.title} · evidence",
        element("a", "To the evidence", href="#decision", class_="skip"),
        report_html.icons(),
        _header(origin.title, element("section", decided, id="decision", aria_label="Decision")),
        _navigation(parts),
        element("main", *(_section(*part) for part in parts)),
        _footer(manifest),
        element("script", _file("page.js")),
    )


def surgery_html(report: SurgeryReport, *, title: str = "Surgery") -> str:
    """What surgery did, as one page of the same kind: the graph before and after first of all.

    Args:
        report: What the plan did.
        title: What the page is headed with.

    Returns:
        The page's text, for a file in UTF-8.
    """
    return _document(title, _header(title), element("main", surgery_part(report, heading="h2")))


def precision_html(report: PrecisionReport, *, title: str = "Precision") -> str:
    """What a conversion did, as one page of the same kind.

    Args:
        report: What became of the graph.
        title: What the page is headed with.

    Returns:
        The page's text, for a file in UTF-8.
    """
    return _document(title, _header(title), element("main", precision_part(report)))


def _document(title: str, *content: Markup) -> str:
    body = element("body", *content)
    return f"<!DOCTYPE html>\n{element('html', _head(title), body, lang='en')}\n"


def _sections(
    manifest: Manifest, origin: Origin, ratios: Ratios, against: Sequence[Mapping[str, Ratio]]
) -> list[Section]:
    found = (
        sections_decision.variants_section(manifest, against) if manifest.evidence else None,
        doubts.findings_section(manifest),
        steps.steps_section(manifest, ratios),
        measurements.latency_section(manifest),
        measurements.pareto_section(manifest),
        serving.serving_section(manifest),
        measurements.parity_section(manifest),
        ("surgery", "Surgery", surgery_part(manifest.surgery)),
        precision_section(manifest),
        provenance.interface_section(manifest),
        provenance.lineage_section(manifest, origin),
        provenance.environment_section(manifest),
        provenance.reproduce_section(manifest, origin),
    )
    return [section for section in found if section is not None]


def _head(title: str) -> Markup:
    style, script = _file("page.css"), _file("page.js")
    policy = (
        f"default-src 'none'; style-src {_digest(style)}; script-src {_digest(script)}; "
        "base-uri 'none'; form-action 'none'"
    )
    return element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", http_equiv="Content-Security-Policy", content=policy),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name="color-scheme", content="light dark"),
        element("title", title),
        element("style", style),
    )


def _file(name: str) -> Markup:
    """A file of this package, which is trusted as it is."""
    return Markup((files("mlflow_e2eai.report") / name).read_text(encoding="utf-8"))


def _digest(text: str) -> str:
    """How a policy names one inline text."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _header(title: str, *content: Markup) -> Markup:
    return element("header", element("h1", title), *content)


def _navigation(parts: list[Section]) -> Markup:
    links = (element("li", element("a", title, href=f"#{key}")) for key, title, _ in parts)
    return element("nav", element("ul", *links), aria_label="On this page")


def _section(key: str, title: str, content: Markup) -> Markup:
    return element(
        "section",
        element("h2", title, id=f"{key}-heading"),
        content,
        id=key,
        aria_labelledby=f"{key}-heading",
    )


def _footer(manifest: Manifest) -> Markup:
    package, version = manifest.package_version, manifest.format_version
    said = f"Written by mlflow_e2eai {package}, manifest format {version}."
    return element("footer", element("p", said))
