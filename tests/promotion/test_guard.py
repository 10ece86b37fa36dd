"""Aliases that somebody moved: named, and put back where that is wanted."""

from __future__ import annotations

import itertools

import pytest
from registered_bundles import holder, register

import mlflow_e2eai
from mlflow_e2eai.errors import InvalidInputError, TrackingError
from mlflow_e2eai.evaluation.gates import Gate

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


def test_an_alias_goes_back_though_its_version_was_deleted_never(registry):
    registry.set_registered_model_alias("net", "champion", "1")
    registry.delete_model_version("net", "2")
    with pytest.raises(TrackingError, match=r"could not be moved: .*they stand where they stood"):
        mlflow_e2eai.guard("net", restore=True)
    assert holder(registry) == "1"


def test_watching_yields_each_state_that_differs_from_the_last(registry):
    seen = mlflow_e2eai.watch("net", every_s=0.01)
    assert not next(seen).drifted
    registry.set_registered_model_alias("net", "champion", "1")
    assert next(seen).drifted
    registry.set_registered_model_alias("net", "champion", "2")
    assert not next(seen).drifted


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
