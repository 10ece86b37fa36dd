"""One stage on a logged model: fetch the input, run the stage, log the output.

Any model of the lineage can be given to any stage: each walks up to the one that it needs, so that
``export`` of a registered bundle exports the PyTorch model that the bundle was made from.
"""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mlflow_e2eai import tracking
from mlflow_e2eai.artifacts.arrays import load_arrays
from mlflow_e2eai.artifacts.axes import DynamicAxes
from mlflow_e2eai.artifacts.example import assumptions_of, others_of
from mlflow_e2eai.artifacts.libraries import loadable, native_allowed
from mlflow_e2eai.artifacts.values import (
    Precision,
    graph_precision,
    precision_of,
    variant_name,
)
from mlflow_e2eai.engine.request import EngineRequest
from mlflow_e2eai.engine.targets import resolve
from mlflow_e2eai.errors import InvalidInputError, TrackingError
from mlflow_e2eai.evaluation import data as evaluation_data
from mlflow_e2eai.evaluation.bisection.nodes import bisect as bisect_graph
from mlflow_e2eai.evaluation.bisection.search import Bisection
from mlflow_e2eai.evaluation.data import all_samples
from mlflow_e2eai.evaluation.effort import EvidenceLevel
from mlflow_e2eai.evaluation.evidence import MachineEvidence
from mlflow_e2eai.pipeline.job_inputs import (
    GRAPHS,
    Job,
    device_for,
    fetch_graph,
    job_on,
    load_source,
)
from mlflow_e2eai.pipeline.model_factory import call
from mlflow_e2eai.pipeline.onnx_file import import_onnx
from mlflow_e2eai.pipeline.settings import Settings
from mlflow_e2eai.pipeline.stages import (
    clean_on,
    compile_on,
    convert_on,
    export_on,
)
from mlflow_e2eai.pipeline.variant_stages import EvidenceKeys, evaluate_on
from mlflow_e2eai.precision.stage import graph_precision_of
from mlflow_e2eai.pytorch.consent import Consent
from mlflow_e2eai.pytorch.stage import DEFAULT_OPSET, Exporter
from mlflow_e2eai.runtime.isolation import isolated_onnxruntime
from mlflow_e2eai.surgery.plan import DEFAULT_PLAN, Step
from mlflow_e2eai.tracking.recorder import Output


def log(factory: str, *, name: str) -> str:
    """Log a PyTorch model that a callable makes, as the source of later stages.

    Args:
        factory: ``package.module:callable`` or ``path/to/file.py:callable``. It returns a mapping
            with ``model`` and ``input_example``, and optionally ``dynamic_axes``,
            ``samples_at``, ``operators``, ``operator_libraries``, ``evaluation_data`` and
            ``metrics``, as `mlflow_e2eai.log_model` takes them.
        name: Name of the LoggedModel.

    Returns:
        Its id.

    Raises:
        InvalidInputError: There is no such callable, it returns something else, or MLflow does not
            take the name.
    """
    tracking.check_names(name)
    with tracking.run("log", nested=True, tags={tracking.STAGE: "log"}) as run_id:
        arguments = call(factory)
        return tracking.log_source(
            arguments["model"],
            arguments["input_example"],
            name=name,
            run_id=run_id,
            dynamic_axes=arguments.get("dynamic_axes"),
            samples_at=arguments.get("samples_at", ()),
            operators=arguments.get("operators", ()),
            operator_libraries=arguments.get("operator_libraries", ()),
            evaluation=evaluation_data.evaluation_of(
                arguments["model"],
                arguments["input_example"],
                arguments.get("evaluation_data"),
                arguments.get("metrics"),
            ),
        )


def export(
    model_uri: str,
    *,
    exporter: Exporter = "auto",
    opset: int = DEFAULT_OPSET,
    dynamic_axes: DynamicAxes | None = None,
    samples_at: Sequence[Path] = (),
    plan: Sequence[Step] = DEFAULT_PLAN,
    allow_pickle: bool = False,
) -> str:
    """Export the PyTorch model of a chain.

    Args:
        model_uri: Any model of the chain.
        exporter: See `mlflow_e2eai.export`.
        opset: Version of the ONNX operator set.
        dynamic_axes: See `mlflow_e2eai.export`; None for those that the model was logged with.
        samples_at: npz files with further examples, beside those that the model was logged with.
        plan: The plan for `clean`: the operators that it names need no implementation.
        allow_pickle: Load a PyTorch model that runs code as it is loaded.

    Returns:
        Id of the raw ONNX LoggedModel.
    """
    with job_on(model_uri, ("source",)) as job:
        inputs = job.model, job.uri, job.folder, dynamic_axes, samples_at
        source = load_source(*inputs, allow_pickle=allow_pickle)
        settings = Settings(
            dynamic_axes=source.axes,
            exporter=exporter,
            opset=opset,
            operators=source.operators,
            operator_libraries=loadable(source.libraries),
            surgery=plan,
        )
        with job.recorder.stage("export", inputs=[]) as log:
            out = job.folder / "raw.onnx"
            raw, _ = export_on(
                log,
                source.module,
                source.example,
                settings,
                out=out,
                assumptions=assumptions_of(source.example),
            )
        return job.recorder.models[raw.sha256]


