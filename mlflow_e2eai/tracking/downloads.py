"""Files of a model, downloaded one by one as they are needed."""

from __future__ import annotations

import atexit
import contextlib
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mlflow_e2eai.artifacts.files import (
    atomic_write,
    from_json,
    read_text,
    reading_error,
    require_inside,
    to_json,
    verify,
)
from mlflow_e2eai.artifacts.values import Array
from mlflow_e2eai.bundle.attestation.envelope import (
    MLMODEL,
    SIGNATURE,
    require_signature,
)
from mlflow_e2eai.bundle.digests import (
    CACHE,
    DIGESTS,
    read_digests,
    refuse_links,
    verify_listed,
)
from mlflow_e2eai.bundle.manifest import EXAMPLE, MANIFEST, read_example
from mlflow_e2eai.errors import (
    ArtifactError,
    E2EAIError,
    InvalidInputError,
    TrackingError,
    brief,
    shown,
)
from mlflow_e2eai.runtime.storage import storage_error
from mlflow_e2eai.runtime.termination import interruption_of
from mlflow_e2eai.tracking.lineage import MLMODEL_SHA256, SHA256, resolve
from mlflow_e2eai.tracking.server import (
    address,
    as_mlflow_error,
    complete_download,
    failed_request,
)
from mlflow_e2eai.tracking.versions import is_model_id, uri_of

if TYPE_CHECKING:
    from mlflow.entities import LoggedModel

    from mlflow_e2eai.bundle.attestation.signatures import PublicKey


FLAVOR = "mlflow_e2eai"
"""Name of this package's flavor in MLmodel."""

_AGAIN = "log the model again."


