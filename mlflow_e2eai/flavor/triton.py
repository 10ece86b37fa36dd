"""A logged bundle -> a model repository of NVIDIA's Triton Inference Server."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Sequence
from pathlib import Path

from mlflow_e2eai import bundle, tracking
from mlflow_e2eai.artifacts.libraries import native_allowed
from mlflow_e2eai.bundle.triton.models import models_of
from mlflow_e2eai.bundle.triton.repository import _NAME, _write
from mlflow_e2eai.errors import (
    InvalidInputError,
    require_flags,
    require_kind,
    require_path,
    warn_caller,
)
from mlflow_e2eai.runtime.storage import storage_errors
from mlflow_e2eai.tracking.versions import uri_of


@storage_errors()
def export_triton(
    model_uri: str,
    repository: str | Path,
    *,
    name: str | None = None,
    replace: bool = False,
    allow_native: Sequence[str] = (),
) -> tuple[Path, ...]:
    """Write a model repository for NVIDIA's Triton Inference Server.

    There is one Triton model for each precision that TensorRT engines are in and one for each
    graph, which ONNX Runtime runs: ``digits-tensorrt-fp16``, ``digits-onnxruntime-fp32``. Variants
    that failed their comparison with the PyTorch module are left out, and those that Triton cannot
    serve; one warning has the reasons, and another the options that the server needs.

    Triton batches requests along the first axis where it is the same dynamic axis of all inputs and
    outputs and an item's outputs were found not to depend on the other items; else a
    request is a whole batch, with the first axis among its dimensions.

    Args:
        model_uri: A bundle's folder, or any URI of a model that MLflow knows.
        repository: The folder with Triton's models; created if it is missing.
        name: Prefix of the names of the Triton models; by default the registered model's
            name, else the logged model's, else the folder's.
        replace: Replace Triton models that are there under these names.
        allow_native: Libraries with operators in the model that Triton may load, by file name.

    Returns:
        The folders of the Triton models.

    Raises:
        InvalidInputError: Nothing of it can be served, a Triton model of that name is there, or
            the folder cannot be written.
        ArtifactError: A file is missing or has changed.
        RunnerError: A library that it needs is not allowed.
        TrackingError: There is no such model.

    Examples:
        >>> paths = mlflow_e2eai.export_triton("models:/digits/2", folder / "triton")
    """
    root = require_path("repository", repository, "the path of a folder").absolute()
    if name is not None:
        require_kind("name", name, str, "a prefix of names")
    require_flags(replace=replace)
    with tempfile.TemporaryDirectory() as folder, native_allowed(allow_native):
        directory, own_name, manifest = _bundle(model_uri, Path(folder))
        prefix = own_name if name is None else name
        if not _NAME.fullmatch(prefix):
            msg = (
                f"The name {prefix!r} is not a name that Triton takes; use letters, digits and _ "
                ". - only."
            )
            raise InvalidInputError(msg)
        models, left_out = models_of(manifest, bundle.read_example(directory), prefix)
        if left_out:
            msg = f"Triton cannot serve all of {model_uri}: {'; '.join(left_out)}."
            if not models:
                raise InvalidInputError(msg)
            warn_caller(msg)
        folders = tuple(root / model.name for model in models)
        if not replace and (taken := [each.name for each in folders if each.exists()]):
            msg = (
                f"{root} has {', '.join(taken)}; replace them (replace=True), or give another name."
            )
            raise InvalidInputError(msg)
        try:
            _write(models, root, model_uri)
        except OSError as error:
            msg = f"The repository {root} cannot be written: {error}; give another folder."
            raise InvalidInputError(msg) from error
    if needs := [f"{model.name} needs {need}" for model in models for need in model.needs]:
        warn_caller(f"Of Triton's server, {'; '.join(needs)}.")
    return folders


def _bundle(uri: str | Path, folder: Path) -> tuple[Path, str, bundle.Manifest]:
    """The folder of a bundle, the name that its model has, and its manifest, all verified."""
    model = uri_of(uri)
    if not tracking.is_uri(model):
        path = Path(model)
        found = bundle.find(path)
        return found, path.absolute().name, tracking.audit_saved(found)
    logged = tracking.ancestor(tracking.resolve(uri), ("package",))
    registered = re.fullmatch(r"models:/(.+)(?:@|/)[^@/]+", model)
    name = registered[1] if registered else str(logged.name)
    found = bundle.find(tracking.fetch_verified(logged, folder))
    return found, name, bundle.audit(found, whole=False)
