"""One stage alone, on what an earlier one logged: fetch, run the stage, log what it made.

Any model of the chain will do for any stage: each walks up to the one that it needs, so that
``export`` of a registered bundle exports the PyTorch model that the bundle was made from.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlflow_e2eai import bundle, flavor, pipeline, tracking
from mlflow_e2eai import engine as engines
from mlflow_e2eai.artifacts import (
    Array,
    Axis,
    EngineArtifact,
    Infer,
    OnnxArtifact,
    Precision,
)
from mlflow_e2eai.bundle import Evidence
from mlflow_e2eai.errors import InvalidInputError, TrackingError
from mlflow_e2eai.evaluation import evaluate as run_evaluation
from mlflow_e2eai.exporter import DEFAULT_OPSET, Exporter
from mlflow_e2eai.exporter import export as export_graph
from mlflow_e2eai.factories import call
from mlflow_e2eai.modules import DynamicAxes, module_of, named_inputs
from mlflow_e2eai.precision import check_precision
from mlflow_e2eai.precision import convert as convert_graph
from mlflow_e2eai.samples import EvaluationData, profile_samples
from mlflow_e2eai.surgery import DEFAULT_PLAN, Step
from mlflow_e2eai.surgery import clean as clean_graph
from mlflow_e2eai.variants import bridge, new_names, renamed

if TYPE_CHECKING:
    from mlflow.entities import LoggedModel
    from mlflow.models.model import ModelInfo

_log = logging.getLogger(__name__)

_GRAPHS = ("clean", "convert")
_DEFAULT_AXIS = Axis("N", min=1, opt=8, max=64)
"""For a model that was logged without axes and whose signature leaves the leading size open."""


def log(factory: str, *, name: str) -> str:
    """Log a PyTorch model that a callable makes, for the stages to take further.

    Args:
        factory: ``package.module:callable`` or ``path/to/file.py:callable``. It returns a mapping
            with ``model`` and ``input_example``, and optionally ``dynamic_axes`` and
            ``evaluation_data`` and ``metrics``, as `mlflow_e2eai.log_model` takes them.
        name: Name of the LoggedModel.

    Returns:
        Its id.

    Raises:
        InvalidInputError: There is no such callable, or it returns something else.
    """
    with tracking.run("log", nested=True, tags={tracking.STAGE: "log"}) as run_id:
        made = call(factory)
        return tracking.log_source(
            made["model"],
            made["input_example"],
            name=name,
            run_id=run_id,
            dynamic_axes=made.get("dynamic_axes"),
            evaluation=flavor.evaluation_of(
                made["model"],
                made["input_example"],
                made.get("evaluation_data"),
                made.get("metrics"),
            ),
        )


def export(
    model_uri: str,
    *,
    exporter: Exporter = "auto",
    opset: int = DEFAULT_OPSET,
    dynamic_axes: DynamicAxes | None = None,
) -> str:
    """Export the PyTorch model of a chain.

    Args:
        model_uri: Any model of the chain.
        exporter: See `mlflow_e2eai.export`.
        opset: The same.
        dynamic_axes: The same; None takes those that the model was logged with.

    Returns:
        Id of the raw ONNX LoggedModel.
    """
    with _job(model_uri, ("source",)) as job:
        source = _source(job.model, job.folder, dynamic_axes)
        with job.recorder.stage("export", inputs=[]) as stage:
            raw = export_graph(
                source.module,
                source.example,
                out=job.folder / "raw.onnx",
                dynamic_axes=source.axes,
                exporter=exporter,
                opset=opset,
            )
            stage.made(raw, example=named_inputs(source.module, source.example))
        return job.recorder.models[raw.sha256]


def clean(model_uri: str, *, plan: Sequence[Step] = DEFAULT_PLAN) -> str:
    """Apply a surgery plan to the raw graph of a chain.

    Returns:
        Id of the cleaned ONNX LoggedModel.
    """
    with _job(model_uri, ("export",)) as job:
        raw, example = _graph(job.model, job.folder)
        with job.reference(raw, raw) as reference, job.stage("clean", raw) as stage:
            cleaned, report = clean_graph(
                raw,
                plan,
                out=job.folder / "clean.onnx",
                samples=list(profile_samples(example, raw).values()),
                reference=reference,
            )
            stage.made(cleaned, example=renamed(example, raw, cleaned))
            stage.noted("surgery", report)
        return job.recorder.models[cleaned.sha256]


def convert(model_uri: str, *, precision: Precision) -> str:
    """Convert the cleaned graph of a chain.

    Returns:
        Id of the converted ONNX LoggedModel; for fp32, of the cleaned one itself.
    """
    check_precision(precision)
    with _job(model_uri, ("clean",)) as job:
        graph, example = _graph(job.model, job.folder)
        with job.stage(f"convert {precision}", graph) as stage:
            made = convert_graph(graph, precision, out=job.folder / f"{precision}.onnx")
            if made is not graph:
                stage.made(made, example=example)
        return job.recorder.models[made.sha256]


def compile(model_uri: str, *, targets: Sequence[str], tf32: bool = False) -> list[str]:
    """Build engines of a graph of a chain: of the converted one if that is given, else the cleaned.

    Returns:
        Ids of the engine LoggedModels.
    """
    if not targets:
        msg = f"There are no targets; give one of {', '.join(engines.TARGETS)}, or several."
        raise InvalidInputError(msg)
    for target in targets:
        engines.resolve(target)
    with _parent("compile"), _job(model_uri, _GRAPHS) as job:
        graph, example = _graph(job.model, job.folder)
        made = []
        for target in targets:
            with job.stage(f"compile {graph.precision} {target}", graph) as stage:
                out = job.folder / f"{target}.engine"
                engine = engines.compile(graph, target, out=out, tf32=tf32)
                stage.made(engine, example=example)
            made.append(job.recorder.models[engine.sha256])
        return made


def evaluate(model_uri: str) -> list[Evidence]:
    """Judge a graph, an engine, or all of a bundle against the PyTorch model, on this machine.

    Returns:
        Evidence for each variant, the PyTorch module first.
    """
    with _parent("evaluate"), _job(model_uri, (*_GRAPHS, "compile", "package")) as job:
        graphs, built, example = _variants(job)
        exported = tracking.ancestor(job.model, ("export",))
        raw, _ = _graph(exported, job.folder / "raw")
        job.recorder.models[raw.sha256] = exported.model_id
        with job.reference(raw, graphs[0]) as reference:
            if reference is None:
                msg = "Nothing can be judged without the PyTorch model; see the warning above."
                raise TrackingError(msg)
            evaluation = job.evaluation
            if evaluation is not None:
                evaluation = evaluation.renamed(new_names(raw, graphs[0]))
            evidence, latency = run_evaluation(
                reference, graphs, built, example, raw=raw, evaluation=evaluation
            )
            pipeline.record(evidence, latency, job.recorder)
        return evidence


def package(
    model_uri: str,
    *,
    name: str,
    registered_model_name: str | None = None,
    exporter: Exporter = "auto",
    opset: int = DEFAULT_OPSET,
    dynamic_axes: DynamicAxes | None = None,
    plan: Sequence[Step] = DEFAULT_PLAN,
    precisions: Sequence[Precision] = ("fp32", "fp16"),
    targets: Sequence[str] = (),
    tf32: bool = False,
) -> ModelInfo:
    """Take a logged PyTorch model from export to package."""
    with tracking.run(name), tempfile.TemporaryDirectory() as folder:
        model = tracking.ancestor(tracking.resolve(model_uri), ("source",))
        source = _source(model, Path(folder), dynamic_axes)
        return flavor.log_model(
            source.module,
            name,
            input_example=source.example,
            dynamic_axes=source.axes,
            exporter=exporter,
            opset=opset,
            surgery=plan,
            precisions=precisions,
            targets=targets,
            tf32=tf32,
            evaluation_data=source.evaluation,
            source_model=model.model_id,
            registered_model_name=registered_model_name,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Source:
    """A PyTorch LoggedModel, loaded."""

    module: Any
    example: Any
    axes: DynamicAxes
    evaluation: EvaluationData | None


class _Job:
    """What a stage on its own needs: its input, a folder, a recorder, the PyTorch model."""

    def __init__(self, model: LoggedModel, folder: Path) -> None:
        self.model = model
        self.folder = folder
        self.source = tracking.ancestor(model, ("source",))
        name = self.source.name.removesuffix("-source")
        self.recorder = tracking.MlflowRecorder(name=name, source=self.source.model_id)
        self.evaluation: EvaluationData | None = None

    @contextmanager
    def stage(self, name: str, graph: OnnxArtifact) -> Iterator[tracking.MlflowStage]:
        """The run of this job, on the graph that it was given."""
        self.recorder.models[graph.sha256] = self.model.model_id
        with self.recorder.stage(name, inputs=[graph.sha256]) as stage:
            yield stage

    @contextmanager
    def reference(self, raw: OnnxArtifact, graph: OnnxArtifact) -> Iterator[Infer | None]:
        """The PyTorch module under a graph's names; None when it cannot be loaded here."""
        try:
            source = _source(self.source, self.folder / "source", None)
        except TrackingError as error:
            _log.warning("The PyTorch model cannot be the reference: %s", error)
            yield None
            return
        self.evaluation = source.evaluation
        with pipeline.reference_of(source.module, raw) as infer:
            yield bridge(infer, raw, graph)


