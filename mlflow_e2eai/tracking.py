"""Values <-> linked MLflow runs and LoggedModels.

Stages know digests; this module alone knows which LoggedModel a digest is. Every LoggedModel that
it makes carries the tags ``e2eai.derived_from`` (what it was made from), ``e2eai.source_model`` (the
PyTorch model at the root) and ``e2eai.stage``, so that the chain can be walked both ways with
MLflow's own search. Run inputs alone would not do: `search_runs` leaves them out.
"""

from __future__ import annotations

import logging
import math
import re
import shutil
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mlflow_e2eai import bundle
from mlflow_e2eai.artifacts import (
    Array,
    Axis,
    EngineArtifact,
    OnnxArtifact,
    Tensors,
    TensorSpec,
    from_json,
    resize,
    to_json,
)
from mlflow_e2eai.bundle import Evidence
from mlflow_e2eai.errors import ArtifactError, E2EAIError, InvalidInputError, TrackingError
from mlflow_e2eai.exporter import DynamicAxes, axes_of, input_specs, module_of
from mlflow_e2eai.latency import LatencyReport
from mlflow_e2eai.pipeline import EvaluationData

if TYPE_CHECKING:
    from mlflow.entities import LoggedModel
    from mlflow.models import ModelSignature

_log = logging.getLogger(__name__)

STAGE, SOURCE, PARENT, SHA256 = (
    "e2eai.stage",
    "e2eai.source_model",
    "e2eai.derived_from",
    "e2eai.sha256",
)
ERROR = "e2eai.error"
NONFINITE = "e2eai.nonfinite"

_PING_S = 10
_MODEL_ID = re.compile(r"m-[0-9a-f]{32}")
_ARTIFACT = "artifact.json"
_EVALUATION = "evaluation.npz"
_AXES = "dynamic_axes.json"


def check_server() -> None:
    """Make sure that the tracking server answers.

    MLflow itself would go on trying for minutes. Any answer will do, a refusal too: whether the
    caller may write is the server's to say later.

    Raises:
        TrackingError: Nothing answers at its address.
    """
    import mlflow

    uri = mlflow.get_tracking_uri()
    if not uri.startswith(("http://", "https://")):
        return
    try:
        with urllib.request.urlopen(f"{uri.rstrip('/')}/health", timeout=_PING_S):  # noqa: S310 - http(s) only
            return
    except urllib.error.HTTPError:
        return
    except (urllib.error.URLError, OSError) as error:
        reason = getattr(error, "reason", error)
        msg = (
            f"The tracking server {uri} cannot be reached ({reason}); start it, or set "
            f"MLFLOW_TRACKING_URI to one that runs."
        )
        raise TrackingError(msg) from error


@contextmanager
def run(name: str, *, nested: bool = False, tags: Mapping[str, str] | None = None) -> Iterator[str]:
    """A run for the block: the one that is active already, or a new one.

    An error in the block is written on the run as the tag ``e2eai.error`` before it goes on.

    Args:
        name: Name of a new run.
        nested: Start a child of the active run instead of taking the active run itself.
        tags: Tags for the run.

    Yields:
        The run's id.
    """
    import mlflow

    check_server()
    active = mlflow.active_run()
    if active is not None and not nested:
        with _explained(active.info.run_id):
            yield active.info.run_id
        return
    with mlflow.start_run(run_name=name, nested=active is not None, tags=dict(tags or {})) as new:
        with _explained(new.info.run_id):
            yield new.info.run_id


@contextmanager
def _explained(run_id: str) -> Iterator[None]:
    from mlflow import MlflowClient

    try:
        yield
    except E2EAIError as error:
        try:
            MlflowClient().set_tag(run_id, ERROR, str(error))
        except Exception:  # the server may be what failed; the first error is the one to show
            _log.warning("Could not write the error on run %s.", run_id)
        raise