def clean(
    model_uri: str, *, plan: Sequence[Step] = DEFAULT_PLAN, allow_pickle: bool = False
) -> str:
    """Apply a surgery plan to the raw graph of a chain; returns the id of the cleaned one."""
    with job_on(model_uri, ("export",), allow_pickle=allow_pickle) as job:
        return _clean(job, plan)


def _clean(job: Job, plan: Sequence[Step]) -> str:
    raw, example = job.fetch_graph()
    with (
        job.reference(raw, raw) as reference,
        job.recorder.stage("clean", inputs=[raw.sha256]) as log,
    ):
        cleaned, _, _ = clean_on(
            log,
            raw,
            plan,
            example=job.with_samples(example, raw),
            reference=None if reference is None else reference.infer,
            folder=job.folder,
        )
    return job.recorder.models[cleaned.sha256]


def convert(
    model_uri: str,
    *,
    precision: Precision,
    keep_fp32: Sequence[str] = (),
    allow_pickle: bool = False,
) -> str:
    """Convert the cleaned graph of a chain.

    It is guarded by the ranges seen at the corners of its profile and on the evaluation data that
    was logged with the PyTorch model.

    Args:
        model_uri: Any model of the chain, from the cleaned graph on.
        precision: See `mlflow_e2eai.convert`.
        keep_fp32: Names of nodes that stay in fp32.
        allow_pickle: See `export`.

    Returns:
        Id of the converted ONNX LoggedModel; for fp32, of the cleaned one itself.
    """
    precision = graph_precision_of(precision)
    with job_on(model_uri, ("clean",), allow_pickle=allow_pickle) as job:
        graph, example = job.fetch_graph()
        with job.recorder.stage(f"convert {precision}", inputs=[graph.sha256]) as log:
            data = None if precision == "fp32" else job.load_evaluation_data(graph)
            converted, _ = convert_on(
                log,
                graph,
                precision,
                out=job.folder / f"{precision}.onnx",
                keep_fp32=keep_fp32,
                example=job.with_samples(example, graph),
                evaluation=data,
            )
        return job.recorder.models[converted.sha256]


def bisect(
    model_uri: str, *, precision: Precision = "fp16", allow_pickle: bool = False
) -> tuple[Bisection, str]:
    """Find the nodes of a chain's cleaned graph that must stay in fp32 for a precision to pass.

    ONNX Runtime runs it on the best device here; on the CPU with every value rounded to fp16, as a
    GPU does. It is compared with the PyTorch model (where that cannot be loaded, with the graph in
    fp32), at the corners of the profile and on the evaluation data that was logged with it.

    Args:
        model_uri: Any model of the chain, from the cleaned graph on.
        precision: The precision in which it fails.
        allow_pickle: See `export`.

    Returns:
        The result of `mlflow_e2eai.bisect`, and the URI of its ``bisection.json`` on the run.

    Raises:
        InvalidInputError: The precision is fp32, or unknown; or the graph fails in fp32 too.
    """
    precision = graph_precision_of(precision)
    with job_on(model_uri, ("clean",), allow_pickle=allow_pickle) as job:
        graph, example = job.fetch_graph()
        raw, _ = fetch_graph(tracking.ancestor(job.model, ("export",)), job.folder / "raw")
        device = device_for(graph)
        with (
            job.reference(raw, graph) as reference,
            job.recorder.stage(f"bisect {precision}", inputs=[graph.sha256]) as stage,
        ):
            data = job.evaluation
            if data is not None:
                data = data.for_graph(graph)
            bisection = bisect_graph(
                graph,
                precision,
                samples=[*all_samples(job.with_samples(example, graph), graph, data)],
                reference=None if reference is None else reference.infer,
                run=functools.partial(
                    isolated_onnxruntime,
                    device=device,
                    rounded=device == "cpu",
                    libraries=graph.libraries,
                ),
            )
            variant = variant_name(f"onnxruntime-{device}", precision)
            tracking.log_bisection(bisection, run_id=stage.run_id, variant=variant)
            found = f"{len(bisection.nodes)} of {bisection.suspects} nodes"
            stage.line.append(f"{found}, evaluations {bisection.evaluations}")
        return bisection, f"runs:/{stage.run_id}/bisection.json"


EVALUATED = (*GRAPHS, "compile", "package")
"""Stages whose output can be evaluated."""


