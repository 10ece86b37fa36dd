"""People who agree: a tag of the version that is bound to its files, and signed where wanted."""

from __future__ import annotations

import json
import subprocess

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from registered_bundles import holder, register
from signing_keys import make_keys

import mlflow_e2eai
from mlflow_e2eai.errors import E2EAIError, InvalidInputError, TrackingError
from mlflow_e2eai.promotion import contenders
from mlflow_e2eai.report.formats import moment_text
from mlflow_e2eai.tracking.lineage import ROOTS

pytestmark = pytest.mark.usefixtures("on_threads")

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIGl1HZVxQ6zVZqeqDL8OiwxstK04egqXvHNwUAlarHev ann"
RELEASE = {"gates": [{"approval": "release"}]}


@pytest.fixture
def version(store, good):
    return register(good)


@pytest.fixture
def keys(tmp_path):
    """Two pairs of keys: the files of the private ones, and the lines of the public ones."""
    return {name: make_keys(tmp_path / name) for name in ("ann", "bob")}


def signed_by(keys, *names):
    return {
        "gates": [{"approval": "release", "keys": list(names)}],
        "keys": {name: line for name, (_, line) in keys.items()},
    }


def reason(version, gates=RELEASE):
    decision = mlflow_e2eai.promote("net", version, gates=gates)
    return None if decision.promoted else " ".join(decision.reasons)


def test_a_version_without_an_approval_is_rejected_with_the_command_that_gives_it(store, version):
    decision = mlflow_e2eai.promote("net", version, gates=RELEASE)
    assert not decision.promoted
    assert decision.reasons == ("approval/release: it is not approved (gate: Approved)",)
    assert decision.remedies == ("mlflow_e2eai approve net 1 --as release",)
    assert holder(store) is None


def test_an_approved_version_is_promoted_and_the_record_says_by_whom(store, version):
    statement = mlflow_e2eai.approve("net", version, as_="release")
    assert store.get_model_version("net", version).tags["release"] == "Approved"
    assert reason(version) is None
    assert holder(store) == version
    (verdict,) = mlflow_e2eai.explain("net", version).decision.verdicts
    assert verdict.source == str(statement)
    assert statement.by in verdict.source
    assert moment_text(statement.at) in verdict.source


def test_a_tag_that_a_hand_wrote_is_no_approval(store, version):
    store.set_model_version_tag("net", version, "release", "Approved")
    assert "its tag 'release' does not say who approved which files, and when" in reason(version)
    store.set_model_version_tag("net", version, "release", "Pending")
    assert "its tag 'release' is 'Pending'" in reason(version)


def change(store, number, **fields):
    text = store.get_model_version("net", number).tags["e2eai.approval.release"]
    store.set_model_version_tag(
        "net", number, "e2eai.approval.release", json.dumps({**json.loads(text), **fields})
    )


def test_an_approval_of_other_files_or_of_another_version_does_not_count(store, version):
    mlflow_e2eai.approve("net", version, as_="release")
    change(store, version, sha256="0" * 64)
    assert "the approval is for other files" in reason(version)
    mlflow_e2eai.approve("net", version, as_="release")
    change(store, version, version="7")
    assert "the approval is for 'release' of net 7" in reason(version)


def test_an_approval_that_is_copied_to_another_version_does_not_count(store, good, version):
    mlflow_e2eai.approve("net", version, as_="release")
    second = register(good)
    tags = store.get_model_version("net", version).tags
    for key, value in tags.items() - {(root, tags[root]) for root in ROOTS}:
        store.set_model_version_tag("net", second, key, value)
    assert "the approval is for 'release' of net 1" in reason(second)


def test_a_rejection_is_final_under_whatever_name_and_whatever_the_gates(store, version):
    mlflow_e2eai.approve("net", version, as_="release")
    mlflow_e2eai.reject("net", version, as_="legal")
    for name in ("legal", "release", "other"):
        with pytest.raises(
            TrackingError, match=r"was Rejected as 'legal' by .*That is final; log a"
        ):
            mlflow_e2eai.approve("net", version, as_=name)
    decision = mlflow_e2eai.promote("net", version, gates=RELEASE)
    assert not decision.promoted
    assert "approval/legal: it was Rejected as 'legal'" in decision.reasons[0]
    assert decision.remedies == ("A rejection is final: log a new version.",)