@contextmanager
def project_run_says_why() -> Iterator[None]:
    """Write an error of the block on the run that `mlflow run` made for this process.

    MLflow's launcher marks that run FAILED when the process fails, but cannot say why; and where the
    block failed before it took the run over, nothing else does.

    Raises:
        TrackingError: In place of an error of MLflow's own.
    """
    import os

    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    run_id = os.environ.get("MLFLOW_RUN_ID")
    try:
        yield
    except Exception as error:
        if run_id is not None:
            try:
                MlflowClient().set_tag(run_id, ERROR, str(error))
                MlflowClient().set_terminated(run_id, "FAILED")
            except Exception:  # noqa: BLE001 - the first error is the one to show
                _log.warning("Could not write the error on run %s.", run_id)
        if isinstance(error, MlflowException):
            raise TrackingError(str(error.message)) from error
        raise


class MlflowRecorder:
    """A `pipeline.Recorder` that makes a child run of every stage, with LoggedModels in and out.

    Args:
        name: Name of the model; those of the stages add to it.
        source: Id of the PyTorch LoggedModel.
    """

    def __init__(self, *, name: str, source: str) -> None:
        self.name = name
        self.source = source
        # The PyTorch model has no digest: its id stands for it in `inputs`.
        self.models: dict[str, str] = {source: source}

    @contextmanager
    def stage(self, name: str, *, inputs: Sequence[str]) -> Iterator[MlflowStage]:
        """A child run; its inputs are the models with these digests."""
        with run(name, nested=True, tags={STAGE: name}) as run_id:
            ids = [self.models[sha256] for sha256 in inputs] or [self.source]
            link_inputs(run_id, ids)
            yield MlflowStage(self, run_id=run_id, name=name, parents=ids)


class MlflowStage:
    """One child run, as a `pipeline.Stage`."""

    def __init__(
        self, recorder: MlflowRecorder, *, run_id: str, name: str, parents: Sequence[str]
    ) -> None:
        self.recorder = recorder
        self.run_id = run_id
        self.name = name
        self.parents = parents

    def made(self, artifact: OnnxArtifact | EngineArtifact, *, example: Tensors) -> None:
        """Log an artifact as a LoggedModel, and as this run's output."""
        tags = {STAGE: _stage_of(artifact), SOURCE: self.recorder.source, PARENT: self.parents[0]}
        model_id = log_artifact(
            artifact,
            name=f"{self.recorder.name}-{_suffix(artifact)}",
            run_id=self.run_id,
            example=example,
            tags=tags,
        )
        self.recorder.models[artifact.sha256] = model_id

    def noted(self, name: str, value: Any) -> None:
        """Keep a report as a JSON artifact of the run."""
        from mlflow import MlflowClient

        MlflowClient().log_text(self.run_id, to_json(value), f"{name}.json")

    def measured(self, evidence: Evidence, latency: Mapping[str, LatencyReport]) -> None:
        """Write what was measured on the run and on the model, batch sizes as steps."""
        from mlflow import MlflowClient

        self.noted("evidence", evidence)
        model_id = self.parents[0]
        client = MlflowClient()
        verdict = {
            "e2eai.variant": evidence.variant,
            "e2eai.measured": str(evidence.measured).lower(),
            "e2eai.passed": str(evidence.passed).lower(),
        }
        if evidence.reason is not None:
            verdict["e2eai.reason"] = evidence.reason
        if evidence.findings:
            verdict["e2eai.findings"] = "\n".join(evidence.findings)
        for key, value in verdict.items():
            client.set_tag(self.run_id, key, value)
        log_metrics(parity_metrics(evidence), run_id=self.run_id, model_id=model_id)
        for report in latency.values():
            for entry in report.variants:
                if entry.name == evidence.variant:
                    metrics = {
                        "latency/p50_ms": entry.p50_ms,
                        "latency/p90_ms": entry.p90_ms,
                        "latency/p99_ms": entry.p99_ms,
                        "latency/mean_ms": entry.mean_ms,
                        "latency/throughput_items_per_s": entry.throughput_items_per_s,
                    }
                    log_metrics(metrics, run_id=self.run_id, model_id=model_id, step=report.items)


