"""One promoter at a time: what several processes read and then write is never lost."""

from __future__ import annotations

import multiprocessing
import time

import mlflow
import pytest
from mlflow import MlflowClient

from mlflow_e2eai.errors import TrackingError
from mlflow_e2eai.promotion.registry import lease as module
from mlflow_e2eai.promotion.registry.lease import LEASE, Lease, lease

COUNT = "count"
WAIT_S = 120  # for processes that import MLflow on a busy machine


@pytest.fixture
def registered(store):
    store.create_registered_model("net")
    return store


def tags(client):
    return client.get_registered_model("net").tags


def add_one(client, between):
    """Read and write, with something in between."""
    before = int(tags(client)[COUNT])
    between()
    client.set_registered_model_tag("net", COUNT, str(before + 1))


def add(uri, times, leased, together):
    """Add to the count. Without a lease, all processes read before any of them writes."""
    mlflow.set_tracking_uri(uri)
    client = MlflowClient()
    together.wait(WAIT_S)
    for _ in range(times):
        if leased:
            with lease("net"):
                add_one(client, lambda: time.sleep(0.01))
        else:
            add_one(client, lambda: together.wait(WAIT_S))


def counted_by(processes, times, *, leased):
    # MLflow refuses one of two that write a new tag at once, which is not what is counted here.
    MlflowClient().set_registered_model_tag("net", COUNT, "0")
    context = multiprocessing.get_context("spawn")
    arguments = (mlflow.get_tracking_uri(), times, leased, context.Barrier(processes))
    workers = [context.Process(target=add, args=arguments) for _ in range(processes)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
        assert worker.exitcode == 0
    return int(tags(MlflowClient())[COUNT])


def test_with_a_lease_no_write_of_another_process_is_lost(registered):
    assert counted_by(3, 4, leased=True) == 12
    assert not any(tag.startswith(LEASE) for tag in tags(registered))


def test_without_a_lease_writes_are_lost(registered):
    assert counted_by(3, 4, leased=False) == 4


def test_the_entry_of_a_dead_process_is_passed_over_once_it_is_seen_to_stand_still(
    registered, monkeypatch
):
    monkeypatch.setattr(module, "LEASE_S", 0.4)
    monkeypatch.setattr(Lease, "_beat", lambda _: None)  # a dead process shows nothing
    Lease("net").enter(1)
    began = time.monotonic()
    with lease("net"):
        assert time.monotonic() - began > 0.4
    assert not any(tag.startswith(LEASE) for tag in tags(registered))


def test_one_that_died_before_it_had_a_number_is_passed_over_too(registered, monkeypatch):
    monkeypatch.setattr(module, "LEASE_S", 0.4)
    registered.set_registered_model_tag("net", f"{LEASE}dead", "what a hand wrote")
    with lease("net"):
        assert f"{LEASE}dead" not in tags(registered)


def test_a_living_one_is_waited_for_and_named(registered):
    waiting = Lease("net")
    with lease("net"), pytest.raises(TrackingError, match=r"1 other promotions .* by .*process"):
        waiting.enter(0.2)
    waiting.leave()
    assert not any(tag.startswith(LEASE) for tag in tags(registered))


def test_one_that_stood_still_is_told_that_its_lease_is_gone(registered, monkeypatch):
    monkeypatch.setattr(module, "LEASE_S", 0.4)
    monkeypatch.setattr(Lease, "_beat", lambda _: None)  # as of a process that stands still
    first = Lease("net")
    first.enter(1)
    with lease("net"):
        pass
    with pytest.raises(TrackingError, match="stood still for too long"):
        first.check()


def test_one_that_others_took_for_dead_takes_a_new_number(registered):
    first, second = Lease("net"), Lease("net")
    first.enter(1)
    tickets = []

    def sleep(_):
        """While the second waits it is taken for dead, and a third takes its number."""
        if not tickets:
            registered.delete_registered_model_tag("net", second._tag)
            registered.set_registered_model_tag("net", f"{LEASE}third", '{"ticket": 2}')
        tickets.append(second._ticket)
        if len(tickets) == 3:
            registered.delete_registered_model_tag("net", f"{LEASE}third")
            first.leave()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module.time, "sleep", sleep)
        second.enter(5)
    assert tickets == [2, 3, 3]
    second.check()
    second.leave()


def test_one_that_stood_still_in_the_middle_of_a_look_does_not_come_back(registered, monkeypatch):
    clock = [100.0]
    monkeypatch.setattr(module, "_now", lambda: clock[0])
    first = Lease("net")
    first.enter(1)
    write = first._write

    def stand_still():
        """Others delete the entry meanwhile, and this one is written after that."""
        clock[0] += 2 * module.LEASE_S
        write()

    monkeypatch.setattr(first, "_write", stand_still)
    with pytest.raises(TrackingError, match="stood still for too long"):
        first.check()
    assert not any(tag.startswith(LEASE) for tag in tags(registered))
    monkeypatch.setattr(first, "_write", write)
    with pytest.raises(TrackingError, match="stood still for too long"):
        first.check()
    first.leave()


def test_one_that_renews_while_another_looks_is_not_taken_for_dead(registered, monkeypatch):
    clock = [100.0]
    monkeypatch.setattr(module, "_now", lambda: clock[0])
    monkeypatch.setattr(module.time, "sleep", lambda _: None)
    first, second = Lease("net"), Lease("net")
    first.enter(1)
    read, looks = second._entries, []

    def look():
        """The answer is under way when the first renews its entry, and comes after its end."""
        entries = read()
        looks.append(clock[0])
        if len(looks) == 3:
            clock[0] = 100 + 0.9 * module.LEASE_S
            first.check()
            clock[0] = 100 + 1.1 * module.LEASE_S
        elif len(looks) == 5:
            first.leave()
        return entries

    monkeypatch.setattr(second, "_entries", look)
    second.enter(1e3)
    assert len(looks) == 6
    second.leave()
