"""`inspect`, `report` and `targets`: a model's interface, its page, and the GPUs there are."""

from __future__ import annotations

import tempfile
import webbrowser
from dataclasses import dataclass
from pathlib import Path

from mlflow_e2eai import bundle, tracking
from mlflow_e2eai.artifacts import graphs
from mlflow_e2eai.artifacts.values import TensorSpec
from mlflow_e2eai.bundle.manifest import Manifest
from mlflow_e2eai.engine.targets import canonical, gpu_capabilities
from mlflow_e2eai.engine.targets import parse as parse_target
from mlflow_e2eai.errors import InvalidInputError
from mlflow_e2eai.pipeline.publish import find_report
from mlflow_e2eai.tracking.downloads import ModelFiles, fetch_text


@dataclass(frozen=True, slots=True, kw_only=True)
class Inspection:
    """The interface of a model, and its variants.

    Attributes:
        model: The model as the caller named it.
        inputs: Inputs of its graph.
        outputs: Outputs of its graph.
        axes: Its dynamic axes, as ``N: 1 to 64``.
        opset: Version of the default ONNX operator set.
        manifest: That of a bundle; None for a graph.
    """

    model: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    axes: tuple[str, ...]
    opset: int
    manifest: Manifest | None = None


def inspect(model: str) -> Inspection:
    """Read the interface of a model, and the evidence of its variants.

    Args:
        model: An ONNX file, a bundle's folder, or the URI of a model of a chain: of an engine the
            graph that it was built from is read.

    Raises:
        ArtifactError: A file is missing or broken.
        TrackingError: There is no such model, or it has no graph.
    """
    if not tracking.is_uri(model):
        path = Path(model)
        if path.is_dir():
            return _of_manifest(model, bundle.read(bundle.find(path)))
        read = graphs.read(path)
        inputs, outputs = graphs.interface(read)
        return Inspection(
            model=model, inputs=inputs, outputs=outputs, axes=(), opset=graphs.opset_of(read)
        )
    stages = ("export", "clean", "convert", "package")
    logged = tracking.ancestor(tracking.resolve(model), stages)
    with tempfile.TemporaryDirectory() as folder:
        if logged.tags[tracking.STAGE] == "package":
            files = ModelFiles(logged.model_uri, folder)
            files.fetch(f"{bundle.FOLDER}/{bundle.MANIFEST}")
            return _of_manifest(model, bundle.read(files.directory / bundle.FOLDER))
        graph = tracking.fetch_graph(logged, Path(folder))
    return Inspection(
        model=model,
        inputs=graph.inputs,
        outputs=graph.outputs,
        axes=tuple(f"{axis.name}: {axis}" for axis in graph.axes),
        opset=graph.opset,
    )


def _of_manifest(model: str, manifest: Manifest) -> Inspection:
    graph = manifest.graphs[0]
    return Inspection(
        model=model,
        inputs=graph.inputs,
        outputs=graph.outputs,
        axes=tuple(f"{axis.name}: {axis}" for axis in graph.axes),
        opset=graph.opset,
        manifest=manifest,
    )


def report(model_uri: str, *, browser: bool = True) -> list[Path]:
    """Open the report of a bundle in a browser.

    Args:
        model_uri: URI of the bundle, or of its version.
        browser: Open it; else only find it.

    Returns:
        The page: in the artifact store where that is on this machine, else a copy in the folder for
        temporary files.

    Raises:
        TrackingError: There is no such model, or it has no report.
    """
    uri = find_report(model_uri).report
    page = Path(uri)
    if uri.startswith("runs:/"):
        page = Path(tempfile.gettempdir(), f"report-{uri.split('/')[1]}.html")
        page.write_text(fetch_text(uri), encoding="utf-8")
    if browser:
        webbrowser.open(page.as_uri())
    return [page]


@dataclass(frozen=True, slots=True, kw_only=True)
class ListedGpu:
    """A GPU by name, and what engines are built for it as.

    Attributes:
        gpu: Its name, as ``targets`` takes it.
        capability: Its compute capability.
        target: The target that its name stands for; None for one before Turing.
        built: ``anywhere``, or ``on it`` where TensorRT needs such a GPU to build; None likewise.
    """

    gpu: str
    capability: str
    target: str | None
    built: str | None


def list_targets() -> list[ListedGpu]:
    """All GPUs that are known by name, the newest compute capability first."""
    return [_gpu(*each) for each in gpu_capabilities()]


def _gpu(gpu: str, capability: str) -> ListedGpu:
    try:
        target = canonical(gpu)
    except InvalidInputError:
        return ListedGpu(gpu=gpu, capability=capability, target=None, built=None)
    built = "anywhere" if parse_target(target).backend == "tensorrt_rtx" else "on it"
    return ListedGpu(gpu=gpu, capability=capability, target=target, built=built)
