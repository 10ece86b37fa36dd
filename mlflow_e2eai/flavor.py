"""The MLflow flavor: save_model, log_model, load_model.

A model directory is a bundle (bundle.py) with MLflow's files beside it. It has three flavors: ours,
``python_function``, and MLflow's own ``onnx``, which reads the cleaned fp32 graph.
"""

from __future__ import annotations

import sys
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mlflow_e2eai import __version__, bundle, pipeline, tracking
from mlflow_e2eai.artifacts import Array, Precision, Tensors, sha256_of
from mlflow_e2eai.bundle import Manifest
from mlflow_e2eai.engine.backends import BACKENDS
from mlflow_e2eai.errors import InvalidInputError
from mlflow_e2eai.exporter import DEFAULT_OPSET, DynamicAxes, Exporter, module_of, named_inputs
from mlflow_e2eai.pipeline import EvaluationData, Settings, TaskMetric, accuracy
from mlflow_e2eai.surgery import DEFAULT_PLAN, plan_from

if TYPE_CHECKING:
    import pandas as pd
    from mlflow.models import Model, ModelInputExample, ModelSignature
    from mlflow.models.model import ModelInfo

FLAVOR_NAME = "mlflow_e2eai"

_MODEL_CONFIG = {"variant": None, "fallback": True}
"""What a caller of `mlflow.pyfunc.load_model` may override; MLflow drops keys that are not here."""

_BUNDLE = "bundle"


def get_default_pip_requirements(manifest: Manifest | None = None) -> list[str]:
    """What a serving environment needs, pinned to what is installed here.

    Written out and never inferred: inference loads the model in another process, misses this
    package, and reads a uv.lock that happens to lie in the working folder.

    Args:
        manifest: The bundle; with engines in it, the TensorRT that built them is needed.
    """
    names = ["mlflow_e2eai", _onnxruntime_distribution(), "numpy"]
    requirements = [f"{name}=={_version(name)}" for name in names]
    for engine in manifest.engines if manifest else ():
        backend = BACKENDS[engine.target.backend]
        requirements.append(f"{backend.requirement}=={engine.backend_version}")
    return list(dict.fromkeys(requirements))


def get_default_conda_env() -> dict[str, Any]:
    """The default conda environment, with `get_default_pip_requirements` in it."""
    from mlflow_e2eai import _compat

    env: dict[str, Any] = _compat.mlflow_conda_env(
        additional_pip_deps=get_default_pip_requirements()
    )
    return env