def parity_metrics(evidence: Evidence) -> dict[str, float]:
    """The numbers of a variant's comparisons and task metrics, under their MLflow names.

    Over several kinds of sample, the worst number counts.
    """
    metrics: dict[str, float] = {}
    for report in evidence.parity.values():
        for output in report.outputs:
            place = f"parity/{_safe(output.name)}"
            for name in ("max_abs_error", "max_rel_error", "mean_abs_error", "rmse"):
                key = f"{place}/{name}"
                metrics[key] = _worst(metrics.get(key), getattr(output, name), max)
            metrics[f"{place}/cosine"] = _worst(metrics.get(f"{place}/cosine"), output.cosine, min)
            count = f"{place}/nonfinite_count"
            metrics[count] = metrics.get(count, 0) + output.nonfinite_count
    if evidence.measured:
        metrics["parity/passed"] = float(evidence.passed)
    return {**metrics, **{f"task/{_safe(name)}": value for name, value in evidence.task.items()}}


def log_metrics(
    metrics: Mapping[str, float], *, run_id: str, model_id: str | None = None, step: int = 0
) -> None:
    """Log metrics on a run and its model; one that is not finite is never stored as a number.

    A LoggedModel would store NaN as 0.0 and minus infinity as a number that passes any upper bound.
    Their names go into the tag ``e2eai.nonfinite`` of the run instead.
    """
    import mlflow
    from mlflow import MlflowClient

    finite = {name: value for name, value in metrics.items() if math.isfinite(value)}
    if finite:
        mlflow.log_metrics(finite, step=step, run_id=run_id, model_id=model_id)
    if strange := sorted(metrics.keys() - finite.keys()):
        client = MlflowClient()
        before = client.get_run(run_id).data.tags.get(NONFINITE)
        client.set_tag(run_id, NONFINITE, ", ".join(filter(None, [before, *strange])))


def link_inputs(run_id: str, model_ids: Sequence[str]) -> None:
    """Make LoggedModels the inputs of a run (MLflow's fluent call for it is refused outside
    Databricks; the client's works).
    """  # noqa: D205 - one sentence
    from mlflow import MlflowClient
    from mlflow.entities import LoggedModelInput

    models = [LoggedModelInput(model_id=model_id) for model_id in model_ids]
    MlflowClient().log_inputs(run_id, models=models)


def link_output(run_id: str, model_id: str, *, step: int = 0) -> None:
    """Make a LoggedModel an output of a run."""
    from mlflow import MlflowClient
    from mlflow.entities import LoggedModelOutput

    MlflowClient().log_outputs(run_id, models=[LoggedModelOutput(model_id, step=step)])


def tag_model(model_id: str, tags: Mapping[str, str]) -> None:
    """Put tags on a LoggedModel."""
    from mlflow import MlflowClient

    MlflowClient().set_logged_model_tags(model_id, dict(tags))


@contextmanager
def failed_models_say_why(run_id: str) -> Iterator[None]:
    """Write an error of the block on the models of a run that MLflow marked FAILED for it."""
    from mlflow import MlflowClient

    try:
        yield
    except Exception as error:
        client = MlflowClient()
        experiment = client.get_run(run_id).info.experiment_id
        failed = f"source_run_id = '{run_id}' AND status = 'FAILED'"
        for model in client.search_logged_models([experiment], failed):
            if ERROR not in model.tags:
                tag_model(model.model_id, {ERROR: str(error)})
        raise


