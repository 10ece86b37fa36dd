"""Moves whose process died: where they are in the history."""

from __future__ import annotations

from datetime import UTC, datetime

import mlflow
from mlflow.tracking._model_registry.client import ModelRegistryClient
from ranked_versions import GATES, register

import mlflow_e2eai
from mlflow_e2eai.promotion.registry import moves
from mlflow_e2eai.promotion.registry.timeline import registered_model


def run_of(client, start_ms, **tags):
    """The run of a move from a version to another, as its process left it."""
    experiment = mlflow.get_experiment_by_name("tests").experiment_id
    common = {"e2eai.registered_model": "net", "e2eai.move": "promotion"}
    stored = common | {f"e2eai.{key}": value for key, value in tags.items()}
    return client.create_run(experiment, start_time=start_ms, tags=stored).info.run_id


def at(seconds):
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds")


def chain(name="net"):
    return [(move.before, move.after) for move in mlflow_e2eai.history(name).moves]


def test_a_move_that_waited_and_was_cut_off_comes_after_those_that_it_waited_for(store):
    register((0.9, 0.9, 0.9))
    experiment = mlflow.get_experiment_by_name("tests").experiment_id
    store.set_registered_model_tag("net", f"e2eai.decisions_in.{experiment}", "noted")
    waited = '{"champion": ["2", "3"]}'
    run_id = run_of(store, 10_000, moves=waited, planned_at=at(30))  # it began first
    run_of(store, 11_000, moves='{"champion": [null, "1"]}', moved_at=at(12))
    run_of(store, 12_000, moves='{"champion": ["1", "2"]}', moved_at=at(20))
    store.set_registered_model_alias("net", "champion", "3")
    assert chain() == [(None, "1"), ("1", "2"), ("2", "3")]

    run_of(store, 40_000, moves='{"champion": ["3", "1"]}', moved_at=at(41))
    store.set_registered_model_alias("net", "champion", "1")
    moves.finish(run_id)  # however late that is
    assert chain() == [(None, "1"), ("1", "2"), ("2", "3"), ("3", "1")]


def test_a_no_is_decided_again_too_where_the_alias_moved_meanwhile(store, monkeypatch):
    from mlflow_e2eai.promotion import stage

    first, second, worse = register((0.9, 0.9, 0.5))
    assert mlflow_e2eai.promote("net", first, gates=GATES).promoted
    carry_out = stage._carry_out

    def meanwhile(*words):
        store.set_registered_model_alias("net", "champion", second)
        return carry_out(*words)

    monkeypatch.setattr(stage, "_carry_out", meanwhile)
    assert not mlflow_e2eai.promote("net", worse, gates=GATES).promoted
    assert mlflow_e2eai.explain("net", worse).incumbents[0].version == second
    query = f"tags.`e2eai.version` = '{worse}'"
    runs = mlflow.search_runs(filter_string=query, output_format="list")
    assert [run.data.tags["e2eai.decision"] for run in runs] == ["rejected", "superseded"]
    assert [run.info.status for run in runs] == ["FAILED", "FINISHED"]
    assert [run.info.run_name.startswith("REJECTED") for run in runs] == [True, False]


def test_two_that_note_one_experiment_at_once_both_go_on(store, monkeypatch):
    from mlflow.exceptions import MlflowException

    from mlflow_e2eai.promotion.registry.journal import note_experiment

    store.create_registered_model("net")
    stale = registered_model("net")
    set_tag = ModelRegistryClient.set_registered_model_tag

    def insert_twice(*words):
        """As PostgreSQL responds to the second of two."""
        set_tag(*words)
        msg = "duplicate key value violates unique constraint"
        raise MlflowException(msg)

    monkeypatch.setattr(ModelRegistryClient, "set_registered_model_tag", insert_twice)
    note_experiment(stale, "7")
    assert "e2eai.decisions_in.7" in registered_model("net").tags


def test_an_incumbent_that_kept_its_alias_is_fetched_once_when_it_is_decided_again(
    store, monkeypatch
):
    from mlflow_e2eai.promotion import challenge, stage

    first, second, third = register((0.9, 0.9, 0.9))
    assert mlflow_e2eai.promote("net", first, gates=GATES).promoted
    carry_out, fetch, places = stage._carry_out, challenge.fetch_bundle, []

    def meanwhile(*words):
        store.set_registered_model_alias("net", "staging", second)
        return carry_out(*words)

    def counted(model, place, *about):
        places.append(place.name)
        return fetch(model, place, *about)

    monkeypatch.setattr(stage, "_carry_out", meanwhile)
    monkeypatch.setattr(challenge, "fetch_bundle", counted)
    assert mlflow_e2eai.promote("net", third, alias=["champion", "staging"], gates=GATES).promoted
    assert places == ["challenger", f"version-{first}", f"version-{second}"]
    assert set(moves.holders(registered_model("net"), ["champion", "staging"]).values()) == {third}
