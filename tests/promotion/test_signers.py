"""Gates may require that a named key signed the files of a version."""

from __future__ import annotations

import hashlib

import pytest
from registered_bundles import holder, register
from signing_keys import make_keys

import mlflow_e2eai
from mlflow_e2eai import tracking
from mlflow_e2eai.errors import InvalidInputError

pytestmark = pytest.mark.usefixtures("on_threads")


@pytest.fixture
def version(store, good):
    return register(good)


@pytest.fixture
def keys(tmp_path):
    return {name: make_keys(tmp_path / name) for name in ("ann", "bob")}


def signed_by(keys, *names, **fields):
    return {
        "gates": [{"signed_by": list(names), **fields}],
        "keys": {name: line for name, (_, line) in keys.items()},
    }


def reason(version, gates):
    decision = mlflow_e2eai.promote("net", version, gates=gates)
    return None if decision.promoted else " ".join(decision.reasons)


def test_a_version_without_a_signature_is_rejected_with_the_command_that_signs_it(
    store, keys, version
):
    decision = mlflow_e2eai.promote("net", version, gates=signed_by(keys, "ann"))
    assert not decision.promoted
    assert decision.reasons == (
        "signed_by/ann: models:/net/1 has no signature (gate: signed by ann)",
    )
    assert decision.remedies == ("mlflow_e2eai sign models:/net/1 --key FILE",)
    assert holder(store) is None


def test_a_version_that_one_of_the_named_keys_signed_is_promoted(keys, version):
    mlflow_e2eai.sign("models:/net/1", keys["ann"][0])
    assert "is signed by another key than SHA256:" in reason(version, signed_by(keys, "bob"))
    assert reason(version, signed_by(keys, "bob", "ann")) is None
    assert not mlflow_e2eai.redecide("net", version).differs
    mlflow_e2eai.sign("models:/net/1", keys["bob"][0])
    assert reason(version, signed_by(keys, "ann")) is not None


def test_files_that_were_changed_with_all_their_digests_are_not_what_was_signed(
    store, keys, version, artifacts
):
    mlflow_e2eai.sign("models:/net/1", keys["ann"][0])
    model = tracking.resolve("models:/net/1")
    with artifacts.edited(model.model_id) as folder:
        text = (folder / "MLmodel").read_text() + "\nnote: changed\n"
        (folder / "MLmodel").write_text(text)
    digest = hashlib.sha256(text.encode()).hexdigest()
    tracking.tag_model(model.model_id, {tracking.MLMODEL_SHA256: digest})
    store.set_model_version_tag("net", version, tracking.MLMODEL_SHA256, digest)
    assert "MLmodel of models:/net/1 is not the file that was signed" in reason(
        version, signed_by(keys, "ann")
    )


def test_a_signature_that_only_warns_decides_nothing(keys, version):
    gates = signed_by(keys, "ann", severity="warn")
    gates["gates"].append({"metric": "parity/failed", "at_most": 0})
    decision = mlflow_e2eai.promote("net", version, gates=gates)
    assert decision.promoted
    assert [verdict.passed for verdict in decision.verdicts] == [True, False]


@pytest.mark.parametrize(
    ("gates", "sentence"),
    [
        ({"gates": [{"signed_by": ["ann"]}]}, "The gate signed_by names the key 'ann', which is"),
        ({"gates": [{"signed_by": []}]}, r"gates\.0\.signed_by is \(\)|at least 1 item"),
        ({"gates": [{"signed_by": ["ann"], "key": 1}]}, "'key' is no key of an entry"),
    ],
)
def test_gates_that_name_no_key_are_refused(gates, sentence, version):
    with pytest.raises(InvalidInputError, match=sentence):
        mlflow_e2eai.promote("net", version, gates=gates)
