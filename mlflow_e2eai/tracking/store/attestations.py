"""Models -> every file verified, and signed."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mlflow_e2eai import bundle
from mlflow_e2eai.artifacts.files import Summary, Table, atomic_write, read_text, sha256_of
from mlflow_e2eai.bundle.attestation.envelope import (
    ATTACHED,
    BILL,
    PROVENANCE,
    SIGNATURE,
    check_signed,
    read_signed,
    sign_files,
)
from mlflow_e2eai.bundle.attestation.materials import bill_of
from mlflow_e2eai.bundle.attestation.signatures import (
    find_public_key,
    fingerprint_of,
    private_key,
)
from mlflow_e2eai.bundle.attestation.slsa import BuildRun, statement_of
from mlflow_e2eai.errors import ArtifactError, TrackingError
from mlflow_e2eai.tracking.console import quiet_mlflow
from mlflow_e2eai.tracking.lineage import (
    PARENT_RUN,
    SHA256,
    SIGNATURE_SHA256,
    STAGE,
    fetch,
    is_uri,
    resolve,
    source_of,
    tag_model,
)
from mlflow_e2eai.tracking.server import mlflow_errors
from mlflow_e2eai.tracking.store.integrity import verify_folder, verify_model
from mlflow_e2eai.tracking.store.stage_results import REUSED_FROM, time_text

if TYPE_CHECKING:
    from mlflow.entities import LoggedModel, Run


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifiedFile:
    """A file that is as it was logged.

    Attributes:
        path: Its path in the model.
        sha256: Its digest.
    """

    path: str
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Verification(Summary):
    """Result of `verify` and of `sign`: all files are as they were logged.

    Attributes:
        model: The model.
        files: Its files, but for the signature.
        has_signature: Whether it has a signature.
        signed_by: Fingerprint of the key that signed them; None where no key was given to check it.
    """

    model: str
    files: tuple[VerifiedFile, ...]
    has_signature: bool
    signed_by: str | None = None

    @property
    def sentence(self) -> str:
        """The result, for people."""
        if self.signed_by is not None:
            signer = f"signed by {self.signed_by}"
        elif self.has_signature:
            signer = "signed, but nobody gave a key to check by whom"
        else:
            signer = "not signed"
        return f"{self.model}: {len(self.files)} files are as they were logged, {signer}"

    def _line(self) -> str:
        return self.sentence

    def _table(self) -> Table:
        return VerifiedFile, self.files


def verify(model_uri: str | Path, *, key: str | Path | None = None) -> Verification:
    """Read every file of a model, and compare it with what was logged and signed.

    The tracking server has the digest of MLmodel as a tag of the LoggedModel, MLmodel has that of
    the list of all other files, and the bundle's manifest has those of graphs and engines. Whoever
    may change the files and the tags can change both, unless the model is signed.

    Args:
        model_uri: The folder of a saved model, or any URI of a logged one.
        key: The public key that must have signed it: a line such as ``ssh-ed25519 AAAA... name``,
            PEM, or the path of a file with either.

    Raises:
        ArtifactError: It is no bundle of this package, a file has changed, is missing or was not
            logged; or it is not signed, is signed by another key, or is not what was signed.
        InvalidInputError: The key is none.
        TrackingError: There is no such model.

    Examples:
        >>> verification = mlflow_e2eai.verify("models:/digits/2", key=folder / "key.pub")
        >>> verification.has_signature
        True
    """
    public = None if key is None else find_public_key(key)
    with _open(model_uri) as model:
        digests = model.verify()
        signature = model.path / SIGNATURE
        if public is not None:
            signed = read_signed(signature, model.subject, [public])
            check_signed(model.subject, signed, digests)
        return _verification(
            model.subject,
            digests,
            has_signature=signature.exists(),
            signed_by=None if public is None else fingerprint_of(public),
        )


def sign(model_uri: str | Path, key: str | Path) -> Verification:
    """Verify every file of a model, and sign them.

    The signature is the file ``model.sig`` of the model, next to the files that it is about, which
    stay as they are; a signature that is there is replaced. A bill of materials
    (``bom.cdx.json``) and a statement of provenance (``provenance.json``) are written there too,
    and signed with the others.

    Args:
        model_uri: The folder of a saved model, or any URI of a logged one.
        key: Path of a private key without a password, Ed25519 or P-256, in OpenSSH's format or PEM.

    Raises:
        InvalidInputError: The key cannot be read.
        ArtifactError: See `verify`.
        TrackingError: There is no such model, or the user may not change it.
        MissingDependencyError: A package of the extra ``sign`` is not installed.

    Examples:
        >>> verification = mlflow_e2eai.sign("models:/digits/2", folder / "key.pem")
    """
    private = private_key(key)
    with _open(model_uri) as model:
        digests = model.verify(anew=True)
        run = BuildRun() if model.logged is None else _build_run(model.logged)
        manifest = bundle.read(model.path / bundle.FOLDER)
        requirements = read_text(model.path / "requirements.txt")
        bill = bill_of(model.name, manifest, digests, requirements, run.datasets)
        provenance = statement_of(manifest, digests, run)
        for name, text in ((BILL, bill), (PROVENANCE, provenance)):
            model.write(name, text)
            digests[name] = sha256_of(model.path / name)
        model.write(SIGNATURE, sign_files(model.name, digests, private))
        model.attach((*ATTACHED, SIGNATURE))
        return _verification(
            model.subject,
            digests,
            has_signature=True,
            signed_by=fingerprint_of(private.public_key()),
        )


def _verification(
    subject: str, digests: dict[str, str], *, has_signature: bool, signed_by: str | None
) -> Verification:
    return Verification(
        model=subject,
        files=tuple(
            VerifiedFile(path=path, sha256=digest) for path, digest in sorted(digests.items())
        ),
        has_signature=has_signature,
        signed_by=signed_by,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Downloaded:
    """A model in a folder on this machine.

    Attributes:
        subject: Its URI or path, for errors.
        path: The folder.
        logged: The LoggedModel that was downloaded; None for a folder of the user's.
    """

    subject: str
    path: Path
    logged: LoggedModel | None

    @property
    def name(self) -> str:
        """Name of the model."""
        return self.path.name if self.logged is None else str(self.logged.name)

    def verify(self, *, anew: bool = False) -> dict[str, str]:
        """Check all files; see `verify_model`."""
        if self.logged is None:
            return verify_folder(self.path, anew=anew)
        return verify_model(self.path, self.logged, anew=anew)

    def write(self, name: str, text: str) -> None:
        """Write a file into the folder."""
        with atomic_write(self.path / name) as out:
            out.write_text(text, encoding="utf-8")

    def attach(self, names: tuple[str, ...]) -> None:
        """Upload files that were written into the folder, the signature last."""
        from mlflow import MlflowClient

        if self.logged is None:
            return
        model_id = str(self.logged.model_id)
        with mlflow_errors("sign the model again, as a user who may change it"), quiet_mlflow():
            for name in names:
                MlflowClient().log_model_artifact(model_id, str(self.path / name))
            tag_model(model_id, {SIGNATURE_SHA256: sha256_of(self.path / SIGNATURE)})


def _build_run(model: LoggedModel) -> BuildRun:
    """The run that made a model, with its stages; empty where it is not there any more."""
    import mlflow
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    source = None
    with suppress(TrackingError):
        if (found := source_of(model)) is not None:
            digest = {"digest": {"sha256": found.tags[SHA256]}} if SHA256 in found.tags else {}
            source = {"name": str(found.name), "uri": str(found.model_uri), **digest}
    try:
        run = MlflowClient().get_run(str(model.source_run_id))
        children = mlflow.search_runs(
            [run.info.experiment_id],
            f"tags.`{PARENT_RUN}` = '{run.info.run_id}'",
            order_by=["attributes.start_time ASC"],
            output_format="list",
        )
    except MlflowException:
        return BuildRun(source=source)
    return BuildRun(
        run_id=str(run.info.run_id),
        parameters=dict(run.data.params),
        stages=[_stage_of(child) for child in children],
        datasets=[
            {"name": str(each.dataset.name), "digest": str(each.dataset.digest)}
            for each in (run.inputs.dataset_inputs if run.inputs else ())
        ],
        started_at=time_text(run.info.start_time or 0),
        ended_at=time_text(run.info.end_time) if run.info.end_time else None,
        source=source,
    )


def _stage_of(run: Run) -> dict[str, str]:
    reused = run.data.tags.get(REUSED_FROM)
    return {
        "name": str(run.info.run_name),
        "run": str(run.info.run_id),
        "started": time_text(run.info.start_time or 0),
        "status": str(run.info.status),
        **({"reused": reused} if reused else {}),
    }


@contextmanager
def _open(model_uri: str | Path) -> Iterator[_Downloaded]:
    """Download a model, or take the folder that it is in.

    Raises:
        ArtifactError: It is no bundle of this package.
        TrackingError: There is no such model.
    """
    subject = str(model_uri)
    if not is_uri(subject):
        path = bundle.find(Path(subject)).parent
        yield _Downloaded(subject=subject, path=path, logged=None)
        return
    logged = resolve(subject)
    if logged.tags.get(STAGE) != "package" or SHA256 not in logged.tags:
        msg = f"{subject} is not a bundle of this package; give a model that log_model made."
        raise ArtifactError(msg)
    with tempfile.TemporaryDirectory() as folder:
        with quiet_mlflow():
            path = fetch(logged, Path(folder))
        yield _Downloaded(subject=subject, path=path, logged=logged)
