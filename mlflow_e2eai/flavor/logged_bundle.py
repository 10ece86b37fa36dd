"""A bundle -> a LoggedModel with its report, and a version of a registered model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlflow_e2eai import bundle, flavor, tracking
from mlflow_e2eai.artifacts.files import sha256_of
from mlflow_e2eai.pipeline.publish import describe_version, log_report

if TYPE_CHECKING:
    from mlflow.models import Model
    from mlflow.models.model import ModelInfo


def log_bundle(
    path: Path,
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

    The other arguments are those of `log_model`, of MLflow's `Model.log` and of `save_model`.
    """
    from mlflow.models import Model

    manifest = bundle.read(path)
    with recorder.stage("package", inputs=[item.sha256 for item in manifest.files]) as stage:
        origin = {
            tracking.STAGE: "package",
            tracking.SHA256: sha256_of(path / bundle.MANIFEST),
            **recorder.origin(manifest.graphs[0].sha256),
        }
        info: ModelInfo = Model.log(
            artifact_path=None,
            flavor=_TaggedFlavor(origin),
            run_id=run_id,
            registered_model_name=registered_model_name,
            tags=tags,
            step=step,
            model_id=model_id,
            model=path,
            # Every variant was run on the example when the bundle was built.
            validate_serving_input=False,
            **arguments,
        )
        tracking.link_output(stage.run_id, info.model_id, step=step)
        version = info.registered_model_version
        stage.line.append(info.model_uri)
        if version is not None:
            stage.line.append(f"{registered_model_name} version {version}")
        log_report(
            manifest,
            run_id=run_id,
            name=registered_model_name or recorder.name,
            version=version,
            model_id=info.model_id,
            stages=recorder,
        )
        if registered_model_name is not None and version is not None:
            describe_version(manifest, name=registered_model_name, version=version)
            tracking.rename_run(run_id, f"{recorder.name} v{version}")
    return info


class _TaggedFlavor:
    """Our flavor for `Model.log`, which tags the model before its files are written.

    Tags that `Model.log` is given are the version's tags too, and are left out for a model that
    exists: there, those of the lineage would hide the few that a reader of the registry needs.
    """

    __name__ = flavor.__name__

    def __init__(self, tags: Mapping[str, str]) -> None:
        self._tags = tags

    def save_model(self, *, path: str, mlflow_model: Model, **arguments: Any) -> None:
        """Tag the model, and save it as `mlflow_e2eai.save_model` does."""
        model_id = str(mlflow_model.model_id)
        tracking.tag_model(model_id, self._tags)
        flavor.save_model(path=path, mlflow_model=mlflow_model, **arguments)
        tracking.tag_model(model_id, {tracking.MLMODEL_SHA256: sha256_of(Path(path, "MLmodel"))})