def test_a_rejection_that_comes_between_two_requests_of_an_approval_is_not_lost(
    store, version, monkeypatch
):
    model_of = contenders.model_of

    def rejected_meanwhile(*words):
        monkeypatch.setattr(contenders, "model_of", model_of)
        mlflow_e2eai.reject("net", version, as_="release")
        return model_of(*words)

    monkeypatch.setattr(contenders, "model_of", rejected_meanwhile)
    with pytest.raises(TrackingError, match=r"is rejected: it was Rejected as 'release' by "):
        mlflow_e2eai.approve("net", version, as_="release")
    assert store.get_model_version("net", version).tags["release"] == "Rejected"
    assert "it was Rejected as 'release'" in reason(version)


@pytest.mark.parametrize(
    ("tag", "text"),
    [
        ("e2eai.approval.release", "{}"),
        ("e2eai.approval.legal", "no json"),
        ("e2eai.rejection.legal", "{}"),
        ("release", "Rejected"),
        ("legal", " rejected "),
    ],
)
def test_what_may_be_a_rejection_counts_as_one(tag, text, store, version):
    mlflow_e2eai.approve("net", version, as_="release")
    assert mlflow_e2eai.promote("net", version, gates=RELEASE, dry_run=True).promoted
    store.set_model_version_tag("net", version, tag, text)
    assert repr(tag) in reason(version)
    with pytest.raises(TrackingError, match=rf"is rejected: its tag '{tag}' .*That is final"):
        mlflow_e2eai.approve("net", version, as_="release")


def test_a_rejection_by_an_older_version_of_this_package_counts(store, version):
    mlflow_e2eai.approve("net", version, as_="release")
    change(store, version, answer="Rejected")
    assert "it was Rejected as 'release' by " in reason(version)
    for verb in (mlflow_e2eai.approve, mlflow_e2eai.reject):
        with pytest.raises(TrackingError, match="That is final"):
            verb("net", version, as_="release")


def test_a_rejection_of_a_version_that_has_aliases_names_them_and_how_to_go_back(
    store, good, version, caplog
):
    gates = {"gates": [{"metric": "parity/failed", "at_most": 0}]}
    second = register(good)
    for each in (version, second):
        assert mlflow_e2eai.promote("net", each, gates=gates).promoted
    mlflow_e2eai.reject("net", second, as_="legal")
    assert caplog.messages[-1] == (
        "@champion still points to version 2 of net, which is rejected now; go back with "
        "`mlflow_e2eai rollback net --alias champion`."
    )
    assert list(mlflow_e2eai.list_versions("net")["decision"]) == ["rejected", "promoted"]


def test_a_rejection_of_the_first_version_of_an_alias_advises_no_rollback(store, version, caplog):
    store.set_registered_model_alias("net", "champion", version)
    mlflow_e2eai.reject("net", version, as_="legal")
    assert caplog.messages[-1].endswith(
        "which is rejected now; no version was there before; promote another with "
        "`mlflow_e2eai promote net VERSION --alias champion`."
    )


def test_a_rejection_blocks_though_the_gates_only_warn_without_the_approval(version):
    warning = {
        "gates": [
            {"metric": "parity/failed", "at_most": 0},
            {"approval": "release", "severity": "warn"},
        ]
    }
    assert reason(version, warning) is None
    mlflow_e2eai.reject("net", version, as_="release")
    assert "it was Rejected" in reason(version, warning)


# Signatures.


def test_an_approval_counts_that_a_named_key_signed(keys, version):
    assert "it is not approved" in reason(version, signed_by(keys, "ann"))
    mlflow_e2eai.approve("net", version, as_="release")
    assert "is not signed" in reason(version, signed_by(keys, "ann"))
    mlflow_e2eai.approve("net", version, as_="release", key=keys["bob"][0])
    assert "the signature is not by any of the keys ann" in reason(version, signed_by(keys, "ann"))
    assert reason(version, signed_by(keys, "ann", "bob")) is None
    (verdict,) = mlflow_e2eai.explain("net", version).decision.verdicts
    assert verdict.source.endswith(" UTC, signed by the key bob")


