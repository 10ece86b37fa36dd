"""The sections on how it was made: interface, files and lineage, environment, commands."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Iterator, Sequence

from mlflow_e2eai.artifacts.values import EngineArtifact, OnnxArtifact, TensorSpec
from mlflow_e2eai.bundle.manifest import Manifest
from mlflow_e2eai.pytorch.stage import ExportReport
from mlflow_e2eai.report import html
from mlflow_e2eai.report.facts import Origin, subject_of
from mlflow_e2eai.report.html import (
    NONE,
    Column,
    Markup,
    Section,
    cell,
    element,
    head,
    join,
    number,
    one_line,
    sentence,
    size_text,
)

_SHORT = 12
"""Digits of a digest that tell files apart for people."""


# Interface


def interface_section(manifest: Manifest) -> Section | None:
    """What the model takes and gives."""
    if not manifest.graphs:
        return None
    axes = {
        axis.name: f"{axis.name} from {axis.min} to {axis.max}, tuned for {axis.opt}"
        + (f", each of {', '.join(map(str, axis.buckets))} by itself" if axis.buckets else "")
        for axis in manifest.axes
    }
    rows = (
        (
            head(element("code", spec.name)),
            cell(role),
            cell(element("code", spec.dtype)),
            cell(element("code", _shape(spec))),
            cell("; ".join(axes[size] for size in spec.shape if size in axes) or NONE),
        )
        for role, specs in (("input", manifest.inputs), ("output", manifest.outputs))
        for spec in specs
    )
    columns = [Column(name) for name in ("Name", "Role", "Type", "Shape", "Dynamic axes")]
    caption = "What the model takes and gives"
    return (
        "interface",
        "Interface",
        html.table("interface-table", caption, columns, [html.body(rows)]),
    )


def _shape(spec: TensorSpec) -> str:
    return f"[{', '.join(map(str, spec.shape))}]"


# Files and lineage


def lineage_section(manifest: Manifest, origin: Origin) -> Section:
    """From what was given to every file, and each file's digest."""
    subject = subject_of(manifest)
    root = _node(subject, None, manifest.source_model, origin)
    known = {file.sha256 for file in manifest.files}
    roots: dict[str | None, list[OnnxArtifact | EngineArtifact]] = {}
    for file in manifest.files:
        if file.parent_sha256 not in known - {file.sha256}:
            roots.setdefault(file.parent_sha256, []).append(file)
    branches = [_branch(parent, files, manifest, origin) for parent, files in roots.items()]
    tree = element(
        "ul", element("li", root, element("ul", *branches) if branches else None), class_="tree"
    )
    parts = [
        _whereabouts(origin),
        _exported(manifest.export),
        element("h3", f"From the {subject} to each file"),
        tree,
    ]
    if manifest.files:
        parts += [element("h3", "Digests"), _digests(manifest)]
    return "lineage", "Files and lineage", element("div", *parts)


def _branch(
    parent: str | None,
    files: Sequence[OnnxArtifact | EngineArtifact],
    manifest: Manifest,
    origin: Origin,
) -> Markup:
    """Files whose parent is not in the bundle, below a line for that parent."""
    items = join(_tree(file, manifest, origin, frozenset()) for file in files)
    if parent is None:
        return items
    raw = _node(
        "raw graph, as exported (not kept here)", parent, origin.model_ids.get(parent), origin
    )
    return element("li", raw, element("ul", items))


def _tree(
    file: OnnxArtifact | EngineArtifact, manifest: Manifest, origin: Origin, above: frozenset[str]
) -> Markup:
    above |= {file.sha256}
    children = [
        child
        for child in manifest.files
        if child.parent_sha256 == file.sha256 and child.sha256 not in above
    ]
    below = element("ul", *(_tree(child, manifest, origin, above) for child in children))
    node = _node(_said(file), file.sha256, origin.model_ids.get(file.sha256), origin)
    return element("li", node, below if children else None)


def _said(file: OnnxArtifact | EngineArtifact) -> Markup:
    if isinstance(file, OnnxArtifact):
        note = f"ONNX in {file.precision}, opset {file.opset}, from {file.stage}"
    else:
        gpu = "" if file.target.gpu_name is None else f" on {file.target.gpu_name}"
        note = f"engine in {file.arithmetic} for {file.target}{gpu}, {file.backend_version}"
        if file.settings.not_default:
            note += f", built with {file.settings}"
        if file.checked is not None:
            held = ", ".join(file.checked) or "its network alone, as the builder has no such GPU"
            note += f"; checked after the build: {held}"
    return join((element("code", _name(file)), " ", element("span", note, class_="note")))


def _node(said: object, sha256: str | None, model_id: str | None, origin: Origin) -> Markup:
    digest = (
        None if sha256 is None else element("code", sha256[:_SHORT], class_="note", title=sha256)
    )
    model = None if model_id is None else _model(model_id, origin)
    return element(
        "span", join(part for part in (said, digest, model) if part is not None), class_="node"
    )


def _model(model_id: str, origin: Origin) -> Markup:
    return _linked(element("code", model_id), origin.model_link(model_id))


