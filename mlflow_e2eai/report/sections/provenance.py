"""Provenance: interface, files and lineage, environment, commands that make it again."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Iterator, Sequence
from typing import TypeAlias

from mlflow_e2eai.artifacts.machine import THREAD_LIMITS
from mlflow_e2eai.artifacts.values import EngineArtifact, OnnxArtifact
from mlflow_e2eai.bundle.manifest import Manifest
from mlflow_e2eai.pytorch.stage import ExportReport
from mlflow_e2eai.report.facts import Origin, Section
from mlflow_e2eai.report.formats import NONE, one_line, sentence

File: TypeAlias = OnnxArtifact | EngineArtifact


def interface_section(manifest: Manifest) -> Section | None:
    """The model's inputs and outputs."""
    if not manifest.graphs:
        return None
    axes = {
        axis.name: f"{axis.name} from {axis.min} to {axis.max}, tuned for {axis.opt}"
        + (f", with buckets {', '.join(map(str, axis.buckets))}" if axis.buckets else "")
        for axis in manifest.axes
    }
    tensors = [
        (role, spec, "; ".join(axes[size] for size in spec.shape if size in axes) or NONE)
        for role, specs in (("input", manifest.inputs), ("output", manifest.outputs))
        for spec in specs
    ]
    return Section("interface", "Interface", {"tensors": tensors})


def lineage_section(manifest: Manifest, origin: Origin) -> Section:
    """From the source to every file, and each file's digest."""
    digests = {file.sha256 for file in manifest.files}
    roots: dict[str | None, list[dict[str, object]]] = {}
    for file in manifest.files:
        if file.parent_sha256 not in digests - {file.sha256}:
            branch = _branch(file, manifest, frozenset())
            roots.setdefault(file.parent_sha256, []).append(branch)
    context = {
        "origin": origin,
        "location": list(location_of(origin)),
        "exported": [] if manifest.export is None else _export_rows(manifest.export),
        "reused": [(name, sentence(where)) for name, where in manifest.reused.items()],
        "subject": manifest.subject,
        "source_model": manifest.source_model,
        "roots": roots,
        "files": [(_name(file), file) for file in manifest.files],
    }
    return Section("lineage", "Files and lineage", context)


def _branch(file: File, manifest: Manifest, above: frozenset[str]) -> dict[str, object]:
    """A file, and below it those that were made from it."""
    above |= {file.sha256}
    children = [
        _branch(child, manifest, above)
        for child in manifest.files
        if child.parent_sha256 == file.sha256 and child.sha256 not in above
    ]
    return {"file": file, "name": _name(file), "note": _describe(file), "children": children}


def _describe(file: File) -> str:
    if isinstance(file, OnnxArtifact):
        return f"ONNX in {file.precision}, opset {file.opset}, from {file.stage}"
    gpu = "" if file.target.gpu_name is None else f" on {file.target.gpu_name}"
    note = f"engine in {file.arithmetic} for {file.target}{gpu}, {file.backend_version}"
    if file.settings.not_default:
        note += f", built with {file.settings}"
    if file.checked is not None:
        checks = ", ".join(file.checked) or "only its network, because the builder has no such GPU"
        note += f"; checked after the build: {checks}"
    return note


def location_of(origin: Origin) -> Iterator[tuple[str, str, str | None]]:
    """The model's version, LoggedModel and runs in MLflow, each with its address."""
    if origin.version is not None and origin.uri is not None and origin.name is not None:
        yield "Version", origin.uri, origin.version_link()
    if origin.model_id is not None:
        yield "Model", origin.model_id, origin.model_link(origin.model_id)
    if origin.run_id is not None:
        yield "Run", origin.run_id, origin.run_link()
    if origin.parent_run_id is not None:
        yield "Parent run", origin.parent_run_id, origin.run_link(origin.parent_run_id)


def _export_rows(report: ExportReport) -> list[tuple[str, str]]:
    """The exporter that wrote the raw graph, and why others did not."""
    entries: list[tuple[str, str]] = [("Exporter", report.exporter)]
    if report.unverified is not None:
        entries.append(("Numbers not checked", report.unverified))
    if report.frozen is not None:
        froze = f"values of the example became constants at {report.frozen}; the samples match"
        entries.append(("Frozen", froze))
    if report.fast_path is not None:
        entries.append(("PyTorch's fast path of attention", report.fast_path))
    if report.samples:
        entries.append(("Compared on", "; ".join(report.samples)))
    entries += [(f"Left out: {label}", reason) for label, reason in report.left_out.items()]
    entries += [(f"Refused: {name}", reason) for name, reason in report.refused.items()]
    return [(name, sentence(value)) for name, value in entries]


def _name(file: File) -> str:
    """A file's path in the bundle; never its path on a machine."""
    return one_line(file.path.name if file.path.is_absolute() else file.path.as_posix())


def measured_text(manifest: Manifest) -> str:
    """When and on what it was measured, as far as the manifest says."""
    known = manifest.environment
    cores, load = known.get("cores"), known.get("load")
    if (when := known.get("measured")) is None:
        return ""
    threads = [f"{name.upper()}={known[name]}" for name in THREAD_LIMITS if name in known]
    parts = [manifest.machine, cores and f"{cores} cores", *threads, load and f"load {load}"]
    machine = ", ".join(filter(None, parts))
    return f"Measured {when} on {known.get('host', 'a machine')} ({machine})."


def environment_section(manifest: Manifest) -> Section | None:
    """The machine that it was measured on."""
    if not manifest.environment:
        return None
    entries = [(name, sentence(value)) for name, value in manifest.environment.items()]
    return Section("environment", "Environment", {"environment": entries})


def reproduce_section(manifest: Manifest, origin: Origin) -> Section:
    """Commands that check, measure and make all this again."""
    commands = list(_commands(manifest, origin))
    return Section("reproduce", "How to reproduce", {"commands": commands})


def _commands(manifest: Manifest, origin: Origin) -> Iterator[tuple[str, list[str]]]:
    """Each step's title and lines; names are quoted for the shell."""
    install = ["pip install -r model/requirements.txt"]
    if origin.uri is not None:
        uri = _quote(origin.uri)
        install.insert(0, f"mlflow artifacts download --artifact-uri {uri} --dst-path model")
    yield "Download the model, and install its requirements", install
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
        precisions = [graph.precision for graph in manifest.graphs]
        precisions += [engine.arithmetic for engine in manifest.engines]
        options = {
            "model_uri": manifest.source_model,
            "precisions": _join_names(precisions),
            "targets": _join_names(str(engine.target) for engine in manifest.engines),
            **_build_settings(manifest.engines),
        }
        yield "Rebuild it from the PyTorch model", _verb("pipeline", **options)


def _build_settings(engines: Sequence[EngineArtifact]) -> dict[str, str]:
    """The settings that they were built with, where not the default ones."""
    chosen = {str(engine.settings) for engine in engines if engine.settings.not_default}
    return {"build_settings": min(chosen)} if chosen else {}


def _join_names(names: Iterable[str]) -> str:
    return ",".join(dict.fromkeys(names)) or "none"


def _verb(verb: str, **options: str) -> list[str]:
    words = [f"--{name.replace('_', '-')} {_quote(value)}" for name, value in options.items()]
    return [f"mlflow_e2eai {verb} {' '.join(words)}"]


def _quote(text: str) -> str:
    return shlex.quote(one_line(text))
