"""What a stage on its own needs of the chain that its input stands in, fetched."""

from __future__ import annotations

import contextlib
import logging
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlflow_e2eai import bundle, tracking
from mlflow_e2eai.artifacts.axes import DynamicAxes
from mlflow_e2eai.artifacts.libraries import loadable
from mlflow_e2eai.artifacts.values import (
    Array,
    Axis,
    EngineArtifact,
    Infer,
    Library,
    OnnxArtifact,
    Target,
    Tensors,
)
from mlflow_e2eai.engine.targets import parse
from mlflow_e2eai.errors import InvalidInputError, RunnerError, TrackingError
from mlflow_e2eai.evaluation.data import EvaluationData
from mlflow_e2eai.evaluation.variants import FILE, TORCH
from mlflow_e2eai.pipeline.source import reference_of
from mlflow_e2eai.pytorch.flat_module import flattened
from mlflow_e2eai.pytorch.operators.operator import Operator
from mlflow_e2eai.runtime.isolation import isolated_onnxruntime
from mlflow_e2eai.runtime.ort import Device, onnxruntime_devices
from mlflow_e2eai.surgery.mapping import answering, begins_inside, bridge, hold_beginning

if TYPE_CHECKING:
    from mlflow.entities import LoggedModel

GRAPHS = ("clean", "convert")
"""Stages whose graph is run, and made an engine of."""

_log = logging.getLogger(__name__)

