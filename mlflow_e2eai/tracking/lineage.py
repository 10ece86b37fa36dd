"""URIs -> LoggedModels, and their lineage."""

from __future__ import annotations

import dataclasses
import functools
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from mlflow_e2eai.artifacts import libraries
from mlflow_e2eai.artifacts.external_data import inside
from mlflow_e2eai.artifacts.files import from_json, read_bytes, verify
from mlflow_e2eai.artifacts.values import EngineArtifact, OnnxArtifact
from mlflow_e2eai.artifacts.weight_files import verify_graph
from mlflow_e2eai.errors import ArtifactError, InvalidInputError, TrackingError, brief, shown
from mlflow_e2eai.tracking.server import (
    address,
    check_server,
    complete_download,
    lookups_are_cached,
)
from mlflow_e2eai.tracking.versions import (
    MODEL_ID,
    is_model_id,
    literal,
    registered_version,
    split_version,
    uri_of,
)

if TYPE_CHECKING:
    from mlflow.entities import LoggedModel
    from mlflow.entities.model_registry import ModelVersion

STAGE = "e2eai.stage"
"""Tag: the stage that made a model."""

OUTPUTS = {
    "source": ("a PyTorch model", "log"),
    "export": ("an exported graph", "export"),
    "clean": ("a cleaned graph", "clean"),
    "convert": ("a converted graph", "convert"),
    "compile": ("an engine", "compile"),
    "package": ("a bundle", "pipeline"),
}
"""Noun for the output of a stage, and the verb that makes it."""

PARENT = "e2eai.derived_from"
"""Tag: id of the model that it was made from."""

SOURCE = "e2eai.source_model"
"""Tag: id of the PyTorch model at the root."""

SHA256 = "e2eai.sha256"
"""Tag: digest of its file; of a bundle, of its manifest."""

MLMODEL_SHA256 = "e2eai.mlmodel_sha256"
"""Tag of a bundle's model: digest of its MLmodel, which has that of the list of all other files."""

SIGNATURE_SHA256 = "e2eai.signature_sha256"
"""Tag of a signed bundle's model: digest of the file with its signature."""

PARENT_RUN = "mlflow.parentRunId"
"""MLflow's tag: the run above a child."""

ERROR = "e2eai.error"
"""Tag: why it failed."""

REPORT = "e2eai.report"
"""Tag of a bundle's model: where its report is in its run."""

ASSUMED = "e2eai.assumed"
"""Tag of a PyTorch model: what its input example and axes assume, a line for each."""

ARTIFACT = "artifact.json"
"""File of a stage's model that holds its artifact."""

Artifact = TypeVar("Artifact", OnnxArtifact, EngineArtifact)


def is_uri(text: str | Path) -> bool:
    """Whether a text names a model for `resolve`, and is no path."""
    return ":/" in uri_of(text)


def resolve(uri: str | Path) -> LoggedModel:
    """The LoggedModel that a URI names.

    Args:
        uri: A LoggedModel id, ``models:/m-...``, ``models:/name/version``, ``models:/name/latest``,
            ``models:/name@alias`` or ``models:/name``, the newest version, each with or without the
            prefix; or ``runs:/run_id/name``.

    Raises:
        InvalidInputError: It is none of these.
        TrackingError: There is no such model.
    """
    text, uri = str(uri), uri_of(uri)
    path = uri.removeprefix("models:/")
    if lookups_are_cached() and is_model_id(path):
        return _resolve_once(address(), path)  # for all jobs on its lineage
    return _resolve(uri, text)


@functools.lru_cache(maxsize=64)
def _resolve_once(uri: str, model_id: str) -> LoggedModel:  # noqa: ARG001 - one id may be in two stores
    return _resolve(model_id, model_id)


def _resolve(uri: str, text: str) -> LoggedModel:
    """The LoggedModel at a URI, which the caller gave as a text."""
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    check_server()
    client = MlflowClient()
    path = uri.removeprefix("models:/")
    try:
        if is_model_id(path):
            return client.get_logged_model(path)
        if uri.startswith("runs:/"):
            return _model_of_run(uri)
        if uri.startswith("models:/") and (names := split_version(uri)):
            return model_of_version(registered_version(*names))
    except MlflowException as error:
        found = f"model {shown(uri)}"
        if ":/" not in text and not is_model_id(text):
            found = f"file or folder {shown(text)}, and no such model"
        msg = f"There is no {found} at {address()}: {brief(error)}"
        raise TrackingError(msg) from error
    msg = (
        f"{shown(uri)} is not a model URI; give a LoggedModel id, models:/name/version, "
        "models:/name@alias or runs:/run_id/name."
    )
    raise InvalidInputError(msg)


