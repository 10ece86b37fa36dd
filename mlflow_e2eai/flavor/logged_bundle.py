"""A bundle -> a LoggedModel with its report, and a version of a registered model."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

from mlflow_e2eai import bundle, flavor, tracking
from mlflow_e2eai.artifacts.files import sha256_of, to_json
from mlflow_e2eai.bundle.manifest import Manifest
from mlflow_e2eai.flavor.mlmodel import Description
from mlflow_e2eai.pipeline.keys import UNKNOWN, stage_key
from mlflow_e2eai.pipeline.publish import describe_run, describe_version, log_report, log_summary
from mlflow_e2eai.tracking.lineage import tag_digests
from mlflow_e2eai.tracking.store.stage_results import STAGE_KEY, StageResult, find_logged_model
from mlflow_e2eai.tracking.store.uploads import log_with_flavor
from mlflow_e2eai.tracking.versions import all_versions

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion
    from mlflow.models import Model
    from mlflow.models.model import ModelInfo


def log_bundle(
    path: Path,
    recorder: tracking.MlflowRecorder,
    run_id: str,
    *,
    registered_model_name: str | None,
    await_registration_for: int | None,
    tags: Mapping[str, Any] | None,
    step: int,
    model_id: str | None,
    fresh: bool,
    **arguments: Any,
) -> ModelInfo:
    """Log a bundle: the model belongs to the parent run, and is an output of the child too.

    One that was logged before, of the same content and arguments, is linked, with its version.

    The other arguments are those of `log_model`, of MLflow's `Model.log` and of `save_model`.
    """
    import mlflow
    from mlflow.models import get_model_info

    from mlflow_e2eai.flavor.model_info import LoggedModelInfo

    manifest = bundle.read(path)
    key = _key(manifest, path, recorder, registered_model_name, tags, model_id, arguments)
    inputs = [item.sha256 for item in manifest.files]
    with (
        tempfile.TemporaryDirectory() as folder,
        recorder.stage("package", inputs=inputs, key=key) as stage,
    ):
        found, existing = None, None
        if key is not None and not fresh:
            found = recorder.find(key, bundle.Manifest, folder=Path(folder))
            existing = found.model_id if found else find_logged_model(key, Path(folder))
        if found is not None:
            stage(found)
        if existing is not None:
            tracking.link_output(run_id, existing, step=step)
            info: ModelInfo = get_model_info(f"models:/{existing}")
        else:
            origin = {
                **({} if key is None else {STAGE_KEY: key}),
                tracking.STAGE: "package",
                tracking.SHA256: sha256_of(path / bundle.MANIFEST),
                **recorder.origin(manifest.graphs[0].sha256),
            }
            info = log_with_flavor(
                _TaggedFlavor(origin),
                run_id=run_id,
                tags=tags,
                step=step,
                model_id=model_id,
                model=path,
                # Every variant was run on the example when the bundle was built.
                validate_serving_input=False,
                **arguments,
            )
        model = tracking.resolve(info.model_id)
        version, described = None, False
        if registered_model_name is not None:
            known = [] if existing is None else _versions_of(existing, registered_model_name)
            registered = (
                known[0]
                if known
                else mlflow.register_model(
                    info.model_uri,
                    registered_model_name,
                    await_registration_for=await_registration_for,
                    tags=None if tags is None else dict(tags),
                )
            )
            tag_digests(registered, model)
            info.registered_model_version = version = registered.version
            described = bool(known and registered.description)
        if found is None:
            tracking.link_output(stage.run_id, info.model_id, step=step)
            stage.result = StageResult(
                model_id=str(info.model_id), mlmodel_sha256=model.tags[tracking.MLMODEL_SHA256]
            )
        stage.line.append(info.model_uri)
        if version is not None:
            stage.line.append(f"{registered_model_name} version {version}")
        if found is not None:  # it has its report
            log_summary(manifest, recorder, run_id=run_id, model_id=None)
        else:
            log_report(
                manifest,
                run_id=run_id,
                name=registered_model_name or recorder.name,
                version=version,
                model_id=info.model_id,
                stages=recorder,
            )
        if registered_model_name is not None and version is not None:
            if described:  # it may tell of a decision since
                describe_run(run_id, str(registered.description))
            else:
                describe_version(manifest, name=registered_model_name, version=version)
            tracking.rename_run(run_id, f"{recorder.name} v{version}")
    recorder.log_reused(run_id)
    return LoggedModelInfo(info, manifest, registered_model_name)


def _key(
    manifest: Manifest,
    path: Path,
    recorder: tracking.MlflowRecorder,
    registered_model_name: str | None,
    tags: Mapping[str, Any] | None,
    model_id: str | None,
    arguments: Mapping[str, Any],
) -> str | None:
    """The key of a bundle's model; None for one that is written into a model of the caller's."""
    if model_id is not None:
        return None
    signature = arguments["signature"]
    return stage_key(
        "package",
        manifest=to_json(dataclasses.replace(manifest, reused={})),
        example=bundle.read_example(path),
        source=recorder.source,
        registered=registered_model_name,
        tags=None if tags is None else dict(tags),
        environment=_environment(arguments),
        remote=[UNKNOWN for file in arguments.get("extra_files") or () if _is_remote(file)],
        **{
            **{name: _content(value) for name, value in arguments.items()},
            "signature": signature.to_dict() if hasattr(signature, "to_dict") else signature,
        },
    )


def _content(value: Any) -> Any:
    """A value with the names of files as their paths, whose content is what counts."""
    if isinstance(value, str | Path):
        text = str(value)
        path = url2pathname(urlsplit(text).path) if text.startswith("file:/") else text
        try:
            if ":/" not in path and Path(path).is_file():
                return text, Path(path)
            return UNKNOWN if Path(path).is_dir() else value
        except (OSError, ValueError):  # a text that no file can be named by
            return value
    return [_content(each) for each in value] if isinstance(value, list | tuple) else value


def _environment(arguments: Mapping[str, Any]) -> Any:
    """The requirements as MLflow reads them, from files that name others with -r and -c too."""
    described = Description.of(arguments)
    given = (described.conda_env, described.pip_requirements, described.extra_pip_requirements)
    return None if given == (None, None, None) else described.environment([])


def _is_remote(file: Any) -> bool:
    return ":/" in str(file) and not str(file).startswith("file:/")


def _versions_of(model_id: str, name: str) -> list[ModelVersion]:
    """The versions of a registered model that are one LoggedModel, the newest first."""
    return [each for each in all_versions(name) if model_id in str(each.source)]


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