class ModelFiles:
    """A model's directory on this machine, into which its files are downloaded one by one.

    MLflow downloads whole models, but its artifact repositories give single files too, through a
    tracking server's proxy as from a store of one's own.

    Attributes:
        directory: The model itself if it is on this machine, else the folder for its files. MLmodel
            is there from the start.
    """

    def __init__(self, uri: str, directory: str | Path | None = None) -> None:
        """Find a model.

        Args:
            uri: A local path, any URI of a model that MLflow knows, or a name; see `uri_of`.
            directory: An existing directory for its files; by default the model itself where it is
                on this machine, and else a new temporary one.

        Raises:
            TrackingError: There is no such model. It is a `mlflow.exceptions.MlflowException` too.
        """
        from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

        self._uri, self._is_copied = uri_of(uri), directory is not None
        self._listed: Mapping[str, str] | None = None
        target = None if directory is None else str(directory)
        try:
            if self._uri.startswith("runs:/"):
                # A run's repository puts each file into a folder of the model's name.
                self._uri = str(resolve(self._uri).model_uri)
            self._repository = get_artifact_repository(self._uri)
            self.directory = Path(
                complete_download(lambda: self._repository.download_artifacts("MLmodel", target))
            ).parent
        except Exception as error:  # stores of artifacts raise errors of any kind
            if (failure := _missing_model(uri, error)) is None:
                raise
            raise as_mlflow_error(failure, error) from error

    def bundle(
        self, *, with_code: bool = False, key: PublicKey | None = None
    ) -> tuple[str, str | None]:
        """The folder of its bundle, and the digest of the bundle's manifest.

        MLmodel is compared with the digest that the tracking server has.

        Args:
            with_code: Make the code importable that was logged with it.
            key: The key that must have signed the model; None where it need not be signed.

        Returns:
            The folder, relative to the model; and the digest, None for a model of an older version
            of this package.

        Raises:
            ArtifactError: The model is not of this flavor, a file has changed, or is not signed by
                that key.
        """
        from mlflow_e2eai.tracking import _mlflow

        if self._uri.startswith("models:/"):
            with contextlib.suppress(TrackingError):  # it is of MLflow 2
                _verify_mlmodel(self.directory, resolve(self._uri))
        listed = None
        if key is not None:
            if SIGNATURE in self.names():
                self.fetch(SIGNATURE)
            listed = require_signature(self.directory, self._uri, [key])
        configuration = dict(_mlflow.get_flavor_configuration(self.directory, FLAVOR))
        data, code = str(configuration.get("data", ".")), configuration.get("code")
        if listed is None and "digests" in configuration:
            self.fetch(DIGESTS)
            listed = read_digests(self.directory, str(configuration["digests"]))
        if with_code and code is not None:
            self.fetch(str(code))
            place = self._copy_code(str(code))
            if listed is not None:
                verify_listed(place / str(code), _below(listed, str(code)))
            _mlflow.add_code_to_system_path(place, configuration)
        require_inside(data, f"The MLmodel file of {self._uri} names the bundle {data!r}")
        self._listed = listed
        return data, None if listed is None else listed.get(f"{data}/{MANIFEST}", "missing")

    def _copy_code(self, code: str) -> Path:
        """Copy the code into a folder of its own, which is there as long as this process.

        Python writes a compiled file next to each module that it imports, into a model that may
        have no other files than those it was made of; and would run one that somebody put there.
        """
        refuse_links(self.directory, [code])
        place = Path(tempfile.mkdtemp(prefix="e2eai-code-"))
        atexit.register(shutil.rmtree, place, ignore_errors=True)
        try:
            shutil.copytree(
                self.directory / code,
                place / code,
                symlinks=True,
                ignore=shutil.ignore_patterns(CACHE),
                dirs_exist_ok=True,
            )
        except OSError as error:
            msg = f"The code of {self._uri} cannot be read: {reading_error(error)}; {_AGAIN}"
            raise ArtifactError(msg) from error
        return place

    def read_example(self, data: str) -> dict[str, Array]:
        """Download the input example of the model's bundle, and read it.

        Args:
            data: The folder that `bundle` returned.

        Raises:
            ArtifactError: It cannot be downloaded or read, or has changed.
        """
        name = f"{data}/{EXAMPLE}"
        self.fetch(name)
        if self._listed is not None:
            verify(self.directory / name, self._listed.get(name, "missing"))
        return read_example(self.directory / data)

    def names(self) -> list[str]:
        """The files and folders that are at the top of the model."""
        return [str(item.path) for item in self._repository.list_artifacts("")]

    def fetch(self, path: str) -> None:
        """Download a file or folder, named relative to the model, into the directory.

        Raises:
            ArtifactError: It cannot be downloaded.
        """
        from mlflow.exceptions import MlflowException

        require_inside(path, f"The model {self._uri} names the file {path!r}")
        if not self._is_copied and (self.directory / path).exists():
            return
        try:
            complete_download(
                lambda: self._repository.download_artifacts(path, str(self.directory))
            )
        except (MlflowException, OSError) as error:
            reason = (
                str(error).strip().splitlines()[-1]
            )  # MLflow lists its failed attempts before it
            msg = f"{path} of {self._uri} cannot be downloaded: {reason}; {_AGAIN}"
            raise ArtifactError(msg) from error


def _missing_model(uri: object, error: Exception) -> E2EAIError | None:
    """The error as a sentence about the model; None where it is about something else."""
    if isinstance(error, TrackingError | InvalidInputError):
        return error
    if interruption_of(error) is not None or storage_error(error) is not None:
        return None
    last = Exception(str(error).strip().rpartition("\n")[2])  # MLflow lists its attempts before
    reason = brief(last).rstrip(".")
    return failed_request(error) or TrackingError(
        f"There is no MLflow model at {shown(uri)}: {reason}; give the folder of one, or a "
        "URI such as models:/name/1 or models:/name@alias."
    )


def _below(listed: Mapping[str, str], folder: str) -> dict[str, str]:
    """The listed files of a folder, by their names in it."""
    start = f"{folder}/"
    return {name.removeprefix(start): listed[name] for name in listed if name.startswith(start)}


def manifest_sha256(bundle: Path, key: PublicKey | None = None) -> str | None:
    """The digest of a bundle's manifest in the list of its model's files; None without a list.

    Args:
        bundle: The bundle, in the folder of its model.
        key: The key that must have signed the list; None where it need not be signed.

    Raises:
        ArtifactError: The list has changed since the MLmodel file was written, or is not signed.
    """
    from mlflow.exceptions import MlflowException

    from mlflow_e2eai.tracking import _mlflow

    model = bundle.parent
    if key is not None:
        signed = require_signature(model, str(model), [key])
        return signed.get(f"{bundle.name}/{MANIFEST}", "missing")
    if not (model / MLMODEL).exists():
        return None
    try:
        configuration = _mlflow.get_flavor_configuration(model, FLAVOR)
    except MlflowException:
        return None
    if "digests" not in configuration:
        return None
    listed = read_digests(model, str(configuration["digests"]))
    return listed.get(f"{bundle.name}/{MANIFEST}", "missing")


