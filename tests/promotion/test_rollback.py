"""An alias goes back to a version that had it, if that is whole, runs, and passes today."""

from __future__ import annotations

import mlflow
import pytest
from registered_bundles import altered, holder, model_of, register

import mlflow_e2eai
from mlflow_e2eai.errors import E2EAIError, InvalidInputError, TrackingError
from mlflow_e2eai.evaluation.gates import Gate
from mlflow_e2eai.promotion import reversal
from mlflow_e2eai.promotion.registry.record import read_record

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


def test_the_run_of_a_rollback_has_the_gates_that_it_passed(registry):
    others = (Gate(metric="parity/failed", bound="at_most", limit=7),)
    record = read_record(mlflow_e2eai.rollback("net", gates=others).run_id)
    assert record.policy.gates == others
    assert [str(verdict) for verdict in record.decision.verdicts] == [
        "parity/failed = 0 (gate: at most 7)"
    ]
    assert (record.challenger.version, record.aliases) == ("2", ("champion",))
    assert "before: version 3 at @champion" in record.text()
    assert mlflow_e2eai.explain("net", 2).policy.gates == FAST


def test_a_version_before_that_was_deleted_is_named_and_another_can_be(registry):
    registry.delete_model_version("net", "2")
    with pytest.raises(
        TrackingError,
        match=r"Version 2 of 'net', which had @champion before, was deleted; name another with "
        r"to= \(`--to`\)",
    ):
        mlflow_e2eai.rollback("net")
    registry.delete_model_version("net", "3")
    with pytest.raises(TrackingError, match=r"Version 3 of 'net', .* was deleted; name another"):
        mlflow_e2eai.rollback("net")
    move = mlflow_e2eai.rollback("net", to=1)
    assert "it replaces no version" in move.reason
    assert holder(registry) == "1"


def test_a_decision_that_is_no_longer_there_is_named_with_the_gates_to_give(registry):
    registry.log_text(mlflow_e2eai.history("net").moves[1].run_id, "{}", "decision.json")
    with pytest.raises(
        TrackingError,
        match=r"The gates by which version 2 of 'net' got @champion cannot be read: .*; "
        r"give gates= \(`--gates`\)",
    ):
        mlflow_e2eai.rollback("net")
    assert mlflow_e2eai.rollback("net", gates=FAST).after == "2"


def test_an_alias_that_moves_meanwhile_stays_and_the_advice_is_to_roll_back_again(
    registry, monkeypatch
):
    check_runs = reversal._check_runs

    def moved_meanwhile(*words):
        check_runs(*words)
        registry.set_registered_model_alias("net", "champion", "1")

    monkeypatch.setattr(reversal, "_check_runs", moved_meanwhile)
    with pytest.raises(TrackingError, match=r"moved to version 1 meanwhile; roll back again\.$"):
        mlflow_e2eai.rollback("net")
    assert holder(registry) == "1"


def test_a_second_rollback_cuts_what_came_after_the_last_time_that_its_version_stood_there(
    registry,
):
    mlflow_e2eai.promote("net", 1, gates=FAST)
    mlflow_e2eai.promote("net", 3, gates=FAST)

    steps = [mlflow_e2eai.rollback("net") for _ in range(4)]
    assert [step.after for step in steps] == ["1", "3", "2", "1"]


def test_a_version_that_a_hand_set_first_can_be_gone_back_to_by_gates_that_are_given(store, good):
    first, second = register(good), register(good)
    store.set_registered_model_alias("net", "champion", first)
    mlflow_e2eai.promote("net", second, gates=FAST)

    with pytest.raises(TrackingError, match=r"version 1 of 'net' got @champion are not on record"):
        mlflow_e2eai.rollback("net")
    assert mlflow_e2eai.rollback("net", gates=FAST).after == "1"
    with pytest.raises(TrackingError, match="pointed to no version before"):
        mlflow_e2eai.rollback("net")


def test_a_version_that_a_hand_set_and_that_was_promoted_there_is_gone_back_to_by_its_gates(
    store, good
):
    first, second = register(good), register(good)
    store.set_registered_model_alias("net", "champion", first)
    mlflow_e2eai.promote("net", first, gates=FAST)
    mlflow_e2eai.promote("net", second, gates=FAST)

    assert mlflow_e2eai.rollback("net").after == "1"


