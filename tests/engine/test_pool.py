"""The pool of execution contexts: who gets one, who waits, and who is told that there is none."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from mlflow_e2eai.engine.runner import ContextPool


class Context:
    closed = False

    def close(self):
        self.closed = True


def waiting(pool, count):
    """Wait until so many wait for the pool."""
    until = time.monotonic() + 60
    while len(pool._changed._waiters) < count and time.monotonic() < until:
        time.sleep(0.001)


def test_a_context_that_is_given_back_goes_to_who_waits_for_its_profile():
    """Not only to the one who has waited longest, who may want another."""
    pool = ContextPool(lambda _: Context(), 1)
    held = {profile: pool.acquire(profile) for profile in (0, 1)}
    with ThreadPoolExecutor(2) as threads:
        other = threads.submit(pool.acquire, 1)
        waiting(pool, 1)
        mine = threads.submit(pool.acquire, 0)
        waiting(pool, 2)
        pool.release(0, held[0])
        try:
            assert mine.result(timeout=60) is held[0]
        finally:
            pool.release(1, held[1])
            pool.release(0, held[0])
        assert other.result(timeout=60) is held[1]


def test_no_two_hold_one_context():
    pool, held, lock = ContextPool(lambda _: Context(), 3), set(), threading.Lock()

    def use(at):
        context = pool.acquire(at % 2)
        with lock:
            assert context not in held
            held.add(context)
        time.sleep(0.0005)
        with lock:
            held.remove(context)
        pool.release(at % 2, context)

    with ThreadPoolExecutor(16) as threads:
        list(threads.map(use, range(600)))


def test_what_cannot_be_made_is_told_where_there_is_none_and_tried_again_later():
    failures = [RuntimeError("full")]

    def make(_):
        if failures:
            raise failures.pop()
        return Context()

    pool = ContextPool(make, 2)
    with pytest.raises(RuntimeError, match="full"):
        pool.acquire(0)
    first = pool.acquire(0)
    assert pool.acquire(0) is not first


def test_all_are_closed():
    pool = ContextPool(lambda _: Context(), 2)
    made = [pool.acquire(0), pool.acquire(0), pool.acquire(1)]
    for profile, context in zip((0, 0, 1), made, strict=True):
        pool.release(profile, context)
    pool.close()
    assert all(context.closed for context in made)  # type: ignore[attr-defined]  # mypy sees a wider type