def model_of_version(version: ModelVersion) -> LoggedModel:
    """The LoggedModel of a registered version.

    A copy of a version of another name has the place of its files too, so that the other version
    may be deleted.

    Raises:
        TrackingError: It is not there, or the version is of before MLflow 3, which has none.
        ArtifactError: The version was registered with other digests than the model has now.
    """
    uri, source = f"models:/{version.name}/{version.version}", str(version.source)
    try:
        if not (ids := MODEL_ID.findall(source)) and not source.startswith("runs:/"):
            ids = MODEL_ID.findall(_location(version))
        if ids or source.startswith("runs:/"):
            model = resolve(ids[-1] if ids else source)
            _check_digests(version, model)
            return model
    except TrackingError as error:
        msg = f"The model of {uri} is not there: {brief(error)}"
        raise TrackingError(msg) from error
    msg = (
        f"{uri} is not a LoggedModel: its files are at {source}, as in MLflow 2; log it again with "
        f"mlflow.pytorch.log_model(mlflow.pytorch.load_model({uri!r}), name=..., "
        "input_example=...) of MLflow 3."
    )
    raise TrackingError(msg)


ROOTS = (SHA256, MLMODEL_SHA256)
"""Tags of a bundle's model that its versions have too."""


def tag_digests(version: ModelVersion, model: LoggedModel) -> None:
    """Put the digests of a bundle's files on a version of it, where it has none yet.

    Raises:
        ArtifactError: It has others: they are a witness, and stay.
    """
    from mlflow_e2eai.tracking._mlflow import registry_client

    _check_digests(version, model)
    for tag in (tag for tag in ROOTS if tag not in version.tags):
        name, number = str(version.name), str(version.version)
        registry_client().set_model_version_tag(name, number, tag, model.tags[tag])


def _check_digests(version: ModelVersion, model: LoggedModel) -> None:
    for tag in ROOTS:
        if version.tags.get(tag, model.tags.get(tag)) != model.tags.get(tag):
            msg = (
                f"models:/{version.name}/{version.version} was registered with other files than "
                f"its model has now: their tags {tag} differ; find out who changed them."
            )
            raise ArtifactError(msg)


def _location(version: ModelVersion) -> str:
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    try:
        return str(MlflowClient().get_model_version_download_uri(version.name, version.version))
    except MlflowException:  # a copy whose origin was deleted, in a registry that looks it up anew
        return ""


def _model_of_run(uri: str) -> LoggedModel:
    """The model of a run; of several that have the name, the one of the largest step.

    That is the one which MLflow registers. Of one step, it is the last.
    """
    from mlflow import MlflowClient

    run_id, _, name = uri.removeprefix("runs:/").partition("/")
    client = MlflowClient()
    run = client.get_run(run_id)
    models = client.search_logged_models(
        [run.info.experiment_id],
        f"source_run_id = '{run_id}' AND name = {literal(name)}",
    )
    if not models:
        msg = (
            f"Run {run_id} has no model {name!r}; see its outputs in the MLflow UI. (MLflow 2 "
            "stored models as files of a run; log such a model again with MLflow 3.)"
        )
        raise TrackingError(msg)
    outputs = run.outputs.model_outputs if run.outputs else ()
    steps = {output.model_id: output.step for output in outputs}
    return max(
        models,
        key=lambda model: (steps.get(model.model_id, -1), int(model.creation_timestamp)),
    )


def ancestor(model: LoggedModel, stages: Sequence[str]) -> LoggedModel:
    """The nearest model on the way to the root that one of these stages made, itself included.

    A model with no stage tag was not logged by this package, and counts as a ``source``.

    Raises:
        TrackingError: There is none.
    """
    at = model
    while (stage := at.tags.get(STAGE, "source")) not in stages:
        parent = at.tags.get(PARENT)
        if parent is None:
            found, _ = OUTPUTS.get(model.tags.get(STAGE, "source"), ("an unknown model", ""))
            wanted, verb = OUTPUTS[stages[0]]
            msg = (
                f"Model {model.model_id} is {found}, but this step needs {wanted}, or a model made "
                f"from one; run `mlflow_e2eai {verb}` first, or `mlflow_e2eai pipeline` for all "
                "steps."
            )
            raise TrackingError(msg)
        at = resolve(parent)
        if stage == at.tags.get(STAGE, "source") and at.model_id == model.model_id:
            msg = (
                f"Model {model.model_id} is its own parent, so its tags were changed; log it again."
            )
            raise TrackingError(msg)
    return at


