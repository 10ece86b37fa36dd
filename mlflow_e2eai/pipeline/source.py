"""The source of a pipeline: a PyTorch model, or an ONNX file of another exporter."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mlflow_e2eai.artifacts.axes import axes_of, input_specs
from mlflow_e2eai.artifacts.example import assumptions_of
from mlflow_e2eai.artifacts.sampler import with_samples
from mlflow_e2eai.artifacts.values import Array, Infer, OnnxArtifact, Tensors
from mlflow_e2eai.errors import InvalidInputError
from mlflow_e2eai.evaluation.data import EvaluationData
from mlflow_e2eai.evaluation.variants import FILE, TORCH
from mlflow_e2eai.pipeline.earlier_runs import EarlierRuns
from mlflow_e2eai.pipeline.keys import example_parts, stage_key
from mlflow_e2eai.pipeline.known_model import KnownModel
from mlflow_e2eai.pipeline.onnx_file import import_onnx
from mlflow_e2eai.pipeline.settings import Settings
from mlflow_e2eai.pipeline.stages import export_on
from mlflow_e2eai.pytorch.flat_module import flatten_module, named_samples
from mlflow_e2eai.pytorch.operators import load_libraries
from mlflow_e2eai.pytorch.runner import torch_runner
from mlflow_e2eai.pytorch.stage import ExportReport
from mlflow_e2eai.runtime.isolation import isolated_onnxruntime
from mlflow_e2eai.runtime.process import SERVER
from mlflow_e2eai.surgery.plan import named_in
from mlflow_e2eai.tracking.recorder import Output, Recorder


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """A raw graph, and the model that it comes from.

    Attributes:
        raw: The graph.
        example: An array for each of its inputs, and samples at sizes where the caller gave any.
        open: Opens the model under the graph's names, once.
        name: The variant of the reference: `TORCH`, or `FILE`.
        exported: The report of the export; None for a file.
    """

    raw: OnnxArtifact
    example: Tensors
    open: Callable[[], Infer]
    name: str
    exported: ExportReport | None = None

    @property
    def reference(self) -> Infer:
        """The model, under the graph's names."""
        return self.open()


@contextmanager
def open_source(
    model: Any,
    input_example: Any,
    settings: Settings,
    *,
    work: Path,
    recorder: Recorder,
    earlier: EarlierRuns,
    source: str | None = None,
    data: EvaluationData | None = None,
) -> Iterator[Source]:
    """Export a model, or read an ONNX file, and open its reference for the block.

    Args:
        model: A ``torch.nn.Module``, ScriptModule or ExportedProgram; the path of an ONNX file; or
            the raw graph of one that is logged.
        input_example: Inputs that it accepts. For a file a mapping of names to arrays, or None.
        settings: The settings.
        work: A folder for the files.
        recorder: Logs the stages.
        earlier: What was done before.
        source: Id of the model in the recorder's inputs.
        data: Evaluation data, whose names are checked before any work.

    Raises:
        InvalidInputError: The example or the data does not fit the model.
        E2EAIError: See `export` and `import_onnx`.
    """
    if not isinstance(model, OnnxArtifact | Path):
        load, given, others = _module_of(model, input_example, settings.samples_at)
        axes = settings.dynamic_axes or {}
        example = with_samples(given, others, input_specs(given, axes), axes_of(axes))
        _check_names(data, example)
        inputs = [] if source is None else [source]
        key = stage_key(
            "export",
            source=earlier.source,
            example=example_parts(example),
            assumptions=assumptions_of(input_example),
            axes=settings.dynamic_axes,
            exporter=settings.exporter,
            opset=settings.opset,
            output_names=settings.output_names,
            operators=[(each.name, each.proto(), each.torch_name) for each in settings.operators],
            libraries=list(settings.operator_libraries),
            deferred=named_in(settings.surgery),
        )
        with recorder.stage("export", inputs=inputs, key=key) as log:
            found = earlier.take(log, key, ExportReport)
            if found is not None and isinstance(found.artifact, OnnxArtifact):
                # As in the export: a graph that needs no native code has none.
                paths = settings.operator_libraries if found.artifact.libraries else ()
                raw = replace(found.artifact, libraries=load_libraries(paths) if paths else ())
                exported = found.report
            else:
                prepare_workers()
                raw, exported = export_on(
                    log,
                    load(),
                    example,
                    settings,
                    out=work / "raw.onnx",
                    assumptions=assumptions_of(input_example),
                )
        with ExitStack() as stack:
            yield Source(
                raw=raw,
                example=example,
                open=functools.cache(lambda: stack.enter_context(reference_of(load(), raw))),
                name=TORCH,
                exported=exported,
            )
        return
    prepare_workers()
    _check_nothing_to_export(settings)
    if isinstance(model, OnnxArtifact):
        raw, example = model, input_example
    else:
        raw, example = import_onnx(
            model,
            out=work / "raw.onnx",
            example=input_example,
            dynamic_axes=settings.dynamic_axes,
            samples_at=settings.samples_at,
            operator_libraries=settings.operator_libraries,
        )
        with recorder.stage("import", inputs=[]) as log:
            log(Output(artifact=raw, example=example))
    _check_names(data, example)
    with isolated_onnxruntime(raw.path, libraries=raw.libraries) as infer:
        yield Source(raw=raw, example=example, open=lambda: infer, name=FILE)


def prepare_workers() -> None:
    """Start the import of what worker processes need, while this process does other work."""
    SERVER.prepare("mlflow_e2eai.evaluation.variants", "mlflow_e2eai.surgery.simplifiers")


def _module_of(
    model: Any, input_example: Any, samples_at: Sequence[Any]
) -> tuple[Callable[[], Any], dict[str, Array], tuple[Tensors, ...]]:
    """A function that returns the module of named tensors, its example, and other samples."""
    if isinstance(model, KnownModel):
        return model.load, dict(input_example), tuple(samples_at)
    module, given = flatten_module(model, input_example)
    return (lambda: module), given, named_samples(model, input_example, samples_at)


@contextmanager
def reference_of(module: Any, raw: OnnxArtifact) -> Iterator[Infer]:
    """Run the PyTorch module under the names of its export."""
    names = [spec.name for spec in raw.inputs]
    with torch_runner(module, inputs=names, outputs=[spec.name for spec in raw.outputs]) as infer:
        yield infer


def _check_names(data: EvaluationData | None, example: Tensors) -> None:
    if data is not None:
        data.check_names(example)


def _check_nothing_to_export(settings: Settings) -> None:
    """Refuse settings that only an exporter uses."""
    usual = Settings()
    for name in ("exporter", "opset", "output_names", "operators"):
        if getattr(settings, name) != getattr(usual, name):
            msg = (
                f"{name} is for PyTorch models, but an ONNX file is exported already; leave it out."
            )
            raise InvalidInputError(msg)