_DEFAULT_AXIS = Axis("N", min=1, opt=8, max=64)
"""For a model that was logged without axes and whose signature leaves the leading size open."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """A PyTorch LoggedModel, loaded, as `flattened` gives it."""

    module: Any
    example: dict[str, Array]
    axes: DynamicAxes
    operators: tuple[Operator, ...]
    libraries: tuple[Library, ...]
    evaluation: EvaluationData | None


class Job:
    """What a stage on its own needs: its input, a folder, a recorder, the PyTorch model."""

    def __init__(self, model: LoggedModel, folder: Path) -> None:
        self.model = model
        self.folder = folder
        root = tracking.ancestor(model, ("source", "export"))
        # A chain that an ONNX file began has no PyTorch model: its raw graph has no parent.
        self.source = tracking.ancestor(root, ("source",)) if _has_module(root) else None
        name = (self.source or root).name.removesuffix("-source" if self.source else "-raw")
        source_id = None if self.source is None else self.source.model_id
        self.recorder = tracking.MlflowRecorder(name=name, source=source_id)
        self.reference_name = TORCH if self.source else FILE
        self.evaluation: EvaluationData | None = None
        self.timed: Infer | None = None

    @contextmanager
    def stage(self, name: str, graph: OnnxArtifact) -> Iterator[tracking.MlflowStage]:
        """The run of this job, on the graph that it was given."""
        self.recorder.models[graph.sha256] = self.model.model_id
        with self.recorder.stage(name, inputs=[graph.sha256]) as stage:
            yield stage

    @contextmanager
    def reference(self, raw: OnnxArtifact, graph: OnnxArtifact) -> Iterator[Infer | None]:
        """The PyTorch module under a graph's names; None when it cannot be loaded here.

        Where an ONNX file began the chain, that file run by ONNX Runtime. Tensors that surgery
        exposed come from ONNX Runtime on the raw graph; `timed` does without them.
        """
        if self.source is None:
            with (
                isolated_onnxruntime(raw.path, libraries=raw.libraries) as itself,
                answering(itself, raw, graph) as answer,
            ):
                self.timed = bridge(itself, raw, graph)
                yield answer
            return
        hold_beginning(graph, raw)
        try:
            source = source_of(self.source, self.folder / "source", None)
        except TrackingError as error:
            _log.warning("The PyTorch model cannot be the reference: %s", error)
            yield None
            return
        self.evaluation = source.evaluation
        with (
            reference_of(source.module, raw) as infer,
            answering(infer, raw, graph) as answer,
        ):
            self.timed = bridge(infer, raw, graph)
            yield answer

    def data(self, graph: OnnxArtifact) -> EvaluationData | None:
        """The evaluation data under a graph's names; None when there is none, or it cannot be had.

        The module is loaded with it, as the data is kept beside it.
        """
        if self.source is None:
            return None
        exported = tracking.ancestor(self.model, ("export",))
        raw, _ = graph_of(exported, self.folder / "raw")
        if begins_inside(graph, raw):
            return None
        with self.reference(raw, graph):
            found = self.evaluation
        return None if found is None else found.for_graph(raw, graph)


@contextmanager
def job_on(model_uri: str, stages: Sequence[str]) -> Iterator[Job]:
    """Find a job's input; an error before the job's own run began is told by the caller."""
    with tempfile.TemporaryDirectory() as folder:
        model = tracking.ancestor(tracking.resolve(model_uri), stages)
        yield Job(model, Path(folder))


def _has_module(root: LoggedModel) -> bool:
    return root.tags.get(tracking.STAGE) != "export" or tracking.PARENT in root.tags


def source_of(model: LoggedModel, folder: Path, axes: DynamicAxes | None) -> Source:
    """Load a PyTorch model; `axes` stand in for those that it was logged with, unless None."""
    folder.mkdir(exist_ok=True, parents=True)
    loaded, given, kept, operators, libraries, evaluation = tracking.fetch_source(model, folder)
    module, example = flattened(loaded, given)
    if axes is None:
        axes = kept if kept is not None else _open_axes(model, folder, example)
    return Source(
        module=module,
        example=example,
        axes=axes,
        operators=operators,
        libraries=libraries,
        evaluation=evaluation,
    )


def whole_of(model: LoggedModel, folder: Path, axes: DynamicAxes | None) -> dict[str, Any]:
    """What began a chain, as arguments of `mlflow_e2eai.log_model`.

    Raises:
        InvalidInputError: Axes are given for an ONNX file, whose axes are known.
    """
    root = tracking.ancestor(model, ("source", "export"))
    if not _has_module(root):
        if axes is not None:
            msg = (
                "The axes of an ONNX file are named when it comes in, by clean; leave dynamic_axes "
                "out, or clean the file again with others."
            )
            raise InvalidInputError(msg)
        graph, example = graph_of(root, folder)
        return {"model": graph, "input_example": example, "source_model": root.model_id}
    origin = tracking.ancestor(root, ("source",))
    source = source_of(origin, folder, axes)
    return {
        "model": source.module,
        "input_example": source.example,
        "dynamic_axes": source.axes,
        "operators": source.operators,
        "operator_libraries": loadable(source.libraries),
        "evaluation_data": source.evaluation,
        "source_model": origin.model_id,
    }


def _open_axes(model: LoggedModel, folder: Path, example: Tensors) -> DynamicAxes:
    """The leading axis of every input whose signature leaves it open."""
    open_inputs = tracking.open_inputs(model, folder)
    return {
        name: {0: _DEFAULT_AXIS}
        for name, is_open in zip(example, open_inputs, strict=False)
        if is_open
    }


def graph_of(model: LoggedModel, folder: Path) -> tuple[OnnxArtifact, dict[str, Array]]:
    """Fetch an ONNX graph and its input example into a folder."""
    folder.mkdir(exist_ok=True, parents=True)
    graph = tracking.fetch_graph(model, folder)
    return graph, bundle.read_example(graph.path.parent)


def variants_in(
    job: Job, beside: Sequence[str] = ()
) -> tuple[list[OnnxArtifact], list[EngineArtifact], dict[str, Array]]:
    """The graphs and engines to judge, told to the recorder, and their input example.

    Args:
        job: The job.
        beside: Ids of graphs and engines that are judged beside its input, where that is a graph.
    """
    place = job.folder / "input"
    place.mkdir()
    stage = job.model.tags[tracking.STAGE]
    if stage == "package":
        directory = tracking.fetch(job.model, place) / bundle.FOLDER
        manifest = bundle.located(bundle.read(directory), directory)
        for item in manifest.files:
            job.recorder.models[item.sha256] = job.model.model_id
        return list(manifest.graphs), list(manifest.engines), bundle.read_example(directory)
    if stage == "compile":
        engine = tracking.fetch_engine(job.model, place)
        job.recorder.models[engine.sha256] = job.model.model_id
        parent = tracking.ancestor(job.model, GRAPHS)
        graph, example = graph_of(parent, job.folder / "graph")
        job.recorder.models[graph.sha256] = parent.model_id
        return [graph], [engine], example
    graph, example = graph_of(job.model, place)
    job.recorder.models[graph.sha256] = job.model.model_id
    graphs, engines = [graph], []
    for model_id in beside:
        model = tracking.resolve(model_id)
        folder = job.folder / model_id
        folder.mkdir()
        if model.tags[tracking.STAGE] == "compile":
            engines.append(tracking.fetch_engine(model, folder))
            job.recorder.models[engines[-1].sha256] = model_id
        else:
            graphs.append(tracking.fetch_graph(model, folder))
            job.recorder.models[graphs[-1].sha256] = model_id
    return graphs, engines, example


def engines_in(model: LoggedModel) -> dict[str, Target]:
    """Targets of the engines that `variants_in` finds in a model, by digest."""
    stage = model.tags[tracking.STAGE]
    if stage == "compile":
        return {model.tags[tracking.SHA256]: parse(model.tags["e2eai.target"])}
    if stage != "package":
        return {}
    with tempfile.TemporaryDirectory() as folder:
        files = tracking.ModelFiles(model.model_uri, folder)
        files.fetch(f"{bundle.FOLDER}/{bundle.MANIFEST}")
        manifest = bundle.read(files.directory / bundle.FOLDER)
    return {engine.sha256: engine.target for engine in manifest.engines}


def device_for(graph: OnnxArtifact) -> Device:
    """The best device here on which ONNX Runtime loads a graph."""
    *better, last = onnxruntime_devices()
    for device in better:
        with (
            contextlib.suppress(RunnerError),
            isolated_onnxruntime(graph.path, device=device, libraries=graph.libraries),
        ):
            return device
    return last
