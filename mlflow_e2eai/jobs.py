"""One stage alone, on what an earlier one logged: fetch, run the stage, log what it made.

Any model of the chain will do for any stage: each walks up to the one that it needs, so that
``export`` of a registered bundle exports the PyTorch model that the bundle was made from.
"""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

from mlflow_e2eai import chained, flavor, fleet, pipeline, tracking
from mlflow_e2eai import engine as engines
from mlflow_e2eai.artifacts import Precision, variant_name
from mlflow_e2eai.bisection import Bisection
from mlflow_e2eai.bisection import bisect as bisect_graph
from mlflow_e2eai.building import DEFAULT_BUILD, BuildSettings
from mlflow_e2eai.chain import device_for, engines_in, graph_of, job_on, source_of, whole_of
from mlflow_e2eai.errors import InvalidInputError
from mlflow_e2eai.evidence import MachineEvidence
from mlflow_e2eai.exporter import DEFAULT_OPSET, Exporter
from mlflow_e2eai.exporter import export as export_graph
from mlflow_e2eai.factories import call
from mlflow_e2eai.isolation import isolated_onnxruntime
from mlflow_e2eai.libraries import loadable, named
from mlflow_e2eai.modules import DynamicAxes
from mlflow_e2eai.precision import check_graph_precision
from mlflow_e2eai.samples import all_samples, profile_samples
from mlflow_e2eai.settings import SettingsArguments
from mlflow_e2eai.surgery import DEFAULT_PLAN, Step, entering, named_in
from mlflow_e2eai.surgery import clean as clean_graph

if TYPE_CHECKING:
    from mlflow.models.model import ModelInfo


