"""`save_model` and `log_model`.

A model directory is a bundle with MLflow's files next to it. It has three flavors: ours,
``python_function``, and MLflow's own ``onnx``, which reads the cleaned fp32 graph.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlflow_e2eai import bundle, fleet, tracking
from mlflow_e2eai.artifacts.axes import DynamicAxes
from mlflow_e2eai.artifacts.build_settings import DEFAULT_BUILD, BuildSettings
from mlflow_e2eai.artifacts.values import OnnxArtifact, Precision
from mlflow_e2eai.errors import InvalidInputError, shown
from mlflow_e2eai.evaluation.data import EvaluationData, evaluation_of
from mlflow_e2eai.evaluation.effort import EvidenceLevel
from mlflow_e2eai.evaluation.metrics import Metrics
from mlflow_e2eai.flavor.keywords import suggest_keywords
from mlflow_e2eai.flavor.logged_bundle import log_bundle
from mlflow_e2eai.flavor.mlmodel import Description, describe
from mlflow_e2eai.pipeline import build
from mlflow_e2eai.pipeline.earlier_runs import NO_DIGEST, SourceDigest
from mlflow_e2eai.pipeline.known_model import KnownModel, digest_of_module
from mlflow_e2eai.pipeline.settings import EVIDENCE_DAYS, Settings
from mlflow_e2eai.precision.quantize import check_calibrated
from mlflow_e2eai.pytorch.operators.operator import Operator
from mlflow_e2eai.pytorch.stage import DEFAULT_OPSET, Exporter
from mlflow_e2eai.runtime.progress import reported_on_stderr
from mlflow_e2eai.runtime.storage import storage_errors
from mlflow_e2eai.surgery.plan import DEFAULT_PLAN
from mlflow_e2eai.tracking import _mlflow
from mlflow_e2eai.tracking.console import quiet_mlflow
from mlflow_e2eai.tracking.recorder import MemoryRecorder, Recorder

if TYPE_CHECKING:
    from mlflow.models import Model, ModelSignature
    from mlflow.models.model import ModelInfo


_ELSEWHERE = {"pytorch_model": "model", "artifact_path": "name", "code_path": "code_paths"}
"""Arguments of MLflow's other flavors and earlier versions, by the names that they have here."""


@suggest_keywords(**_ELSEWHERE)
@storage_errors()
def save_model(  # noqa: D417 - `log_model` describes the shared arguments
    model: Any,
    path: str | Path,
    *,
    input_example: Any = None,
    dynamic_axes: DynamicAxes | None = None,
    samples_at: Sequence[Any] = (),
    exporter: Exporter = "auto",
    opset: int = DEFAULT_OPSET,
    output_names: Sequence[str] | None = None,
    operators: Sequence[Operator] = (),
    operator_libraries: Sequence[Path] = (),
    plugin_libraries: Sequence[Path] = (),
    surgery: Sequence[Any] = DEFAULT_PLAN,
    precisions: Sequence[Precision] = ("fp32", "fp16"),
    targets: Sequence[str] = (),
    keep_fp32: Sequence[str] = (),
    batch_sizes: Sequence[int] = (),
    evidence: EvidenceLevel = "standard",
    build_settings: BuildSettings = DEFAULT_BUILD,
    rebuild: bool = False,
    fresh: bool = False,
    evidence_days: int = EVIDENCE_DAYS,
    evaluation_data: Any = None,
    metrics: Metrics | None = None,
    mlflow_model: Model | None = None,
    signature: ModelSignature | bool | None = None,
    conda_env: Mapping[str, Any] | str | None = None,
    pip_requirements: Sequence[str] | str | None = None,
    extra_pip_requirements: Sequence[str] | str | None = None,
    code_paths: Sequence[str] | None = None,
    extra_files: Sequence[str] | None = None,
    metadata: Mapping[str, Any] | None = None,
    validate_serving_input: bool = False,
) -> None:
    """Take a PyTorch model from export to package, and save it as an MLflow model.

    No tracking server is needed. The arguments that are not listed here are those of `log_model`.

    Args:
        path: The folder to write, empty or new.
        mlflow_model: MLflow's description to add the flavors to.
        validate_serving_input: As in MLflow's flavors; every variant runs the example anyway.

    Raises:
        mlflow.exceptions.MlflowException: The path is taken, or the arguments for the environment
            contradict each other.
        E2EAIError: See `log_model`.

    Examples:
        >>> mlflow_e2eai.save_model(
        ...     module, folder / "digits", input_example={"x": x}, evidence="quick"
        ... )
    """
    arguments = locals()
    description = Description.of(arguments)
    target = Path(path).absolute()
    out = target / bundle.FOLDER
    _mlflow.prepare_target_path(str(target))
    model = Path(model) if isinstance(model, str) else model
    try:
        if _is_bundle(model):
            stored = bundle.find(model)
            manifest = tracking.audit_saved(stored)
            example = bundle.read_example(stored)
            # When MLflow calls, the target is a folder that is removed once it is uploaded.
            copy = mlflow_model is None
            bundle.write(out, manifest, example, copy=copy)
        else:
            settings = Settings.of(arguments)
            settings.check_here()
            evaluation = evaluation_of(model, input_example, evaluation_data, metrics)
            with reported_on_stderr(), quiet_mlflow():
                _build(model, input_example, settings, evaluation, out, MemoryRecorder())
        describe(target, description, mlflow_model=mlflow_model)
    except BaseException:
        shutil.rmtree(target, ignore_errors=True)  # it was empty or new
        raise


