"""Artifacts -> LoggedModels."""

from __future__ import annotations

import dataclasses
import hashlib
import logging
import shutil
import tempfile
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mlflow_e2eai import bundle
from mlflow_e2eai.artifacts import libraries
from mlflow_e2eai.artifacts.arrays import save_arrays
from mlflow_e2eai.artifacts.files import parse_json, sha256_of, to_json
from mlflow_e2eai.artifacts.values import EngineArtifact, OnnxArtifact, Tensors, TensorSpec
from mlflow_e2eai.artifacts.weight_files import link
from mlflow_e2eai.bundle.digests import write_digests
from mlflow_e2eai.engine.request import key_of
from mlflow_e2eai.errors import ArtifactError
from mlflow_e2eai.evaluation.bisection.search import Bisection
from mlflow_e2eai.runtime.termination import reason_of
from mlflow_e2eai.tracking.downloads import fetch_text
from mlflow_e2eai.tracking.lineage import (
    ARTIFACT,
    ERROR,
    MLMODEL_SHA256,
    SHA256,
    fetch,
    link_inputs,
    link_output,
    tag_model,
)
from mlflow_e2eai.tracking.metrics import log_metrics
from mlflow_e2eai.tracking.server import address, failure_logged, is_denied
from mlflow_e2eai.tracking.store.artifact_store import KEY
from mlflow_e2eai.tracking.store.uploads import upload

if TYPE_CHECKING:
    from mlflow.entities import LoggedModel
    from mlflow.models import ModelSignature

_log = logging.getLogger(__name__)

NOT_LINKED = "e2eai.not_linked"
"""Tag of a run: ids of models that it is about and that its user may not change."""


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

    Args:
        artifact: The file.
        name: Name of the model.
        run_id: The run.
        example: The input example.
        tags: Tags for the model.

    Returns:
        The LoggedModel's id.
    """
    import mlflow
    from mlflow import MlflowClient
    from mlflow.entities import LoggedModelStatus

    from mlflow_e2eai.tracking import _mlflow

    model = mlflow.initialize_logged_model(
        name=name,
        source_run_id=run_id,
        model_type="onnx" if isinstance(artifact, OnnxArtifact) else "tensorrt",
        params=facts_of(artifact),
        tags={
            **tags,
            SHA256: artifact.sha256,
            **({} if isinstance(artifact, OnnxArtifact) else {KEY: key_of(artifact)}),
        },
    )
    client = MlflowClient()
    link_output(run_id, model.model_id)

    def log_failure(error: BaseException) -> None:
        tag_model(model.model_id, {ERROR: reason_of(error)})
        client.finalize_logged_model(model.model_id, LoggedModelStatus.FAILED)

    with failure_logged(run_id, log_failure), tempfile.TemporaryDirectory() as folder:
        _lay_out(artifact, Path(folder), model, run_id, example)
        digest = sha256_of(Path(folder, "MLmodel"))
        _mlflow.set_model_tags(model.model_id, {MLMODEL_SHA256: digest}, address())
        upload(model, Path(folder))
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
    stored = dataclasses.replace(artifact, path=Path(file))
    stored = dataclasses.replace(
        stored, libraries=libraries.copy_libraries(stored.libraries, folder)
    )
    (folder / ARTIFACT).write_text(to_json(stored), encoding="utf-8")
    save_arrays(folder / bundle.EXAMPLE, example)
    meta = Model(
        artifact_path=model.artifact_location,
        model_uuid=model.model_id,
        run_id=run_id,
        model_id=model.model_id,
    )
    meta.signature = signature_of(artifact.inputs, artifact.outputs)
    if is_graph:
        # As mlflow.onnx writes, but not as a runnable model: this is a stage, the bundle runs.
        meta.add_flavor("onnx", onnx_version=onnx.__version__, data=file, code=None)
    meta.add_flavor(
        "mlflow_e2eai", artifact=ARTIFACT, stage=stage_of(artifact), digests=write_digests(folder)
    )
    meta.save(folder / "MLmodel")


def signature_of(
    inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec], *, named: bool = True
) -> ModelSignature:
    """MLflow's signature of inputs and outputs; a size that may vary is -1."""
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
    """Suffix of the name of an artifact's LoggedModel."""
    if isinstance(artifact, OnnxArtifact):
        return {"export": "raw", "clean": "clean"}.get(artifact.stage, artifact.precision)
    target = str(artifact.target).removeprefix("tensorrt_rtx-")
    return f"{target}-{artifact.arithmetic}"


