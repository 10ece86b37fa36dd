"""Signatures by keys of people: Ed25519, as ssh-keygen makes them, or ECDSA on P-256."""

from __future__ import annotations

import base64
import hashlib
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from mlflow_e2eai.artifacts.files import read_text, reading_error
from mlflow_e2eai.errors import (
    ArtifactError,
    InvalidInputError,
    MissingDependencyError,
    brief,
    require_kind,
)

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import (
        EllipticCurvePrivateKey,
        EllipticCurvePublicKey,
    )
    from cryptography.hazmat.primitives.asymmetric.ed25519 import (
        Ed25519PrivateKey,
        Ed25519PublicKey,
    )

    PublicKey: TypeAlias = Ed25519PublicKey | EllipticCurvePublicKey
    PrivateKey: TypeAlias = Ed25519PrivateKey | EllipticCurvePrivateKey


_PUBLIC_STARTS = ("ssh-", "ecdsa-", "-----")
"""Beginnings of a public key's text: of OpenSSH's lines, and of PEM."""


def is_signed(message: bytes, signature: str, public: str) -> bool:
    """Whether a signature in base64 is that of a message by the owner of a public key."""
    return is_signed_by(message, signature, public_key(public))


def is_signed_by(message: bytes, signature: str, key: PublicKey) -> bool:
    """Whether a signature in base64 is that of a message by the owner of a key."""
    from cryptography.exceptions import InvalidSignature

    try:
        key.verify(base64.b64decode(signature, validate=True), message, *_hash_of(key))
    except (InvalidSignature, ValueError):
        return False
    return True


def public_key(text: str) -> PublicKey:
    """Read a public key: a line such as ``ssh-ed25519 AAAA... name``, or PEM.

    Raises:
        InvalidInputError: It is none, or of another kind than Ed25519 and P-256.
        MissingDependencyError: The package cryptography is not installed.
    """
    serialization = _serialization()
    is_pem = text.lstrip().startswith("-----")
    load = serialization.load_pem_public_key if is_pem else serialization.load_ssh_public_key
    try:
        key = load(text.strip().encode())
    except Exception as error:
        msg = (
            f"{text[:40]!r} is no public key ({brief(error)}); give a line such as "
            f"'ssh-ed25519 AAAA... name', which ssh-keygen -t ed25519 writes."
        )
        raise InvalidInputError(msg) from error
    _check_kind(key, repr(text[:40]))
    return key  # type: ignore[no-any-return]  # cryptography's functions are imported late


def find_public_key(key: str | Path) -> PublicKey:
    """Read a public key from its text, or from the file that has it; see `public_key`.

    Raises:
        InvalidInputError: There is no such file, or it is no public key.
    """
    require_kind("key", key, (str, PathLike), "a public key, or the path of its file")
    if isinstance(key, str) and key.lstrip().startswith(_PUBLIC_STARTS):
        return public_key(key)
    try:
        return public_key(read_text(Path(key).expanduser()))
    except ArtifactError as error:
        raise InvalidInputError(str(error)) from error


def private_key(path: str | Path) -> PrivateKey:
    """Read a private key without a password, in OpenSSH's format or PEM.

    Raises:
        InvalidInputError: It cannot be read, or is of another kind than Ed25519 and P-256.
        MissingDependencyError: The package cryptography is not installed.
    """
    path = Path(require_kind("key", path, (str, PathLike), "the path of a private key"))
    serialization = _serialization()
    try:
        text = path.expanduser().read_bytes()
    except OSError as error:
        msg = f"Cannot read the key {path}: {reading_error(error)}; check the path."
        raise InvalidInputError(msg) from error
    if text.lstrip().startswith((b"ssh-", b"ecdsa-")) or b" PUBLIC KEY-" in text:
        msg = f"{path} is a public key, and a signature needs the private one; give that file."
        raise InvalidInputError(msg)
    is_ssh = b"OPENSSH PRIVATE KEY" in text
    load = serialization.load_ssh_private_key if is_ssh else serialization.load_pem_private_key
    try:
        key = load(text, password=None)
    except (ValueError, TypeError) as error:
        msg = (
            f"{path} holds no private key that can be read without a password; make one with "
            f"ssh-keygen -t ed25519 -N ''."
        )
        raise InvalidInputError(msg) from error
    _check_kind(key.public_key(), str(path))
    return key  # type: ignore[no-any-return]  # as above


def sign(path: str | Path, message: bytes) -> str:
    """The signature of a message by the private key in a file, in base64."""
    return sign_with(private_key(path), message)


def sign_with(key: PrivateKey, message: bytes) -> str:
    """The signature of a message by a private key, in base64."""
    return base64.b64encode(key.sign(message, *_hash_of(key))).decode()


def hint_of(key: PublicKey) -> str:
    """The sha256 of a public key's PEM, by which OpenSSF model signing finds the key."""
    serialization = _serialization()
    pem = key.public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return hashlib.sha256(pem).hexdigest()


def fingerprint_of(key: PublicKey) -> str:
    """The fingerprint of a key, as ``ssh-keygen -l`` prints it."""
    serialization = _serialization()
    line = key.public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    digest = hashlib.sha256(base64.b64decode(line.split()[1])).digest()
    return f"SHA256:{base64.b64encode(digest).decode().rstrip('=')}"


def _hash_of(key: Any) -> tuple[Any, ...]:
    """The last argument of a key's methods: ECDSA's hash; none for Ed25519, which has its own."""
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.hashes import SHA256

    is_ec = isinstance(key, ec.EllipticCurvePublicKey | ec.EllipticCurvePrivateKey)
    return (ec.ECDSA(SHA256()),) if is_ec else ()


def _check_kind(key: Any, subject: str) -> None:
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519

    is_p256 = isinstance(key, ec.EllipticCurvePublicKey) and isinstance(key.curve, ec.SECP256R1)
    if not (is_p256 or isinstance(key, ed25519.Ed25519PublicKey)):
        msg = f"{subject} is no Ed25519 or P-256 key; make one with ssh-keygen -t ed25519."
        raise InvalidInputError(msg)


def _serialization() -> Any:
    try:
        from cryptography.hazmat.primitives import serialization
    except ImportError as error:
        raise MissingDependencyError(
            package="cryptography", extra="sign", purpose="A signature"
        ) from error
    return serialization
