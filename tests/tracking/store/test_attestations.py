"""A model is signed and verified, file by file; what is not right is one sentence."""

from __future__ import annotations

import base64
import hashlib
import json
import shutil
from functools import partial
from pathlib import Path

import mlflow
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from signing_keys import make_keys, make_pem
from small_models import AXES, features, labelled, net

import mlflow_e2eai
from mlflow_e2eai import tracking
from mlflow_e2eai.artifacts.files import sha256_of
from mlflow_e2eai.cli import main
from mlflow_e2eai.errors import ArtifactError, E2EAIError, InvalidInputError, TrackingError
from mlflow_e2eai.flavor import api

pytestmark = pytest.mark.usefixtures("on_threads")

URI = "models:/net/1"
GATES = {"gates": [{"metric": "parity/failed", "at_most": 0}]}


@pytest.fixture(scope="session")
def saved(tmp_path_factory):
    place = tmp_path_factory.mktemp("signed") / "model"
    mlflow_e2eai.save_model(
        net(), place, input_example={"x": features()}, dynamic_axes=AXES, evidence="quick"
    )
    return place


@pytest.fixture
def edited(store, saved, artifacts):
    """A registered version; its stored files, to be changed in a block."""
    info = api.log_model(saved, "net", registered_model_name="net")
    return partial(artifacts.edited, info.model_id)


@pytest.fixture
def ann(tmp_path):
    return make_keys(tmp_path / "ann")


@pytest.fixture
def bob(tmp_path):
    return make_keys(tmp_path / "bob")


def refused(model=URI, **options):
    with pytest.raises(ArtifactError) as raised:
        mlflow_e2eai.verify(model, **options)
    return str(raised.value)


def test_a_signed_version_is_linked_by_the_next_run_of_the_pipeline(store, ann):
    options = {
        "input_example": {"x": features()},
        "dynamic_axes": AXES,
        "evidence": "quick",
        "precisions": ("fp32",),
        "registered_model_name": "net",
    }
    first = mlflow_e2eai.log_model(net(), **options)
    signed = mlflow_e2eai.sign(URI, ann[0])
    assert mlflow_e2eai.log_model(net(), **options).model_id == first.model_id
    assert mlflow_e2eai.sign(URI, ann[0]) == signed  # byte by byte


def test_the_provenance_of_a_version_names_its_source_settings_and_stages(store, ann):
    mlflow_e2eai.log_model(
        net(),
        input_example={"x": features()},
        dynamic_axes=AXES,
        evidence="quick",
        precisions=("fp32",),
        evaluation_data=labelled(net()),
        registered_model_name="net",
    )
    mlflow_e2eai.sign(URI, ann[0])
    folder = Path(mlflow.artifacts.download_artifacts(URI))
    definition = json.loads((folder / "provenance.json").read_text())["predicate"][
        "buildDefinition"
    ]
    source, dataset = definition["resolvedDependencies"]
    assert source["uri"] == tracking.source_of(tracking.resolve(URI)).model_uri
    assert definition["externalParameters"]["settings"]["opset"] == "18"
    stages = [stage["name"] for stage in definition["internalParameters"]["stages"]]
    assert {"export", "clean", "package"} <= set(stages)
    assert definition["internalParameters"]["environment"]["torch"]
    parts = json.loads((folder / "bom.cdx.json").read_text())["components"]
    assert [each["name"] for each in parts if each["type"] == "data"] == [dataset["name"]]


def test_a_model_whose_run_is_deleted_is_signed_all_the_same(edited, store, ann):
    model = tracking.resolve(URI)
    if model.source_run_id:
        store.delete_run(model.source_run_id)
    mlflow_e2eai.sign(URI, ann[0])
    assert mlflow_e2eai.verify(URI, key=ann[1]).signed_by is not None


