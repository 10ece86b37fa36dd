"""Where aliases stood, when, why and by whom: read from the runs of the decisions."""

from __future__ import annotations

import json
from datetime import UTC, date, datetime, timedelta

import mlflow
import pytest
from hypothesis import given
from hypothesis import strategies as st
from registered_bundles import register

import mlflow_e2eai
from mlflow_e2eai.errors import InvalidInputError, TrackingError
from mlflow_e2eai.evaluation.gates import Gate
from mlflow_e2eai.promotion.registry.tags import MODEL, MOVED_AT, MOVES
from mlflow_e2eai.promotion.registry.timeline import (
    History,
    Move,
    decision_runs,
    last_moves,
    read_moves,
)
from mlflow_e2eai.promotion.registry.times import time_after

pytestmark = pytest.mark.usefixtures("on_threads")

FAST = (Gate(metric="parity/failed", bound="at_most", limit=0),)


@pytest.fixture
def promoted(store, good):
    """Two versions that had the alias, one after the other, the second of them a canary too."""
    for version in (register(good), register(good)):
        assert mlflow_e2eai.promote("net", version, gates=FAST).promoted
    assert mlflow_e2eai.promote("net", "2", alias="canary", gates=FAST).promoted
    return store


def steps(history):
    return [(move.alias, move.before, move.after) for move in history.moves]


def test_every_move_of_an_alias_is_in_the_history_with_its_reason(promoted):
    found = mlflow_e2eai.history("net")
    assert steps(found) == [
        ("champion", None, "1"),
        ("champion", "1", "2"),
        ("canary", None, "2"),
    ]
    last = found.holder("champion")
    assert (last.kind, last.reason) == ("promotion", "every gate passed")
    assert last.by
    assert mlflow.get_run(last.run_id).info.run_name == "promote net 2"
    assert steps(mlflow_e2eai.history("net", alias="canary")) == [("canary", None, "2")]


def test_a_decision_that_moved_nothing_is_no_move(promoted, good):
    version = register(good)
    impossible = (Gate(metric="parity/failed", bound="at_least", limit=99),)
    assert not mlflow_e2eai.promote("net", version, gates=impossible).promoted
    mlflow_e2eai.promote("net", "2", gates=FAST)
    assert len(mlflow_e2eai.history("net").moves) == 3


def test_a_decision_reads_the_last_moves_of_its_alias_however_many_there_were(promoted):
    experiment = mlflow.get_run(mlflow_e2eai.history("net").moves[0].run_id).info.experiment_id
    for day in range(10, 28):
        aliases = {0: ("canary",), 1: ("champion",), 2: ("champion", "canary")}[day % 3]
        moves = dict.fromkeys(aliases, ["2", "1"] if day % 2 else ["1", "2"])
        tags = {MODEL: "net", MOVES: json.dumps(moves), MOVED_AT: f"2027-01-{day}T00:00:00+00:00"}
        promoted.create_run(experiment, start_time=day, tags=tags)
    registered = promoted.get_registered_model("net")
    every = read_moves(registered)

    for aliases in (("champion",), ("canary",), ("champion", "canary")):
        of_these = [move for move in every if move.alias in aliases]
        assert len(of_these) > 5
        assert last_moves(registered, aliases, 99) == of_these
        assert last_moves(registered, aliases, 5) == of_these[-5:]
        assert len(decision_runs(registered, moving=aliases[0], most=4)) == 4
    assert last_moves(registered, ("other",), 5) == []


def test_a_day_or_a_time_shows_what_stood_there_then(promoted):
    first, second, _ = mlflow_e2eai.history("net").moves
    today = datetime.now(UTC).date()

    assert steps(mlflow_e2eai.history("net", alias="champion", on=str(today))) == steps_of(second)
    assert steps(mlflow_e2eai.history("net", alias="champion", on=first.at)) == steps_of(first)
    assert mlflow_e2eai.history("net", on=today - timedelta(days=1)).moves == ()
    assert mlflow_e2eai.history("net", on="9999-12-31").moves
    with pytest.raises(InvalidInputError, match="'yesterday' is no date; give one such as 2026-11"):
        mlflow_e2eai.history("net", on="yesterday")


