"""Signatures of OpenSSF model signing are read, and each of their parts counts."""

from __future__ import annotations

import base64
import json
import shutil
from pathlib import Path

import pytest

from mlflow_e2eai.artifacts.files import sha256_of
from mlflow_e2eai.bundle.attestation.envelope import check_signed, read_signed, require_signature
from mlflow_e2eai.bundle.attestation.signatures import find_public_key
from mlflow_e2eai.errors import ArtifactError

DATA = Path(__file__).parents[2] / "data"
KEY = find_public_key(DATA / "signed_by_openssf.pub")


@pytest.fixture
def model(tmp_path):
    """A model that model-signing 1.1.1 signed: `model_signing sign key --private_key`."""
    return shutil.copytree(DATA / "signed_by_openssf", tmp_path / "model")


def test_a_signature_of_their_tool_is_read(model):
    signed = require_signature(model, "the model", [KEY])
    assert signed == {name: sha256_of(model / name) for name in ("MLmodel", "folder/weights.bin")}
    check_signed("the model", signed, signed)


def test_no_byte_of_the_signed_list_may_change(model):
    place = model / "model.sig"
    bundle = json.loads(place.read_text())
    payload = base64.b64decode(bundle["dsseEnvelope"]["payload"])
    for at in range(0, len(payload), 7):
        changed = bytearray(payload)
        changed[at] ^= 1
        bundle["dsseEnvelope"]["payload"] = base64.b64encode(changed).decode()
        place.write_text(json.dumps(bundle))
        with pytest.raises(ArtifactError, match=r"was changed after|is no signature in"):
            read_signed(place, "the model", [KEY])


@pytest.mark.parametrize("sig", ["", "AAAA", "no base64", "TUVR" * 24])
def test_a_signature_that_is_none_does_not_count(model, sig):
    place = model / "model.sig"
    bundle = json.loads(place.read_text())
    bundle["dsseEnvelope"]["signatures"][0]["sig"] = sig
    place.write_text(json.dumps(bundle))
    with pytest.raises(ArtifactError, match="was changed after the key SHA256:"):
        read_signed(place, "the model", [KEY])


def test_without_any_signature_nothing_is_signed(model):
    place = model / "model.sig"
    bundle = json.loads(place.read_text())
    bundle["dsseEnvelope"]["signatures"] = []
    place.write_text(json.dumps(bundle))
    with pytest.raises(ArtifactError, match="was changed after the key SHA256:"):
        read_signed(place, "the model", [KEY])