def log_artifact(
    artifact: OnnxArtifact | EngineArtifact,
    *,
    name: str,
    run_id: str,
    example: Tensors,
    tags: Mapping[str, str],
) -> str:
    """Log one file as a LoggedModel and as an output of a run.

    An ONNX file gets MLflow's onnx flavor, so that `mlflow.onnx.load_model` reads it.

    Returns:
        The LoggedModel's id.
    """
    import mlflow
    from mlflow import MlflowClient
    from mlflow.entities import LoggedModelStatus

    facts = _facts(artifact)
    model = mlflow.initialize_logged_model(
        name=name,
        source_run_id=run_id,
        model_type="onnx" if isinstance(artifact, OnnxArtifact) else "tensorrt",
        params=facts,
        tags={**tags, SHA256: artifact.sha256, **{f"e2eai.{k}": v for k, v in facts.items()}},
    )
    client = MlflowClient()
    link_output(run_id, model.model_id)
    try:
        with tempfile.TemporaryDirectory() as folder:
            _lay_out(artifact, Path(folder), model, run_id, example)
            client.log_model_artifacts(model.model_id, folder)
    except BaseException as error:
        tag_model(model.model_id, {ERROR: str(error)})
        client.finalize_logged_model(model.model_id, LoggedModelStatus.FAILED)
        raise
    client.finalize_logged_model(model.model_id, LoggedModelStatus.READY)
    return str(model.model_id)


def _lay_out(
    artifact: OnnxArtifact | EngineArtifact,
    folder: Path,
    model: LoggedModel,
    run_id: str,
    example: Tensors,
) -> None:
    import dataclasses

    import onnx
    from mlflow.models import Model

    is_graph = isinstance(artifact, OnnxArtifact)
    file = "model.onnx" if is_graph else "model.engine"
    shutil.copyfile(artifact.path, folder / file)
    here = dataclasses.replace(artifact, path=Path(file))
    (folder / _ARTIFACT).write_text(to_json(here), encoding="utf-8")
    np.savez(folder / bundle.EXAMPLE, allow_pickle=False, **dict(example))
    meta = Model(
        artifact_path=model.artifact_location,
        model_uuid=model.model_id,
        run_id=run_id,
        model_id=model.model_id,
    )
    meta.signature = signature_of(artifact.inputs, artifact.outputs)
    if is_graph:
        # What mlflow.onnx writes, less what would have it run: this is a stage, the bundle runs.
        meta.add_flavor("onnx", onnx_version=onnx.__version__, data=file, code=None)
    meta.add_flavor("mlflow_e2eai", artifact=_ARTIFACT, stage=_stage_of(artifact))
    meta.save(folder / "MLmodel")


def signature_of(
    inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec], *, named: bool = True
) -> ModelSignature:
    """MLflow's form of inputs and outputs: what may vary is -1."""
    from mlflow.models import ModelSignature
    from mlflow.types import Schema
    from mlflow.types import TensorSpec as Spec

    def schema(specs: Sequence[TensorSpec]) -> Schema:
        return Schema(
            [
                Spec(
                    np.dtype(spec.dtype),
                    tuple(size if isinstance(size, int) else -1 for size in spec.shape),
                    name=spec.name if named or len(specs) > 1 else None,
                )
                for spec in specs
            ]
        )

    return ModelSignature(inputs=schema(inputs), outputs=schema(outputs))