def lie(edited, name, content):
    """Change a stored file, with every digest that the files and the tracking server have of it."""
    with edited() as folder:
        before, digest = sha256_of(folder / name), hashlib.sha256(content).hexdigest()
        (folder / name).write_bytes(content)
        for file in ("SHA256SUMS", "MLmodel"):  # each has the digest of the one before
            text = (folder / file).read_text()
            assert before in text
            changed = text.replace(before, digest)
            before = sha256_of(folder / file)
            (folder / file).write_text(changed)
            digest = sha256_of(folder / file)
    model = tracking.resolve(URI)
    tracking.tag_model(model.model_id, {tracking.MLMODEL_SHA256: digest})
    mlflow.MlflowClient().set_model_version_tag("net", "1", tracking.MLMODEL_SHA256, digest)


def test_a_signed_version_is_verified_with_the_public_key_and_promoted_as_before(edited, ann):
    private, public = ann
    with edited() as folder:
        before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    signed = mlflow_e2eai.sign(URI, private)
    verified = mlflow_e2eai.verify(URI, key=public)
    assert verified == signed
    assert {"MLmodel", "SHA256SUMS", "bundle/manifest.json", "requirements.txt"} <= {
        file.path for file in verified.files
    }
    with edited() as folder:
        assert {path: path.read_bytes() for path in before} == before
    assert mlflow_e2eai.promote("net", 1, gates=GATES).promoted
    assert mlflow_e2eai.load_model(URI)({"x": features()})


def test_verification_without_a_key_reads_every_file_and_says_whether_it_is_signed(edited, ann):
    assert str(mlflow_e2eai.verify(URI).sentence).endswith(
        "files are as they were logged, not signed"
    )
    mlflow_e2eai.sign(URI, ann[0])
    assert mlflow_e2eai.verify(URI).sentence.endswith(
        "signed, but nobody gave a key to check by whom"
    )
    with edited() as folder:
        names = [path.relative_to(folder) for path in folder.rglob("*") if path.is_file()]
    assert Path("model.sig") in names
    for name in names:
        with edited() as folder:
            content = (folder / name).read_bytes()
            (folder / name).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        assert name.name in refused()
        with edited() as folder:
            (folder / name).write_bytes(content)
    mlflow_e2eai.verify(URI, key=ann[1])


def test_no_signature_another_key_and_an_altered_file_are_three_sentences(edited, ann, bob):
    assert refused(key=ann[1]) == (
        f"{URI} has no signature; sign it: mlflow_e2eai sign {URI} --key FILE."
    )
    fingerprint = mlflow_e2eai.sign(URI, ann[0]).signed_by
    other = refused(key=bob[1])
    assert other.startswith(f"{URI} is signed by another key than SHA256:")
    assert fingerprint not in other
    lie(edited, "requirements.txt", b"evil\n")
    mlflow_e2eai.verify(URI)  # all digests agree
    assert refused(key=ann[1]) == (
        f"MLmodel of {URI} is not the file that was signed; download the model again, or sign it "
        "as it is."
    )


@pytest.mark.parametrize("tag", [tracking.SHA256, tracking.MLMODEL_SHA256])
def test_a_model_whose_digests_are_not_those_of_its_version_is_refused_everywhere(edited, tag, ann):
    model = tracking.resolve(URI)
    tracking.tag_model(model.model_id, {tag: "0" * 64})
    for call in (
        lambda: mlflow_e2eai.verify(URI),
        lambda: mlflow_e2eai.sign(URI, ann[0]),
        lambda: mlflow_e2eai.load_model(URI),
        lambda: mlflow_e2eai.promote("net", 1, gates=GATES),
    ):
        with pytest.raises(E2EAIError, match=rf"net.*other files than its model .* tags {tag}"):
            call()


def test_files_that_came_or_went_after_the_signature_are_named(saved, tmp_path, ann):
    model = shutil.copytree(saved, tmp_path / "model")
    mlflow_e2eai.sign(model, ann[0])
    signature = json.loads((model / "model.sig").read_text())
    payload = json.loads(base64.b64decode(signature["dsseEnvelope"]["payload"]))
    resources = payload["predicate"]["resources"]
    for changed, sentence in (
        (resources[1:], f"{resources[0]['name']} of .* was not there when it was signed"),
        (
            [*resources, {"name": "z", "algorithm": "sha256", "digest": "0" * 64}],
            "z of .* is missing, but it was signed",
        ),
    ):
        payload["predicate"]["resources"] = changed
        (model / "model.sig").write_text(signed_by_hand(payload, ann[0]))
        with pytest.raises(ArtifactError, match=sentence):
            mlflow_e2eai.verify(model, key=ann[1])


