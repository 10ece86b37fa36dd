"""Aliases that somebody moved: named, and put back where that is wanted."""

from __future__ import annotations

import itertools
from datetime import datetime, timedelta, timezone

import mlflow
import pytest
from mlflow.exceptions import MlflowException
from registered_bundles import holder, register

import mlflow_e2eai
from mlflow_e2eai.errors import InvalidInputError, TrackingError
from mlflow_e2eai.evaluation.gates import Gate
from mlflow_e2eai.promotion.registry import drift, moves
from mlflow_e2eai.promotion.registry.tags import MOVED_AT

pytestmark = pytest.mark.usefixtures("on_threads")

FAST = (Gate(metric="parity/failed", bound="at_most", limit=0),)


@pytest.fixture
def registry(store, good):
    """Two versions, of which the second has the alias by a decision."""
    for version in (register(good), register(good)):
        mlflow_e2eai.promote("net", version, gates=FAST)
    return store


def standings(report):
    return {each.alias: each.standing for each in report.aliases}


def test_an_alias_that_stands_as_decided_is_no_drift(registry):
    report = mlflow_e2eai.guard("net")
    assert standings(report) == {"champion": "as decided"}
    assert not report.drifted
    assert str(report.aliases[0]).startswith("@champion points to version 2, as decided by ")


def test_a_move_by_hand_is_named_with_the_decision_that_it_undid(registry):
    registry.set_registered_model_alias("net", "champion", "1")
    report = mlflow_e2eai.guard("net")
    (drifted,) = report.drifted
    last = mlflow_e2eai.history("net").moves[-1]
    assert (drifted.version, drifted.decided) == ("1", "2")
    assert (drifted.run_id, drifted.by, drifted.at) == (last.run_id, last.by, last.at)
    assert "@champion points to version 1, moved by hand: the last decision, by " in str(drifted)
    assert holder(registry) == "1"  # it only looked


def test_a_deleted_alias_and_one_that_nobody_decided_are_told_apart(registry):
    registry.delete_registered_model_alias("net", "champion")
    registry.set_registered_model_alias("net", "canary", "1")
    report = mlflow_e2eai.guard("net")
    assert standings(report) == {"canary": "never decided", "champion": "deleted by hand"}
    assert [each.alias for each in report.drifted] == ["champion"]


def test_what_drifted_is_put_back_by_a_run_and_what_nobody_decided_is_left_alone(registry):
    registry.set_registered_model_alias("net", "champion", "1")
    registry.set_registered_model_alias("net", "canary", "1")
    report = mlflow_e2eai.guard("net", restore=True)
    assert str(report.drifted[0]).endswith("it was put back")
    assert [holder(registry, alias) for alias in ("champion", "canary")] == ["2", "1"]
    last = mlflow_e2eai.history("net").moves[-1]
    assert (last.kind, last.before, last.after) == ("restoration", "1", "2")
    assert last.reason == "@champion was moved to version 1 by hand"
    assert not mlflow_e2eai.guard("net").drifted
    moves = len(mlflow_e2eai.history("net").moves)
    mlflow_e2eai.guard("net", restore=True)
    assert len(mlflow_e2eai.history("net").moves) == moves


def test_an_alias_whose_version_was_deleted_is_named_with_the_command_and_others_go_back(
    registry,
):
    mlflow_e2eai.promote("net", "1", alias="blue", gates=FAST)
    for alias, version in (("champion", "1"), ("blue", "2")):
        registry.set_registered_model_alias("net", alias, version)
    blue, champion = mlflow_e2eai.guard("net", restore=True).aliases
    assert blue.restored
    assert holder(registry, "blue") == "1"
    registry.set_registered_model_alias("net", "blue", "2")
    registry.delete_model_version("net", "1")

    registry.delete_registered_model_alias("net", "champion")
    blue, champion = mlflow_e2eai.guard("net", restore=True).aliases
    assert champion.restored
    assert not blue.restored
    assert str(blue).endswith(
        "put it at version 1; it cannot be put back at version 1, because it was deleted; promote "
        "another with `mlflow_e2eai promote net VERSION --alias blue`"
    )
    assert [holder(registry, alias) for alias in ("blue", "champion")] == ["2", "2"]


def test_a_decision_counts_though_its_run_or_its_experiment_was_deleted(registry):
    for move in mlflow_e2eai.history("net").moves:
        registry.delete_run(move.run_id)
    assert not mlflow_e2eai.guard("net", restore=True).drifted
    registry.set_registered_model_alias("net", "champion", "1")
    assert standings(mlflow_e2eai.guard("net")) == {"champion": "moved by hand"}
    experiment = registry.get_experiment_by_name("tests").experiment_id
    registry.delete_experiment(experiment)
    mlflow.set_experiment("others")
    assert mlflow_e2eai.guard("net", restore=True).aliases[0].restored
    assert holder(registry) == "2"


