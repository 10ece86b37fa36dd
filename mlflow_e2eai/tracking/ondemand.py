"""Models without their graphs and engines, which come when they are loaded."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from mlflow_e2eai.bundle import MANIFEST
from mlflow_e2eai.files import from_json, to_json, written
from mlflow_e2eai.tracking.files import ModelFiles
from mlflow_e2eai.tracking.lineage import is_uri, resolve

ORIGIN = "e2eai_origin.json"
"""File of a model that says where its other files are."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """Where a model's other files are.

    Attributes:
        uri: The model, by the id of its LoggedModel.
    """

    uri: str


def download(uri: str, directory: Path) -> Path:
    """Download a model but for what its variants are made of, or a file or folder of it.

    Args:
        uri: ``models:/`` and a LoggedModel's id, a name and version, or a name and alias; with the
            path of a file or folder after it or not.
        directory: Where to; it exists.

    Returns:
        The model, which says where its other files are; or the file or folder.

    Raises:
        InvalidInputError: It names no model.
        TrackingError: There is no such model.
        ArtifactError: A file of it cannot be had.
        mlflow.exceptions.MlflowException: It is no pyfunc.
    """
    from mlflow_e2eai import _compat

    parts = uri.removeprefix("models:/").split("/")
    count = 1 if "@" in parts[0] or is_uri(parts[0]) else 2
    # By its id: an alias may have moved on when the other files are asked for.
    origin = str(resolve("models:/" + "/".join(parts[:count])).model_uri)
    files = ModelFiles(origin, directory)
    if path := "/".join(parts[count:]):
        files.fetch(path)
        return directory / path
    data = _compat.get_flavor_configuration(directory, "python_function")["data"]
    for name in files.names():
        if name != data:
            files.fetch(name)
    files.fetch(f"{data}/{MANIFEST}")
    with written(directory / ORIGIN) as out:
        out.write_text(to_json(Origin(uri=origin)), encoding="utf-8")
    return directory


def fetcher(bundle: Path) -> Callable[[Path], None]:
    """What brings a file of a bundle to where it is to be, if it is not there.

    Args:
        bundle: The folder, in that of its model.
    """
    model = bundle.parent
    try:
        said = (model / ORIGIN).read_bytes()
    except FileNotFoundError:  # it is whole
        return lambda _: None
    files = ModelFiles(from_json(Origin, said).uri, model)

    def fetch(path: Path) -> None:
        if not (bundle / path).exists():
            files.fetch((bundle / path).relative_to(model).as_posix())

    return fetch
