"""The stages in their order: a model goes in, a bundle comes out."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from mlflow_e2eai import bundle
from mlflow_e2eai._version import __version__
from mlflow_e2eai.artifacts.values import (
    Array,
    EngineArtifact,
    OnnxArtifact,
    Tensors,
    graph_precision,
)
from mlflow_e2eai.bundle.manifest import Manifest
from mlflow_e2eai.engine.runner import unsupported_here
from mlflow_e2eai.errors import PrecisionError
from mlflow_e2eai.evaluation.data import EvaluationData
from mlflow_e2eai.evaluation.evidence import Evidence, MachineEvidence
from mlflow_e2eai.evaluation.quantized_gates import is_retained
from mlflow_e2eai.evaluation.variants import Reference
from mlflow_e2eai.parity.samples import batch_samples
from mlflow_e2eai.pipeline.earlier_runs import NO_DIGEST, EarlierRuns, SourceDigest
from mlflow_e2eai.pipeline.engines import compile_all
from mlflow_e2eai.pipeline.keys import example_parts, plan_parts, stage_key
from mlflow_e2eai.pipeline.settings import Settings
from mlflow_e2eai.pipeline.source import Source, open_source
from mlflow_e2eai.pipeline.stages import clean_on, convert_on, fit_example
from mlflow_e2eai.pipeline.variant_stages import EvidenceKeys, evaluate_on
from mlflow_e2eai.precision.quantize import check_calibrated
from mlflow_e2eai.precision.stage import PrecisionReport
from mlflow_e2eai.surgery.mapping import full_reference, wrap_reference
from mlflow_e2eai.surgery.report import SurgeryReport
from mlflow_e2eai.tracking.recorder import EngineCache, Recorder, RemoteJobs

Artifact = TypeVar("Artifact", OnnxArtifact, EngineArtifact)


def build(
    model: Any,
    input_example: Any,
    settings: Settings,
    *,
    work: Path,
    recorder: Recorder,
    cache: EngineCache | None = None,
    remote: RemoteJobs | None = None,
    source: str | None = None,
    evaluation: EvaluationData | None = None,
    digest: SourceDigest = NO_DIGEST,
) -> tuple[Manifest, dict[str, Array]]:
    """Take a model through export, clean, convert, compile and evaluate.

    Args:
        model: A PyTorch model, an ONNX file or a raw graph; see `open_source`.
        input_example: Inputs that it accepts.
        settings: The options of all stages.
        work: A folder for the files.
        recorder: Logs the stages.
        cache: The engines that were built before; None builds all.
        remote: Builds and evaluates engines; None leaves them to this process.
        source: The model in the recorder's inputs.
        evaluation: Labelled data to evaluate the variants on.
        digest: The content of the model, where it is known.

    Returns:
        The manifest, with the files still in `work`, and the input example by name.
    """
    check_calibrated(settings.precisions, evaluation)
    earlier = EarlierRuns.of(
        None if settings.fresh else cache, settings, evaluation, folder=work, digest=digest
    )
    with open_source(
        model,
        input_example,
        settings,
        work=work,
        recorder=recorder,
        earlier=earlier,
        source=source,
        data=evaluation,
    ) as opened:
        raw = opened.raw
        if opened.exported is None:
            # The file is the model.
            earlier = dataclasses.replace(earlier, source=raw.sha256)
        # A wrong size is refused now, not at the end.
        batch_samples(opened.example, raw, settings.batch_sizes)
        cleaned, example, surgery = _clean(opened, settings, work, recorder, earlier)
        evaluation = evaluation and evaluation.for_graph(cleaned)
        converted, conversions = _convert_all(
            cleaned, settings, work, recorder, example, evaluation, earlier
        )
        graphs = [cleaned, *converted]
        engines, not_built = compile_all(
            graphs,
            settings,
            work=work,
            recorder=recorder,
            cache=cache,
            remote=remote,
            example=example,
        )
        machines: list[MachineEvidence] = []
        failed: Mapping[str, str] = {}
        if remote is not None:
            others = [engine for engine in engines if unsupported_here(engine, graphs) is not None]
            machines, failed = remote.evaluate(
                graphs, others, batch_sizes=settings.batch_sizes, level=settings.evidence
            )
        remote_evidence = [entry for machine in machines for entry in machine.evidence]
        evaluated = {entry.sha256 for entry in remote_evidence}
        here = [engine for engine in engines if engine.sha256 not in {*evaluated, *failed}]
        not_evaluated = [
            (engine, failed[engine.sha256]) for engine in engines if engine.sha256 in failed
        ]
        keys = EvidenceKeys.for_pipeline(
            earlier,
            graphs,
            here,
            example,
            raw=raw,
            batch_sizes=settings.batch_sizes,
            level=settings.evidence,
            not_evaluated=not_evaluated,
        )
        known = keys.take()
        if known is not None:
            whole: MachineEvidence = known.report
            shown = [graph.sha256 for graph in graphs]
            with recorder.stage("evaluate", inputs=shown) as log:
                log(known)
        else:
            with full_reference(opened.reference, raw, cleaned) as infer:
                whole = evaluate_on(
                    recorder,
                    Reference(
                        infer=infer,
                        alone=wrap_reference(opened.reference, cleaned),
                        name=opened.name,
                    ),
                    graphs,
                    here,
                    example,
                    raw=raw,
                    evaluation=evaluation,
                    batch_sizes=settings.batch_sizes,
                    level=settings.evidence,
                    keys=keys,
                )
    evidence = [*whole.evidence, *not_built]
    manifest = Manifest(
        format_version=bundle.FORMAT_VERSION,
        package_version=__version__,
        source_model=source,
        graphs=_worth_it(graphs, [*evidence, *remote_evidence]),
        engines=_worth_it(engines, [*evidence, *remote_evidence]),
        surgery=surgery,
        evidence=tuple(evidence),
        latency=whole.latency,
        environment=whole.environment,
        export=opened.exported,
        conversions=tuple(conversions),
        elsewhere=tuple(machines),
        level=settings.evidence,
        measured_at=whole.measured_at,
        reused={name: found.sentence for name, found in recorder.reused.items()},
    )
    return manifest, example


def _worth_it(artifacts: Sequence[Artifact], evidence: Sequence[Evidence]) -> tuple[Artifact, ...]:
    """The artifacts without quantised ones that are not worth their error."""
    return tuple(artifact for artifact in artifacts if is_retained(artifact, evidence))


def _clean(
    opened: Source, settings: Settings, work: Path, recorder: Recorder, earlier: EarlierRuns
) -> tuple[OnnxArtifact, dict[str, Array], SurgeryReport]:
    """The cleaned graph, the example under its names, and the report."""
    raw = opened.raw
    key = stage_key(
        "clean",
        source=earlier.source,
        raw=raw.sha256,
        axes=raw.axes,
        assumptions=raw.assumptions,
        libraries=[library.sha256 for library in raw.libraries],
        example=example_parts(opened.example),
        plan=plan_parts(settings.surgery),
    )
    with recorder.stage("clean", inputs=[raw.sha256], key=key) as log:
        found = earlier.take(log, key, SurgeryReport)
        if found is None or not isinstance(found.artifact, OnnxArtifact):
            return clean_on(
                log,
                raw,
                settings.surgery,
                example=opened.example,
                reference=opened.reference,
                folder=work,
                same_inputs=True,
            )
    # As in the cleaning: where surgery took the operators out, no native code is needed.
    libraries = raw.libraries if found.artifact.libraries else ()
    cleaned = dataclasses.replace(found.artifact, libraries=libraries)
    return cleaned, fit_example(opened.example, raw, cleaned), found.report


def _convert_all(
    cleaned: OnnxArtifact,
    settings: Settings,
    work: Path,
    recorder: Recorder,
    example: Tensors,
    evaluation: EvaluationData | None,
    earlier: EarlierRuns,
) -> tuple[list[OnnxArtifact], list[PrecisionReport]]:
    """The graph in each possible precision, and a report for each requested one."""
    graphs, reports = [], []
    for precision in dict.fromkeys(settings.precisions):
        if graph_precision(precision) == cleaned.precision:
            continue
        key = stage_key(
            "convert",
            graph=cleaned.sha256,
            axes=cleaned.axes,
            assumptions=cleaned.assumptions,
            libraries=[library.sha256 for library in cleaned.libraries],
            precision=precision,
            keep_fp32=settings.keep_fp32,
            example=example_parts(example),
            data=earlier.data,
        )
        with recorder.stage(f"convert {precision}", inputs=[cleaned.sha256], key=key) as log:
            found = earlier.take(log, key, PrecisionReport)
            if found is not None:
                reports.append(found.report)
                if isinstance(found.artifact, OnnxArtifact):
                    libraries = cleaned.libraries if found.artifact.libraries else ()
                    graphs.append(dataclasses.replace(found.artifact, libraries=libraries))
                continue
            try:
                graph, report = convert_on(
                    log,
                    cleaned,
                    precision,
                    out=work / f"{precision}.onnx",
                    keep_fp32=settings.keep_fp32,
                    example=example,
                    evaluation=evaluation,
                )
                graphs.append(graph)
            except PrecisionError as error:
                report = error.report
            reports.append(report)
    return graphs, reports
