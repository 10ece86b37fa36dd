"""Artifacts -> LoggedModels."""

from __future__ import annotations

import dataclasses
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mlflow_e2eai import bundle, libraries
from mlflow_e2eai.arrays import save_arrays
from mlflow_e2eai.artifacts import EngineArtifact, OnnxArtifact, Tensors, TensorSpec
from mlflow_e2eai.engine import key_of
from mlflow_e2eai.files import to_json
from mlflow_e2eai.tracking.lineage import ARTIFACT, ERROR, SHA256, link_output, tag_model
from mlflow_e2eai.weights import link

if TYPE_CHECKING:
    from mlflow.entities import LoggedModel
    from mlflow.models import ModelSignature


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
    import onnx
    from mlflow.models import Model

    is_graph = isinstance(artifact, OnnxArtifact)
    file = "model.onnx" if is_graph else "model.engine"
    shutil.copyfile(artifact.path, folder / file)
    for weights in artifact.weights if isinstance(artifact, OnnxArtifact) else ():
        link(artifact.path.parent / weights.path, folder)
    here = dataclasses.replace(artifact, path=Path(file))
    here = dataclasses.replace(here, libraries=libraries.copied(here.libraries, folder))
    (folder / ARTIFACT).write_text(to_json(here), encoding="utf-8")
    save_arrays(folder / bundle.EXAMPLE, example)
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
    meta.add_flavor("mlflow_e2eai", artifact=ARTIFACT, stage=stage_of(artifact))
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


def stage_of(artifact: OnnxArtifact | EngineArtifact) -> str:
    """The stage that made an artifact."""
    return artifact.stage if isinstance(artifact, OnnxArtifact) else "compile"


def suffix_of(artifact: OnnxArtifact | EngineArtifact) -> str:
    """What an artifact's model is named after the whole's name."""
    if isinstance(artifact, EngineArtifact):
        target = str(artifact.target).removeprefix("tensorrt_rtx-")
        return f"{target}-{artifact.arithmetic}"
    return {"export": "raw", "clean": "clean"}.get(artifact.stage, artifact.precision)


def _facts(artifact: OnnxArtifact | EngineArtifact) -> dict[str, str]:
    parent = {} if artifact.parent_sha256 is None else {"parent_sha256": artifact.parent_sha256}
    if isinstance(artifact, OnnxArtifact):
        return {"precision": artifact.precision, **parent, "opset": str(artifact.opset)}
    return {
        "precision": artifact.arithmetic,
        **parent,
        "target": str(artifact.target),
        "tensorrt_version": artifact.backend_version,
        "engine_key": key_of(artifact),
        "build_settings": str(artifact.settings),
    }
