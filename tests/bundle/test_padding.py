"""Sizes between buckets take the quicker of two ways, by a clock that is simulated."""

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from mlflow_e2eai.artifacts.values import Axis, TensorSpec
from mlflow_e2eai.bundle.batching import fill_to_buckets

N = Axis("N", min=1, opt=4, max=64, buckets=(4, 8, 32))
IN = TensorSpec(name="x", dtype="float32", shape=("N", 3))
OUT = TensorSpec(name="y", dtype="float32", shape=("N", 3))


class Engine:
    """Doubles; a bucket takes `static_s`, another size `dynamic_s`, its first call a second."""

    def __init__(self, static_s, dynamic_s):
        self.static_s, self.dynamic_s = static_s, dynamic_s
        self.now, self.asked = 0.0, []

    def __call__(self, tensors):
        size = len(tensors["x"])
        is_bucket = size in N.buckets
        self.now += self.static_s(size) if is_bucket else self.dynamic_s(size)
        if size not in self.asked:
            self.now += 1
        self.asked.append(size)
        return {"y": 2 * tensors["x"]}


def asked(engine, sizes, axes=(N,), outputs=(OUT,)):
    ask = fill_to_buckets(engine, [IN], outputs, axes, clock=lambda: engine.now)
    for size in sizes:
        x = np.arange(3 * size, dtype=np.float32).reshape(size, 3)
        np.testing.assert_array_equal(ask({"x": x})["y"], 2 * x)
    return engine.asked


@pytest.mark.parametrize(("dynamic_ms", "kept"), [(3.0, 8), (0.5, 5)])
def test_the_quicker_way_is_kept_after_eight_calls(dynamic_ms, kept):
    seen = asked(Engine(lambda _: 1e-3, lambda _: dynamic_ms * 1e-3), [5] * 40)
    assert sorted(seen[:8]) == [5] * 4 + [8] * 4
    assert set(seen[8:]) == {kept}


def test_the_first_call_of_each_way_may_compile_and_does_not_count():
    engine = Engine(lambda _: 1e-3, lambda _: 2e-3)
    assert set(asked(engine, [5] * 20)[8:]) == {8}


def test_each_size_is_measured_for_itself():
    """Filling 31 up to 32 is worth it here, filling 9 is not."""
    engine = Engine(lambda size: 0.6e-3 * size, lambda size: 1e-3 * size)
    seen = asked(engine, [9, 31] * 20)
    assert set(seen[16::2]) == {9}
    assert set(seen[17::2]) == {32}


def test_buckets_and_sizes_beyond_the_last_are_asked_as_they_are():
    sizes = [4, 8, 32, 33, 64, 4]
    assert asked(Engine(lambda _: 1.0, lambda _: 1.0), sizes) == sizes


def test_what_has_no_buckets_or_no_batch_axis_is_not_filled():
    engine = Engine(lambda _: 1.0, lambda _: 1.0)
    whole = TensorSpec(name="sum", dtype="float32", shape=())
    plain = Axis("N", min=1, opt=4, max=64)
    assert fill_to_buckets(engine, [IN], [whole], [N]) is engine
    assert fill_to_buckets(engine, [IN], [OUT], [plain]) is engine


def test_a_call_that_fails_is_no_measure_and_stops_nobody():
    engine, failures = Engine(lambda _: 1e-3, lambda _: 3e-3), iter([True, True, True])

    def ask(tensors):
        if next(failures, False):
            raise RuntimeError
        return engine(tensors)

    answer = fill_to_buckets(ask, [IN], [OUT], [N], clock=lambda: engine.now)
    x = np.ones((5, 3), np.float32)
    for _ in range(3):
        with pytest.raises(RuntimeError):
            answer({"x": x})
    for _ in range(20):
        answer({"x": x})
    assert set(engine.asked[-8:]) == {8}


def test_callers_of_many_threads_get_their_own_answers():
    lock = threading.Lock()
    engine = Engine(lambda _: 1e-3, lambda _: 3e-3)

    def ask(tensors):
        with lock:
            return engine(tensors)

    answer = fill_to_buckets(ask, [IN], [OUT], [N], clock=lambda: engine.now)

    def call(at):
        x = np.full((1 + at % 40, 3), at, np.float32)
        return np.array_equal(answer({"x": x})["y"], 2 * x)

    with ThreadPoolExecutor(16) as threads:
        assert all(threads.map(call, range(2000)))
