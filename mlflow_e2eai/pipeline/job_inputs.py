"""The input of a single stage, fetched from the lineage of a logged model."""

from __future__ import annotations

import contextlib
import functools
import logging
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlflow_e2eai import bundle, tracking
from mlflow_e2eai.artifacts.arrays import load_arrays
from mlflow_e2eai.artifacts.axes import DynamicAxes, axes_of, input_specs
from mlflow_e2eai.artifacts.example import GeneratedExample, SizedExample, others_of
from mlflow_e2eai.artifacts.libraries import loadable
from mlflow_e2eai.artifacts.sampler import with_samples
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
from mlflow_e2eai.errors import InvalidInputError, RunnerError, TrackingError, errors_about
from mlflow_e2eai.evaluation.data import EvaluationData
from mlflow_e2eai.evaluation.variants import FILE, TORCH, Reference
from mlflow_e2eai.pipeline.known_model import KnownModel, digest_of_files
from mlflow_e2eai.pipeline.source import reference_of
from mlflow_e2eai.pytorch.consent import Consent
from mlflow_e2eai.pytorch.flat_module import flatten_module
from mlflow_e2eai.pytorch.operators.operator import Operator
from mlflow_e2eai.runtime.isolation import isolated_onnxruntime
from mlflow_e2eai.runtime.ort import Device, onnxruntime_devices
from mlflow_e2eai.surgery.mapping import (
    convert_inputs,
    full_reference,
    origins_of,
    require_same_inputs,
    starts_inside,
    wrap_reference,
)

if TYPE_CHECKING:
    from mlflow.entities import LoggedModel

GRAPHS = ("clean", "convert")
"""Stages whose graph can be run, and compiled."""

_log = logging.getLogger(__name__)