def log_source(
    model: Any,
    input_example: Any,
    *,
    name: str,
    run_id: str,
    dynamic_axes: DynamicAxes | None = None,
    evaluation: EvaluationData | None = None,
) -> str:
    """Log a PyTorch model by mlflow.pytorch, with what the stages need to take it further.

    The format is MLflow's default, pt2, which runs no code when it is loaded; a model that
    `torch.export` does not take (a ScriptModule, a data-dependent branch) is pickled instead.

    Args:
        model: A module, ScriptModule or ExportedProgram.
        input_example: Inputs that it accepts.
        name: Name of the LoggedModel.
        run_id: The run that it is an output of.
        dynamic_axes: Kept with the model, for `export`.
        evaluation: Kept with the model, for `evaluate`; the metrics' code is not.

    Returns:
        Its id.
    """
    from mlflow.models import Model

    from mlflow_e2eai.exporter import answer, named_inputs
    from mlflow_e2eai.runners import evaluation_mode

    module = module_of(model)
    example = named_inputs(module, input_example)
    specs = input_specs(example, dynamic_axes or {})
    sizes = {axis.name: axis.opt for axis in axes_of(dynamic_axes or {})}
    # pt2 makes an axis of size 1 static for good.
    example = dict(resize(example, specs, {k: max(size, 2) for k, size in sizes.items()}))
    with evaluation_mode(module):
        outputs = tuple(
            TensorSpec(name=key, dtype=value.cpu().numpy().dtype.name, shape=("?",) * value.ndim)
            for key, value in answer(module, example).items()
        )
    signature = signature_of(specs, outputs, named=False)
    with tempfile.TemporaryDirectory() as folder, evaluation_mode(module):
        files = _companions(Path(folder), example, dynamic_axes, evaluation)
        info = Model.log(
            artifact_path=None,
            name=name,
            flavor=_PyTorchFlavor,
            run_id=run_id,
            model_type="pytorch",
            tags={STAGE: "source"},
            pytorch_model=module,
            signature=signature,
            input_example=example,
            extra_files=files,
            validate_serving_input=False,
        )
    return str(info.model_id)


class _PyTorchFlavor:
    """mlflow.pytorch, in pt2 where that works, else pickled; one LoggedModel either way."""

    @staticmethod
    def save_model(path: str, mlflow_model: Any, **kwargs: Any) -> None:
        import mlflow.pytorch
        import torch

        kwargs.pop("validate_serving_input", None)
        arrays = tuple(kwargs.pop("input_example").values())
        example = arrays[0] if len(arrays) == 1 else arrays
        requirements = [f"torch=={torch.__version__.partition('+')[0]}"]
        common = {**kwargs, "path": path, "mlflow_model": mlflow_model}
        common["pip_requirements"] = requirements
        if not isinstance(kwargs["pytorch_model"], torch.jit.ScriptModule):
            try:
                mlflow.pytorch.save_model(
                    **common, input_example=example, serialization_format="pt2"
                )
            except Exception as error:  # noqa: BLE001 - torch.export raises whatever happened inside
                _log.info("Logging the source by pickle: torch.export refuses it (%s).", error)
                shutil.rmtree(path, ignore_errors=True)
            else:
                return
        mlflow.pytorch.save_model(**common, serialization_format="pickle")


def _companions(
    folder: Path,
    example: Tensors,
    dynamic_axes: DynamicAxes | None,
    evaluation: EvaluationData | None,
) -> list[str]:
    import json

    np.savez(folder / bundle.EXAMPLE, allow_pickle=False, **dict(example))
    axes = {
        name: {str(at): [axis.name, axis.min, axis.opt, axis.max] for at, axis in positions.items()}
        for name, positions in (dynamic_axes or {}).items()
    }
    (folder / _AXES).write_text(json.dumps(axes), encoding="utf-8")
    if evaluation is not None:
        arrays = {f"inputs/{name}": array for name, array in evaluation.inputs.items()}
        np.savez(folder / _EVALUATION, allow_pickle=False, labels=evaluation.labels, **arrays)
    return [str(path) for path in sorted(folder.iterdir())]


def resolve(uri: str) -> LoggedModel:
    """The LoggedModel that a URI names.

    Args:
        uri: A LoggedModel id, ``models:/m-...``, ``models:/name/version``, ``models:/name@alias`` or
            ``runs:/run_id/name``.

    Raises:
        InvalidInputError: It is none of these.
        TrackingError: There is no such model.
    """
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    check_server()
    client = MlflowClient()
    path = uri.removeprefix("models:/")
    try:
        if _MODEL_ID.fullmatch(path):
            return client.get_logged_model(path)
        if uri.startswith("runs:/"):
            return _model_of_run(uri)
        if uri.startswith("models:/") and "@" in path:
            return resolve(client.get_model_version_by_alias(*path.rsplit("@", 1)).source)
        if uri.startswith("models:/") and path.count("/") == 1:
            return resolve(client.get_model_version(*path.split("/")).source)
    except MlflowException as error:
        msg = f"There is no model {uri!r} at {_server()}: {error.message}"
        raise TrackingError(msg) from error
    msg = (
        f"{uri!r} names no model; give a LoggedModel id, models:/name/version, models:/name@alias "
        f"or runs:/run_id/name."
    )
    raise InvalidInputError(msg)