@suggest_keywords(**_ELSEWHERE)
def log_model(
    model: Any,
    name: str | None = None,
    *,
    input_example: Any = None,
    dynamic_axes: DynamicAxes | None = None,
    samples_at: Sequence[Any] = (),
    exporter: Exporter = "auto",
    opset: int = DEFAULT_OPSET,
    output_names: Sequence[str] | None = None,
    operators: Sequence[Operator] = (),
    operator_libraries: Sequence[Path] = (),
    plugin_libraries: Sequence[Path] = (),
    surgery: Sequence[Any] = DEFAULT_PLAN,
    precisions: Sequence[Precision] = ("fp32", "fp16"),
    targets: Sequence[str] = (),
    keep_fp32: Sequence[str] = (),
    batch_sizes: Sequence[int] = (),
    evidence: EvidenceLevel = "standard",
    build_settings: BuildSettings = DEFAULT_BUILD,
    rebuild: bool = False,
    fresh: bool = False,
    evidence_days: int = EVIDENCE_DAYS,
    evaluation_data: Any = None,
    metrics: Metrics | None = None,
    executor: fleet.Executor | None = None,
    workers: int | None = None,
    source_model: str | None = None,
    registered_model_name: str | None = None,
    await_registration_for: int | None = 300,
    signature: ModelSignature | bool | None = None,
    conda_env: Mapping[str, Any] | str | None = None,
    pip_requirements: Sequence[str] | str | None = None,
    extra_pip_requirements: Sequence[str] | str | None = None,
    code_paths: Sequence[str] | None = None,
    extra_files: Sequence[str] | None = None,
    metadata: Mapping[str, Any] | None = None,
    params: Mapping[str, Any] | None = None,
    tags: Mapping[str, Any] | None = None,
    model_type: str | None = None,
    step: int = 0,
    model_id: str | None = None,
) -> ModelInfo:
    """Run all stages on a PyTorch model, and log the result as one MLflow model.

    The active run is the parent, or a new one is; every stage is a child run. The model is an
    output of the parent and of the child ``package``.

    Args:
        model: A ``torch.nn.Module``, ScriptModule or ExportedProgram; or the path of an ONNX file
            (``.onnx``), which ONNX Runtime then runs as the reference; or the path of a bundle or
            of a saved model, which is then logged unchanged.
        name: Name of the logged model.
        input_example: Inputs that the model accepts: a mapping of names to tensors or arrays, a
            tuple of them, or a single one. The names become the ONNX names.
        dynamic_axes: Axes whose size may vary: ``{input: {position: Axis}}``.
        samples_at: Further examples, at other sizes, run where samples would be made; see `export`.
        exporter: ``auto``, ``dynamo``, ``trace`` or ``script``; see `mlflow_e2eai.export`.
        opset: Version of the ONNX operator set.
        output_names: Names for the outputs, in order.
        operators: Definitions of operators that are not ONNX's own; see `mlflow_e2eai.Operator`.
        operator_libraries: Shared libraries that implement operators for ONNX Runtime. They go into
            the model with their digests; the caller of `load_model` must allow them by name.
        plugin_libraries: Shared libraries with plugins for TensorRT, stored and allowed in the same
            way. ONNX Runtime knows no plugins, so that their operators need a function too.
        surgery: The cleaning plan: steps, or a list as in YAML.
        precisions: Precisions of the graphs and engines; the graph in fp32 is always made.
            ``tf32`` makes engines of the fp32 graph that may round to TF32; else fp32 means fp32.
        targets: Targets of engines: ``sm86``, ``local``, and all that `engine.parse` reads.
        keep_fp32: Nodes that stay in fp32 in the other precisions; `mlflow_e2eai.bisect` finds
            them.
        batch_sizes: Sizes of the leading axis at which latency is measured too, besides the corners
            of the profile.
        evidence: How much is compared and measured. ``quick``: outputs as with the others, from one
            caller, and latency at opt and `batch_sizes` alone. ``standard``: latency at every
            corner, and with several callers; and the graph as it was exported. ``thorough``: four
            times the calls, and a thousand rounds of latency at every size.
        build_settings: How TensorRT builds: `mlflow_e2eai.BuildSettings`.
        rebuild: Build engines that the tracking server has already; else they are linked.
        fresh: Do every stage again; else the results of earlier runs are linked where nothing that
            they depend on has changed, down to the model itself and its version.
        evidence_days: Days after which evidence of an earlier run is too old to be linked.
        evaluation_data: Data on which every variant is evaluated: ``(inputs, labels)`` with inputs
            as in `input_example`, ``(frame, "label column")``, a torch DataLoader of such pairs, or
            an MLflow dataset; see `EvaluationData.of`. Without labels, parity only.
        metrics: Task metrics: callables on (outputs by name, labels), where higher is better,
            by name; or MLflow's, which may be a list. One where less is better is recorded negated,
            as ``neg_<name>``. By default ``accuracy`` of the first output's argmax.
        executor: The workers that build the engines: None for this process, ``local`` for processes
            here, ``ray`` for a Ray cluster, which evaluates them too where this machine cannot.
            What fails there leaves an engine out, or not measured, with the reason as its evidence.
        workers: Processes for ``local``; by default one for each core.
        source_model: URI of the PyTorch model, if it is logged already; else it is logged here.
        registered_model_name: Also make a version of this registered model.
        await_registration_for: Seconds to wait for the version to be ready.
        signature: As in MLflow's flavors; by default the graph's own, with False none.
        conda_env: As in MLflow's flavors.
        pip_requirements: As in MLflow's flavors.
        extra_pip_requirements: As in MLflow's flavors.
        code_paths: As in MLflow's flavors.
        extra_files: As in MLflow's flavors.
        metadata: As in MLflow's flavors.
        params: As in MLflow's flavors.
        tags: As in MLflow's flavors.
        model_type: As in MLflow's flavors.
        step: As in MLflow's flavors.
        model_id: As in MLflow's flavors.

    Returns:
        MLflow's description of the logged model.

    Raises:
        InvalidInputError: An argument is wrong (names, requirements and paths are checked before
            anything is made), or the model does not accept the example.
        ExportError: PyTorch could not write the model as ONNX.
        SurgeryError: The plan changed the interface or the numbers.
        PrecisionError: The graph could not be converted.
        EngineBuildError: TensorRT refuses the graph.
        MissingDependencyError: A target's TensorRT is not installed.
        TrackingError: The tracking server cannot be reached.

    Examples:
        >>> info = mlflow_e2eai.log_model(
        ...     module,
        ...     "digits",
        ...     input_example={"x": x},
        ...     dynamic_axes={"x": {0: Axis("N", min=1, opt=8, max=64)}},
        ...     targets="A100",
        ...     registered_model_name="digits",
        ... )
        >>> info.registered_model_version
        2
    """
    arguments = locals()
    tracking.check_names(name, registered_model_name)
    tracking.check_storable(tags=tags, params=params, model_type=model_type, step=step)
    description = Description.of(arguments)  # errors come before anything is made
    name = name or tracking.model_name(registered_model_name or "model")
    _check_no_uri(model)
    model = Path(model) if isinstance(model, str) else model
    if not _is_bundle(model):
        check_calibrated(precisions, evaluation_data)
    with (
        reported_on_stderr(),
        quiet_mlflow(),
        tracking.run(name) as run_id,
        tracking.log_model_failure(run_id, model_id),
        tempfile.TemporaryDirectory() as folder,
    ):
        source = None if source_model is None else tracking.resolve_source(source_model).model_id
        recorder = tracking.MlflowRecorder(name=name, source=source)
        path = Path(folder, bundle.FOLDER)
        if _is_bundle(model):
            # Written anew, so that its digest is that of the logged files.
            stored = bundle.find(model)
            manifest = tracking.audit_saved(stored)
            bundle.write(path, manifest, bundle.read_example(stored))
        else:
            settings = Settings.of(arguments)
            tracking.log_new_params(settings.params, run_id=run_id, name=name)
            remote = None
            if executor is not None:
                remote = fleet.EngineJobs(executor, workers, models=recorder.models)
            if remote is None or not remote.other_machines:
                settings.check_here()
            evaluation = evaluation_of(model, input_example, evaluation_data, metrics)
            digest = _log_source(model, input_example, settings, evaluation, recorder, run_id)
            _build(
                model,
                input_example,
                settings,
                evaluation,
                path,
                recorder,
                cache=recorder,
                remote=remote,
                source=recorder.source,
                digest=digest,
            )
        return log_bundle(
            path,
            recorder,
            run_id,
            registered_model_name=registered_model_name,
            tags=tags,
            step=step,
            model_id=model_id,
            # Who logs a finished bundle wants one more model of it.
            fresh=fresh or _is_bundle(model),
            name=name,
            await_registration_for=await_registration_for,
            params=params,
            model_type=model_type,
            **{field: getattr(description, field) for field in Description.__dataclass_fields__},
        )