def forget(registry, monkeypatch, *runs):
    """Let runs be gone, as `mlflow gc` leaves it."""
    search = mlflow.search_runs

    def rest(*words, **options):
        return [run for run in search(*words, **options) if run.info.run_id not in runs]

    monkeypatch.setattr(mlflow, "search_runs", rest)


def test_a_champion_whose_decision_is_gone_for_good_is_no_move_by_hand_and_stays(
    registry, monkeypatch
):
    forget(registry, monkeypatch, mlflow_e2eai.history("net").moves[-1].run_id)
    report = mlflow_e2eai.guard("net", restore=True)
    assert standings(report) == {"champion": "decision gone"}
    assert report.drifted
    assert "a later decision is known, whose run is gone" in str(report.aliases[0])
    assert holder(registry) == "2"

    others = (Gate(metric="parity/failed", bound="at_most", limit=1),)
    mlflow_e2eai.promote("net", "2", gates=others)
    assert standings(mlflow_e2eai.guard("net", restore=True)) == {"champion": "as decided"}
    assert holder(registry) == "2"


def test_the_decision_of_a_version_is_known_though_another_alias_moved_since(registry, monkeypatch):
    mlflow_e2eai.promote("net", "1", alias="canary", gates=FAST)
    forget(registry, monkeypatch, mlflow_e2eai.history("net", alias="champion").moves[-1].run_id)
    found = standings(mlflow_e2eai.guard("net"))
    assert found == {"canary": "as decided", "champion": "decision gone"}


def test_a_model_without_the_tags_of_its_decisions_is_not_one_that_nobody_decided(registry):
    for tag in registry.get_registered_model("net").tags:
        registry.delete_registered_model_tag("net", tag)
    assert standings(mlflow_e2eai.guard("net", restore=True)) == {"champion": "decision gone"}
    assert holder(registry) == "2"


def test_a_move_by_hand_to_an_old_version_is_one_though_its_old_decision_is_gone(
    registry, monkeypatch
):
    forget(registry, monkeypatch, mlflow_e2eai.history("net").moves[0].run_id)
    registry.set_registered_model_alias("net", "champion", "1")
    assert mlflow_e2eai.guard("net", restore=True).aliases[0].restored
    assert holder(registry) == "2"


@pytest.mark.parametrize("by", ["reject", "a hand"])
def test_a_rejected_version_is_named_with_who_rejected_it_and_is_never_put_back(registry, by):
    if by == "reject":
        mlflow_e2eai.reject("net", 2, as_="legal")
    else:
        registry.set_model_version_tag("net", "2", "legal", "Rejected")
    why = {"reject": "it was Rejected as 'legal' by ", "a hand": "its tag 'legal' is 'Rejected'"}[
        by
    ]
    report = mlflow_e2eai.guard("net", restore=True)
    (champion,) = report.drifted
    assert champion.standing == "rejected"
    assert f"; but {why}" in str(champion)
    assert "go back with `mlflow_e2eai rollback net --alias champion`" in str(champion)

    registry.set_registered_model_alias("net", "champion", "1")
    (champion,) = mlflow_e2eai.guard("net", restore=True).drifted
    assert not champion.restored
    assert f"it cannot be put back at version 2, because {why}" in str(champion)
    assert holder(registry) == "1"


def test_a_rejected_version_that_none_was_before_is_named_with_the_promotion_to_make(store, good):
    mlflow_e2eai.promote("net", register(good), gates=FAST)
    mlflow_e2eai.reject("net", 1, as_="legal")
    store.set_registered_model_alias("net", "canary", "1")

    for each in mlflow_e2eai.guard("net").aliases:
        assert str(each).endswith(
            "; no version was there before; promote another with "
            f"`mlflow_e2eai promote net VERSION --alias {each.alias}`"
        )


def test_a_deleted_version_is_named_with_the_rollback_where_the_alias_had_another(registry, good):
    mlflow_e2eai.promote("net", register(good), gates=FAST)
    registry.set_registered_model_alias("net", "champion", "1")
    registry.delete_model_version("net", "3")

    (champion,) = mlflow_e2eai.guard("net", restore=True).drifted
    assert str(champion).endswith(
        "choose one with `mlflow_e2eai rollback net --alias champion --to VERSION`"
    )


def test_a_move_by_hand_that_was_promoted_stays_whatever_is_decided_about_other_aliases(registry):
    registry.set_registered_model_alias("net", "champion", "1")
    mlflow_e2eai.promote("net", "1", gates=FAST)
    mlflow_e2eai.promote("net", "1", alias="canary", gates=FAST)

    found = standings(mlflow_e2eai.guard("net", restore=True))
    assert found == {"canary": "as decided", "champion": "as decided"}
    assert holder(registry) == "1"
    assert len(mlflow_e2eai.history("net", alias="champion").moves) == 2


def test_a_hand_that_undoes_a_promotion_to_where_the_alias_was_has_moved_it(registry):
    registry.set_registered_model_alias("net", "champion", "1")
    mlflow_e2eai.promote("net", "1", gates=FAST)
    registry.set_registered_model_alias("net", "champion", "2")

    (champion,) = mlflow_e2eai.guard("net", restore=True).drifted
    assert (champion.version, champion.decided) == ("2", "1")
    assert holder(registry) == "1"