def _model_of_run(uri: str) -> LoggedModel:
    from mlflow import MlflowClient

    run_id, _, name = uri.removeprefix("runs:/").partition("/")
    client = MlflowClient()
    experiment = client.get_run(run_id).info.experiment_id
    found = client.search_logged_models(
        [experiment], f"source_run_id = '{run_id}' AND name = '{name}'"
    )
    if not found:
        msg = f"Run {run_id} has no model {name!r}; see its outputs in the MLflow UI."
        raise TrackingError(msg)
    return found[0]


def ancestor(model: LoggedModel, stages: Sequence[str]) -> LoggedModel:
    """The nearest model on the way to the root that one of these stages made, itself included.

    A model with no stage tag was logged by somebody else, and counts as a ``source``.

    Raises:
        TrackingError: There is none.
    """
    at = model
    while (stage := at.tags.get(STAGE, "source")) not in stages:
        parent = at.tags.get(PARENT)
        if parent is None:
            msg = (
                f"Model {model.model_id} is a {model.tags.get(STAGE, 'source')}, and nothing that "
                f"it was made from is a {' or '.join(stages)}; give the output of that stage."
            )
            raise TrackingError(msg)
        at = resolve(parent)
        if stage == at.tags.get(STAGE, "source") and at.model_id == model.model_id:
            msg = f"Model {model.model_id} is its own parent; its tags were changed."
            raise TrackingError(msg)
    return at


def fetch(model: LoggedModel, folder: Path) -> Path:
    """Download a LoggedModel.

    Raises:
        TrackingError: Its files are not there.
    """
    import mlflow
    from mlflow.exceptions import MlflowException

    try:
        return Path(mlflow.artifacts.download_artifacts(model.model_uri, dst_path=str(folder)))
    except (MlflowException, OSError) as error:
        msg = f"The files of model {model.model_id} cannot be had from {_server()}: {error}"
        raise TrackingError(msg) from error


def fetch_graph(model: LoggedModel, folder: Path) -> OnnxArtifact:
    """Download an ONNX artifact and check its digest."""
    return _fetch_artifact(OnnxArtifact, model, folder)


def fetch_engine(model: LoggedModel, folder: Path) -> EngineArtifact:
    """Download an engine and check its digest."""
    return _fetch_artifact(EngineArtifact, model, folder)


def _fetch_artifact(kind: Any, model: LoggedModel, folder: Path) -> Any:
    import dataclasses

    from mlflow_e2eai.artifacts import verify

    place = fetch(model, folder)
    if not (place / _ARTIFACT).is_file():
        msg = f"Model {model.model_id} holds no {_ARTIFACT}; give the output of a stage."
        raise ArtifactError(msg)
    artifact = from_json(kind, (place / _ARTIFACT).read_bytes())
    verify(place / artifact.path, model.tags.get(SHA256, artifact.sha256))
    return dataclasses.replace(artifact, path=place / artifact.path)


def fetch_source(
    model: LoggedModel, folder: Path
) -> tuple[Any, Any, DynamicAxes | None, EvaluationData | None]:
    """Load a PyTorch LoggedModel with its input example, dynamic axes and evaluation data.

    The example is the one that this package kept, else MLflow's own, else random numbers in the
    shape of the signature. Axes and data that were not kept are None.

    Raises:
        TrackingError: It is no PyTorch model, or has neither an example nor a signature.
    """
    import mlflow.pytorch
    from mlflow.exceptions import MlflowException

    place = fetch(model, folder)
    try:
        module = mlflow.pytorch.load_model(str(place))
    except (MlflowException, ImportError, AttributeError) as error:
        msg = f"Model {model.model_id} cannot be loaded by mlflow.pytorch: {error}"
        raise TrackingError(msg) from error
    extra = place / "extra_files"
    if (extra / bundle.EXAMPLE).is_file():
        example = bundle.read_example(extra)
        return module, example, _read_axes(extra / _AXES), _read_evaluation(extra / _EVALUATION)
    return module, _mlflow_example(place, model), None, None