def test_an_approval_without_a_signature_replaces_none_that_has_one_and_counts(
    keys, store, version
):
    mlflow_e2eai.approve("net", version, as_="release", key=keys["ann"][0])
    with pytest.raises(TrackingError, match=r"UTC, signed, and an approval without a signature"):
        mlflow_e2eai.approve("net", version, as_="release")
    assert reason(version, signed_by(keys, "ann")) is None
    change(store, version, sha256="0" * 64)
    mlflow_e2eai.approve("net", version, as_="release")
    assert "is not signed" in reason(version, signed_by(keys, "ann"))


@pytest.mark.parametrize("field", ["by", "at", "sha256", "signature"])
def test_a_signed_approval_that_was_changed_does_not_count(field, keys, store, version):
    mlflow_e2eai.approve("net", version, as_="release", key=keys["ann"][0])
    text = store.get_model_version("net", version).tags["e2eai.approval.release"]
    value = json.loads(text)[field]
    change(store, version, **{field: ("1" if value[0] == "0" else "0") + value[1:]})
    assert reason(version, signed_by(keys, "ann")) is not None


def test_a_signature_that_is_no_base64_does_not_count(keys, store, version):
    mlflow_e2eai.approve("net", version, as_="release", key=keys["ann"][0])
    for odd in ("", "!!", "é"):
        change(store, version, signature=odd)
        assert "not by any of the keys ann" in reason(version, signed_by(keys, "ann"))


def test_keys_that_ssh_keygen_makes_are_taken(tmp_path, version):
    place = tmp_path / "key"
    try:
        subprocess.run(
            ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", place], check=True, timeout=30
        )
    except FileNotFoundError:
        pytest.skip("there is no ssh-keygen here")
    mlflow_e2eai.approve("net", version, as_="release", key=place)
    gates = {
        "gates": [{"approval": "release", "keys": ["ann"]}],
        "keys": {"ann": place.with_suffix(".pub").read_text()},
    }
    assert reason(version, gates) is None


def test_a_key_that_cannot_sign_is_refused_and_nothing_is_on_record(store, tmp_path, version):
    other = ec.generate_private_key(ec.SECP384R1()).private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    locked = Ed25519PrivateKey.generate().private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.BestAvailableEncryption(b"secret"),
    )
    for content, sentence in (
        (other, "is no Ed25519 or P-256 key; make one with ssh-keygen"),
        (locked, "holds no private key that can be read without a password"),
        (b"hello", r"holds no private key that can be read without a password; make one with"),
        (b"ssh-ed25519 AAAA ann", "is a public key, and a signature needs the private one; give"),
        (b"-----BEGIN PUBLIC KEY-----\nAA\n", "is a public key, and a signature needs"),
        (None, "Cannot read the key"),
    ):
        place = tmp_path / "odd"
        place.unlink(missing_ok=True)
        if content is not None:
            place.write_bytes(content)
        with pytest.raises(InvalidInputError, match=sentence):
            mlflow_e2eai.approve("net", version, as_="release", key=place)
    assert set(store.get_model_version("net", version).tags) == set(ROOTS)


@pytest.mark.parametrize(
    ("gates", "sentence"),
    [
        ({"gates": [{"approval": "release", "keys": ["ann"]}]}, "ann"),
        ({"gates": [{"approval": "release", "keys": ["ann"]}], "keys": {"ann": "hi"}}, "'hi'"),
        ({"gates": [{"approval": "release", "keys": []}]}, "keys is .*at least 1 item"),
        (
            {"gates": [{"approval": "release"}], "keys": {"ann": KEY}},
            "No gate names a key of 'keys', ann, so that none has to have signed: write",
        ),
        ({"gates": [{"approval": "e2eai.release"}]}, "e2eai"),
        ({"gates": [{"approval": ""}]}, "approval"),
    ],
)
def test_gates_that_name_no_key_or_no_approval_are_refused(gates, sentence, version):
    with pytest.raises(InvalidInputError, match=sentence):
        mlflow_e2eai.promote("net", version, gates=gates)


@pytest.mark.parametrize(
    ("name", "number", "as_", "sentence"),
    [
        ("net", 9, "release", "There is no version 9 of 'net'"),
        ("nut", 1, "release", "There is no version 1 of 'nut'"),
        ("net", 1, "a b", "'a b'"),
        ("net", 1, "e2eai.decision", "e2eai"),
    ],
)
def test_what_cannot_be_approved_is_one_sentence(name, number, as_, sentence, version):
    with pytest.raises(E2EAIError, match=sentence):
        mlflow_e2eai.approve(name, number, as_=as_)
