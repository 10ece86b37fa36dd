"""The loop that benchmarks/gpu.py holds ours against is right itself, on a simulated GPU."""

import importlib
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import WEIGHT, N, rows

ONE = """
main (float[N, 3] x) => (float[N, 2] y) {
    y = MatMul(x, w)
}"""


@pytest.fixture
def ways(monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "benchmarks")
    return importlib.import_module("gpu_ways")


@pytest.mark.parametrize("count", [1, 4, 8, 16])
def test_the_loop_over_pinned_buffers_answers_what_is_asked_and_keeps_its_memory(
    count, ways, engine, calls
):
    plan = ways.Plan(engine(ONE)[0])
    question = SimpleNamespace(host={"x": rows(count)})
    call = ways.pinned(plan, question)
    first = call()["y"]
    np.testing.assert_allclose(first, question.host["x"] @ WEIGHT, rtol=1e-5, atol=1e-6)
    before = calls("cuMemAllocFromPoolAsync"), calls("cuMemAllocHost")
    question.host["x"][...] = 2 * rows(count)
    np.testing.assert_allclose(call()["y"], 2 * first, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(first, rows(count) @ WEIGHT, rtol=1e-5, atol=1e-6)
    assert (calls("cuMemAllocFromPoolAsync"), calls("cuMemAllocHost")) == before


def test_a_size_gets_its_static_profile_where_there_is_one(ways, engine):
    plan = ways.Plan(engine(ONE)[0])
    found = [plan.context({"x": (count, 3)}, 0, graph=True).profile for count in (1, 4, 8, 16)]
    assert found == [2, N.buckets.index(4), N.buckets.index(8), 2]