def _log_source(
    model: Any,
    input_example: Any,
    settings: Settings,
    evaluation: EvaluationData | None,
    recorder: tracking.MlflowRecorder,
    run_id: str,
) -> SourceDigest:
    """Log the PyTorch model as the recorder's source, unless it is logged, or there is none."""
    if isinstance(model, OnnxArtifact) and recorder.source is not None:
        recorder.models[model.sha256], recorder.source = recorder.source, None
    elif isinstance(model, KnownModel):
        return model.digest
    elif not isinstance(model, Path) and recorder.source is None:
        recorder.source = tracking.log_source(
            model,
            input_example,
            name=f"{recorder.name}-source",
            run_id=run_id,
            dynamic_axes=settings.dynamic_axes,
            samples_at=settings.samples_at,
            operators=settings.operators,
            operator_libraries=settings.operator_libraries,
            evaluation=evaluation,
            fresh=settings.fresh,
        )
        return digest_of_module(model, recorder.source)
    return NO_DIGEST


def _check_no_uri(model: Any) -> None:
    """Refuse the URI of a model that is logged already."""
    if isinstance(model, str) and model.startswith(("models:/", "runs:/")):
        uri = shown(model).strip("'")
        msg = (
            f"{uri} is a logged model; run `mlflow_e2eai pipeline {uri}`, or give the module "
            f"that mlflow.pytorch.load_model returns, and the URI as source_model."
        )
        raise InvalidInputError(msg)


def _is_bundle(model: Any) -> bool:
    """Whether a model is the path of a bundle, or of a folder that holds one."""
    return isinstance(model, Path) and model.suffix != ".onnx"


def _build(
    model: Any,
    input_example: Any,
    settings: Settings,
    evaluation: EvaluationData | None,
    path: Path,
    recorder: Recorder,
    **options: Any,
) -> None:
    """Run the stages and write a bundle to `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # Next to the bundle, on the same file system: large weights are linked.
    with tempfile.TemporaryDirectory(dir=path.parent) as work:
        manifest, example = build.build(
            model,
            input_example,
            settings,
            work=Path(work),
            recorder=recorder,
            evaluation=evaluation,
            **options,
        )
        bundle.write(path, manifest, example)