def signed_by_hand(statement, private):
    """A statement signed as DSSE has it, by no code of ours."""
    from cryptography.hazmat.primitives.serialization import load_ssh_private_key

    key = load_ssh_private_key(private.read_bytes(), None)
    assert isinstance(key, Ed25519PrivateKey)
    payload, kind = json.dumps(statement).encode(), b"application/vnd.in-toto+json"
    message = b" ".join([b"DSSEv1", b"28", kind, str(len(payload)).encode(), payload])
    return json.dumps(
        {
            "mediaType": "application/vnd.dev.sigstore.bundle.v0.3+json",
            "verificationMaterial": {"publicKey": {}},
            "dsseEnvelope": {
                "payload": base64.b64encode(payload).decode(),
                "payloadType": kind.decode(),
                "signatures": [{"sig": base64.b64encode(key.sign(message)).decode()}],
            },
        }
    )


def test_the_signature_is_as_openssf_model_signing_has_it(saved, tmp_path, ann):
    model = shutil.copytree(saved, tmp_path / "model")
    mlflow_e2eai.sign(model, ann[0])
    found = json.loads((model / "model.sig").read_text())
    envelope = found["dsseEnvelope"]
    statement = json.loads(base64.b64decode(envelope["payload"]))
    files = {
        path.relative_to(model).as_posix(): sha256_of(path)
        for path in model.rglob("*")
        if path.is_file() and path.name != "model.sig"
    }
    assert {"bom.cdx.json", "provenance.json"} < set(files)
    assert found["mediaType"] == "application/vnd.dev.sigstore.bundle.v0.3+json"
    assert envelope["payloadType"] == "application/vnd.in-toto+json"
    assert statement["_type"] == "https://in-toto.io/Statement/v1"
    assert statement["predicateType"] == "https://model_signing/signature/v1.0"
    assert statement["predicate"]["resources"] == [
        {"name": name, "algorithm": "sha256", "digest": files[name]} for name in sorted(files)
    ]
    every = b"".join(bytes.fromhex(files[name]) for name in sorted(files))
    assert statement["subject"] == [
        {"name": "model", "digest": {"sha256": hashlib.sha256(every).hexdigest()}}
    ]
    statement["predicate"]["more"] = "ignored"
    (model / "model.sig").write_text(signed_by_hand(statement, ann[0]))
    assert mlflow_e2eai.verify(model, key=ann[1]).signed_by is not None


@pytest.mark.parametrize(
    ("make", "private"),
    [(make_keys, ec.SECP256R1), (make_pem, ec.SECP256R1), (make_pem, None)],
)
def test_keys_of_both_kinds_and_formats_sign(make, private, saved, tmp_path):
    key = Ed25519PrivateKey.generate() if private is None else ec.generate_private_key(private())
    place, public = make(tmp_path / "key", key)
    model = shutil.copytree(saved, tmp_path / "model")
    signed = mlflow_e2eai.sign(model, place)
    (tmp_path / "key.pub").write_text(public)
    assert mlflow_e2eai.verify(model, key=tmp_path / "key.pub") == signed
    assert mlflow_e2eai.verify(model, key=str(tmp_path / "key.pub")) == signed


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("hello", "is no signature in the format"),
        ("[]", "is no signature in the format"),
        ('{"dsseEnvelope": {"payload": "e30=", "signatures": []}}', "is no signature in"),
        ("[" * 100_000, "is no signature in the format"),
    ],
)
def test_a_file_that_is_no_signature_is_one_sentence(content, sentence, saved, tmp_path, ann):
    model = shutil.copytree(saved, tmp_path / "model")
    (model / "model.sig").write_text(content)
    for options in ({}, {"key": ann[1]}):
        assert sentence in refused(model, **options)