def test_a_model_that_was_renamed_has_no_decisions_of_its_own_and_none_that_is_gone(registry):
    registry.rename_registered_model("net", "digits")

    assert standings(mlflow_e2eai.guard("digits", restore=True)) == {"champion": "never decided"}
    mlflow_e2eai.promote("digits", "1", alias="canary", gates=FAST)
    found = standings(mlflow_e2eai.guard("digits"))
    assert found == {"canary": "as decided", "champion": "never decided"}


def test_a_time_of_another_zone_is_no_later_one(registry):
    last = mlflow_e2eai.history("net").moves[-1].at
    east = datetime.fromisoformat(last).astimezone(timezone(timedelta(hours=9))).isoformat()
    registry.set_registered_model_tag("net", MOVED_AT, east)
    registry.set_registered_model_alias("net", "champion", "1")

    assert standings(mlflow_e2eai.guard("net")) == {"champion": "moved by hand"}


def test_an_alias_that_is_promoted_between_two_looks_is_no_drift(registry, good, monkeypatch):
    version, compare = register(good), drift.compare
    looks = []

    def promoted_meanwhile(registered):
        looks.append(registered)
        if len(looks) == 1:
            mlflow_e2eai.promote("net", version, gates=FAST)
        return compare(registered)

    monkeypatch.setattr(drift, "compare", promoted_meanwhile)
    assert standings(mlflow_e2eai.guard("net")) == {"champion": "as decided"}
    assert len(looks) == 2


def test_a_move_that_was_withdrawn_was_not_done_though_a_hand_does_it_later(
    registry, good, monkeypatch
):
    version = register(good)
    with monkeypatch.context() as patch:
        patch.setattr(moves, "_set_alias", refuse)
        with pytest.raises(TrackingError, match="could not be moved: no"):
            mlflow_e2eai.promote("net", version, gates=FAST)
        with pytest.raises(TrackingError, match="could not be moved: no"):
            mlflow_e2eai.rollback("net")
    for number in (version, "1"):
        registry.set_registered_model_alias("net", "champion", number)
        assert standings(mlflow_e2eai.guard("net")) == {"champion": "moved by hand"}


def refuse(*_):
    raise MlflowException("no")  # noqa: EM101 - the server's word


def test_watching_yields_each_state_that_differs_from_the_last(registry):
    seen = mlflow_e2eai.watch("net", every_s=0.01)
    assert not next(seen).drifted
    registry.set_registered_model_alias("net", "champion", "1")
    assert next(seen).drifted
    registry.set_registered_model_alias("net", "champion", "2")
    assert not next(seen).drifted


def fail(looks, monkeypatch):
    """Let some of the looks of `watch` fail, by their numbers."""
    guard, numbers = drift.guard, itertools.count(1)

    def fail_or_look(*words, **options):
        if next(numbers) in looks:
            msg = "MLflow did not carry out a request: 503."
            raise TrackingError(msg)
        return guard(*words, **options)

    monkeypatch.setattr(drift, "guard", fail_or_look)


def test_watching_goes_on_after_a_look_that_failed_with_a_warning(registry, monkeypatch, caplog):
    fail({2, 4}, monkeypatch)
    seen = mlflow_e2eai.watch("net", every_s=0.01)
    assert not next(seen).drifted
    registry.set_registered_model_alias("net", "champion", "1")
    assert next(seen).drifted
    assert "could not be compared (MLflow did not carry out a request: 503)" in caplog.text


def test_watching_ends_after_many_looks_in_a_row_that_failed_and_at_once_where_the_first_does(
    registry, monkeypatch
):
    monkeypatch.setattr(drift, "MOST_FAILED_LOOKS", 3)
    fail({2, 3, 4}, monkeypatch)
    seen = mlflow_e2eai.watch("net", every_s=0.01)
    next(seen)
    with pytest.raises(TrackingError, match="503"):
        next(seen)
    with pytest.raises(TrackingError, match="There is no registered model 'nut'"):
        next(mlflow_e2eai.watch("nut", every_s=0.01))


def test_watching_can_put_aliases_back(registry):
    registry.set_registered_model_alias("net", "champion", "1")
    first, second = itertools.islice(mlflow_e2eai.watch("net", every_s=0.01, restore=True), 2)
    assert first.drifted[0].restored
    assert not second.drifted
    assert holder(registry) == "2"


@pytest.mark.parametrize("every_s", [0, -1, float("nan")])
def test_a_pause_that_is_none_is_refused(registry, every_s):
    with pytest.raises(InvalidInputError, match="give seconds above 0"):
        next(mlflow_e2eai.watch("net", every_s=every_s))


def test_a_rollback_is_a_decision_and_no_drift(registry):
    mlflow_e2eai.rollback("net")
    assert holder(registry) == "1"
    assert standings(mlflow_e2eai.guard("net")) == {"champion": "as decided"}