_DEFAULT_AXIS = Axis("N", min=1, opt=8, max=64)
"""For a model that was logged without axes and whose signature leaves the leading size open."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedSource:
    """A PyTorch LoggedModel, as `flatten_module` returns it.

    Attributes:
        load: Loads the module, once.
        example: Its example, with the samples at sizes that were logged with it.
        axes: Its dynamic axes.
        operators: Implementations of operators.
        libraries: Libraries of operators.
        evaluation: Its evaluation data; None where none were logged.
        folder: Its downloaded files.
    """

    load: Callable[[], Any]
    example: Tensors
    axes: DynamicAxes
    operators: tuple[Operator, ...]
    libraries: tuple[Library, ...]
    evaluation: EvaluationData | None
    folder: Path

    @property
    def module(self) -> Any:
        """The module."""
        return self.load()


class Job:
    """The input of a single stage, and its lineage.

    Attributes:
        model: The input.
        uri: The model as the caller named it, for messages.
        folder: A folder for the files.
        allow_pickle: Whether the PyTorch model may run code as it is loaded; see `require_consent`.
        recorder: Logs the stage.
        evaluation: The evaluation data that was logged with the PyTorch model, once `reference` is
            open.
        samples: The samples at sizes that were logged with it, likewise.
    """

    def __init__(
        self, model: LoggedModel, uri: str, folder: Path, *, allow_pickle: Consent = False
    ) -> None:
        self.model = model
        self.uri = uri
        self.folder = folder
        self.allow_pickle = allow_pickle
        self._source = tracking.source_of(model)
        root = self._source or tracking.ancestor(model, ("export",))
        name = root.name.removesuffix("-source" if self._source else "-raw")
        source_id = None if self._source is None else self._source.model_id
        self.recorder = tracking.MlflowRecorder(name=name, source=source_id)
        self.evaluation: EvaluationData | None = None
        self.samples: tuple[Tensors, ...] = ()

    def fetch_graph(self) -> tuple[OnnxArtifact, dict[str, Array]]:
        """Fetch the input, where it is a graph, and its input example."""
        graph, example = fetch_graph(self.model, self.folder)
        self.recorder.models[graph.sha256] = self.model.model_id
        return graph, example

    @contextmanager
    def reference(self, raw: OnnxArtifact, graph: OnnxArtifact) -> Iterator[Reference | None]:
        """The PyTorch module under a graph's names; None when it cannot be loaded here.

        For a lineage from an ONNX file, that file run by ONNX Runtime. Tensors that surgery
        exposed come from ONNX Runtime on the raw graph.
        """
        with self._model(raw, graph) as infer:
            if infer is None:
                yield None
                return
            name = TORCH if self._source else FILE
            with full_reference(infer, raw, graph) as whole:
                yield Reference(infer=whole, alone=wrap_reference(infer, graph), name=name)

    @contextmanager
    def _model(self, raw: OnnxArtifact, graph: OnnxArtifact) -> Iterator[Infer | None]:
        """The model at the root of the lineage, under the raw graph's names."""
        if self._source is None:
            with isolated_onnxruntime(raw.path, libraries=raw.libraries) as infer:
                yield infer
            return
        require_same_inputs(graph, raw)
        folder, allow_pickle = self.folder / "source", self.allow_pickle
        try:
            source = load_source(self._source, self.uri, folder, None, allow_pickle=allow_pickle)
            module = source.module
        except TrackingError as error:
            _log.warning("The PyTorch model cannot be used as the reference: %s", error)
            yield None
            return
        self.evaluation, self.samples = source.evaluation, others_of(source.example)
        with reference_of(module, raw) as infer:
            yield infer

    def with_samples(self, example: Tensors, graph: OnnxArtifact) -> Tensors:
        """An example of a graph with `samples` under its names; none where it starts inside."""
        names = {origin.name for origin in origins_of(graph).inputs}
        fitting = [each for each in self.samples if names == each.keys()]
        return SizedExample(example, [convert_inputs(each, graph) for each in fitting])

    def load_evaluation_data(self, graph: OnnxArtifact) -> EvaluationData | None:
        """The evaluation data under a graph's names; None if there is none that can be loaded.

        The module is loaded with it, as the data is logged with it.
        """
        if self._source is None:
            return None
        exported = tracking.ancestor(self.model, ("export",))
        raw, _ = fetch_graph(exported, self.folder / "raw")
        if starts_inside(graph, raw):
            return None
        with self.reference(raw, graph):
            data = self.evaluation
        return None if data is None else data.for_graph(graph)

    def fetch_variants(
        self, others: Sequence[str] = ()
    ) -> tuple[list[OnnxArtifact], list[EngineArtifact], dict[str, Array]]:
        """Fetch the graphs and engines to evaluate, and their input example.

        Args:
            others: Ids of graphs and engines that are evaluated with the input, where that is a
                graph.
        """
        path = self.folder / "input"
        path.mkdir()
        models = self.recorder.models
        stage = self.model.tags[tracking.STAGE]
        if stage == "package":
            directory = tracking.fetch_verified(self.model, path) / bundle.FOLDER
            manifest = bundle.audit(directory, whole=False)
            models |= {item.sha256: self.model.model_id for item in manifest.files}
            return list(manifest.graphs), list(manifest.engines), bundle.read_example(directory)
        if stage == "compile":
            engine = tracking.fetch_engine(self.model, path)
            parent = tracking.ancestor(self.model, GRAPHS)
            graph, example = fetch_graph(parent, self.folder / "graph")
            models |= {engine.sha256: self.model.model_id, graph.sha256: parent.model_id}
            return [graph], [engine], example
        graph, example = fetch_graph(self.model, path)
        models[graph.sha256] = self.model.model_id
        graphs, engines = [graph], []
        for model_id in others:
            model = tracking.resolve(model_id)
            folder = self.folder / model_id
            folder.mkdir()
            artifact: OnnxArtifact | EngineArtifact
            if model.tags[tracking.STAGE] == "compile":
                artifact = tracking.fetch_engine(model, folder)
                engines.append(artifact)
            else:
                artifact = tracking.fetch_graph(model, folder)
                graphs.append(artifact)
            models[artifact.sha256] = model_id
        return graphs, engines, example


@contextmanager
def job_on(
    model_uri: str, stages: Sequence[str], *, allow_pickle: Consent = False
) -> Iterator[Job]:
    """Open a job on the nearest model of a lineage that one of the stages made."""
    with tempfile.TemporaryDirectory() as folder:
        with errors_about(model_uri):
            model = tracking.ancestor(tracking.resolve_source(model_uri), stages)
            job = Job(model, model_uri, Path(folder), allow_pickle=allow_pickle)
        yield job


