import dataclasses
import math
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import cycle, pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlflow_e2eai.artifacts.values import Infer, Tensors
from mlflow_e2eai.errors import InvalidInputError, RunnerError
from mlflow_e2eai.latency.measure import (
    BUDGET_S,
    FIRST_LOOK,
    MIN_ROUNDS,
    MIN_WARMUP,
    ROUNDS,
    WARMUP,
    benchmark,
)
from mlflow_e2eai.latency.ratios import Ratio, turns
from mlflow_e2eai.latency.report import Latency, LatencyReport

TICK = 1 / 1024  # seconds; a power of two adds up exactly
SAMPLE = {"x": np.zeros((8, 3), np.float32)}


class Clock:
    """Seconds that pass only while a scripted callable works."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def taking(self, seconds: Iterable[float]) -> Infer:
        """A callable whose calls take these times, over and over."""
        script = cycle(seconds)

        def infer(tensors: Tensors) -> Tensors:
            self.now += next(script)
            return tensors

        return infer


def run(scripts: dict[str, Iterable[float]], **settings: object) -> LatencyReport:
    clock = Clock()
    candidates = {name: clock.taking(seconds) for name, seconds in scripts.items()}
    return benchmark(candidates, SAMPLE, clock=clock, **{"warmup": 0, "budget_s": 1e9, **settings})


def calls(names: str, **settings: int) -> str:
    """Who was called, in order."""
    log: list[str] = []

    def logging(name: str) -> Infer:
        return lambda tensors: log.append(name) or tensors

    benchmark({name: logging(name) for name in names}, SAMPLE, clock=lambda: 0, **settings)
    return "".join(log)


@given(ticks=st.lists(st.integers(1, 1000), min_size=1, max_size=60))
def test_the_numbers_are_those_of_numpy(ticks):
    report = run({"a": [TICK * n for n in ticks]}, rounds=len(ticks))

    taken = 1e3 * TICK * np.array(ticks)
    assert dataclasses.replace(report["a"], cpu_share=None) == Latency(
        name="a",
        p50_ms=np.percentile(taken, 50),
        p90_ms=np.percentile(taken, 90),
        p95_ms=np.percentile(taken, 95),
        p99_ms=np.percentile(taken, 99),
        mean_ms=taken.mean(),
        std_ms=taken.std(),
        throughput_items_per_s=8e3 / taken.mean(),
        rounds_ms=tuple(taken),
        outliers=sum(taken > 4 * np.percentile(taken, 75) - 3 * np.percentile(taken, 25)),
    )


@given(ticks=st.lists(st.integers(1, 1000), min_size=1, max_size=30))
def test_the_percentiles_are_in_order_and_between_the_fastest_and_the_slowest_call(ticks):
    found = run({"a": [TICK * n for n in ticks]}, rounds=len(ticks))["a"]

    percentiles = [found.p50_ms, found.p90_ms, found.p95_ms, found.p99_ms]
    assert percentiles == sorted(percentiles)
    assert min(found.rounds_ms) <= found.p50_ms
    assert found.p99_ms <= max(found.rounds_ms)


def test_every_call_is_kept_in_order_with_its_outliers():
    found = run({"a": [1, 1, 1000, 1]}, rounds=4)["a"]

    assert found.rounds_ms == (1e3, 1e3, 1e6, 1e3)


def test_numbers_come_as_plain_floats():
    report = run({"a": [TICK, 2 * TICK], "b": [TICK]}, rounds=4)

    latency, ratio = dataclasses.asdict(report["a"]), report.ratio("a", "b")
    assert {type(latency[name]) for name in latency if name.startswith(("p", "m", "s", "th"))} == {
        float,
        bool,  # settled
    }
    assert type(latency["outliers"]) is int
    assert {type(number) for number in report["a"].rounds_ms} == {float}
    assert {type(number) for number in dataclasses.astuple(ratio)} == {float}


def test_the_throughput_counts_the_items_of_the_sample():
    report = run({"a": [0.25]}, rounds=3)

    assert report.items == 8
    assert report["a"].throughput_items_per_s == 8 / 0.25


def test_the_throughput_counts_the_items_that_the_caller_says():
    report = run({"a": [0.25]}, rounds=3, items=100)

    assert report.items == 100
    assert report["a"].throughput_items_per_s == 100 / 0.25


@pytest.mark.parametrize(
    ("sample", "items"),
    [
        ({"x": np.zeros(5)}, 5),
        ({"x": np.zeros((2, 9)), "y": np.zeros(7)}, 2),
        ({"x": np.float32(1)}, 1),
    ],
)
def test_the_items_of_a_sample_are_the_leading_size_of_its_first_array(sample, items):
    assert benchmark({"a": dict}, sample, rounds=1, warmup=0).items == items


def test_a_clock_that_is_too_coarse_gives_an_infinite_throughput():
    assert run({"a": [0.0]}, rounds=3)["a"].throughput_items_per_s == math.inf


def test_warm_up_calls_are_made_and_not_counted():
    # Three slow calls, which lazy initialisation makes, and then fast ones.
    report = run({"a": [9.0, 9.0, 9.0, *50 * [0.5]]}, warmup=3, rounds=50)

    assert report.warmup == 3
    assert report["a"].rounds_ms == 50 * (500.0,)


def test_one_warm_up_call_too_few_is_seen():
    assert run({"a": [9.0, 9.0, 9.0, *50 * [0.5]]}, warmup=2, rounds=5)["a"].rounds_ms[0] == 9e3


def test_every_callable_is_warmed_up_by_itself_before_the_first_round():
    assert calls("ab", warmup=3, rounds=1) == "aaa" + "bbb" + "ab"


def test_by_default_the_warm_up_and_the_rounds_are_those_documented():
    assert len(calls("a")) == WARMUP + ROUNDS


def test_the_callables_take_turns_and_the_order_rotates():
    assert calls("ab", warmup=0, rounds=4) == "ab" + "ba" + "ab" + "ba"
    assert calls("abc", warmup=0, rounds=7) == "abc" + "bca" + "cab" + "cba" + "acb" + "bac" + "abc"


@pytest.mark.parametrize("size", range(2, 9))
def test_within_the_rounds_every_callable_follows_every_other_equally_often(size):
    follows = Counter(pair for order in turns(size) for pair in pairwise(order))

    assert len(follows) == size * (size - 1)
    assert len(set(follows.values())) == 1


@pytest.mark.parametrize("names", ["ab", "abc", "abcd", "abcde"])
def test_no_callable_always_follows_the_same_neighbour(names):
    log = calls(names, warmup=0, rounds=2 * len(names))

    before = {name: set() for name in names}
    for previous, name in pairwise(log):
        before[name].add(previous)
    assert all(len(neighbours) > 1 for neighbours in before.values())


@pytest.mark.parametrize("names", ["ab", "abc", "abcd"])
def test_each_callable_goes_first_and_last_equally_often(names):
    size = len(names)
    log = calls(names, warmup=0, rounds=3 * size)
    rounds = [log[start : start + size] for start in range(0, len(log), size)]

    assert [sum(r[0] == name for r in rounds) for name in names] == size * [3]
    assert [sum(r[-1] == name for r in rounds) for name in names] == size * [3]


def test_every_callable_is_called_once_a_round_with_the_sample():
    seen = []

    def candidate(tensors: Tensors) -> Tensors:
        seen.append(tensors)
        return tensors

    report = benchmark({"a": candidate}, SAMPLE, warmup=0, rounds=7)

    assert len(report["a"].rounds_ms) == len(seen) == 7
    assert all(tensors is SAMPLE for tensors in seen)


def test_slow_callables_get_the_fewest_rounds_that_say_anything():
    report = run({"a": [2 * BUDGET_S], "b": [BUDGET_S]}, budget_s=BUDGET_S)

    assert [len(entry.rounds_ms) for entry in report.variants] == [MIN_ROUNDS, MIN_ROUNDS]


def test_fast_callables_get_all_rounds():
    assert len(run({"a": [TICK]}, budget_s=BUDGET_S)["a"].rounds_ms) == ROUNDS


def test_no_round_starts_after_the_budget():
    # After 20 rounds of a quarter second the 5 seconds are just used up; one more is over.
    assert len(run({"a": [0.125], "b": [0.125]}, budget_s=5.0)["a"].rounds_ms) == 21


def test_rounds_end_once_every_ratio_to_the_first_is_known_well_enough():
    steady = [TICK]
    noisy = (TICK * np.random.default_rng(0).lognormal(0, 1, size=ROUNDS)).tolist()

    assert len(run({"a": steady, "b": steady})["a"].rounds_ms) == FIRST_LOOK
    assert len(run({"a": steady, "b": steady, "c": noisy})["a"].rounds_ms) == ROUNDS
    assert len(run({"a": noisy, "b": steady}, enough=100.0)["a"].rounds_ms) == FIRST_LOOK
    assert len(run({"a": noisy, "b": steady}, enough=1.0)["a"].rounds_ms) == ROUNDS


def test_they_are_looked_at_again_at_twice_as_many():
    settling = [*([TICK, 4 * TICK] * 10), *[TICK] * 380]

    rounds = len(run({"a": [TICK], "b": settling})["a"].rounds_ms)

    assert rounds == 2 * FIRST_LOOK


def warmed(*seconds: float, **settings: object) -> Latency:
    return run({"a": [*seconds, *1000 * [seconds[-1]]]}, rounds=1, **settings)["a"]


def test_the_warm_up_ends_with_three_windows_that_agree():
    # A call that is longer than a window is one by itself.
    found = warmed(0.25, 0.25, 0.25, warmup=WARMUP)

    assert (found.warmup_calls, found.settled) == (3, True)


def test_a_window_of_short_calls_takes_as_many_as_fill_it():
    found = warmed(1 / 64, warmup=WARMUP)  # four calls of 15.625 ms are more than 50 ms

    assert (found.warmup_calls, found.settled) == (12, True)


def test_three_windows_fit_into_what_a_warm_up_may_take():
    # A fifth of 0.15 s is 30 ms, a window 10 ms: three calls of 3.9 ms.
    found = warmed(1 / 256, warmup=WARMUP, budget_s=0.15)

    assert (found.warmup_calls, found.settled) == (9, True)


def test_the_warm_up_goes_on_while_calls_become_faster():
    found = warmed(8.0, 4.0, 2.0, 1.0, 0.5, warmup=WARMUP, budget_s=1e9)

    assert (found.warmup_calls, found.settled) == (6, True)
    assert found.rounds_ms == (500.0,)


def test_the_warm_up_goes_on_while_calls_become_slower():
    assert warmed(1.0, 2.0, 4.0, 8.0, warmup=WARMUP, budget_s=1e9).warmup_calls == 5


def test_calls_that_go_up_and_down_are_steady():
    found = warmed(1.0, 2.0, 1.5, warmup=WARMUP)

    assert (found.warmup_calls, found.settled) == (3, True)


def test_a_first_call_that_compiles_is_in_the_warm_up_alone():
    found = warmed(2.0, *5000 * [0.001], warmup=WARMUP)

    assert found.settled
    assert found.rounds_ms == pytest.approx((1.0,))


def test_the_warm_up_of_a_slow_callable_that_does_not_settle_is_cut_short_but_never_left_out():
    halving = [2.0**-at for at in range(50)]

    assert warmed(*halving, warmup=WARMUP, budget_s=0.01).warmup_calls == MIN_WARMUP
    # A fifth of 9.9 seconds is over when 1 + 1/2 + ... come to 1.98, which is after seven calls;
    # the window that they left unfinished takes an eighth.
    found = warmed(*halving[:10], warmup=WARMUP, budget_s=9.9)
    assert (found.warmup_calls, found.settled) == (8, False)


def test_a_warm_up_that_does_not_settle_is_a_finding_that_says_what_was_seen():
    report = run({"a": [2.0**at for at in range(20)]}, warmup=8, rounds=3)

    (found,) = report.findings
    assert (found.kind, found.variant) == ("unsettled", "a")
    assert found.sentence == (
        "'a' was not steady after 8 calls of warm-up: "
        "the medians of its last windows were 3.2e+04, 6.4e+04, 1.28e+05 ms."
    )
    assert not report["a"].settled


def test_a_warm_up_that_is_too_short_to_tell_says_so():
    report = run({"a": [TICK]}, warmup=3, rounds=3)

    assert [found.kind for found in report.findings] == ["unsettled"]
    assert "after 3 calls of warm-up: which is too few to tell" in report.findings[0].sentence


def test_what_does_not_settle_is_refused_when_it_is_to_be_strict():
    with pytest.raises(RunnerError, match="'a' was not steady after 8 calls"):
        run({"a": [2.0**at for at in range(20)]}, warmup=8, strict=True)
    assert run({"a": [0.25]}, warmup=8, strict=True).findings == ()


def test_the_warm_up_is_not_on_the_budget():
    assert len(run({"a": [0.0625]}, warmup=90, rounds=60, budget_s=5.0)["a"].rounds_ms) == 60


def test_fewer_rounds_than_the_least_are_given_when_asked_for():
    assert len(run({"a": [1.0]}, rounds=2)["a"].rounds_ms) == 2


def test_the_variants_are_in_the_order_given():
    report = run({"b": [1], "a": [1], "c": [1]}, rounds=4)

    assert [entry.name for entry in report.variants] == ["b", "a", "c"]


def test_an_unknown_variant_is_a_key_error():
    with pytest.raises(KeyError, match="b"):
        run({"a": [1]}, rounds=1)["b"]


def test_the_same_latencies_have_the_ratio_one():
    ratio = run({"a": [1, 2, 4], "b": [1, 2, 4]}, rounds=60).ratio("a", "b")

    assert (ratio.value, ratio.low, ratio.high) == (1, 1, 1)
    assert ratio.equal


@given(seed=st.integers(0, 2**32 - 1))
def test_the_interval_is_around_the_median_of_the_rounds_ratios(seed):
    rng = np.random.default_rng(seed)
    slow, fast = rng.uniform(1, 2, size=(2, 40))
    report = run({"slow": slow, "fast": fast}, rounds=40)
    ratio = report.ratio("slow", "fast")

    pairs = np.divide(report["slow"].rounds_ms, report["fast"].rounds_ms)
    # Apart for the rounds in which the one went first and those in which the other did.
    medians = np.median(pairs[::2]), np.median(pairs[1::2])
    assert ratio.value == pytest.approx(np.sqrt(np.prod(medians)), rel=0.01)
    assert min(pairs) * 0.9999 < ratio.low <= ratio.value <= ratio.high < max(pairs) * 1.0001


def test_what_it_costs_to_go_first_is_no_difference():
    # Whoever goes first pays a tenth more, in every round.
    first, second = 1.1, 1.0
    ratio = run({"a": [first, second], "b": [second, first]}, rounds=100).ratio("a", "b")

    assert [ratio.value, ratio.low, ratio.high] == pytest.approx([1, 1, 1])


@pytest.mark.parametrize("rounds", [1, 2, 9])
def test_of_a_few_rounds_nothing_can_be_said(rounds):
    ratio = run({"a": [3.0], "b": [1.0]}, rounds=rounds).ratio("a", "b")

    assert ratio.value == pytest.approx(3)
    assert (ratio.low, ratio.high) == (0, math.inf)
    assert ratio.equal


@pytest.mark.parametrize("names", ["ab", "abc", "abcde"])
def test_with_the_fewest_rounds_a_large_difference_is_found(names):
    scripts = {name: [0.5] for name in names} | {"b": [1.0]}

    assert run(scripts, rounds=MIN_ROUNDS).ratio("b", "a").low == pytest.approx(2)


def test_a_callable_against_itself_is_one():
    report = run({"a": [1, 2], "b": [1]}, rounds=30)

    assert report.ratio("a", "a") == Ratio(value=1, low=1, high=1)


def test_a_clock_that_is_too_coarse_tells_no_difference():
    assert run({"a": [0.0], "b": [0.0]}, rounds=30).ratio("a", "b").equal
    assert run({"a": [0.0, TICK], "b": [0.0]}, rounds=30).ratio("a", "b").low >= 1


def test_noise_alone_is_no_difference():
    rng = np.random.default_rng(0)
    one, other = rng.normal(1, 0.1, size=(2, 100))

    assert run({"a": one, "b": other}).ratio("a", "b").equal


def test_a_planted_slow_down_by_two_is_found():
    rng = np.random.default_rng(0)
    slow, fast = 2 * rng.normal(1, 0.1, size=100), rng.normal(1, 0.1, size=100)
    report = run({"slow": slow, "fast": fast})

    ratio = report.ratio("slow", "fast")
    assert ratio.value == pytest.approx(2, rel=0.05)
    assert 1.8 < ratio.low <= ratio.high < 2.2
    assert not ratio.equal
    assert report.ratio("fast", "slow").high < 1


def test_a_slow_down_of_a_twentieth_under_a_drift_of_two_is_found():
    # The machine slows down while it measures; taking turns cancels that.
    drift = np.linspace(1, 2, 100)
    rng = np.random.default_rng(0)
    noise = rng.normal(1, 0.01, size=(2, 100))
    ratio = run({"a": 1.05 * drift * noise[0], "b": drift * noise[1]}).ratio("a", "b")

    assert 1.04 < ratio.low <= ratio.high < 1.06


def test_an_interval_is_always_drawn_alike():
    report = run({"a": [1, 2, 3], "b": [3, 1, 2, 5]}, rounds=50)

    assert report.ratio("a", "b") == report.ratio("a", "b")


def test_a_clock_that_goes_backwards_is_refused():
    times: Iterator[float] = iter(range(1000, 0, -1))

    with pytest.raises(InvalidInputError, match="backwards"):
        benchmark({"a": dict}, SAMPLE, clock=lambda: next(times))


def test_a_clock_that_jumps_back_once_is_refused():
    with pytest.raises(InvalidInputError, match="backwards"):
        run({"a": [*30 * [0.5], -0.25]}, rounds=40)


@pytest.mark.parametrize(
    ("candidates", "settings"),
    [({}, {}), ({"a": dict}, {"rounds": 0}), ({"a": dict}, {"warmup": -1})],
    ids=["no callables", "no rounds", "fewer than no warm-up calls"],
)
def test_what_cannot_be_measured_is_refused(candidates, settings):
    with pytest.raises(InvalidInputError, match="give at least one callable and one round"):
        benchmark(candidates, SAMPLE, **settings)


def test_a_sample_without_arrays_needs_to_be_told_its_items():
    assert benchmark({"a": dict}, {}, items=1, rounds=1).items == 1
    with pytest.raises(InvalidInputError, match="items"):
        benchmark({"a": dict}, {}, rounds=1)


def test_the_errors_of_a_callable_are_not_swallowed():
    def broken(_: Tensors) -> Tensors:
        msg = "the engine is gone"
        raise RunnerError(msg)

    with pytest.raises(RunnerError, match="the engine is gone"):
        benchmark({"a": broken}, SAMPLE)


def test_the_machines_own_clock_measures_real_time():
    import time

    found = benchmark({"a": lambda x: time.sleep(0.002) or x}, SAMPLE, rounds=5, warmup=0)["a"]

    assert 2 <= min(found.rounds_ms) <= found.p50_ms < 1000
