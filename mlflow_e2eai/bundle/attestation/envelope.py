"""The digests of all files of a model, signed.

The format is that of OpenSSF model signing 1.0: a bundle of sigstore with a DSSE envelope, in which
an in-toto statement lists every file.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlflow_e2eai.artifacts.files import parse_json, read_bytes, sha256_of, verify
from mlflow_e2eai.bundle.attestation.signatures import (
    fingerprint_of,
    hint_of,
    is_signed_by,
    sign_with,
)
from mlflow_e2eai.errors import ArtifactError

if TYPE_CHECKING:
    from mlflow_e2eai.bundle.attestation.signatures import PrivateKey, PublicKey

SIGNATURE = "model.sig"
"""File of a model with the signature of all others, where OpenSSF's tool writes it too."""

BILL, PROVENANCE = "bom.cdx.json", "provenance.json"

ATTACHED = (BILL, PROVENANCE)
"""Files that are written into a model when it is signed, besides the signature."""

MLMODEL = "MLmodel"
"""MLflow's description of a model, which has the digest of the list of all other files."""

IGNORED = (SIGNATURE, "registered_model_meta")
"""Files that are not signed: MLflow writes the second when it downloads a version."""

_BUNDLE = "application/vnd.dev.sigstore.bundle.v0.3+json"
_PAYLOAD = "application/vnd.in-toto+json"
_STATEMENT = "https://in-toto.io/Statement/v1"
_PREDICATE = "https://model_signing/signature/v1.0"


def sign_files(name: str, digests: Mapping[str, str], key: PrivateKey) -> str:
    """Sign the digests of a model's files.

    Args:
        name: Name of the model, for people.
        digests: The sha256 of each file, by its path in the model.
        key: The key.

    Returns:
        The content of `SIGNATURE`.
    """
    files = dict(sorted(digests.items()))
    root = hashlib.sha256(b"".join(map(bytes.fromhex, files.values()))).hexdigest()
    statement = {
        "_type": _STATEMENT,
        "subject": [{"name": name, "digest": {"sha256": root}}],
        "predicateType": _PREDICATE,
        "predicate": {
            "serialization": {
                "method": "files",
                "hash_type": "sha256",
                "allow_symlinks": False,
                "ignore_paths": list(IGNORED),
            },
            "resources": [
                {"name": path, "algorithm": "sha256", "digest": digest}
                for path, digest in files.items()
            ],
        },
    }
    payload = json.dumps(statement).encode()
    bundle = {
        "mediaType": _BUNDLE,
        "verificationMaterial": {
            "publicKey": {"hint": hint_of(key.public_key())},
            "tlogEntries": [],
        },
        "dsseEnvelope": {
            "payload": base64.b64encode(payload).decode(),
            "payloadType": _PAYLOAD,
            "signatures": [{"sig": sign_with(key, _message_of(payload)), "keyid": ""}],
        },
    }
    return json.dumps(bundle)


def read_signed(path: Path, subject: str, keys: Sequence[PublicKey] = ()) -> dict[str, str]:
    """The digests of a model's files by name, as they were signed.

    Args:
        path: The file `SIGNATURE`.
        subject: The model, for errors.
        keys: One of them must have signed it; none where it does not matter who did.

    Raises:
        ArtifactError: There is no signature, it is by another key, or it was changed.
    """
    if not path.exists():
        msg = f"{subject} has no signature; sign it: mlflow_e2eai sign {subject} --key FILE."
        raise ArtifactError(msg)
    try:
        bundle = parse_json(read_bytes(path))
        envelope = bundle["dsseEnvelope"]
        payload = base64.b64decode(envelope["payload"], validate=True)
        hint = bundle["verificationMaterial"].get("publicKey", {}).get("hint")
        signatures = [str(each["sig"]) for each in envelope["signatures"]]
        digests = _digests_of(parse_json(payload))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        msg = (
            f"{path.name} of {subject} is no signature in the format of OpenSSF model signing; "
            f"sign it again."
        )
        raise ArtifactError(msg) from error
    if keys:
        _check_signer(_message_of(payload), signatures, hint, keys, subject)
    return digests


def check_signed(
    subject: str, signed: Mapping[str, str], present: Mapping[str, str], *, whole: bool = True
) -> None:
    """Check that files are those that were signed.

    Args:
        subject: The model, for errors.
        signed: The signed digests by name.
        present: Digests of its files by name.
        whole: Whether these are all of its files.

    Raises:
        ArtifactError: A file is another one, was not signed, or is missing.
    """
    for name in sorted({*present, *(signed if whole else ())}):
        if signed.get(name) != present.get(name):
            found = (
                "was not there when it was signed"
                if name not in signed
                else "is missing, but it was signed"
                if name not in present
                else "is not the file that was signed"
            )
            msg = f"{name} of {subject} {found}; download the model again, or sign it as it is."
            raise ArtifactError(msg)


def require_signature(folder: Path, subject: str, keys: Sequence[PublicKey]) -> dict[str, str]:
    """Check that the MLmodel file of a model is one that was signed.

    Args:
        folder: The model.
        subject: The model, for errors.
        keys: One of them must have signed it.

    Returns:
        The digests of all files by name, as they were signed.

    Raises:
        ArtifactError: It was not signed, it was signed by another key, or it was changed later.
    """
    signed = read_signed(folder / SIGNATURE, subject, keys)
    check_signed(subject, signed, {MLMODEL: sha256_of(folder / MLMODEL)}, whole=False)
    return signed


def attached_digests(folder: Path, subject: str, sha256: str) -> dict[str, str]:
    """Check the files that were attached to a model when it was signed, by whomever that was.

    Args:
        folder: The model.
        subject: The model, for errors.
        sha256: The digest of its signature.

    Returns:
        Their digests by name, but for the signature's.

    Raises:
        ArtifactError: One is missing or has changed.
    """
    signed = read_signed(folder / SIGNATURE, subject)
    verify(folder / SIGNATURE, sha256)
    attached = {name: signed[name] for name in ATTACHED if name in signed}
    for name, digest in attached.items():
        verify(folder / name, digest)
    return attached


def _digests_of(statement: Any) -> dict[str, str]:
    """The digests in a statement.

    Raises:
        ValueError: It is of another kind.
    """
    predicate = statement["predicate"]
    kinds = statement["_type"], statement["predicateType"], predicate["serialization"]["method"]
    if kinds != (_STATEMENT, _PREDICATE, "files"):
        msg = f"a statement of another kind: {kinds}"
        raise ValueError(msg)
    if any(each["algorithm"] != "sha256" for each in predicate["resources"]):
        msg = "digests that are no sha256"
        raise ValueError(msg)
    return {str(each["name"]): str(each["digest"]) for each in predicate["resources"]}


def _check_signer(
    message: bytes, signatures: list[str], hint: object, keys: Sequence[PublicKey], subject: str
) -> None:
    if any(is_signed_by(message, signature, key) for signature in signatures for key in keys):
        return
    own = {hint_of(key): fingerprint_of(key) for key in keys}
    if isinstance(hint, str) and hint in own:
        msg = (
            f"The signature of {subject} was changed after the key {own[hint]} made it; sign the "
            f"model again."
        )
    else:
        names = " and ".join(own.values())
        msg = (
            f"{subject} is signed by another key than {names}; give the public key of its signer, "
            f"or sign it again."
        )
    raise ArtifactError(msg)


def _message_of(payload: bytes) -> bytes:
    """The message that is signed: DSSE's pre-authentication encoding."""
    return b"DSSEv1 %d %b %d %b" % (len(_PAYLOAD), _PAYLOAD.encode(), len(payload), payload)
