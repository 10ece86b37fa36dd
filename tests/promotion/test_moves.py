"""Aliases move together or not at all, with their reason, wherever the process dies."""

from __future__ import annotations

import mlflow
import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from mlflow.tracking._model_registry.client import ModelRegistryClient
from registered_bundles import holder, register

import mlflow_e2eai
from mlflow_e2eai.errors import TrackingError
from mlflow_e2eai.evaluation.gates import Gate
from mlflow_e2eai.promotion.registry.lease import Lease

pytestmark = pytest.mark.usefixtures("on_threads")

FAST = (Gate(metric="parity/failed", bound="at_most", limit=0),)
BOTH = ("champion", "champion-sm89")


class Killed(BaseException):
    """The process ends: nothing of ours handles it."""


@pytest.fixture
def second(store, good):
    """The second of two versions, the first of which is the champion by a decision."""
    mlflow_e2eai.promote("net", register(good), gates=FAST)
    return register(good)


def dying_at(monkeypatch, method, when=lambda *_: True, error=Killed):
    """Have a method of MLflow's clients raise, once."""
    owner = ModelRegistryClient if hasattr(ModelRegistryClient, method) else MlflowClient
    real = getattr(owner, method)
    died = []

    def die(client, *words, **options):
        if not died and when(*words, **options):
            died.append(words)
            raise error("cut off") if error is not Killed else Killed
        return real(client, *words, **options)

    monkeypatch.setattr(owner, method, die)
    return died


def has_reason(store, version):
    tags = store.get_model_version("net", version).tags
    return tags.get("e2eai.decision") == "promoted" and "e2eai.decision_run" in tags


def keys(tags):
    return {tag.key for tag in tags}


STEPS = {
    "before the tags": ("set_model_version_tag", lambda *_: True, "1"),
    "amid the tags": ("set_model_version_tag", lambda _, __, key, ___: "run" in key, "1"),
    "before the plan": ("log_batch", lambda _, tags=(), **__: "e2eai.moves" in keys(tags), "1"),
    "before the alias": ("set_registered_model_alias", lambda *_: True, "1"),
    "after the alias": ("set_tag", lambda _, key, ___: key == "e2eai.moved_at", "2"),
    "before the run's end": ("set_registered_model_tag", lambda _, key, __: "moved_at" in key, "2"),
}


@pytest.mark.parametrize("step", STEPS)
def test_a_crash_leaves_the_old_alias_or_the_new_one_with_its_reason_and_running_again_finishes(
    step, store, second, monkeypatch
):
    method, when, stands = STEPS[step]
    with monkeypatch.context() as patch:
        died = dying_at(patch, method, when)
        with pytest.raises(Killed):
            mlflow_e2eai.promote("net", second, gates=FAST)
    assert died
    assert holder(store) == stands
    assert stands == "1" or has_reason(store, second)
    mlflow.end_run()

    assert mlflow_e2eai.promote("net", second, gates=FAST).promoted
    assert holder(store) == second
    assert has_reason(store, second)
    moves = [(move.before, move.after) for move in mlflow_e2eai.history("net").moves]
    assert moves == [(None, "1"), ("1", "2")]
    assert mlflow_e2eai.history("net").moves[-1].finished
    assert not mlflow_e2eai.guard("net").drifted


def test_several_aliases_move_together(store, second):
    assert mlflow_e2eai.promote("net", second, alias=BOTH, gates=FAST).promoted
    assert [holder(store, alias) for alias in BOTH] == [second, second]
    (first, *others) = mlflow_e2eai.history("net").moves
    assert (first.alias, first.after) == ("champion", "1")
    assert {move.run_id for move in others} == {others[0].run_id}
    assert sorted(move.alias for move in others) == sorted(BOTH)


