"""The stages in their order: a model goes in, a bundle comes out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from mlflow_e2eai import bundle
from mlflow_e2eai._version import __version__
from mlflow_e2eai.artifacts.machine import environment
from mlflow_e2eai.artifacts.values import (
    Array,
    EngineArtifact,
    OnnxArtifact,
    Precision,
    Tensors,
    graph_precision,
)
from mlflow_e2eai.bundle.manifest import Manifest
from mlflow_e2eai.engine.runner import why_not_here
from mlflow_e2eai.errors import PrecisionError
from mlflow_e2eai.evaluation.data import EvaluationData, all_samples, calls
from mlflow_e2eai.evaluation.evidence import Evidence
from mlflow_e2eai.evaluation.quantized_gates import is_kept, quantized_gates, weighed
from mlflow_e2eai.evaluation.stage import evaluate
from mlflow_e2eai.evaluation.variants import engine_variant
from mlflow_e2eai.latency.report import LatencyReport
from mlflow_e2eai.parity.samples import batch_samples, profile_samples
from mlflow_e2eai.pipeline.engines import compile_all
from mlflow_e2eai.pipeline.settings import Settings
from mlflow_e2eai.pipeline.source import begun
from mlflow_e2eai.precision.quantize import TYPES, check_calibrated
from mlflow_e2eai.precision.stage import PrecisionReport, convert
from mlflow_e2eai.pytorch.stage import ExportReport
from mlflow_e2eai.surgery.mapping import answering, bridge, fitted, hold_beginning
from mlflow_e2eai.surgery.stage import SurgeryReport, clean
from mlflow_e2eai.tracking.recorder import Recorder, Stage, record


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
        model: See `beginning.begun`.
        input_example: The same.
        settings: What to make of it.
        work: A folder for the files.
        recorder: Who is told of the stages.
        source: What stands for the model in the recorder's inputs.
        evaluation: Labelled data to judge the variants on.

    Returns:
        The manifest, with the files still in `work`, and the input example by name.
    """
    check_calibrated(settings.precisions, evaluation)
    with begun(
        model, input_example, settings, work=work, recorder=recorder, source=source, data=evaluation
    ) as beginning:
        raw, example = beginning.raw, beginning.example
        reference = beginning.reference
        # A wrong size is told now, not at the end.
        batch_samples(example, raw, settings.batch_sizes)
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
        engines, unbuilt = compile_all(
            graphs,
            precisions=settings.precisions,
            targets=settings.targets,
            plugin_libraries=settings.plugin_libraries,
            build_settings=settings.build_settings,
            rebuild=settings.rebuild,
            work=work,
            recorder=recorder,
            example=example,
        )
        foreign = _foreign(engines, graphs, recorder)
        elsewhere, unjudged = recorder.judged(graphs, foreign, batch_sizes=settings.batch_sizes)
        gone = {*unjudged, *(entry.sha256 for there in elsewhere for entry in there.evidence)}
        with answering(reference, raw, cleaned) as answer:
            evidence, latency = evaluate(
                answer,
                graphs,
                [engine for engine in engines if engine.sha256 not in gone],
                example,
                name=beginning.name,
                raw=raw,
                evaluation=evaluation,
                batch_sizes=settings.batch_sizes,
                timed=bridge(reference, raw, cleaned),
            )
        evidence += [
            Evidence(
                variant=engine_variant(engine),
                sha256=engine.sha256,
                measured=False,
                reason=unjudged[engine.sha256],
            )
            for engine in engines
            if engine.sha256 in unjudged
        ]
        evidence = weighed(evidence, latency, [*graphs, *engines], quantized_gates())
        record(evidence, latency, recorder)
    evidence = [*evidence, *unbuilt]
    told = [*evidence, *(entry for there in elsewhere for entry in there.evidence)]
    graphs = [graph for graph in graphs if is_kept(graph, told)]
    engines = [engine for engine in engines if is_kept(engine, told)]
    manifest = _manifest(source, graphs, engines, surgery, evidence, latency, beginning.exported)
    return replace(
        manifest,
        conversions=tuple(report for _, report in converted),
        elsewhere=tuple(elsewhere),
    ), example


def _foreign(
    engines: Sequence[EngineArtifact], graphs: Sequence[OnnxArtifact], recorder: Recorder
) -> list[EngineArtifact]:
    """The engines that only other machines can run."""
    if not recorder.away:
        return []
    return [engine for engine in engines if why_not_here(engine, graphs) is not None]


def _manifest(
    source: str | None,
    graphs: Sequence[OnnxArtifact],
    engines: Sequence[EngineArtifact],
    surgery: SurgeryReport,
    evidence: Sequence[Evidence],
    latency: Mapping[str, LatencyReport],
    exported: ExportReport | None,
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