# Models without their graphs and engines, which are downloaded when a variant is loaded.


ORIGIN = "e2eai_origin.json"
"""File of a model with the origin of its other files."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """The origin of a model whose other files were not downloaded.

    Attributes:
        uri: The model, by the id of its LoggedModel.
        alias: The URI by which it was found, where that is one of an alias.
    """

    uri: str
    alias: str | None = None


def download(uri: str, directory: Path) -> Path:
    """Download a model without its graphs and engines, or a file or folder of it.

    Args:
        uri: ``models:/`` and a LoggedModel's id, a name and version, or a name and alias; with the
            path of a file or folder after it or not.
        directory: An existing directory.

    Returns:
        The model, with the origin of its other files; or the file or folder.

    Raises:
        InvalidInputError: It names no model.
        TrackingError: There is no such model.
        ArtifactError: A file of it cannot be downloaded.
        mlflow.exceptions.MlflowException: It is no pyfunc.
    """
    from mlflow_e2eai.tracking import _mlflow

    parts = uri.removeprefix("models:/").split("/")
    count = 1 if "@" in parts[0] or is_model_id(parts[0]) else 2
    # By its id: an alias may have moved when the other files are downloaded.
    model = resolve("models:/" + "/".join(parts[:count]))
    origin = str(model.model_uri)
    files = ModelFiles(origin, directory)
    if path := "/".join(parts[count:]):
        files.fetch(path)
        return directory / path
    _verify_mlmodel(directory, model)
    data = str(_mlflow.get_flavor_configuration(directory, "python_function").get("data"))
    for name in files.names():
        if name != data:
            files.fetch(name)
    files.fetch(f"{data}/{MANIFEST}")
    if SHA256 in model.tags:
        verify(directory / data / MANIFEST, model.tags[SHA256])
    with atomic_write(directory / ORIGIN) as out:
        alias = f"models:/{parts[0]}" if "@" in parts[0] else None
        out.write_text(to_json(Origin(uri=origin, alias=alias)), encoding="utf-8")
    return directory


def alias_of(model: Path) -> str | None:
    """The alias by which `download` found a model, as a URI; None where it was found otherwise."""
    try:
        return from_json(Origin, (model / ORIGIN).read_bytes()).alias
    except FileNotFoundError:
        return None


def fetcher(bundle: Path) -> Callable[[Path], None]:
    """Return a function that downloads a file of a bundle, unless it is there.

    Args:
        bundle: The folder, in that of its model.
    """
    model = bundle.parent
    try:
        text = (model / ORIGIN).read_bytes()
    except FileNotFoundError:  # it is whole
        return lambda _: None
    files = ModelFiles(from_json(Origin, text).uri, model)

    def fetch(path: Path) -> None:
        if not (bundle / path).exists():
            files.fetch((bundle / path).relative_to(model).as_posix())

    return fetch


def _verify_mlmodel(path: Path, model: LoggedModel) -> None:
    """Compare the MLmodel file of a downloaded model with the digest that the server has."""
    if (recorded := model.tags.get(MLMODEL_SHA256)) is not None:
        verify(path / MLMODEL, recorded)


# Texts of runs, or on disk.


def fetch_text(uri: str) -> str:
    """Read a text.

    Args:
        uri: A path, or the URI of an artifact in MLflow, such as
            ``runs:/run_id/bisection.json``.

    Raises:
        TrackingError: It cannot be downloaded.
        ArtifactError: There is no such file, it is no text, or too long.
    """
    import mlflow
    from mlflow.exceptions import MlflowException

    if ":/" not in uri:
        return read_text(Path(uri))
    try:
        with tempfile.TemporaryDirectory() as folder:
            return read_text(
                Path(
                    complete_download(
                        lambda: mlflow.artifacts.download_artifacts(uri, dst_path=folder)
                    )
                )
            )
    except (MlflowException, OSError) as error:
        msg = f"{uri} cannot be downloaded, with MLflow at {address()}: {error}; check the path."
        raise TrackingError(msg) from error
