"""The stages in their order: a PyTorch model goes in, a bundle comes out."""

from __future__ import annotations

import platform
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from mlflow_e2eai import __version__, bundle
from mlflow_e2eai.artifacts import (
    Array,
    EngineArtifact,
    Infer,
    OnnxArtifact,
    Precision,
    Tensors,
    graph_precision,
    variant_name,
)
from mlflow_e2eai.bundle import Evidence, Manifest
from mlflow_e2eai.calling import flattened
from mlflow_e2eai.context import driver_version, gpu_name, processor_name
from mlflow_e2eai.engine import check_plugins, compile, resolve, why_not_built
from mlflow_e2eai.errors import InvalidInputError, PrecisionError
from mlflow_e2eai.evaluation import evaluate
from mlflow_e2eai.evaluation.worth import is_kept, quantized_gates, weighed
from mlflow_e2eai.exporter import DEFAULT_OPSET, Exporter, ExportReport, export
from mlflow_e2eai.latency import LatencyReport
from mlflow_e2eai.libraries import named
from mlflow_e2eai.modules import DynamicAxes
from mlflow_e2eai.operators import Operator
from mlflow_e2eai.origins import bridge, fitted, hold_beginning
from mlflow_e2eai.precision import PrecisionReport, check_precision, convert
from mlflow_e2eai.precision.quantized import TYPES, check_calibrated
from mlflow_e2eai.progress import progress
from mlflow_e2eai.recording import Recorder, Stage, record
from mlflow_e2eai.runners import torch_runner
from mlflow_e2eai.samples import EvaluationData, all_samples, batch_samples, calls, profile_samples
from mlflow_e2eai.surgery import DEFAULT_PLAN, Step, SurgeryReport, answering, clean, named_in


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What to make of a model.

    Attributes:
        dynamic_axes: Axes whose size may vary, by input name and position.
        exporter: See `mlflow_e2eai.export`.
        opset: The same.
        output_names: The same.
        operators: The same.
        operator_libraries: The same.
        plugin_libraries: See `mlflow_e2eai.compile`. ONNX Runtime knows no plugins, so their
            operators need a function too.
        surgery: The cleaning plan.
        precisions: What to make graphs and engines in; the graph in fp32 is always made, and
            ``tf32`` makes engines of it.
        targets: What to build engines for.
        keep_fp32: Nodes that stay in fp32 in the other precisions; see `mlflow_e2eai.convert`.
        batch_sizes: Sizes of the leading axis at which latency is measured too.

    Raises:
        InvalidInputError: There is no such precision or target, a target cannot be built here,
            tf32 is wanted without a target, an operator's function is not valid, or a library is
            not there.
        MissingDependencyError: A target's TensorRT is not installed.
    """

    dynamic_axes: DynamicAxes = field(default_factory=dict)
    exporter: Exporter = "auto"
    opset: int = DEFAULT_OPSET
    output_names: Sequence[str] | None = None
    operators: Sequence[Operator] = ()
    operator_libraries: Sequence[Path] = ()
    plugin_libraries: Sequence[Path] = ()
    surgery: Sequence[Step] = DEFAULT_PLAN
    precisions: Sequence[Precision] = ("fp32", "fp16")
    targets: Sequence[str] = ()
    keep_fp32: Sequence[str] = ()
    batch_sizes: Sequence[int] = ()

    def __post_init__(self) -> None:
        # All of it before any work: nobody wants to learn of a typing error after the export.
        for precision in self.precisions:
            check_precision(precision)
        for target in self.targets:
            check_plugins(resolve(target), named(self.plugin_libraries))
        if "tf32" in self.precisions and not self.targets:
            msg = (
                "precisions names tf32, which is how an engine computes, and there are no targets; "
                "give targets to build engines for, or leave tf32 out."
            )
            raise InvalidInputError(msg)
        for operator in self.operators:
            operator.proto()
        named(self.operator_libraries)
        for step in self.surgery:
            step.bound()


def build(
    model: Any,
    input_example: Any,
    settings: Settings,
    *,
    work: Path,
    recorder: Recorder,
    source: str | None = None,
    evaluation: EvaluationData | None = None,
) -> tuple[Manifest, dict[str, Array]]:
    """Take a model through export, clean, convert, compile and evaluate.

    Args:
        model: A ``torch.nn.Module``, ScriptModule or ExportedProgram.
        input_example: Inputs that it accepts.
        settings: What to make of it.
        work: A folder for the files.
        recorder: Who is told of the stages.
        source: What stands for the model in the recorder's inputs.
        evaluation: Labelled data to judge the variants on.

    Returns:
        The manifest, with the files still in `work`, and the input example by name.
    """
    module, example = flattened(model, input_example)
    check_calibrated(settings.precisions, evaluation)
    if evaluation is not None:
        evaluation.check_names(example)
    with recorder.stage("export", inputs=[] if source is None else [source]) as stage:
        raw, exported = export(
            module,
            example,
            out=work / "raw.onnx",
            dynamic_axes=settings.dynamic_axes,
            exporter=settings.exporter,
            opset=settings.opset,
            output_names=settings.output_names,
            operators=settings.operators,
            operator_libraries=settings.operator_libraries,
            deferred=named_in(settings.surgery),
        )
        stage.made(raw, example=example)
        stage.noted("export", exported)
    batch_samples(example, raw, settings.batch_sizes)  # a wrong size is told now, not at the end
    with reference_of(module, raw) as reference:
        with recorder.stage("clean", inputs=[raw.sha256]) as stage:
            cleaned, surgery = clean(
                raw,
                settings.surgery,
                out=work / "clean.onnx",
                samples=list(profile_samples(example, raw).values()),
                reference=reference,
                keep=work / "refused",
            )
            hold_beginning(cleaned, raw)
            example = fitted(example, raw, cleaned)
            stage.made(cleaned, example=example)
            stage.noted("surgery", surgery)
        evaluation = evaluation and evaluation.for_graph(raw, cleaned)
        converted = [*_converted(cleaned, settings, work, recorder, example, evaluation)]
        graphs = [cleaned, *(graph for graph, _ in converted if graph is not None)]
        engines, unbuilt = _compiled(graphs, settings, work, recorder, example)
        with answering(reference, raw, cleaned) as answer:
            evidence, latency = evaluate(
                answer,
                graphs,
                engines,
                example,
                raw=raw,
                evaluation=evaluation,
                batch_sizes=settings.batch_sizes,
                timed=bridge(reference, raw, cleaned),
            )
        evidence = weighed(evidence, latency, [*graphs, *engines], quantized_gates())
        record(evidence, latency, recorder)
    evidence = [*evidence, *unbuilt]
    graphs = [graph for graph in graphs if is_kept(graph, evidence)]
    engines = [engine for engine in engines if is_kept(engine, evidence)]
    manifest = _manifest(source, graphs, engines, surgery, evidence, latency, exported)
    return replace(manifest, conversions=tuple(report for _, report in converted)), example


def _manifest(
    source: str | None,
    graphs: Sequence[OnnxArtifact],
    engines: Sequence[EngineArtifact],
    surgery: SurgeryReport,
    evidence: Sequence[Evidence],
    latency: Mapping[str, LatencyReport],
    exported: ExportReport,
) -> Manifest:
    return Manifest(
        format_version=bundle.FORMAT_VERSION,
        package_version=__version__,
        source_model=source,
        graphs=tuple(graphs),
        engines=tuple(engines),
        surgery=surgery,
        evidence=tuple(evidence),
        latency=latency,
        environment=environment(),
        export=exported,
    )


@contextmanager
def reference_of(module: Any, raw: OnnxArtifact) -> Iterator[Infer]:
    """The PyTorch module under the names of its export: what is right."""
    names = [spec.name for spec in raw.inputs]
    with torch_runner(module, inputs=names, outputs=[spec.name for spec in raw.outputs]) as infer:
        yield infer


def _converted(
    cleaned: OnnxArtifact,
    settings: Settings,
    work: Path,
    recorder: Recorder,
    example: Tensors,
    evaluation: EvaluationData | None,
) -> Iterator[tuple[OnnxArtifact | None, PrecisionReport]]:
    """Each precision's graph and report; where there can be none, the report says why."""
    for precision in dict.fromkeys(settings.precisions):
        if graph_precision(precision) != cleaned.precision:
            with recorder.stage(f"convert {precision}", inputs=[cleaned.sha256]) as stage:
                made: tuple[OnnxArtifact | None, PrecisionReport]
                try:
                    made = convert_on(
                        stage,
                        cleaned,
                        precision,
                        out=work / f"{precision}.onnx",
                        keep_fp32=settings.keep_fp32,
                        example=example,
                        evaluation=evaluation,
                    )
                except PrecisionError as error:
                    made = None, error.report
            yield made


