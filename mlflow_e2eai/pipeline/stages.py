"""Each stage with its log: run it, log its output and report; the same in pipeline and jobs.

A caller opens the stage on a recorder, so that it handles a refusal: an error for a job, one
variant less for a pipeline.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from mlflow_e2eai.artifacts.build_settings import BuildSettings
from mlflow_e2eai.artifacts.example import SizedExample, others_of
from mlflow_e2eai.artifacts.libraries import describe_libraries
from mlflow_e2eai.artifacts.values import (
    Array,
    EngineArtifact,
    Infer,
    OnnxArtifact,
    Precision,
    Target,
    Tensors,
)
from mlflow_e2eai.engine.request import EngineRequest, key_for
from mlflow_e2eai.engine.stage import compile
from mlflow_e2eai.engine.timing_cache import timings_key
from mlflow_e2eai.errors import PrecisionError
from mlflow_e2eai.evaluation.data import EvaluationData, all_samples, calls
from mlflow_e2eai.parity.samples import profile_samples
from mlflow_e2eai.pipeline.settings import Settings
from mlflow_e2eai.precision.quantize import TYPES, check_calibrated
from mlflow_e2eai.precision.stage import PrecisionReport, convert
from mlflow_e2eai.pytorch.stage import ExportReport, export
from mlflow_e2eai.surgery.mapping import input_mapper, require_same_inputs
from mlflow_e2eai.surgery.plan import Step, named_in
from mlflow_e2eai.surgery.report import SurgeryReport
from mlflow_e2eai.surgery.stage import clean
from mlflow_e2eai.tracking.recorder import (
    EngineCache,
    Fp32Nodes,
    KernelTimings,
    Log,
    Output,
)


def export_on(
    log: Log,
    module: object,
    example: Tensors,
    settings: Settings,
    *,
    out: Path,
    assumptions: Sequence[str] = (),
) -> tuple[OnnxArtifact, ExportReport]:
    """Export a module, and log the graph and the report.

    Args:
        log: The stage's log.
        module: A module of `flatten_module`.
        example: An array for each of its inputs.
        settings: The axes, the exporter and its options, the operators; and the surgery plan, as
            operators that it names need no implementation yet.
        out: The file to write.
        assumptions: What is assumed of the inputs; see `OnnxArtifact`.
    """
    raw, report = export(
        module,
        example,
        out=out,
        dynamic_axes=settings.dynamic_axes,
        exporter=settings.exporter,
        opset=settings.opset,
        output_names=settings.output_names,
        operators=settings.operators,
        operator_libraries=settings.operator_libraries,
        deferred=named_in(settings.surgery),
    )
    raw = dataclasses.replace(raw, assumptions=tuple(assumptions))
    log(Output(artifact=raw, example=example))
    log(report)
    return raw, report


def clean_on(
    log: Log,
    raw: OnnxArtifact,
    plan: Sequence[Step],
    *,
    example: Tensors,
    reference: Infer | None,
    folder: Path,
    same_inputs: bool = False,
) -> tuple[OnnxArtifact, dict[str, Array], SurgeryReport]:
    """Apply a surgery plan to a graph, and log the cleaned graph and the report.

    Args:
        log: The stage's log.
        raw: The graph.
        plan: The plan.
        example: An array for each input of the graph, and samples at sizes, if there are any.
        reference: The model under the graph's names, if there is one.
        folder: A folder for the files.
        same_inputs: Refuse a cleaned graph that begins inside the raw one.

    Returns:
        The cleaned graph, the example under its names, and the report.
    """
    cleaned, report = clean(
        raw,
        plan,
        out=folder / "clean.onnx",
        samples=list(profile_samples(example, raw).values()),
        reference=reference,
        keep=folder / "refused",
    )
    cleaned = dataclasses.replace(cleaned, assumptions=raw.assumptions)
    if same_inputs:
        require_same_inputs(cleaned, raw)
    fitted = fit_example(example, raw, cleaned)
    log(Output(artifact=cleaned, example=fitted))
    log(report)
    return cleaned, fitted, report


def fit_example(example: Tensors, raw: OnnxArtifact, cleaned: OnnxArtifact) -> SizedExample:
    """An example of a raw graph, and its samples, as inputs of the cleaned one."""
    with input_mapper(raw, cleaned) as fit:
        return SizedExample(fit(example), [fit(each) for each in others_of(example)])


def convert_on(
    log: Log,
    graph: OnnxArtifact,
    precision: Precision,
    *,
    out: Path,
    keep_fp32: Sequence[str],
    example: Tensors,
    evaluation: EvaluationData | None,
) -> tuple[OnnxArtifact, PrecisionReport]:
    """Convert a graph, guarded by its ranges on all samples, and log graph and report.

    int8 and fp8 are calibrated on the evaluation data alone: the example at the corners of a
    profile is one item many times over, and would outweigh it.

    Args:
        log: The stage's log.
        graph: The graph in fp32.
        precision: The precision.
        out: The file to write.
        keep_fp32: Names of nodes that stay in fp32.
        example: An array for each input of the graph.
        evaluation: Evaluation data under the graph's names.

    Raises:
        InvalidInputError: The precision is int8 or fp8, and there is no evaluation data.
        PrecisionError: The graph cannot be converted to it; the report is logged.
    """
    if keep_fp32:
        log(Fp32Nodes(nodes=tuple(keep_fp32)))
    check_calibrated([precision], evaluation)
    samples = (
        all_samples(example, graph, evaluation)
        if precision not in TYPES or evaluation is None
        else (batch for batch, _, _ in calls(evaluation, graph, example))
    )
    try:
        converted, report = convert(graph, precision, out=out, keep_fp32=keep_fp32, samples=samples)
    except PrecisionError as error:
        log(error.report)
        raise
    if converted is not graph:
        converted = dataclasses.replace(converted, assumptions=graph.assumptions)
        if report.kept:
            log(Fp32Nodes(nodes=tuple(node.node for node in report.kept)))
        log(Output(artifact=converted, example=example))
        log(report)
    return converted, report


def compile_on(
    log: Log,
    cache: EngineCache | None,
    graph: OnnxArtifact,
    target: Target,
    wanted: EngineRequest,
    *,
    out: Path,
    example: Tensors,
) -> EngineArtifact:
    """Take an engine from the cache, or build it, and log it.

    Args:
        log: The stage's log.
        cache: The engines that were built before, if any are known.
        graph: The graph.
        target: The GPUs that it is for.
        wanted: The rest of the request. Builds are not bit-identical, so that a rebuild makes
            another engine.
        out: The file to write, where it is built.
        example: An array for each input of the graph.

    Raises:
        E2EAIError: See `mlflow_e2eai.compile`.
    """
    libraries, settings = describe_libraries(wanted.plugin_libraries), wanted.build_settings
    tf32 = wanted.precision == "tf32"
    if cache is not None and not wanted.rebuild:
        key = key_for(graph, target, tf32=tf32, libraries=libraries, settings=settings)
        cached = cache.get(key, folder=out.with_suffix(".cached"))
        if cached is not None and isinstance(cached.artifact, EngineArtifact):
            log(Output(artifact=cached.artifact, example=example))
            log(cached)
            # The same libraries by digest, but these are allowed by the caller.
            return dataclasses.replace(cached.artifact, libraries=libraries)
    with _timings(log, cache, target, settings, out.with_suffix(".timings")) as timings:
        engine = compile(
            graph,
            target,
            out=out,
            tf32=tf32,
            plugin_libraries=wanted.plugin_libraries,
            settings=settings,
            timing_cache=timings,
        )
    log(Output(artifact=engine, example=example))
    return engine


@contextmanager
def _timings(
    log: Log, cache: EngineCache | None, target: Target, settings: BuildSettings, folder: Path
) -> Iterator[Path | None]:
    """A folder with the timings of earlier builds; those of this build are logged."""
    key = timings_key(target, settings)
    if key is None:
        yield None
        return
    folder.mkdir()
    fetched = () if cache is None else cache.get_timings(key, folder=folder)
    yield folder
    log(KernelTimings(key=key, folder=folder, fetched=fetched))