def load_source(
    model: LoggedModel,
    uri: str,
    folder: Path,
    axes: DynamicAxes | None,
    samples_at: Sequence[Path] = (),
    *,
    allow_pickle: Consent = False,
) -> LoadedSource:
    """Load a PyTorch model, `uri` in messages; `axes` replace its own, unless None.

    Raises:
        InvalidInputError: The model was logged with one of these sizes fixed, a file of
            `samples_at` does not fit its input example, or the model runs code that is not allowed.
        ArtifactError: A file of `samples_at` cannot be read.
    """
    given_samples = [load_arrays(path) for path in samples_at]
    folder.mkdir(exist_ok=True, parents=True)
    about = errors_about(uri)
    logged = about(tracking.fetch_source)(model, folder, allow_pickle=allow_pickle)
    load = about(logged.load)
    flatten = functools.cache(lambda: flatten_module(load(), logged.input_example))
    # As it was logged, its names are those that flattening gives.
    example = flatten()[1] if logged.arrays is None else dict(logged.arrays)
    if axes is None:
        axes = logged.dynamic_axes
    else:
        about(_check_open)(model, load(), example, axes)
    assumptions = logged.assumptions
    if axes is None:
        axes = _open_axes(model, folder, example)
        assumptions += tuple(
            f"Axis 0 of {name!r} is open, and is assumed to be {_DEFAULT_AXIS}." for name in axes
        )
    given: Tensors = GeneratedExample(example, assumptions) if assumptions else example
    given = _with_fitting(given, given_samples, logged.samples_at, axes)
    return LoadedSource(
        load=lambda: flatten()[0],
        example=given,
        axes=axes,
        operators=logged.operators,
        libraries=logged.libraries,
        evaluation=logged.evaluation,
        folder=logged.folder,
    )


def _check_open(model: LoggedModel, module: Any, example: Tensors, axes: DynamicAxes) -> None:
    """Refuse axes that are fixed in a model that was logged as a graph (pt2)."""
    nodes = getattr(getattr(module, "graph", None), "nodes", ())
    inputs = [node for node in nodes if node.op == "placeholder"]
    for name, node in zip(example, inputs if len(inputs) == len(example) else (), strict=False):
        shape = getattr(node.meta.get("val"), "shape", ())
        for at in axes.get(name, {}):
            if at < len(shape) and isinstance(shape[at], int):
                msg = (
                    f"Model {model.model_id} was logged with axis {at} of {name!r} fixed at "
                    f"{shape[at]}, so it cannot be dynamic now; log the PyTorch model again with "
                    f"these dynamic_axes."
                )
                raise InvalidInputError(msg)


def _with_fitting(
    example: Tensors, given: Sequence[Tensors], logged: Sequence[Tensors], axes: DynamicAxes
) -> Tensors:
    """An example with the given samples, and the logged ones at other sizes that axes admit."""
    specs, different = input_specs(example, axes), axes_of(axes)
    with_samples(example, given, specs, different)
    fitting = [*given]
    for sample in logged:
        try:
            with_samples(example, [*fitting, sample], specs, different)
        except InvalidInputError as error:
            _log.warning("A sample that was logged with the model is skipped: %s", error)
        else:
            fitting.append(sample)
    return with_samples(example, fitting, specs, different)


def root_arguments(
    model: LoggedModel,
    uri: str,
    folder: Path,
    axes: DynamicAxes | None,
    samples_at: Sequence[Path] = (),
    *,
    allow_pickle: Consent = False,
) -> dict[str, Any]:
    """The PyTorch model or ONNX file at the root of a lineage, as arguments of `log_model`.

    Raises:
        InvalidInputError: Axes are given for an ONNX file, whose axes are known.
    """
    origin = tracking.source_of(model)
    if origin is None:
        root = tracking.ancestor(model, ("export",))
        if axes is not None:
            msg = (
                "The dynamic axes of an ONNX file are set by clean; leave dynamic_axes out, or "
                "clean the file again with others."
            )
            raise InvalidInputError(msg)
        graph, example = fetch_graph(root, folder)
        return {
            "model": graph,
            "input_example": example,
            "samples_at": [load_arrays(path) for path in samples_at],
            "source_model": root.model_id,
        }
    source = load_source(origin, uri, folder, axes, samples_at, allow_pickle=allow_pickle)
    return {
        "model": KnownModel(source.load, digest_of_files(source.folder)),
        "input_example": source.example,
        "dynamic_axes": source.axes,
        "samples_at": others_of(source.example),
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


def fetch_graph(model: LoggedModel, folder: Path) -> tuple[OnnxArtifact, dict[str, Array]]:
    """Fetch an ONNX graph and its input example into a folder."""
    folder.mkdir(exist_ok=True, parents=True)
    graph = tracking.fetch_graph(model, folder)
    return graph, bundle.read_example(graph.path.parent)


def engines_in(model: LoggedModel) -> dict[str, Target]:
    """Targets of the engines in a model, by digest."""
    stage = model.tags[tracking.STAGE]
    if stage == "compile":
        return {model.tags[tracking.SHA256]: parse(model.params["target"])}
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