def test_a_version_that_was_promoted_by_comparisons_alone_is_gone_back_to(registry, good):
    compared = (Gate(metric="champion/task_drop", bound="at_most", limit=1),)
    mlflow_e2eai.promote("net", register(good), gates=compared)
    mlflow_e2eai.promote("net", register(good), gates=FAST)

    move = mlflow_e2eai.rollback("net")
    assert move.after == "4"
    assert move.reason == (
        "version 4 runs today, and no gate applies to it alone; it replaces version 5"
    )
    mlflow_e2eai.reject("net", 3, as_="legal")
    with pytest.raises(TrackingError, match="it was Rejected as 'legal'"):
        mlflow_e2eai.rollback("net", to=3, gates=compared)


def test_gates_that_block_nothing_are_one_sentence_with_the_option_for_others(registry):
    with pytest.raises(
        TrackingError,
        match=r"nothing is promoted without any; give other gates= \(`--gates`\), name another",
    ):
        mlflow_e2eai.rollback("net", gates=())


# Several aliases.

BOTH = ("champion", "champion-sm89")


def test_several_aliases_go_back_together(registry):
    mlflow_e2eai.promote("net", 1, alias=BOTH, gates=FAST)
    mlflow_e2eai.promote("net", 2, alias=BOTH, gates=FAST)
    moves = mlflow_e2eai.rollback("net", alias=BOTH)
    assert [(each.alias, each.before, each.after) for each in moves] == [
        ("champion", "2", "1"),
        ("champion-sm89", "2", "1"),
    ]
    assert len({each.run_id for each in moves}) == 1
    assert [holder(registry, alias) for alias in BOTH] == ["1", "1"]


@pytest.mark.parametrize("to", [None, 1])
def test_of_several_aliases_those_that_are_there_already_stay_and_the_others_go_back(registry, to):
    mlflow_e2eai.promote("net", 1, alias="blue", gates=FAST)
    for version in (1, 2):
        mlflow_e2eai.promote("net", version, alias="green", gates=FAST)

    (move,) = mlflow_e2eai.rollback("net", alias=["blue", "green"], to=to)
    assert (move.alias, move.before, move.after) == ("green", "2", "1")
    with pytest.raises(TrackingError, match="@blue, @green of 'net' point to version 1 already"):
        mlflow_e2eai.rollback("net", alias=["blue", "green"], to=1)


def test_an_alias_that_came_with_another_and_stays_is_named(registry):
    mlflow_e2eai.promote("net", 1, alias=BOTH, gates=FAST)
    mlflow_e2eai.promote("net", 2, alias=BOTH, gates=FAST)
    move = mlflow_e2eai.rollback("net")
    assert move.reason.endswith(
        "it replaces version 2; @champion-sm89 came with it and stays at version 2"
    )
    assert [holder(registry, alias) for alias in BOTH] == ["1", "2"]


def test_aliases_that_were_given_by_other_gates_do_not_go_back_by_those_of_the_first(registry):
    other = (Gate(metric="parity/measured", bound="at_least", limit=1),)
    mlflow_e2eai.promote("net", 1, alias="a", gates=FAST)
    mlflow_e2eai.promote("net", 1, alias="b", gates=other)
    mlflow_e2eai.promote("net", 2, alias=["a", "b"], gates=FAST)

    with pytest.raises(TrackingError, match=r"@a, @b by other gates each; .*give gates="):
        mlflow_e2eai.rollback("net", alias=["a", "b"])
    assert [holder(registry, alias) for alias in "ab"] == ["2", "2"]
    mlflow_e2eai.rollback("net", alias=["a", "b"], gates=FAST)
    assert [holder(registry, alias) for alias in "ab"] == ["1", "1"]


def test_aliases_that_go_back_to_two_versions_are_refused(registry):
    mlflow_e2eai.promote("net", 1, alias="blue", gates=FAST)
    mlflow_e2eai.promote("net", 2, alias="blue", gates=FAST)
    with pytest.raises(
        TrackingError,
        match=r"do not go back to one version: @champion to version 2, @blue to version 1; roll",
    ):
        mlflow_e2eai.rollback("net", alias=["champion", "blue"])
    with pytest.raises(InvalidInputError, match="The list of aliases is empty"):
        mlflow_e2eai.rollback("net", alias=[])
    assert [holder(registry, alias) for alias in ("champion", "blue")] == ["3", "2"]


def test_a_name_that_is_not_registered_is_named(store):
    with pytest.raises(TrackingError, match="There is no registered model 'net'"):
        mlflow_e2eai.rollback("net")
