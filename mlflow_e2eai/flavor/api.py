"""The MLflow flavor: save_model, log_model, load_model.

A model directory is a bundle (bundle.py) with MLflow's files beside it. It has three flavors: ours,
``python_function``, and MLflow's own ``onnx``, which reads the cleaned fp32 graph.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

from mlflow_e2eai import bundle, flavor, fleet, tracking
from mlflow_e2eai.artifacts.files import sha256_of
from mlflow_e2eai.artifacts.values import OnnxArtifact
from mlflow_e2eai.bundle.load import load
from mlflow_e2eai.bundle.model import Model as LoadedModel
from mlflow_e2eai.evaluation.data import EvaluationData
from mlflow_e2eai.evaluation.metrics import Metrics
from mlflow_e2eai.flavor.arguments import parted, shows
from mlflow_e2eai.flavor.mlmodel import (
    FLAVOR_NAME,
    Description,
    DescriptionArguments,
    describe,
)
from mlflow_e2eai.pipeline import build
from mlflow_e2eai.pipeline.publish import log_report
from mlflow_e2eai.pipeline.settings import Settings, SettingsArguments
from mlflow_e2eai.report.text import markdown
from mlflow_e2eai.tracking import _mlflow
from mlflow_e2eai.tracking.recorder import MemoryRecorder, Recorder

if TYPE_CHECKING:
    from mlflow.models import Model
    from mlflow.models.model import ModelInfo
from mlflow_e2eai.evaluation.data import evaluation_of


class Arguments(SettingsArguments, DescriptionArguments, total=False):
    """What `save_model` and `log_model` take beside the model and what it is judged on."""


@shows(Settings, Description)
def save_model(
    model: Any,
    path: str | Path,
    *,
    input_example: Any = None,
    evaluation_data: Any = None,
    metrics: Metrics | None = None,
    mlflow_model: Model | None = None,
    validate_serving_input: bool = False,  # noqa: ARG001 - MLflow hands over what log_model said
    **arguments: Unpack[Arguments],
) -> None:
    """Take a PyTorch model from export to package, and save it as an MLflow model.

    No tracking server is needed or told.

    Args:
        model: As in `log_model`.
        path: Where to; an empty or new directory.
        input_example: As in `log_model`.
        evaluation_data: As in `log_model`.
        metrics: As in `log_model`.
        mlflow_model: MLflow's description to add the flavors to.
        validate_serving_input: As in MLflow's flavors; every variant is run on the example anyway.
        **arguments: The others of `log_model`, but for those that concern a tracking server.

    Raises:
        mlflow.exceptions.MlflowException: The path is taken, or the arguments for the environment
            contradict each other.
        E2EAIError: See `log_model`.
    """
    settings, description = parted(arguments, Settings, Description)
    said = Description(**description)
    target = Path(path).absolute()
    out = target / bundle.FOLDER
    _mlflow.prepare_target_path(str(target))
    model = Path(model) if isinstance(model, str) else model
    try:
        if _is_made(model):
            place = bundle.find(model)
            manifest, example = bundle.read(place), bundle.read_example(place)
            # Where MLflow calls, the target is a folder that is gone once it is uploaded.
            copy = mlflow_model is None
            bundle.write(out, bundle.located(manifest, place), example, copy=copy)
        else:
            asked = Settings(**settings)
            asked.check_here()
            evaluation = evaluation_of(model, input_example, evaluation_data, metrics)
            _build(model, input_example, asked, evaluation, out, MemoryRecorder())
        describe(target, said, mlflow_model=mlflow_model)
    except BaseException:
        shutil.rmtree(target, ignore_errors=True)  # it was empty or new
        raise


@shows(Settings, Description)
def log_model(
    model: Any,
    name: str | None = None,
    *,
    input_example: Any = None,
    evaluation_data: Any = None,
    metrics: Metrics | None = None,
    executor: fleet.Executor | None = None,
    workers: int | None = None,
    source_model: str | None = None,
    registered_model_name: str | None = None,
    await_registration_for: int | None = 300,
    params: Mapping[str, Any] | None = None,
    tags: Mapping[str, Any] | None = None,
    model_type: str | None = None,
    step: int = 0,
    model_id: str | None = None,
    **arguments: Unpack[Arguments],
) -> ModelInfo:
    """Take a PyTorch model the whole way, and log what comes out as one MLflow model.

    The active run is the parent, or a new one is; every stage is a child run. The model is an
    output of the parent and of the child ``package``.

    Args:
        model: A ``torch.nn.Module``, ScriptModule or ExportedProgram; or the path of an ONNX file
            (``.onnx``), which ONNX Runtime then runs as the reference; or the path of a bundle or
            of a saved model, which is then logged as it is.
        name: Name of the logged model.
        input_example: Inputs that the model accepts: a mapping of names to tensors or arrays, a
            tuple of them, or a single one. The names become the ONNX names.
        evaluation_data: What every variant is judged on: ``(inputs, labels)`` with inputs as in
            `input_example`, ``(frame, "label column")``, a torch DataLoader of such pairs, or an
            MLflow dataset; see `samples.EvaluationData.of`. Without labels, parity only.
        metrics: Task metrics: callables on (outputs by name, labels), of which more is better, by
            name; or MLflow's, which may be a list. One where less is better is recorded negated,
            as ``neg_<name>``. By default ``accuracy`` of the first output's argmax.
        executor: Who builds the engines: None this process, ``local`` processes here, ``ray`` a Ray
            cluster, which judges them too where this machine cannot. What fails there leaves an
            engine out, or not measured, and the reason as its evidence.
        workers: Processes for ``local``; by default one for each core.
        source_model: URI of the PyTorch model, if it is logged already; else it is logged here.
        registered_model_name: Also make a version of this registered model.
        await_registration_for: Seconds to wait for the version to be ready.
        params: As in MLflow's flavors.
        tags: As in MLflow's flavors.
        model_type: As in MLflow's flavors.
        step: As in MLflow's flavors.
        model_id: As in MLflow's flavors.
        **arguments: What to make of it; and of MLflow's own, as in its flavors: signature (by
            default the graph's own, with False none), conda_env, pip_requirements,
            extra_pip_requirements, code_paths, extra_files, metadata.
        dynamic_axes: Axes whose size may vary: ``{input: {position: Axis}}``.
        exporter: ``auto``, ``dynamo``, ``trace`` or ``script``.
        opset: Version of the ONNX operator set.
        output_names: Names for the outputs, in order.
        operators: What operators compute that are not ONNX's own; see `mlflow_e2eai.Operator`.
        operator_libraries: Shared libraries that implement operators for ONNX Runtime. They go into
            the model with their digests; who loads it must allow them by name.
        plugin_libraries: The same for TensorRT, beside a function for ONNX Runtime.
        surgery: The cleaning plan: steps, or a list as YAML gives it.
        precisions: What to make graphs and engines in. ``tf32`` makes engines of the fp32 graph
            that may round to TF32; else fp32 means fp32.
        targets: What to build engines for: ``sm86``, ``local``, and all that `engine.parse` reads.
        keep_fp32: Nodes that stay in fp32 in the other precisions; `mlflow_e2eai.bisect` finds
            them.
        batch_sizes: Sizes of the leading axis at which latency is measured too, beside the corners
            of the profile.
        build_settings: How TensorRT builds: `mlflow_e2eai.BuildSettings`.
        rebuild: Build engines that the tracking server holds already; else they are linked.

    Returns:
        MLflow's description of the logged model.

    Raises:
        InvalidInputError: An argument is wrong, or the model does not accept the example.
        ExportError: PyTorch could not write the model as ONNX.
        SurgeryError: The plan changed the interface or the numbers.
        PrecisionError: The graph could not be converted.
        EngineBuildError: TensorRT refuses the graph.
        MissingDependencyError: A target's TensorRT is not installed.
        TrackingError: The tracking server cannot be reached.
    """
    settings, description = parted(arguments, Settings, Description)
    name = name or registered_model_name or "model"
    model = Path(model) if isinstance(model, str) else model
    with (
        tracking.run(name) as run_id,
        tracking.failed_models_say_why(run_id, model_id),
        tempfile.TemporaryDirectory() as folder,
    ):
        Description(**description)  # what is wrong with it is told before anything is made
        source = None if source_model is None else tracking.resolve(source_model).model_id
        recorder = tracking.MlflowRecorder(name=name, source=source)
        remote = (
            None
            if executor is None
            else fleet.EngineJobs(executor, workers, models=recorder.models)
        )
        if _is_made(model):
            place = bundle.find(model)
        else:
            asked = Settings(**settings)
            if remote is None or not remote.other_machines:
                asked.check_here()
            evaluation = evaluation_of(model, input_example, evaluation_data, metrics)
            if isinstance(model, OnnxArtifact) and source is not None:
                recorder.models[model.sha256], recorder.source = source, None
            elif not isinstance(model, Path) and source is None:
                source = recorder.source = tracking.log_source(
                    model,
                    input_example,
                    name=f"{name}-source",
                    run_id=run_id,
                    dynamic_axes=asked.dynamic_axes,
                    operators=asked.operators,
                    operator_libraries=asked.operator_libraries,
                    evaluation=evaluation,
                )
            place = Path(folder, bundle.FOLDER)
            _build(
                model,
                input_example,
                asked,
                evaluation,
                place,
                recorder,
                cache=recorder,
                remote=remote,
                source=recorder.source,
            )
        return _package(
            place,
            recorder,
            run_id,
            registered_model_name=registered_model_name,
            tags=tags,
            step=step,
            model_id=model_id,
            name=name,
            await_registration_for=await_registration_for,
            params=params,
            model_type=model_type,
            **description,
        )


def _is_made(model: Any) -> bool:
    """Whether a model is the path of a bundle, or of what holds one."""
    return isinstance(model, Path) and model.suffix != ".onnx"


def _build(
    model: Any,
    input_example: Any,
    settings: Settings,
    evaluation: EvaluationData | None,
    place: Path,
    recorder: Recorder,
    **options: Any,
) -> None:
    """Run the stages and leave a bundle at `place`."""
    place.parent.mkdir(parents=True, exist_ok=True)
    # Beside the bundle, on the same file system: large weights are linked.
    with tempfile.TemporaryDirectory(dir=place.parent) as work:
        manifest, example = build.build(
            model,
            input_example,
            settings,
            work=Path(work),
            recorder=recorder,
            evaluation=evaluation,
            **options,
        )
        bundle.write(place, manifest, example)


def _package(
    place: Path,
    recorder: tracking.MlflowRecorder,
    run_id: str,
    *,
    registered_model_name: str | None,
    tags: Mapping[str, Any] | None,
    step: int,
    model_id: str | None,
    **arguments: Any,
) -> ModelInfo:
    """Log a bundle: the model belongs to the parent run, and is an output of the child too.

    Args:
        place: The bundle.
        recorder: Who was told of the stages.
        run_id: The parent run.
        registered_model_name: See `log_model`.
        tags: The same.
        step: The same.
        model_id: The same.
        **arguments: The others of MLflow's `Model.log` and of `save_model`.
    """
    from mlflow.models import Model

    manifest = bundle.read(place)
    with recorder.stage("package", inputs=[item.sha256 for item in manifest.files]) as stage:
        origin = {
            tracking.STAGE: "package",
            tracking.SHA256: sha256_of(place / bundle.MANIFEST),
            **recorder.origin(manifest.graphs[0].sha256),
        }
        info: ModelInfo = Model.log(
            artifact_path=None,
            flavor=flavor,
            run_id=run_id,
            registered_model_name=registered_model_name,
            tags={**(tags or {}), **origin},
            step=step,
            model_id=model_id,
            model=place,
            # Every variant was run on the example when the bundle was built.
            validate_serving_input=False,
            **arguments,
        )
        if model_id is not None:
            tracking.tag_model(model_id, origin)  # MLflow leaves tags out for a model that exists
        tracking.link_output(stage.run_id, info.model_id, step=step)
        version = info.registered_model_version
        if registered_model_name is not None and version is not None:
            tracking.describe_version(registered_model_name, version, markdown(manifest))
        log_report(
            manifest,
            run_id=run_id,
            name=registered_model_name or recorder.name,
            version=version,
            model_id=info.model_id,
            model_ids=recorder.models,
        )
    return info


def load_model(
    model_uri: str,
    dst_path: str | None = None,
    *,
    variant: str | None = None,
    goal: str = "latency",
    split: bool = False,
    fallback: bool = True,
    allow_native: Sequence[str] = (),
) -> LoadedModel:
    """Load a model with the best variant that this machine can run.

    Of a model that is not on this machine, only the files of that variant are downloaded. Its
    `explain` says what was chosen, and why each other variant was not.

    Args:
        model_uri: A local path or any URI of a model that MLflow knows.
        dst_path: An existing directory to download to.
        variant: The variant to run, for example ``onnxruntime-cpu/fp16``; by default the best.
        goal: What it is to be best at: ``latency``, ``latency@8`` for calls of 8 items,
            ``throughput`` or ``memory``; see `variants.load`, also for where nothing was measured.
        split: Cut batches that are too large for the profile, and fill those that are too small.
        fallback: Take the next variant when a better one cannot run; if False, that is an error.
        allow_native: Libraries in the model that may be loaded, by file name, for example
            ``libortextensions.so``: they are native code, and run what they like.

    Returns:
        A callable on named NumPy arrays or torch tensors; its attribute ``variant`` says what
        it runs.

    Raises:
        mlflow.exceptions.MlflowException: There is no such model, or it is of another flavor.
        E2EAIError: See `bundle.load`.
    """
    files = tracking.ModelFiles(model_uri, dst_path)
    data = files.configuration(FLAVOR_NAME).get("data", ".")
    return load(
        files.directory / data,
        variant=variant,
        goal=goal,
        split=split,
        fallback=fallback,
        allow_native=allow_native,
        fetch=lambda path: files.fetch(Path(data, path).as_posix()),
    )