def _parent(name: str) -> AbstractContextManager[str]:
    """The run of a job that has a child for each engine or variant."""
    return tracking.run(name, nested=True, tags={tracking.STAGE: name})


@contextmanager
def _job(model_uri: str, stages: Sequence[str]) -> Iterator[_Job]:
    """Find a job's input; an error before the job's own run began is told by the caller."""
    with tempfile.TemporaryDirectory() as folder:
        model = tracking.ancestor(tracking.resolve(model_uri), stages)
        yield _Job(model, Path(folder))


def _source(model: LoggedModel, folder: Path, axes: DynamicAxes | None) -> _Source:
    folder.mkdir(exist_ok=True, parents=True)
    module, example, kept, evaluation = tracking.fetch_source(model, folder)
    if axes is None:
        axes = kept if kept is not None else _open_axes(model, folder, module, example)
    return _Source(module=module, example=example, axes=axes, evaluation=evaluation)


def _open_axes(model: LoggedModel, folder: Path, module: Any, example: Any) -> DynamicAxes:
    """The leading axis of every input whose signature leaves it open."""
    open_inputs = tracking.open_inputs(model, folder)
    names = list(named_inputs(module_of(module), example))
    return {
        name: {0: _DEFAULT_AXIS}
        for name, is_open in zip(names, open_inputs, strict=False)
        if is_open
    }


