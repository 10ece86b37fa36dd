"""An alias goes back to a version that had it, if that is whole, runs, and passes today."""

from __future__ import annotations

import mlflow
import pytest
from registered_bundles import altered, holder, model_of, register

import mlflow_e2eai
from mlflow_e2eai.errors import E2EAIError, InvalidInputError, TrackingError
from mlflow_e2eai.evaluation.gates import Gate

pytestmark = pytest.mark.usefixtures("on_threads")

FAST = (Gate(metric="parity/failed", bound="at_most", limit=0),)
IMPOSSIBLE = (Gate(metric="parity/failed", bound="at_least", limit=99),)


@pytest.fixture
def registry(store, good):
    """Three versions, each of which had the alias, the third last."""
    for version in (register(good), register(good), register(good)):
        mlflow_e2eai.promote("net", version, gates=FAST)
    return store


def test_the_alias_goes_one_version_back_and_then_further(registry):
    move = mlflow_e2eai.rollback("net")
    assert (move.before, move.after, move.kind) == ("3", "2", "rollback")
    assert holder(registry) == "2"
    mlflow_e2eai.rollback("net")
    assert holder(registry) == "1"
    with pytest.raises(TrackingError, match="pointed to no version before; promote one"):
        mlflow_e2eai.rollback("net")
    run = mlflow.get_run(move.run_id)
    assert (run.info.run_name, run.info.status) == ("rollback @champion of net to 2", "FINISHED")


def test_a_version_can_be_named(registry):
    assert mlflow_e2eai.rollback("net", to=1).after == "1"
    assert holder(registry) == "1"
    with pytest.raises(TrackingError, match="points to version 1 already"):
        mlflow_e2eai.rollback("net", to="1")


def test_a_version_that_never_had_the_alias_is_refused(registry, good):
    version = register(good)
    with pytest.raises(
        TrackingError,
        match=r"never pointed to version 4 \(it pointed to 1, 2, 3\); promote that version",
    ):
        mlflow_e2eai.rollback("net", to=version)
    with pytest.raises(TrackingError, match="no decision ever moved one"):
        mlflow_e2eai.rollback("net", alias="canary", to=1)
    assert holder(registry) == "3"


def test_a_version_that_does_not_pass_today_is_refused_with_the_reason(registry):
    with pytest.raises(
        TrackingError,
        match=r"Version 2 of 'net', which had @champion before, does not pass its gates",
    ):
        mlflow_e2eai.rollback("net", gates=IMPOSSIBLE)
    mlflow_e2eai.reject("net", 2, as_="legal")
    with pytest.raises(TrackingError, match=r"it was Rejected as 'legal'.*name another with to="):
        mlflow_e2eai.rollback("net")
    assert holder(registry) == "3"
    assert len(mlflow_e2eai.history("net").moves) == 3


def test_old_evidence_does_not_pass_a_gate_on_its_age(store, good, tmp_path):
    def aged(data):
        data["measured_at"] = "2020-01-01T00:00:00+00:00"

    mlflow_e2eai.promote("net", register(altered(good, tmp_path, aged)), gates=FAST)
    mlflow_e2eai.promote("net", register(good), gates=FAST)
    age = (Gate(metric="evidence/age_days", bound="at_most", limit=30),)
    with pytest.raises(TrackingError, match="evidence/age_days"):
        mlflow_e2eai.rollback("net", gates=age)
    assert holder(store) == "2"


def test_a_version_with_a_changed_file_is_refused(registry, artifacts):
    with artifacts.edited(model_of("2").model_id) as folder:
        (graph, *_) = folder.rglob("*.onnx")
        content = bytearray(graph.read_bytes())
        content[-1] ^= 1
        graph.write_bytes(content)
    with pytest.raises(
        E2EAIError, match=r"Version 2 of 'net', which had @champion before, cannot be"
    ):
        mlflow_e2eai.rollback("net")
    assert holder(registry) == "3"


def test_after_a_move_by_hand_it_goes_to_what_was_decided_last(registry):
    registry.set_registered_model_alias("net", "champion", "1")
    assert mlflow_e2eai.rollback("net").after == "3"


def test_a_version_whose_decision_was_deleted_can_still_be_gone_back_to(registry):
    for move in mlflow_e2eai.history("net").moves:
        registry.delete_run(move.run_id)
    assert mlflow_e2eai.rollback("net").after == "2"
    assert holder(registry) == "2"


def test_gates_that_are_wrong_are_refused_first(registry):
    with pytest.raises(InvalidInputError, match="parity/faled"):
        mlflow_e2eai.rollback("net", gates={"gates": [{"metric": "parity/faled", "at_most": 0}]})
    assert holder(registry) == "3"


def test_a_name_that_is_not_registered_is_named(store):
    with pytest.raises(TrackingError, match="There is no registered model 'net'"):
        mlflow_e2eai.rollback("net")
