"""Ed25519 signatures by keys that ssh-keygen makes."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlflow_e2eai.artifacts.files import reading_error
from mlflow_e2eai.errors import InvalidInputError, MissingDependencyError, brief

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey


def is_signed(message: bytes, signature: str, public: str) -> bool:
    """Whether a signature in base64 is that of a message by the owner of a public key."""
    _serialization()
    from cryptography.exceptions import InvalidSignature

    try:
        public_key(public).verify(base64.b64decode(signature, validate=True), message)
    except (InvalidSignature, ValueError):
        return False
    return True


def public_key(text: str) -> Ed25519PublicKey:
    """Read an Ed25519 public key: a line such as ``ssh-ed25519 AAAA... name``, or PEM.

    Raises:
        InvalidInputError: It is none.
        MissingDependencyError: The package cryptography is not installed.
    """
    serialization = _serialization()
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

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
    if not isinstance(key, Ed25519PublicKey):
        msg = f"{text[:40]!r} is no Ed25519 key; make one with ssh-keygen -t ed25519."
        raise InvalidInputError(msg)
    return key


def sign(path: Path, message: bytes) -> str:
    """The signature of a message by the private key in a file, in base64."""
    serialization = _serialization()
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    try:
        text = path.expanduser().read_bytes()
    except OSError as error:
        msg = f"Cannot read the key {path}: {reading_error(error)}; check the path."
        raise InvalidInputError(msg) from error
    is_ssh = b"OPENSSH PRIVATE KEY" in text
    load = serialization.load_ssh_private_key if is_ssh else serialization.load_pem_private_key
    try:
        key = load(text, password=None)
    except (ValueError, TypeError) as error:
        msg = (
            f"{path} holds no private key that can be read without a password ({brief(error)}); "
            f"make one with ssh-keygen -t ed25519 -N ''."
        )
        raise InvalidInputError(msg) from error
    if not isinstance(key, Ed25519PrivateKey):
        msg = f"{path} is no Ed25519 key; make one with ssh-keygen -t ed25519."
        raise InvalidInputError(msg)
    return base64.b64encode(key.sign(message)).decode()


def _serialization() -> Any:
    try:
        from cryptography.hazmat.primitives import serialization
    except ImportError as error:
        raise MissingDependencyError(
            package="cryptography", extra="sign", purpose="A signed approval"
        ) from error
    return serialization