def _linked(text: Markup, address: str | None) -> Markup:
    """Text, as a link where there is an address.

    MLflow shows the page in a frame that may not navigate itself to MLflow, hence the new window.
    """
    if address is None:
        return text
    return element("a", text, href=address, target="_blank", rel="noopener noreferrer")


def _whereabouts(origin: Origin) -> Markup | None:
    """Where this model stands in MLflow."""
    entries: list[tuple[str, Markup]] = []
    if origin.name is not None and origin.version is not None:
        entries.append(("Version", _linked(element("code", origin.uri), origin.version_link())))
    if origin.model_id is not None:
        entries.append(("Model", _model(origin.model_id, origin)))
    if origin.run_id is not None:
        entries.append(("Run", _linked(element("code", origin.run_id), origin.run_link())))
    if not entries:
        return None
    items = (element("div", element("dt", name), element("dd", value)) for name, value in entries)
    return element("dl", *items, class_="pairs")


def _exported(report: ExportReport | None) -> Markup | None:
    """Which exporter wrote the raw graph, and why others did not."""
    if report is None:
        return None
    entries: list[tuple[str, str]] = [("Exporter", report.exporter)]
    if report.unverified is not None:
        entries.append(("Numbers not checked", report.unverified))
    entries += [(f"Refused: {name}", why) for name, why in report.refused.items()]
    items = (
        element("div", element("dt", name), element("dd", sentence(value)))
        for name, value in entries
    )
    return element("dl", *items, class_="pairs")


def _name(file: OnnxArtifact | EngineArtifact) -> str:
    """Its place in the bundle; never where it lies on a machine."""
    return one_line(file.path.name if file.path.is_absolute() else file.path.as_posix())


def _digests(manifest: Manifest) -> Markup:
    columns = [
        Column("File"),
        Column("sha256"),
        Column("Size", number=True),
        Column("Build, s", number=True),
    ]
    rows = (
        (
            head(element("code", _name(file))),
            cell(element("code", file.sha256, class_="digest")),
            *_made(file),
        )
        for file in manifest.files
    )
    caption = "A file with another digest is refused when the model is loaded"
    return html.table("digests", caption, columns, [html.body(rows)])


def _made(file: OnnxArtifact | EngineArtifact) -> tuple[Markup, Markup]:
    """An engine's size and the time that its build took."""
    if isinstance(file, OnnxArtifact):
        return number(NONE), number(NONE)
    return number(size_text(file.size_bytes)), number(f"{file.build_s:.1f}")


# Environment


def environment_section(manifest: Manifest) -> Section | None:
    """What it was measured on."""
    if not manifest.environment:
        return None
    items = (
        element("div", element("dt", name), element("dd", sentence(value)))
        for name, value in manifest.environment.items()
    )
    return "environment", "Environment", element("dl", *items, class_="pairs")


# How to reproduce


def reproduce_section(manifest: Manifest, origin: Origin) -> Section:
    """Commands that check, measure and make all this again."""
    blocks = [
        element(
            "div",
            element("h3", title),
            element("pre", element("code", "\n".join(lines)), tabindex=0),
        )
        for title, lines in _commands(manifest, origin)
    ]
    return "reproduce", "How to reproduce", element("div", *blocks)


def _commands(manifest: Manifest, origin: Origin) -> Iterator[tuple[str, list[str]]]:
    """Each step's title and lines; names are quoted for the shell."""
    requirement = _quoted(f"mlflow_e2eai=={manifest.package_version}")
    yield "Install what wrote it", [f"pip install {requirement}"]
    if manifest.files:
        sums = [f"{one_line(file.sha256)}  {_name(file)}" for file in manifest.files]
        yield (
            "Check the files, in the bundle's folder",
            ["sha256sum --check <<'END_OF_SUMS'", *sums, "END_OF_SUMS"],
        )
    if origin.uri is not None:
        yield "Measure it on your machine", _verb("evaluate", model_uri=origin.uri)
    if origin.name is not None and origin.version is not None:
        yield "Decide again", _verb("promote", name=origin.name, version=origin.version)
    if manifest.source_model is not None:
        yield (
            "Make it again from the PyTorch model",
            _verb(
                "pipeline",
                model_uri=manifest.source_model,
                precisions=_listed(
                    [
                        *(graph.precision for graph in manifest.graphs),
                        *(engine.arithmetic for engine in manifest.engines),
                    ]
                ),
                targets=_listed(str(e.target) for e in manifest.engines),
                **_built(manifest.engines),
            ),
        )


def _built(engines: Sequence[EngineArtifact]) -> dict[str, str]:
    """How they were built, where it is not as by default."""
    said = {str(engine.settings) for engine in engines if engine.settings.not_default}
    return {"build_settings": min(said)} if said else {}


def _listed(names: Iterable[str]) -> str:
    return ",".join(dict.fromkeys(names)) or "none"


def _verb(verb: str, **options: str) -> list[str]:
    words = [f"--{name.replace('_', '-')} {_quoted(value)}" for name, value in options.items()]
    return [f"mlflow_e2eai {verb} {' '.join(words)}"]


def _quoted(text: str) -> str:
    return shlex.quote(one_line(text))