def steps_of(*moves):
    return [(move.alias, move.before, move.after) for move in moves]


def test_a_name_that_is_not_registered_is_named(store):
    with pytest.raises(TrackingError, match="There is no registered model 'net'"):
        mlflow_e2eai.history("net")


def test_a_run_whose_tags_a_hand_wrote_moves_nothing(promoted):
    run_id = mlflow_e2eai.history("net").moves[0].run_id
    for odd in ("no json", "[]", '{"champion": 3}', "null"):
        promoted.set_tag(run_id, "e2eai.moves", odd)
        assert len(mlflow_e2eai.history("net").moves) == 2


def test_a_move_that_its_process_did_not_confirm_counts_where_the_alias_shows_it(promoted):
    last = mlflow_e2eai.history("net").holder("champion")
    promoted.delete_tag(last.run_id, "e2eai.moved_at")
    assert not mlflow_e2eai.history("net").holder("champion").finished
    assert mlflow_e2eai.history("net").holder("champion").after == "2"

    promoted.set_registered_model_alias("net", "champion", "1")
    assert mlflow_e2eai.history("net").holder("champion").after == "1"


def test_the_time_of_a_move_is_after_the_last_ones_though_a_clock_is_behind():
    ahead = "2999-01-01T00:00:00.000+00:00"
    assert time_after(ahead) == "2999-01-01T00:00:00.001+00:00"
    for none in (None, "", "noon", "2026-01-01T00:00:00"):
        assert datetime.fromisoformat(time_after(none)).date() == datetime.now(UTC).date()
    assert time_after("2020-01-01T00:00:00.000+00:00").startswith(str(datetime.now(UTC).year))


# What to go back to.


def history_of(*moves):
    return History(
        name="net",
        moves=tuple(
            Move(
                at=f"{at:04}",
                alias="champion",
                before=None,
                after=after,
                kind=kind,
                by="ann",
                reason="",
                run_id=str(at),
            )
            for at, (kind, after) in enumerate(moves)
        ),
    )


def test_each_rollback_goes_one_version_further_back():
    moves = [("promotion", "1"), ("promotion", "2"), ("promotion", "3")]
    assert history_of(*moves).before("champion") == "2"
    assert history_of(*moves, ("rollback", "2")).before("champion") == "1"
    assert history_of(*moves, ("rollback", "2"), ("rollback", "1")).before("champion") is None
    assert history_of(*moves, ("rollback", "2"), ("promotion", "4")).before("champion") == "2"
    assert history_of(*moves, ("restoration", "3")).before("champion") == "2"
    assert history_of(("promotion", "1")).before("champion") is None
    back_and_forth = [("promotion", "1"), ("promotion", "2"), ("promotion", "1"), *moves[2:]]
    assert history_of(*back_and_forth, ("rollback", "1")).before("champion") == "2"
    assert history_of().before("champion") is None


@given(st.lists(st.integers(1, 5).map(str), min_size=1, max_size=12))
def test_rollbacks_end_at_the_first_version_and_never_stay_where_they_are(promotions):
    moves = [("promotion", version) for version in promotions]
    for _ in range(len(promotions) + 1):
        target = history_of(*moves).before("champion")
        if target is None:
            return
        assert target != moves[-1][1]
        moves.append(("rollback", target))
    pytest.fail("it goes round in circles")


@pytest.mark.parametrize("text", ["yesterday", "2026-11-30T12:00:00", ""])
def test_a_time_that_a_hand_wrote_is_that_of_the_runs_begin(promoted, text):
    last = mlflow_e2eai.history("net").moves[-1]
    promoted.set_tag(last.run_id, MOVED_AT, text)

    assert last.after in [move.after for move in mlflow_e2eai.history("net", on="2999-01-01").moves]


def test_a_day_may_be_a_date(promoted):
    assert mlflow_e2eai.history("net", on=date(2999, 1, 1)).moves