def compile(
    model_uri: str, *, targets: Sequence[str], precision: Precision | None = None, **options: Any
) -> list[str]:
    """Build engines of a graph of a lineage on this machine, a run for each.

    Args:
        model_uri: Any model of the lineage, from the cleaned graph on.
        targets: See `mlflow_e2eai.log_model`.
        precision: ``tf32`` for the graph in fp32; else None or the graph's own.
        **options: The other fields of `EngineRequest`.

    Returns:
        Ids of the engine LoggedModels.
    """
    with job_on(model_uri, GRAPHS) as job:
        graph, example = job.fetch_graph()
        precision = graph.precision if precision is None else precision_of(precision)
        if graph_precision(precision) != graph.precision:
            msg = f"The graph is in {graph.precision}, but an engine in {precision} is expected; "
            msg += f"give the graph in {graph_precision(precision)}."
            raise InvalidInputError(msg)
        model_ids = []
        for target in targets:
            wanted = EngineRequest(
                graph=graph.sha256, precision=precision, target=target, **options
            )
            with job.recorder.stage(f"compile {precision} {target}", inputs=[graph.sha256]) as log:
                engine = compile_on(
                    log,
                    job.recorder,
                    graph,
                    resolve(target),
                    wanted,
                    out=job.folder / f"{target}.engine",
                    example=example,
                )
            model_ids.append(job.recorder.models[engine.sha256])
        return model_ids


def evaluate(
    model_uri: str,
    *,
    others: Sequence[str] = (),
    engines: Sequence[str] | None = None,
    batch_sizes: Sequence[int] = (),
    evidence: EvidenceLevel = "standard",
    allow_pickle: Consent = False,
) -> MachineEvidence:
    """Evaluate a graph, an engine or a bundle on this machine, a run for each variant.

    Args:
        model_uri: The graph, engine or bundle.
        others: More graphs and engines of its lineage, by the ids of their models.
        engines: Digests of the bundle's engines that are evaluated; None for all.
        batch_sizes: See `mlflow_e2eai.log_model`.
        evidence: See `mlflow_e2eai.log_model`.
        allow_pickle: See `export`; or the digests of the files that may run code.
    """
    with job_on(model_uri, EVALUATED, allow_pickle=allow_pickle) as job:
        graphs, built, example = job.fetch_variants(others)
        built = [engine for engine in built if engines is None or engine.sha256 in engines]
        exported = tracking.ancestor(job.model, ("export",))
        raw, _ = fetch_graph(exported, job.folder / "raw")
        job.recorder.models[raw.sha256] = exported.model_id
        with job.reference(raw, graphs[0]) as reference:
            if reference is None:
                msg = "Nothing can be compared without the PyTorch model; see the warning above."
                raise TrackingError(msg)
            data = job.evaluation
            return evaluate_on(
                job.recorder,
                reference,
                graphs,
                built,
                job.with_samples(example, graphs[0]),
                raw=raw,
                evaluation=None if data is None else data.for_graph(graphs[0]),
                batch_sizes=batch_sizes,
                level=evidence,
                keys=EvidenceKeys(),
            )


def clean_onnx(
    path: Path,
    *,
    example: Path | None = None,
    dynamic_axes: DynamicAxes | None = None,
    samples_at: Sequence[Path] = (),
    plan: Sequence[Step] = DEFAULT_PLAN,
    operator_libraries: Sequence[Path] = (),
) -> str:
    """Log an ONNX file as the raw graph of a chain without a PyTorch model, and clean it.

    Nothing is logged before the file has been run.

    Args:
        path: See `import_onnx`.
        example: An npz file with an array for each input; by default see `import_onnx`.
        dynamic_axes: See `import_onnx`.
        samples_at: npz files with further examples, at other sizes of these axes.
        plan: See `jobs.clean`.
        operator_libraries: See `import_onnx`.

    Returns:
        Id of the cleaned ONNX LoggedModel.

    Raises:
        E2EAIError: See `import_onnx`.
    """
    with tempfile.TemporaryDirectory() as folder:
        raw, given = import_onnx(
            path,
            out=Path(folder, "raw.onnx"),
            example=None if example is None else load_arrays(example),
            dynamic_axes=dynamic_axes,
            samples_at=[load_arrays(each) for each in samples_at],
            operator_libraries=operator_libraries,
        )
        recorder = tracking.MlflowRecorder(name=tracking.model_name(path.stem), source=None)
        with tracking.run("clean", nested=True, tags={tracking.STAGE: "clean"}):
            with recorder.stage("import", inputs=[]) as log:
                log(Output(artifact=raw, example=given))
            with (
                native_allowed([library.path.name for library in raw.libraries]),
                job_on(recorder.models[raw.sha256], ("export",)) as job,
            ):
                job.samples = others_of(given)
                return _clean(job, plan)
