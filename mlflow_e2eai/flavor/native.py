"""`load_model`: a logged model as the best variant that this machine can run."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

from mlflow_e2eai import tracking
from mlflow_e2eai.bundle.attestation.signatures import find_public_key
from mlflow_e2eai.bundle.load import load
from mlflow_e2eai.bundle.model import Model
from mlflow_e2eai.errors import InvalidInputError, require_flags
from mlflow_e2eai.flavor.follower import PREFIX, FollowedModel, parse_alias
from mlflow_e2eai.runtime.storage import storage_errors
from mlflow_e2eai.tracking.console import quiet_mlflow
from mlflow_e2eai.tracking.versions import version_at

if TYPE_CHECKING:
    from mlflow_e2eai.bundle.attestation.signatures import PublicKey

SIGNER = "MLFLOW_E2EAI_REQUIRE_SIGNATURE"
"""Environment variable: the public key, or the path of its file, that must have signed every model
that is loaded, by `load_model` and by `mlflow.pyfunc.load_model`."""


@overload
def load_model(
    model_uri: str,
    dst_path: str | None = None,
    *,
    variant: str | None = None,
    goal: str = "latency",
    split: bool = False,
    fallback: bool = True,
    follow: None = None,
    allow_native: Sequence[str] = (),
    require_signature: str | Path | None = None,
) -> Model: ...


@overload
def load_model(
    model_uri: str,
    *,
    variant: str | None = None,
    goal: str = "latency",
    split: bool = False,
    fallback: bool = True,
    follow: float,
    allow_native: Sequence[str] = (),
    require_signature: str | Path | None = None,
) -> FollowedModel: ...


@storage_errors()
def load_model(
    model_uri: str,
    dst_path: str | None = None,
    *,
    variant: str | None = None,
    goal: str = "latency",
    split: bool = False,
    fallback: bool = True,
    follow: float | None = None,
    allow_native: Sequence[str] = (),
    require_signature: str | Path | None = None,
) -> Model | FollowedModel:
    """Load a model with the best variant that this machine can run.

    Of a model that is not on this machine, only the files of that variant are downloaded. Its
    `explain` returns the choice, and the reasons against the other variants.

    Args:
        model_uri: A local path or any URI of a model that MLflow knows.
        dst_path: An existing directory to download to.
        variant: The variant to run, for example ``onnxruntime-cpu/fp16``; by default the best.
        goal: The criterion: ``latency``, ``latency@8`` for calls of 8 items,
            ``throughput`` or ``memory``; see `bundle.load`, also for models without measurements.
        split: Cut batches that are too large for the profile, and fill those that are too small.
        fallback: Take the next variant when a better one cannot run; if False, that is an error.
        follow: Look this often, in seconds, where the alias of ``models:/name@alias`` is, and serve
            the version that has it; see `FollowedModel`.
        allow_native: Libraries in the model that may be loaded, by file name, for example
            ``libortextensions.so``: they are native code.
        require_signature: The public key that must have signed the model: a line such as
            ``ssh-ed25519 AAAA... name``, PEM, or the path of a file with either; by default that
            of the environment variable `SIGNER`, if it is set.

    Returns:
        A callable on named NumPy arrays or torch tensors; its attribute ``variant`` names
        the variant.

    Raises:
        TrackingError: There is no such model; a `mlflow.exceptions.MlflowException` too.
        InvalidInputError: The URI names no alias to follow, or the key is none.
        ArtifactError: The model is of another flavor (a `mlflow.exceptions.MlflowException` too);
            or it is not signed, is signed by another key, or has changed since.
        E2EAIError: See `bundle.load`.

    Examples:
        >>> with mlflow_e2eai.load_model("models:/digits/2") as model:
        ...     outputs = model(x)
        ...     why = model.explain()
    """
    options: dict[str, Any] = {
        "variant": variant,
        "goal": goal,
        "split": split,
        "fallback": fallback,
        "allow_native": allow_native,
        "require_signature": require_signature,
    }
    if follow is None:
        return _load(model_uri, dst_path, **options)[0]
    if dst_path is not None:
        msg = "Each version that is followed has a folder of its own; leave dst_path out."
        raise InvalidInputError(msg)
    name, alias = parse_alias(model_uri)
    return follow_alias(name, alias, every_s=follow, **options)


def follow_alias(name: str, alias: str, *, every_s: float, **options: Any) -> FollowedModel:
    """Load the version that has an alias, and again each time that the alias has moved.

    Args:
        name: The registered model.
        alias: The alias.
        every_s: Seconds between two looks.
        **options: Those of `bundle.load`, and ``require_signature`` of `load_model`.
    """

    def open_version(version: str) -> Model:
        model, files, data = _load(f"{PREFIX}{name}/{version}", None, **options)
        try:
            with quiet_mlflow():
                example = files.read_example(data)
            model(example)
        except BaseException:
            with model:  # frees it
                raise
        return model

    def look() -> str:
        return str(version_at(f"{PREFIX}{name}@{alias}").version)

    return FollowedModel(f"{name}@{alias}", every_s=every_s, look=look, load=open_version)


def signer(key: str | Path | None = None) -> PublicKey | None:
    """The public key that must have signed a model, from an argument or the environment.

    Raises:
        InvalidInputError: It is none.
    """
    if key is None:
        key = os.environ.get(SIGNER) or None  # set to nothing is not set
    return None if key is None else find_public_key(key)


def _load(
    model_uri: str, dst_path: str | None, *, require_signature: str | Path | None, **options: Any
) -> tuple[Model, tracking.ModelFiles, str]:
    key = signer(require_signature)
    require_flags(split=options["split"], fallback=options["fallback"])
    with quiet_mlflow():
        files = tracking.ModelFiles(model_uri, dst_path)
        data, sha256 = files.bundle(with_code=True, key=key)
        model = load(
            files.directory / data,
            sha256=sha256,
            fetch=lambda path: files.fetch(Path(data, path).as_posix()),
            **options,
        )
    return model, files, data