def save_model(
    model: Any,
    path: str | Path,
    *,
    input_example: Any = None,
    dynamic_axes: DynamicAxes | None = None,
    exporter: Exporter = "auto",
    opset: int = DEFAULT_OPSET,
    output_names: Sequence[str] | None = None,
    surgery: Sequence[Any] = DEFAULT_PLAN,
    precisions: Sequence[Precision] = ("fp32", "fp16"),
    targets: Sequence[str] = (),
    tf32: bool = False,
    evaluation_data: tuple[Any, Array] | EvaluationData | None = None,
    metrics: Mapping[str, TaskMetric] | None = None,
    mlflow_model: Model | None = None,
    signature: ModelSignature | bool | None = None,
    conda_env: Mapping[str, Any] | str | None = None,
    pip_requirements: Sequence[str] | str | None = None,
    extra_pip_requirements: Sequence[str] | str | None = None,
    code_paths: Sequence[str] | None = None,
    extra_files: Sequence[str] | None = None,
    metadata: Mapping[str, Any] | None = None,
) -> None:
    """Export, clean, convert, compile and evaluate a PyTorch model, and save it as an MLflow model.

    No tracking server is needed or told. For arguments that are not described here, see
    `log_model`.

    Args:
        model: A ``torch.nn.Module``, ScriptModule or ExportedProgram; or the path of a bundle that
            was built already, which is then copied.
        path: Where to; an empty or new directory.
        mlflow_model: MLflow's description to add the flavors to.

    Raises:
        mlflow.exceptions.MlflowException: The path is taken, or the arguments for the environment
            contradict each other.
        E2EAIError: See `log_model`.
    """
    from mlflow_e2eai import _compat

    _compat.validate_env_arguments(conda_env, pip_requirements, extra_pip_requirements)
    target = Path(path).absolute()
    _compat.prepare_target_path(str(target))
    with tempfile.TemporaryDirectory() as work:
        if isinstance(model, str | Path):
            source = Path(model)
            manifest, example = bundle.read(source), bundle.read_example(source)
            manifest = bundle.located(manifest, source)
        else:
            settings = Settings(
                dynamic_axes=dynamic_axes or {},
                exporter=exporter,
                opset=opset,
                output_names=output_names,
                surgery=plan_from(surgery),
                precisions=tuple(precisions),
                targets=tuple(targets),
                tf32=tf32,
            )
            manifest, example = pipeline.build(
                model,
                input_example,
                settings,
                work=Path(work),
                recorder=pipeline.Silent(),
                evaluation=_evaluation(model, evaluation_data, metrics),
            )
        manifest = bundle.write(target / _BUNDLE, manifest, example)
    _describe(
        target,
        manifest,
        example,
        mlflow_model=mlflow_model,
        signature=signature,
        conda_env=conda_env,
        pip_requirements=pip_requirements,
        extra_pip_requirements=extra_pip_requirements,
        code_paths=code_paths,
        extra_files=extra_files,
        metadata=metadata,
    )