def test_none_of_several_aliases_moves_where_one_cannot(store, second, monkeypatch):
    dying_at(
        monkeypatch,
        "set_registered_model_alias",
        lambda _, alias, __: alias == BOTH[1],
        error=MlflowException,
    )
    with pytest.raises(
        TrackingError, match=r"could not be moved: cut off; they stand where they stood. Promote"
    ):
        mlflow_e2eai.promote("net", second, alias=BOTH, gates=FAST)
    assert [holder(store, alias) for alias in BOTH] == ["1", None]
    assert len(mlflow_e2eai.history("net").moves) == 1


def test_a_yes_that_could_not_be_carried_out_is_withdrawn(store, second, monkeypatch):
    with monkeypatch.context() as patch:
        dying_at(patch, "set_registered_model_alias", error=MlflowException)
        with pytest.raises(TrackingError, match="could not be moved: cut off"):
            mlflow_e2eai.promote("net", second, gates=FAST)
    version = store.get_model_version("net", second)
    run = store.get_run(version.tags["e2eai.decision_run"])
    for tags in (version.tags, run.data.tags):
        assert tags["e2eai.decision"] == "withdrawn"
        assert "could not be moved: cut off" in tags["e2eai.reason"]
    assert run.info.status == "FAILED"
    assert "romoted" not in version.description
    explained = mlflow_e2eai.explain("net", second).text()
    assert explained.startswith(f"Version {second} of net: withdrawn for @champion")
    assert "withdrawn: " in explained
    assert "could not be moved: cut off" in explained

    assert mlflow_e2eai.promote("net", second, gates=FAST).promoted
    assert mlflow_e2eai.explain("net", second).outcome == "promoted"
    version = store.get_model_version("net", second)
    assert version.tags["e2eai.decision"] == "promoted"
    assert "romoted" in version.description


def test_a_version_is_compared_with_each_that_has_one_of_the_aliases(store, second):
    mlflow_e2eai.promote("net", second, alias=BOTH[1], gates=FAST)
    third = register_again(store, second)
    mlflow_e2eai.promote("net", third, alias=BOTH, gates=FAST)
    incumbents = mlflow_e2eai.explain("net", third).incumbents
    assert {each.version: each.aliases for each in incumbents} == {
        "1": (BOTH[0],),
        second: (BOTH[1],),
    }
    assert store.get_model_version("net", third).tags["e2eai.previous"] == "1, 2"


def register_again(store, version):
    return str(mlflow.register_model(store.get_model_version("net", version).source, "net").version)


def test_an_alias_goes_back_where_the_lease_was_lost_while_it_moved(store, second, monkeypatch):
    calls = []

    def lose(lease):
        calls.append(lease)
        if len(calls) == 2:
            msg = "This promotion stood still."
            raise TrackingError(msg)

    monkeypatch.setattr(Lease, "check", lose)
    with pytest.raises(TrackingError, match="stood still; they stand where they stood"):
        mlflow_e2eai.promote("net", second, gates=FAST)
    assert holder(store) == "1"
    assert len(mlflow_e2eai.history("net").moves) == 1


def test_an_alias_that_cannot_be_put_back_is_named(store, second, monkeypatch):
    died = dying_at(
        monkeypatch,
        "set_registered_model_alias",
        lambda _, alias, __: alias == BOTH[1],
        error=MlflowException,
    )
    dying_at(
        monkeypatch, "set_registered_model_alias", lambda *_: bool(died), error=MlflowException
    )
    with pytest.raises(TrackingError, match="'champion' may still stand at version 2"):
        mlflow_e2eai.promote("net", second, alias=BOTH, gates=FAST)


def test_a_deleted_alias_is_named_where_it_was_to_be_replaced(store, second, monkeypatch):
    real = Lease.enter

    def enter(lease, wait_s):
        real(lease, wait_s)
        store.delete_registered_model_alias("net", "champion")

    monkeypatch.setattr(Lease, "enter", enter)
    decision = mlflow_e2eai.promote("net", second, gates=FAST)
    # It was decided again, against no version.
    assert decision.promoted
    assert mlflow_e2eai.explain("net", second).incumbents == ()