def convert_on(
    stage: Stage,
    graph: OnnxArtifact,
    precision: Precision,
    *,
    out: Path,
    keep_fp32: Sequence[str],
    example: Tensors,
    evaluation: EvaluationData | None,
) -> tuple[OnnxArtifact, PrecisionReport]:
    """Convert a graph, guarded by its ranges on all that is known, and tell a stage.

    int8 and fp8 are calibrated on the evaluation data alone: the example at the corners of a
    profile is one item many times over, and would outweigh it.

    Args:
        stage: Who is told.
        graph: See `mlflow_e2eai.convert`.
        precision: The same.
        out: The same.
        keep_fp32: The same.
        example: The input example under the graph's names.
        evaluation: The data under the same names.

    Raises:
        InvalidInputError: int8 or fp8 is wanted, and there is no evaluation data.
        PrecisionError: The graph cannot be had in that precision; the stage is told the report.
    """
    if keep_fp32:
        stage.kept(keep_fp32)
    check_calibrated([precision], evaluation)
    samples = (
        all_samples(example, graph, evaluation)
        if precision not in TYPES or evaluation is None
        else (batch for batch, _, _ in calls(evaluation, graph, example))
    )
    try:
        made, report = convert(graph, precision, out=out, keep_fp32=keep_fp32, samples=samples)
    except PrecisionError as error:
        stage.noted("precision", error.report)
        raise
    if made is not graph:
        if report.kept:
            stage.kept([kept.node for kept in report.kept])
        stage.made(made, example=example)
        stage.noted("precision", report)
    return made, report