def log(factory: str, *, name: str) -> str:
    """Log a PyTorch model that a callable makes, for the stages to take further.

    Args:
        factory: ``package.module:callable`` or ``path/to/file.py:callable``. It returns a mapping
            with ``model`` and ``input_example``, and optionally ``dynamic_axes``,
            ``operators``, ``operator_libraries``, ``evaluation_data`` and ``metrics``, as
            `mlflow_e2eai.log_model` takes them.
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
            operators=made.get("operators", ()),
            operator_libraries=made.get("operator_libraries", ()),
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
    plan: Sequence[Step] = DEFAULT_PLAN,
) -> str:
    """Export the PyTorch model of a chain.

    Args:
        model_uri: Any model of the chain.
        exporter: See `mlflow_e2eai.export`.
        opset: The same.
        dynamic_axes: The same; None takes those that the model was logged with.
        plan: What `clean` will do: the operators that it names need no implementation.

    Returns:
        Id of the raw ONNX LoggedModel.
    """
    with job_on(model_uri, ("source",)) as job:
        source = source_of(job.model, job.folder, dynamic_axes)
        with job.recorder.stage("export", inputs=[]) as stage:
            raw, exported = export_graph(
                source.module,
                source.example,
                out=job.folder / "raw.onnx",
                dynamic_axes=source.axes,
                exporter=exporter,
                opset=opset,
                operators=source.operators,
                operator_libraries=loadable(source.libraries),
                deferred=named_in(plan),
            )
            stage.made(raw, example=source.example)
            stage.noted("export", exported)
        return job.recorder.models[raw.sha256]


def clean(model_uri: str, *, plan: Sequence[Step] = DEFAULT_PLAN) -> str:
    """Apply a surgery plan to the raw graph of a chain.

    Returns:
        Id of the cleaned ONNX LoggedModel.
    """
    with job_on(model_uri, ("export",)) as job:
        raw, example = graph_of(job.model, job.folder)
        with job.reference(raw, raw) as reference, job.stage("clean", raw) as stage:
            cleaned, report = clean_graph(
                raw,
                plan,
                out=job.folder / "clean.onnx",
                samples=list(profile_samples(example, raw).values()),
                reference=reference,
                keep=job.folder / "refused",
            )
            with entering(raw, cleaned) as fit:
                stage.made(cleaned, example=fit(example))
            stage.noted("surgery", report)
        return job.recorder.models[cleaned.sha256]


def convert(model_uri: str, *, precision: Precision, keep_fp32: Sequence[str] = ()) -> str:
    """Convert the cleaned graph of a chain.

    It is guarded by the ranges seen at the corners of its profile and on the evaluation data that
    was logged with the PyTorch model.

    Args:
        model_uri: Any model of the chain, from the cleaned graph on.
        precision: See `mlflow_e2eai.convert`.
        keep_fp32: The same.

    Returns:
        Id of the converted ONNX LoggedModel; for fp32, of the cleaned one itself.
    """
    check_graph_precision(precision)
    with job_on(model_uri, ("clean",)) as job:
        graph, example = graph_of(job.model, job.folder)
        with job.stage(f"convert {precision}", graph) as stage:
            data = None if precision == "fp32" else job.data(graph)
            made, _ = pipeline.convert_on(
                stage,
                graph,
                precision,
                out=job.folder / f"{precision}.onnx",
                keep_fp32=keep_fp32,
                example=example,
                evaluation=data,
            )
        return job.recorder.models[made.sha256]


def bisect(model_uri: str, *, precision: Precision = "fp16") -> tuple[Bisection, str]:
    """Find the nodes of a chain's cleaned graph that must stay in fp32 for a precision to pass.

    ONNX Runtime runs it on the best device here; on the CPU with every value rounded to fp16, as a
    GPU does. It is judged against the PyTorch model (where that cannot be loaded, against the graph
    in fp32), at the corners of the profile and on the evaluation data that was logged with it.

    Args:
        model_uri: Any model of the chain, from the cleaned graph on.
        precision: The one in which it fails.

    Returns:
        What `mlflow_e2eai.bisect` found, and the URI of its ``bisection.json`` on the run.

    Raises:
        InvalidInputError: The precision is fp32, or unknown; or the graph fails in fp32 too.
    """
    check_graph_precision(precision)
    with job_on(model_uri, ("clean",)) as job:
        graph, example = graph_of(job.model, job.folder)
        raw, _ = graph_of(tracking.ancestor(job.model, ("export",)), job.folder / "raw")
        device = device_for(graph)
        with (
            job.reference(raw, graph) as reference,
            job.stage(f"bisect {precision}", graph) as stage,
        ):
            data = job.evaluation
            if data is not None:
                data = data.for_graph(raw, graph)
            samples = [*all_samples(example, graph, data)]
            found = bisect_graph(
                graph,
                precision,
                samples=samples,
                reference=reference,
                run=functools.partial(
                    isolated_onnxruntime,
                    device=device,
                    rounded=device == "cpu",
                    libraries=graph.libraries,
                ),
            )
            variant = variant_name(f"onnxruntime-{device}", precision)
            tracking.log_bisection(found, run_id=stage.run_id, variant=variant)
        return found, f"runs:/{stage.run_id}/bisection.json"


def compile(
    model_uri: str,
    *,
    targets: Sequence[str],
    precision: Precision | None = None,
    plugin_libraries: Sequence[Path] = (),
    build_settings: BuildSettings = DEFAULT_BUILD,
    rebuild: bool = False,
    executor: fleet.Executor | None = None,
    workers: int | None = None,
) -> list[str]:
    """Build engines of a graph of a chain: of the converted one if that is given, else the cleaned.

    An engine that anybody has built before under this tracking server is found and linked instead.

    Args:
        model_uri: Any model of the chain, from the cleaned graph on.
        targets: See `mlflow_e2eai.log_model`.
        precision: ``tf32`` for the graph in fp32; else None or the graph's own.
        plugin_libraries: See `mlflow_e2eai.compile`.
        build_settings: Its `settings`.
        rebuild: Build new ones even so.
        executor: See `mlflow_e2eai.log_model`.
        workers: The same.

    Returns:
        Ids of the engine LoggedModels.

    Raises:
        InvalidInputError: There are no targets, or the graph is in another precision.
        RunnerError: Engines that an executor was to build failed; the others are built.
    """
    if not targets:
        msg = f"There are no targets; give one of {', '.join(engines.TARGETS)}, or several."
        raise InvalidInputError(msg)
    libraries = named(plugin_libraries)
    if fleet.is_away(executor):
        engines.check_anywhere(targets, libraries=libraries)
    else:
        engines.check_here(targets, settings=build_settings, libraries=libraries)
    how: dict[str, Any] = {
        "precision": precision,
        "plugin_libraries": plugin_libraries,
        "build_settings": build_settings,
        "rebuild": rebuild,
    }
    with _parent("compile"):
        if executor is None:
            return chained.compile(model_uri, targets=targets, **how)
        each = [
            fleet.Job(stage="compile", model_uri=model_uri, arguments={"targets": [target], **how})
            for target in targets
        ]
        done = fleet.held(fleet.run(each, executor=executor, workers=workers))
        return [outcome.models[0] for outcome in done]


def evaluate(
    model_uri: str,
    *,
    batch_sizes: Sequence[int] = (),
    executor: fleet.Executor | None = None,
    workers: int | None = None,
) -> list[MachineEvidence]:
    """Judge a graph, an engine, or all of a bundle against the PyTorch model.

    Args:
        model_uri: The graph, engine or bundle.
        batch_sizes: See `mlflow_e2eai.log_model`.
        executor: The same. None judges on this machine, ``ray`` each engine on a node that has its
            GPU, the graphs beside it.
        workers: The same.

    Returns:
        What each machine found: evidence for each variant, the PyTorch module first.

    Raises:
        RunnerError: Engines that an executor was to have judged were not; the others are.
    """
    with _parent("evaluate"):
        if executor is None:
            return [chained.evaluate(model_uri, batch_sizes=batch_sizes)]
        model = tracking.ancestor(tracking.resolve(model_uri), chained.JUDGED)
        each = fleet.evaluations(
            model.model_id, engines_in(model), executor=executor, batch_sizes=list(batch_sizes)
        )
        done = fleet.held(fleet.run(each, executor=executor, workers=workers))
        return [tracking.fetch_found(str(outcome.run_id)) for outcome in done]


def package(
    model_uri: str,
    *,
    name: str,
    registered_model_name: str | None = None,
    executor: fleet.Executor | None = None,
    workers: int | None = None,
    **settings: Unpack[SettingsArguments],
) -> ModelInfo:
    """Take a logged PyTorch model, or an ONNX file that a chain began with, the whole way.

    Args:
        model_uri: Any model of the chain.
        name: See `mlflow_e2eai.log_model`.
        registered_model_name: The same.
        executor: The same.
        workers: The same.
        **settings: The same, but for what was logged with the model; dynamic_axes stand in for
            those that it was logged with, unless None.
    """
    with tracking.run(name), tempfile.TemporaryDirectory() as folder:
        axes = settings.get("dynamic_axes")
        given = whole_of(tracking.resolve(model_uri), Path(folder), axes)
        arguments: dict[str, Any] = {**settings, "dynamic_axes": None, **given}
        return flavor.log_model(
            **arguments,
            name=name,
            executor=executor,
            workers=workers,
            registered_model_name=registered_model_name,
        )


def _parent(name: str) -> AbstractContextManager[str]:
    """The run of a job that has a child for each engine or variant."""
    return tracking.run(name, nested=True, tags={tracking.STAGE: name})