def log_model(
    model: Any,
    name: str | None = None,
    *,
    input_example: Any = None,
    dynamic_axes: DynamicAxes | None = None,
    exporter: Exporter = "auto",
    opset: int = DEFAULT_OPSET,
    output_names: Sequence[str] | None = None,
    surgery: Sequence[Any] = DEFAULT_PLAN,
    precisions: Sequence[Precision] = ("fp32", "fp16"),
    targets: Sequence[str] = (),
    tf32: bool = False,
    evaluation_data: tuple[Any, Array] | EvaluationData | None = None,
    metrics: Mapping[str, TaskMetric] | None = None,
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
    """Take a PyTorch model the whole way, and log what comes out as one MLflow model.

    The active run is the parent, or a new one is; every stage is a child run. The model is an
    output of the parent and of the child ``package``.

    Args:
        model: A ``torch.nn.Module``, ScriptModule or ExportedProgram.
        name: Name of the logged model.
        input_example: Inputs that the model accepts: a mapping of names to tensors or arrays, a
            tuple of them, or a single one. The names become the ONNX names.
        dynamic_axes: Axes whose size may vary: ``{input: {position: Axis}}``.
        exporter: ``auto``, ``dynamo``, ``trace`` or ``script``.
        opset: Version of the ONNX operator set.
        output_names: Names for the outputs, in order.
        surgery: The cleaning plan: steps, or a list as YAML gives it.
        precisions: What to make graphs and engines in.
        targets: What to build engines for: compute capabilities such as ``sm86``, or ``local``.
        tf32: Let fp32 engines round to TF32.
        evaluation_data: Inputs (as in `input_example`, with more items) and labels, on which
            every variant is judged.
        metrics: Task metrics by name: a callable on (outputs by name, labels), of which more is
            better. By default ``accuracy`` of the first output's argmax.
        source_model: URI of the PyTorch model, if it is logged already; else it is logged here.
        registered_model_name: Also make a version of this registered model.
        await_registration_for: Seconds to wait for the version to be ready.
        signature: MLflow signature; by default the graph's own, with False none.
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
        InvalidInputError: An argument is wrong, or the model does not accept the example.
        ExportError: PyTorch could not write the model as ONNX.
        SurgeryError: The plan changed the interface or the numbers.
        PrecisionError: The graph could not be converted.
        EngineBuildError: TensorRT refuses the graph.
        MissingDependencyError: A target's TensorRT is not installed.
        TrackingError: The tracking server cannot be reached.
    """
    from mlflow.models import Model

    from mlflow_e2eai import _compat

    name = name or registered_model_name or "model"
    with tracking.run(name) as run_id, tempfile.TemporaryDirectory() as folder:
        _compat.validate_env_arguments(conda_env, pip_requirements, extra_pip_requirements)
        settings = Settings(
            dynamic_axes=dynamic_axes or {},
            exporter=exporter,
            opset=opset,
            output_names=output_names,
            surgery=plan_from(surgery),
            precisions=tuple(precisions),
            targets=tuple(targets),
            tf32=tf32,
        )
        evaluation = _evaluation(model, evaluation_data, metrics)
        source = (
            tracking.resolve(source_model).model_id
            if source_model is not None
            else tracking.log_source(
                model,
                input_example,
                name=f"{name}-source",
                run_id=run_id,
                dynamic_axes=dynamic_axes,
                evaluation=evaluation,
            )
        )
        work = Path(folder)
        recorder = tracking.MlflowRecorder(name=name, source=source)
        manifest, example = pipeline.build(
            model,
            input_example,
            settings,
            work=work,
            recorder=recorder,
            source=source,
            evaluation=evaluation,
        )
        bundle.write(work / _BUNDLE, manifest, example)
        files = [item.sha256 for item in (*manifest.graphs, *manifest.engines)]
        with recorder.stage("package", inputs=files) as stage:
            origin = {
                tracking.STAGE: "package",
                tracking.SOURCE: source,
                tracking.PARENT: recorder.models[manifest.graphs[0].sha256],
                tracking.SHA256: sha256_of(work / _BUNDLE / bundle.MANIFEST),
            }
            with tracking.failed_models_say_why(run_id):
                info = Model.log(
                    artifact_path=None,
                    name=name,
                    flavor=sys.modules[__name__],
                    run_id=run_id,
                    registered_model_name=registered_model_name,
                    await_registration_for=await_registration_for,
                    metadata=metadata,
                    params=params,
                    tags={**(tags or {}), **origin},
                    model_type=model_type,
                    step=step,
                    model_id=model_id,
                    model=work / _BUNDLE,
                    signature=signature,
                    conda_env=conda_env,
                    pip_requirements=pip_requirements,
                    extra_pip_requirements=extra_pip_requirements,
                    code_paths=code_paths,
                    extra_files=extra_files,
                )
            if model_id is not None:
                tracking.tag_model(model_id, origin)
            tracking.link_output(stage.run_id, info.model_id, step=step)
    return info


def load_model(
    model_uri: str,
    dst_path: str | None = None,
    *,
    variant: str | None = None,
    fallback: bool = True,
) -> bundle.Model:
    """Load a model with the best variant that this machine can run.

    Args:
        model_uri: A local path or any URI of a model that MLflow knows.
        dst_path: An existing directory to download to.
        variant: The variant to run, for example ``onnxruntime-cpu/fp16``.
        fallback: Take the next variant when a better one cannot run; if False, that is an error.

    Returns:
        A callable on named NumPy arrays or torch tensors; its attribute ``variant`` says what
        it runs.

    Raises:
        mlflow.exceptions.MlflowException: There is no such model, or it is of another flavor.
        E2EAIError: See `bundle.load`.
    """
    from mlflow_e2eai import _compat

    place = Path(_compat.download_artifact_from_uri(artifact_uri=model_uri, output_path=dst_path))
    configuration = _compat.get_flavor_configuration(model_path=place, flavor_name=FLAVOR_NAME)
    _compat.add_code_to_system_path(place, configuration)
    return bundle.load(place / configuration.get("data", "."), variant=variant, fallback=fallback)


def _load_pyfunc(path: str, model_config: Mapping[str, Any] | None = None) -> _PyFunc:
    """Load the bundle for `mlflow.pyfunc.load_model`, which calls this."""
    configuration = {**_MODEL_CONFIG, **(model_config or {})}
    return _PyFunc(
        bundle.load(
            Path(path),
            variant=configuration["variant"],
            fallback=bool(configuration["fallback"]),
        )
    )


class _PyFunc:
    """What `mlflow.pyfunc` wraps: arrays, mappings and DataFrames in, named arrays out."""

    def __init__(self, model: bundle.Model) -> None:
        self._model = model

    def get_raw_model(self) -> bundle.Model:
        """The native callable, without MLflow's checks on the way."""
        return self._model

    def predict(self, data: Any, params: Mapping[str, Any] | None = None) -> Any:  # noqa: ARG002 - MLflow's signature
        """Run the model.

        Args:
            data: A mapping of names to arrays; one array where the model has one input; or a
                DataFrame, whose rows are items.
            params: None are known.

        Returns:
            Outputs by name; for a DataFrame, a DataFrame with a column for each output.
        """
        import pandas as pd

        specs = self._model.manifest.inputs
        if isinstance(data, pd.DataFrame):
            return _as_frame(self._model(_from_frame(data, self._model)))
        if isinstance(data, np.ndarray):
            if len(specs) != 1:
                names = [spec.name for spec in specs]
                msg = (
                    f"Unable to map one array to the inputs {names}; give a mapping of names to "
                    f"arrays, or a DataFrame with a column for each."
                )
                raise InvalidInputError(msg)
            return self._model(data)
        if isinstance(data, Mapping):
            return self._model({name: np.asarray(value) for name, value in data.items()})
        msg = f"The input is a {type(data).__name__}, but a mapping, array or DataFrame is wanted."
        raise TypeError(msg)


def _from_frame(frame: pd.DataFrame, model: bundle.Model) -> dict[str, Array]:
    """Arrays from a DataFrame: a column for each input, or all columns for the only input."""
    specs = model.manifest.inputs
    if all(spec.name in frame.columns for spec in specs):
        return {spec.name: _column(frame[spec.name].to_list(), len(spec.shape)) for spec in specs}
    if len(specs) != 1:
        names = [spec.name for spec in specs]
        msg = (
            f"The DataFrame has {list(frame.columns)}, but a column for each of {names} is wanted."
        )
        raise InvalidInputError(msg)
    (spec,) = specs
    values = frame.to_numpy()
    sizes = [size if isinstance(size, int) else -1 for size in spec.shape]
    if sizes[1:] != list(values.shape[1:]) and -1 not in sizes[1:]:
        # Rows of flat items, as a table holds images.
        values = values.reshape(len(frame), *sizes[1:])
    return {spec.name: values}


def _column(cells: list[Any], rank: int) -> Array:
    array = np.stack([np.asarray(cell) for cell in cells])
    # One number a row is how a table shows an axis of length one.
    return array.reshape(-1, 1) if array.ndim == 1 and rank == 2 else array  # noqa: PLR2004


def _as_frame(answer: Mapping[str, Array]) -> pd.DataFrame:
    import pandas as pd

    columns = {}
    for name, value in answer.items():
        array = np.asarray(value)
        is_flat = array.ndim == 1 or array.shape[1:] == (1,)
        columns[name] = array.reshape(-1) if is_flat else list(array)
    return pd.DataFrame(columns)


def _describe(
    path: Path,
    manifest: Manifest,
    example: Tensors,
    *,
    mlflow_model: Model | None,
    signature: ModelSignature | bool | None,
    conda_env: Mapping[str, Any] | str | None,
    pip_requirements: Sequence[str] | str | None,
    extra_pip_requirements: Sequence[str] | str | None,
    code_paths: Sequence[str] | None,
    extra_files: Sequence[str] | None,
    metadata: Mapping[str, Any] | None,
) -> None:
    """Write MLflow's own files beside the bundle."""
    import onnx
    from mlflow import pyfunc
    from mlflow.models import Model

    from mlflow_e2eai import _compat

    code = _compat.validate_and_copy_code_paths(code_paths, str(path))
    description = Model() if mlflow_model is None else mlflow_model
    if signature is None:
        description.signature = tracking.signature_of(manifest.inputs, manifest.outputs)
    elif not isinstance(signature, bool):
        description.signature = signature
    _compat.save_example(description, _mlflow_example(example), str(path))
    if metadata is not None:
        description.metadata = dict(metadata)
    extra = _compat.copy_extra_files(extra_files, str(path))
    pyfunc.add_to_model(
        description,
        loader_module=__name__,
        data=_BUNDLE,
        conda_env=_compat.CONDA_ENV_FILE,
        python_env=_compat.PYTHON_ENV_FILE,
        code=code,
        model_config=_MODEL_CONFIG,
    )
    description.add_flavor(
        "onnx",
        onnx_version=onnx.__version__,
        data=f"{_BUNDLE}/{manifest.graphs[0].path.as_posix()}",
        providers=["CUDAExecutionProvider", "CPUExecutionProvider"],
        code=code,
    )
    description.add_flavor(
        FLAVOR_NAME,
        data=_BUNDLE,
        format_version=manifest.format_version,
        package_version=__version__,
        code=code,
        **extra,
    )
    description.model_size_bytes = sum(f.stat().st_size for f in path.rglob("*") if f.is_file())
    description.save(str(path / "MLmodel"))
    _write_environment(path, manifest, conda_env, pip_requirements, extra_pip_requirements)


def _mlflow_example(example: Tensors) -> ModelInputExample:
    return {name: np.asarray(array) for name, array in example.items()}


def _write_environment(
    path: Path,
    manifest: Manifest,
    conda_env: Mapping[str, Any] | str | None,
    pip_requirements: Sequence[str] | str | None,
    extra_pip_requirements: Sequence[str] | str | None,
) -> None:
    import yaml

    from mlflow_e2eai import _compat

    if conda_env is None:
        default = None if pip_requirements is not None else get_default_pip_requirements(manifest)
        environment, requirements, constraints = _compat.process_pip_requirements(
            default, pip_requirements, extra_pip_requirements
        )
    else:
        environment, requirements, constraints = _compat.process_conda_env(conda_env)
    (path / _compat.CONDA_ENV_FILE).write_text(yaml.safe_dump(environment, sort_keys=False))
    (path / _compat.REQUIREMENTS_FILE).write_text("\n".join(requirements))
    if constraints:
        (path / _compat.CONSTRAINTS_FILE).write_text("\n".join(constraints))
    _compat.PythonEnv.current().to_yaml(str(path / _compat.PYTHON_ENV_FILE))


def _evaluation(
    model: Any,
    data: tuple[Any, Array] | EvaluationData | None,
    metrics: Mapping[str, TaskMetric] | None,
) -> EvaluationData | None:
    """Evaluation data with the inputs named as the example's are."""
    if data is None or isinstance(data, EvaluationData):
        return data
    if not isinstance(data, tuple) or len(data) != 2:  # noqa: PLR2004 - a pair
        msg = f"evaluation_data is a {type(data).__name__}; give a pair of inputs and labels."
        raise InvalidInputError(msg)
    inputs, labels = data
    return EvaluationData(
        inputs=named_inputs(module_of(model), inputs),
        labels=np.asarray(labels),
        metrics=dict(metrics or {"accuracy": accuracy}),
    )


def _onnxruntime_distribution() -> str:
    """Either distribution brings the same module; the GPU one is named where both are missing."""
    for name in ("onnxruntime-gpu", "onnxruntime"):
        try:
            version(name)
        except PackageNotFoundError:
            continue
        return name
    return "onnxruntime-gpu"


def _version(distribution: str) -> str:
    try:
        return version(distribution)
    except PackageNotFoundError:
        if distribution == "mlflow_e2eai":
            return __version__  # run from a source tree that is not installed
        warnings.warn(f"{distribution} is not installed; its version is not known.", stacklevel=2)
        return "*"