def source_of(model: LoggedModel) -> LoggedModel | None:
    """The PyTorch model that a model was made from; None where that was an ONNX file.

    By the model's own tag where it has one: a graph that it was made from may be that of an earlier
    model which gave the same graph.
    """
    if (source := model.tags.get(SOURCE)) is not None:
        return resolve(source)
    root = ancestor(model, ("source", "export"))
    if root.tags.get(STAGE) != "export" or PARENT in root.tags:
        return ancestor(root, ("source",))
    return None


def fetch(model: LoggedModel, folder: Path) -> Path:
    """Download a LoggedModel.

    Raises:
        TrackingError: Its files are not there.
    """
    import mlflow
    from mlflow.exceptions import MlflowException

    try:
        # By its URI MLflow would request the model once more.
        place, target = model.artifact_location, str(folder)
        return Path(
            complete_download(lambda: mlflow.artifacts.download_artifacts(place, dst_path=target))
        )
    except (MlflowException, OSError) as error:
        msg = f"The files of model {model.model_id} cannot be downloaded from {address()}: {error}"
        raise TrackingError(msg) from error


class GraphCache:
    """The graphs that a process fetched for its last job, for the next one.

    Args:
        folder: An empty folder for them.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._last: dict[str, OnnxArtifact] = {}
        self._now: dict[str, OnnxArtifact] = {}

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """Make `fetch_graph` of the job in the block use this cache."""
        token = _GRAPHS.set(self)
        try:
            yield
        finally:
            _GRAPHS.reset(token)
            for graph in self._last.values():
                shutil.rmtree(graph.path.parent)
            self._last, self._now = self._now, {}

    def graph(self, model: LoggedModel) -> OnnxArtifact:
        """Return a model's graph; downloaded, and its digest checked, unless it is cached."""
        graph = self._now.get(model.model_id) or self._last.pop(model.model_id, None)
        if graph is None:
            folder = tempfile.mkdtemp(dir=self._folder)
            graph = _fetch_artifact(OnnxArtifact, model, Path(folder))
        self._now[model.model_id] = graph
        return graph


_GRAPHS: ContextVar[GraphCache | None] = ContextVar("_GRAPHS", default=None)


def fetch_graph(model: LoggedModel, folder: Path) -> OnnxArtifact:
    """Download an ONNX artifact and check its digest, unless a `GraphCache` in use has it."""
    cache = _GRAPHS.get()
    return _fetch_artifact(OnnxArtifact, model, folder) if cache is None else cache.graph(model)


def fetch_engine(model: LoggedModel, folder: Path) -> EngineArtifact:
    """Download an engine and check its digest."""
    return _fetch_artifact(EngineArtifact, model, folder)


def _fetch_artifact(kind: type[Artifact], model: LoggedModel, folder: Path) -> Artifact:
    return read_artifact(kind, model, fetch(model, folder))


def read_artifact(kind: type[Artifact], model: LoggedModel, directory: Path) -> Artifact:
    """Read the artifact of a downloaded LoggedModel, and check its digest."""
    if not (directory / ARTIFACT).is_file():
        msg = f"Model {model.model_id} has no {ARTIFACT}; give the output of a stage."
        raise ArtifactError(msg)
    artifact = from_json(kind, read_bytes(directory / ARTIFACT))
    name = artifact.path.as_posix()
    subject = f"Model {model.model_id} names its file {name!r}"
    artifact = dataclasses.replace(
        artifact,
        path=inside(name, directory, subject, advice="log it again"),
        libraries=libraries.resolve_libraries(artifact.libraries, directory),
    )
    recorded = model.tags.get(SHA256, artifact.sha256)
    if isinstance(artifact, OnnxArtifact):
        verify_graph(artifact, recorded)
    else:
        verify(artifact.path, recorded)
    return artifact


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