def test_a_signature_of_another_statement_by_the_same_key_does_not_count(saved, tmp_path, ann):
    model = shutil.copytree(saved, tmp_path / "model")
    mlflow_e2eai.sign(model, ann[0])
    found = json.loads((model / "model.sig").read_text())
    statement = json.loads(base64.b64decode(found["dsseEnvelope"]["payload"]))
    other = {**statement, "predicateType": "https://slsa.dev/provenance/v1"}
    (model / "model.sig").write_text(signed_by_hand(other, ann[0]))
    assert "is no signature in the format" in refused(model, key=ann[1])
    found["dsseEnvelope"]["payload"] = base64.b64encode(
        json.dumps({**statement, "more": 1}).encode()
    ).decode()
    (model / "model.sig").write_text(json.dumps(found))
    assert "was changed after the key SHA256:" in refused(model, key=ann[1])


def test_signing_again_replaces_the_signature_also_after_an_upload_that_was_cut_off(
    edited, ann, bob
):
    mlflow_e2eai.sign(URI, ann[0])
    with edited() as folder:
        (folder / "model.sig").write_text("half of i")
    mlflow_e2eai.sign(URI, bob[0])
    assert "another key" in refused(key=ann[1])
    assert mlflow_e2eai.verify(URI, key=bob[1]).signed_by is not None


def test_a_signature_that_a_hand_put_there_is_refused_by_promote(edited, saved, tmp_path, ann):
    model = shutil.copytree(saved, tmp_path / "model")
    mlflow_e2eai.sign(model, ann[0])
    with edited() as folder:
        shutil.copy(model / "model.sig", folder)
    with pytest.raises(ArtifactError, match=r"model\.sig was not in the model"):
        mlflow_e2eai.promote("net", 1, gates=GATES)


def test_a_changed_version_is_not_signed(edited, ann):
    with edited() as folder:
        (folder / "requirements.txt").write_text("evil\n")
    with pytest.raises(ArtifactError, match=r"requirements\.txt has sha256"):
        mlflow_e2eai.sign(URI, ann[0])
    with edited() as folder:
        assert not (folder / "model.sig").exists()


@pytest.mark.parametrize(
    ("model", "kind", "sentence"),
    [
        ("models:/net/7", TrackingError, "There is no model 'models:/net/7'"),
        ("nowhere", TrackingError, "There is no file or folder 'nowhere', and no such model at "),
        (None, ArtifactError, "models:/m-.* is not a bundle of this package"),
    ],
)
def test_what_cannot_be_signed_is_one_sentence(model, kind, sentence, store, ann):
    model = model or mlflow.initialize_logged_model("plain").model_uri
    for call in (
        lambda: mlflow_e2eai.sign(model, ann[0]),
        lambda: mlflow_e2eai.verify(model, key=ann[1]),
    ):
        with pytest.raises(kind, match=sentence):
            call()


def test_a_key_that_is_none_is_refused_before_anything_is_downloaded(ann, tmp_path):
    for call in (
        lambda: mlflow_e2eai.verify("models:/net/1", key=str(tmp_path / "missing.pub")),
        lambda: mlflow_e2eai.verify("models:/net/1", key=ann[0]),
        lambda: mlflow_e2eai.sign("models:/net/1", tmp_path / "missing"),
    ):
        with pytest.raises(InvalidInputError):
            call()


def test_the_command_line_signs_and_verifies(edited, ann, bob, tmp_path, capsys):
    (tmp_path / "ann.pub").write_text(ann[1])
    assert main.main(["sign", URI, "--key", str(ann[0])]) == main.DONE
    assert "files are as they were logged, signed by SHA256:" in capsys.readouterr().out
    assert main.main(["verify", URI, "--key", str(tmp_path / "ann.pub")]) == main.DONE
    assert "signed by SHA256:" in capsys.readouterr().out
    assert main.main(["verify", URI]) == main.DONE
    assert "nobody gave a key" in capsys.readouterr().out
    assert main.main(["verify", URI, "--key", bob[1]]) == main.ERROR
    assert "is signed by another key" in capsys.readouterr().err


def test_without_cryptography_it_is_said_which_extra_brings_it(saved, ann, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "cryptography.hazmat.primitives", None)
    with pytest.raises(E2EAIError, match=r"mlflow_e2eai\[sign\]"):
        mlflow_e2eai.verify(saved, key=ann[1])
