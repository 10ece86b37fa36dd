"""Pairs of keys, as ssh-keygen and openssl make them."""

from __future__ import annotations

from pathlib import Path

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

PLAIN = serialization.NoEncryption()


def make_keys(place: Path, private=None) -> tuple[Path, str]:
    """Write a private key to a file, as OpenSSH has it; the file, and the public key's line."""
    private = private or Ed25519PrivateKey.generate()
    place.write_bytes(
        private.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, PLAIN
        )
    )
    public = private.public_key().public_bytes(
        serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH
    )
    return place, public.decode()


def make_pem(place: Path, private) -> tuple[Path, str]:
    """The same in PEM."""
    place.write_bytes(
        private.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, PLAIN)
    )
    public = private.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return place, public.decode()