def _graph(model: LoggedModel, folder: Path) -> tuple[OnnxArtifact, dict[str, Array]]:
    folder.mkdir(exist_ok=True, parents=True)
    graph = tracking.fetch_graph(model, folder)
    return graph, bundle.read_example(graph.path.parent)


def _variants(
    job: _Job,
) -> tuple[list[OnnxArtifact], list[EngineArtifact], dict[str, Array]]:
    """The graphs and engines to judge, told to the recorder, and their input example."""
    place = job.folder / "input"
    place.mkdir()
    stage = job.model.tags[tracking.STAGE]
    if stage == "package":
        directory = tracking.fetch(job.model, place) / "bundle"
        manifest = bundle.located(bundle.read(directory), directory)
        for item in manifest.files:
            job.recorder.models[item.sha256] = job.model.model_id
        return list(manifest.graphs), list(manifest.engines), bundle.read_example(directory)
    if stage == "compile":
        engine = tracking.fetch_engine(job.model, place)
        job.recorder.models[engine.sha256] = job.model.model_id
        parent = tracking.ancestor(job.model, _GRAPHS)
        graph, example = _graph(parent, job.folder / "graph")
        job.recorder.models[graph.sha256] = parent.model_id
        return [graph], [engine], example
    graph, example = _graph(job.model, place)
    job.recorder.models[graph.sha256] = job.model.model_id
    return [graph], [], example