def facts_of(artifact: OnnxArtifact | EngineArtifact) -> dict[str, str]:
    """Parameters of an artifact's model: those by which models are compared."""
    if isinstance(artifact, OnnxArtifact):
        return {"precision": artifact.precision, "opset": str(artifact.opset)}
    return {
        "precision": artifact.arithmetic,
        "target": str(artifact.target),
        "tensorrt_version": artifact.backend_version,
        "build_settings": str(artifact.settings),
    }


# Lists of nodes <-> artifacts of runs.


KEEP_FP32 = "e2eai.keep_fp32"
"""Tag of a run that converts: the nodes that stayed in fp32."""

_MAX_TAG = 250
"""Characters of a list of nodes in a tag; MLflow admits more, which nobody would read."""


def log_bisection(bisection: Bisection, *, run_id: str, variant: str) -> None:
    """Log a bisection on its run: ``bisection.json``, metrics and tags.

    Args:
        bisection: The bisection; `fetch_nodes` reads its nodes from the file.
        run_id: The run.
        variant: Name of the variant that failed.
    """
    from mlflow import MlflowClient

    MlflowClient().log_text(run_id, to_json(bisection), "bisection.json")
    metrics = {
        "bisect/nodes": float(len(bisection.nodes)),
        "bisect/suspects": float(bisection.suspects),
        "bisect/evaluations": float(bisection.evaluations),
    }
    tags = {
        "e2eai.variant": variant,
        "e2eai.nodes": _brief(bisection.nodes),
        "e2eai.minimal": str(bisection.minimal).lower(),
        "e2eai.reason": bisection.sentence,
    }
    log_metrics(metrics, run_id=run_id, tags=tags)


def log_fp32_nodes(nodes: Collection[str], *, run_id: str) -> None:
    """Write the nodes that stay in fp32 on a run: ``keep_fp32.json``, and the tag `KEEP_FP32`."""
    from mlflow import MlflowClient

    client = MlflowClient()
    client.log_dict(run_id, {"nodes": list(nodes)}, "keep_fp32.json")
    client.set_tag(run_id, KEEP_FP32, _brief(nodes))


def open_inputs(model: LoggedModel, folder: Path) -> list[bool]:
    """Whether each input of a model's signature leaves the leading size open."""
    from mlflow.models import Model

    inputs = Model.load(str(fetch(model, folder))).get_input_schema()
    if inputs is None or not inputs.is_tensor_spec():
        return []
    return [bool(spec.shape) and spec.shape[0] == -1 for spec in inputs]


def fetch_nodes(uri: str) -> list[str]:
    """Read the nodes of a ``bisection.json`` or ``keep_fp32.json``.

    Args:
        uri: A path, or the URI of an artifact in MLflow, such as
            ``runs:/run_id/bisection.json``.

    Raises:
        TrackingError: There is no such file.
        ArtifactError: It holds something else.
    """
    try:
        data = parse_json(fetch_text(uri))
    except ValueError as error:
        msg = f"{uri} is not JSON ({error}); give a bisection.json or keep_fp32.json."
        raise ArtifactError(msg) from error
    nodes: Any = data.get("nodes") if isinstance(data, dict) else None
    if not isinstance(nodes, list) or not all(isinstance(name, str) for name in nodes):
        msg = f"{uri} has no list of 'nodes'; give a bisection.json or keep_fp32.json."
        raise ArtifactError(msg)
    return nodes


def _brief(nodes: Collection[str]) -> str:
    """The names where they fit into a tag, else their number and a digest of all."""
    text = ", ".join(nodes)
    if len(text) <= _MAX_TAG:
        return text
    return f"{len(nodes)} nodes, sha256 {hashlib.sha256(text.encode()).hexdigest()}"


def link_permitted_inputs(run_id: str, model_ids: Sequence[str]) -> None:
    """Make LoggedModels the inputs of a run, as far as the user may change them.

    The others are named in the tag ``e2eai.not_linked`` of the run, and in a warning.
    """
    from mlflow import MlflowClient

    if _link(run_id, model_ids):
        return
    if denied := [model_id for model_id in model_ids if not _link(run_id, [model_id])]:
        MlflowClient().set_tag(run_id, NOT_LINKED, ", ".join(denied))
        _log.warning(
            "Your user may not change the experiment of %s: run %s is not linked there.",
            ", ".join(denied),
            run_id,
        )


def _link(run_id: str, model_ids: Sequence[str]) -> bool:
    """Make LoggedModels the inputs of a run; False where the user may not change one."""
    from mlflow.exceptions import MlflowException

    try:
        link_inputs(run_id, model_ids)
    except MlflowException as error:
        if not is_denied(error):
            raise
        return False
    return True