def open_inputs(model: LoggedModel, folder: Path) -> list[bool]:
    """For each input of a model's signature, whether it leaves the leading size open."""
    from mlflow.models import Model

    inputs = Model.load(str(fetch(model, folder))).get_input_schema()
    if inputs is None or not inputs.is_tensor_spec():
        return []
    return [bool(spec.shape) and spec.shape[0] == -1 for spec in inputs]


def _mlflow_example(place: Path, model: LoggedModel) -> Any:
    from mlflow.models import Model

    meta = Model.load(str(place))
    example = meta.load_input_example(str(place)) if meta.saved_input_example_info else None
    if example is not None:
        return example if isinstance(example, np.ndarray | dict) else np.asarray(example)
    inputs = meta.signature.inputs if meta.signature else None
    if inputs is None or not inputs.is_tensor_spec():
        msg = (
            f"Model {model.model_id} has neither an input example nor a tensor signature; log it "
            f"with input_example=."
        )
        raise TrackingError(msg)
    random = np.random.default_rng(0)
    arrays = []
    for spec in inputs:
        shape = [2 if size == -1 else size for size in spec.shape]
        is_float = spec.type.kind == "f"
        arrays.append(
            (random.standard_normal(shape) if is_float else np.zeros(shape)).astype(spec.type)
        )
    return tuple(arrays)


def _read_axes(path: Path) -> dict[str, dict[int, Axis]] | None:
    import json

    if not path.is_file():
        return None
    return {
        name: {
            int(at): Axis(axis, min=low, opt=best, max=high)
            for at, (axis, low, best, high) in positions.items()
        }
        for name, positions in json.loads(path.read_text(encoding="utf-8")).items()
    }


def _read_evaluation(path: Path) -> EvaluationData | None:
    if not path.is_file():
        return None
    arrays: dict[str, Array] = dict(np.load(path, allow_pickle=False))
    labels = arrays.pop("labels")
    inputs = {name.removeprefix("inputs/"): array for name, array in arrays.items()}
    return EvaluationData(inputs=inputs, labels=labels)


def _stage_of(artifact: OnnxArtifact | EngineArtifact) -> str:
    return artifact.stage if isinstance(artifact, OnnxArtifact) else "compile"


def _suffix(artifact: OnnxArtifact | EngineArtifact) -> str:
    if isinstance(artifact, EngineArtifact):
        return f"{artifact.target.compute_capability}-{artifact.precision}"
    return {"export": "raw", "clean": "clean"}.get(artifact.stage, artifact.precision)


def _facts(artifact: OnnxArtifact | EngineArtifact) -> dict[str, str]:
    facts = {"precision": artifact.precision}
    if artifact.parent_sha256 is not None:
        facts["parent_sha256"] = artifact.parent_sha256
    if isinstance(artifact, OnnxArtifact):
        return {**facts, "opset": str(artifact.opset)}
    return {
        **facts,
        "target": str(artifact.target),
        "tensorrt_version": artifact.backend_version,
        "tf32": str(artifact.tf32).lower(),
    }


def _worst(before: float | None, now: float, choose: Any) -> float:
    # NaN must win, and max() and min() let it lose.
    if before is None or math.isnan(now):
        return now
    return before if math.isnan(before) else float(choose(before, now))


def _safe(name: str) -> str:
    """A name as MLflow admits it in a metric."""
    return re.sub(r"[^A-Za-z0-9_. :/-]", "_", name)


def _server() -> str:
    import mlflow

    return str(mlflow.get_tracking_uri())