def _compiled(
    graphs: Sequence[OnnxArtifact],
    settings: Settings,
    work: Path,
    recorder: Recorder,
    example: Tensors,
) -> tuple[list[EngineArtifact], list[Evidence]]:
    """The engines, and evidence for those that TensorRT is known not to build."""
    engines, unbuilt = [], []
    # Two texts may name one target, as `local` and `sm86` on a machine with such a GPU.
    targets = {resolve(text): text for text in settings.targets}
    wanted = [
        (graph, precision, resolved, text)
        for graph in graphs
        for precision in dict.fromkeys(settings.precisions)
        if graph_precision(precision) == graph.precision
        for resolved, text in targets.items()
    ]
    for graph, precision, resolved, target in progress(wanted, "compile", unit="engines"):
        with recorder.stage(f"compile {precision} {target}", inputs=[graph.sha256]) as stage:
            if (reason := why_not_built(graph, resolved)) is not None:
                name = variant_name(str(resolved), precision)
                known = Evidence(variant=name, sha256=graph.sha256, measured=False, reason=reason)
                unbuilt.append(known)
                stage.measured(known, {})
                continue
            out = work / f"{precision}-{target}.engine"
            engine = compile(
                graph,
                resolved,
                out=out,
                tf32=precision == "tf32",
                plugin_libraries=settings.plugin_libraries,
            )
            stage.made(engine, example=example)
        engines.append(engine)
    return engines, unbuilt


def environment() -> dict[str, str]:
    """What this machine and its libraries are; only what is known."""
    found: dict[str, str | None] = {
        "python": platform.python_version(),
        "machine": platform.machine(),
        "processor": processor_name(),
        "gpu": gpu_name(),
        "driver": driver_version(),
    }
    for package in ("torch", "onnx", "onnxruntime-gpu", "onnxruntime", "tensorrt-rtx-cu13"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return {key: value for key, value in found.items() if value is not None}
