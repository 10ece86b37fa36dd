"""Whole models, with every file compared with its digest."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING

from mlflow_e2eai.artifacts.files import sha256_of, verify
from mlflow_e2eai.bundle.attestation.envelope import (
    ATTACHED,
    MLMODEL,
    SIGNATURE,
    attached_digests,
)
from mlflow_e2eai.bundle.audit import audit
from mlflow_e2eai.bundle.digests import DIGESTS, read_digests, verify_listed
from mlflow_e2eai.bundle.manifest import FOLDER, Manifest
from mlflow_e2eai.errors import ArtifactError
from mlflow_e2eai.tracking.downloads import FLAVOR, manifest_sha256
from mlflow_e2eai.tracking.lineage import MLMODEL_SHA256, SHA256, SIGNATURE_SHA256, fetch

if TYPE_CHECKING:
    from mlflow.entities import LoggedModel


def fetch_verified(model: LoggedModel, folder: Path) -> Path:
    """Download a bundle's LoggedModel, and verify the digest of each of its files.

    Raises:
        ArtifactError: See `verify_model`.
        TrackingError: Its files are not there.
    """
    path = fetch(model, folder)
    verify_model(path, model)
    return path


def verify_model(path: Path, model: LoggedModel, *, anew: bool = False) -> dict[str, str]:
    """Check that a downloaded bundle is, file by file, the one that was logged.

    The tracking server has the digest of MLmodel, and MLmodel that of the list of all other files.
    Of a model that was signed later it has the digest of the signature, which lists all of them.

    Args:
        path: The files.
        model: The LoggedModel.
        anew: Whether it is about to be signed anew: what was attached before does not count.

    Returns:
        The digests of all files by name, but for the signature's.

    Raises:
        ArtifactError: A file is missing, has changed, or was not in the model; or it was logged by
            a version of this package that listed no digests.
    """
    digests = verify_logged_files(
        path,
        model.tags.get(MLMODEL_SHA256),
        signature_sha256=None if anew else model.tags.get(SIGNATURE_SHA256),
        ignored=(SIGNATURE, *ATTACHED) if anew else (),
        subject=f"models:/{model.model_id}",
    )
    audit(path / FOLDER, sha256=model.tags[SHA256])
    return digests


def verify_folder(path: Path, *, anew: bool = False) -> dict[str, str]:
    """Check that the bundle of a user's folder is, file by file, what its MLmodel file lists.

    The arguments, result and errors are those of `verify_model`.
    """
    digests = _verify_folder_files(path, anew=anew)
    audit(path / FOLDER)
    return digests


def audit_saved(directory: Path) -> Manifest:
    """Audit the bundle in a user's folder, and all files that its model lists.

    Those beside the bundle's own, and its input example, are in no manifest. A model of an older
    version of this package lists none, and a bundle without a model around it neither.

    Args:
        directory: The bundle.

    Returns:
        The manifest with absolute paths of its files.

    Raises:
        ArtifactError: A file is missing, has changed, or was not in the model.
    """
    sha256 = manifest_sha256(directory)
    manifest = audit(directory, sha256=sha256)
    if sha256 is not None:
        _verify_folder_files(directory.parent)
    return manifest


def _verify_folder_files(path: Path, *, anew: bool = False) -> dict[str, str]:
    signature = path / SIGNATURE
    return verify_logged_files(
        path,
        sha256_of(path / MLMODEL),
        signature_sha256=sha256_of(signature) if signature.exists() and not anew else None,
        ignored=(SIGNATURE, *ATTACHED) if anew else (),
    )


def verify_logged_files(
    path: Path,
    mlmodel_sha256: str | None,
    *,
    signature_sha256: str | None = None,
    ignored: Collection[str] = (),
    subject: str = "The model",
) -> dict[str, str]:
    """Check the files of a downloaded model by the digests of its MLmodel and its signature.

    Args:
        path: The model.
        mlmodel_sha256: The first digest.
        signature_sha256: The second; None for a model that is not signed.
        ignored: Names of files that may be there or not.
        subject: The model, for errors.

    Returns:
        The digests of all files by name, but for the signature's.

    Raises:
        ArtifactError: A file is missing, has changed, or was not in the model; or there is no
            digest.
    """
    from mlflow_e2eai.tracking import _mlflow

    if mlmodel_sha256 is None:
        msg = "It has no digests of its files, as it was logged by an older mlflow_e2eai."
        raise ArtifactError(msg)
    verify(path / MLMODEL, mlmodel_sha256)
    digest = str(_mlflow.get_flavor_configuration(path, FLAVOR).get("digests", ""))
    listed, attached = read_digests(path, digest), {}
    if signature_sha256 is not None:
        attached = attached_digests(path, subject, signature_sha256)
        ignored = (SIGNATURE, *attached)
    own = (DIGESTS, MLMODEL, "registered_model_meta")
    verify_listed(path, listed, unlisted=(*own, *ignored))
    return {**listed, MLMODEL: mlmodel_sha256, DIGESTS: digest, **attached}
