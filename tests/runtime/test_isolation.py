"""A runner in a process of its own: its end is an answer, and all else is as in this one."""

import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path

import crashing_runners
import numpy as np
import onnx
import onnx.parser
import pytest

from mlflow_e2eai.errors import (
    EngineBuildError,
    EngineMismatchError,
    InvalidInputError,
    MissingDependencyError,
    RunnerError,
    SurgeryError,
)
from mlflow_e2eai.parity.comparison import compare
from mlflow_e2eai.runtime.isolation import isolated, isolated_onnxruntime, isolated_together
from mlflow_e2eai.runtime.process import WorkerProcess

FOLDS_TO_MUCH = onnx.parser.parse_model(
    """<ir_version: 8, opset_import: ["" : 18]>
    g (float[1] x) => (float[1] y) <int64[1] sizes = {200000000}> {
        zeros = ConstantOfShape(sizes)
        ones = Exp(zeros)
        most = ReduceMax <keepdims = 0> (ones)
        y = Add(x, most)
    }"""
)
"""Whoever folds its constants takes 1.6 GB."""


def sample(items=2, seed=0):
    return {"x": np.random.default_rng(seed).standard_normal((items, 3)).astype(np.float32)}


def test_it_answers_as_here_and_from_another_process():
    with isolated(crashing_runners.healthy) as infer:
        assert np.array_equal(infer(sample())["y"], 2 * sample()["x"])
    with isolated(crashing_runners.says_who_it_is) as infer:
        assert infer(sample())["y"] != os.getpid()


def test_the_process_is_gone_after_the_block():
    with isolated(crashing_runners.says_who_it_is) as infer:
        (pid,) = infer(sample())["y"]
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_the_process_is_gone_when_the_block_fails():
    pids = []

    def ask_and_fail():
        with isolated(crashing_runners.says_who_it_is) as infer:
            pids.extend(infer(sample())["y"])
            raise KeyError

    with pytest.raises(KeyError):
        ask_and_fail()
    (pid,) = pids
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


# How it ends


@pytest.mark.parametrize(
    ("sign", "how"),
    [
        (signal.SIGSEGV, r"crashed \(SIGSEGV\)"),
        (signal.SIGABRT, r"crashed \(SIGABRT\)"),
        (signal.SIGFPE, r"crashed \(SIGFPE\)"),
        (signal.SIGKILL, r"was killed \(SIGKILL, as Linux does when memory runs out\)"),
    ],
)
def test_a_crash_says_how_and_on_what(sign, how):
    opener = partial(crashing_runners.drops_dead, at_call=1, sign=sign)
    with isolated(opener) as infer:
        infer(sample(1))
        with pytest.raises(RunnerError, match=rf"{how} on x \[64, 3\]"):
            infer(sample(64))


def test_a_pointer_to_nowhere_ends_only_the_other_process():
    with (
        isolated(crashing_runners.reads_where_nothing_is) as infer,
        pytest.raises(RunnerError, match="SIGSEGV"),
    ):
        infer(sample())


def test_a_crash_in_a_comparison_names_the_sample():
    samples = [sample(items) for items in (1, 2, 3, 64)]
    opener = partial(crashing_runners.crashes_on_large_batches, batch=64)
    with (
        isolated(opener) as infer,
        pytest.raises(RunnerError, match=r"crashed \(SIGSEGV\) on sample 3, x \[64, 3\]"),
    ):
        infer.compare(crashing_runners.doubled, samples)


def test_the_dead_stay_dead_and_say_why_again():
    opener = partial(crashing_runners.drops_dead, at_call=0, sign=signal.SIGSEGV)
    with isolated(opener) as infer:
        assert infer.failure is None
        for _ in range(2):
            with pytest.raises(RunnerError, match="SIGSEGV"):
                infer(sample())
        assert "SIGSEGV" in infer.failure
        with pytest.raises(RunnerError, match="SIGSEGV"):
            infer.compare(crashing_runners.doubled, [sample()])


def test_a_crash_while_it_opens_gives_its_last_words():
    opening = isolated(crashing_runners.crashes_while_it_opens)
    with pytest.raises(RunnerError, match=r"SIGABRT.*while it was opened.*no such kernel"), opening:
        pass


def test_a_call_that_never_returns_is_ended():
    began = time.monotonic()
    with isolated(partial(crashing_runners.hangs, seconds=600)) as infer:
        infer.timeout_s = 0.5  # not for its start, which takes longer on a busy machine
        with pytest.raises(RunnerError, match=r"did not respond for 0.5 s on x \[2, 3\]"):
            infer(sample())
    assert time.monotonic() - began < 60


def test_a_long_series_of_short_calls_does_not_hang():
    opener = partial(crashing_runners.is_slow_but_alive, seconds=0.3)
    with isolated(opener) as infer:
        infer.timeout_s = 3
        report = infer.compare(crashing_runners.doubled, [sample()], threads=1, repeats=12)
    assert report.passed


def test_memory_that_is_not_there_is_an_error_of_the_runner():
    with (
        isolated(crashing_runners.takes_all_memory) as infer,
        pytest.raises(RunnerError, match="MemoryError"),
    ):
        infer(sample())


def test_a_worker_ends_with_a_caller_that_is_killed(tmp_path):
    """As a builder must: nobody would wait for it, and it holds the GPU."""
    script = (
        "import crashing_runners, sys; from functools import partial; from pathlib import Path\n"
        "from mlflow_e2eai.runtime.process import WorkerProcess\n"
        "work = partial(crashing_runners.tells_who_it_is_and_sleeps, path=Path(sys.argv[1]))\n"
        "WorkerProcess().call(work)\n"
    )
    path = tmp_path / "pid"
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    caller = subprocess.Popen([sys.executable, "-c", script, path], env=env)
    wait_for(lambda: path.exists() and path.read_text())
    os.kill(caller.pid, signal.SIGKILL)
    caller.wait()
    wait_for(lambda: not running(int(path.read_text())))


def running(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_for(condition):
    until = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.05)


# Errors


def test_errors_of_this_package_come_back_as_they_are():
    opening = isolated(crashing_runners.is_for_another_gpu)
    with pytest.raises(EngineMismatchError, match="a GPU of sm90") as caught, opening:
        pass
    assert (caught.value.wanted, caught.value.found) == ("a GPU of sm90", "no GPU")


@pytest.mark.parametrize(
    "error",
    [
        InvalidInputError("one"),
        SurgeryError("two", rule="bypass"),
        EngineBuildError("three", reason="why", node="n", operator="d::Foo"),
        EngineMismatchError(wanted="a", found="b"),
        MissingDependencyError(package="torch", extra="gpu", purpose="This"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_every_error_travels_whole(error):
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is type(error)
    assert str(again) == str(error)
    assert vars(again) == vars(error)


def test_other_errors_become_errors_of_the_runner_and_it_lives_on():
    with isolated(partial(crashing_runners.refuses, ValueError("bad shape\nand more"))) as infer:
        for _ in range(2):
            with pytest.raises(RunnerError, match=r"^ValueError: bad shape$"):
                infer(sample())


def test_what_cannot_be_imported_there_is_said():
    @contextmanager
    def nobody_can_import_me():
        yield crashing_runners.doubled

    with pytest.raises(Exception, match="nobody_can_import_me"), isolated(nobody_can_import_me):
        pass


def test_an_error_of_the_reference_is_the_callers_own():
    def reference(_):
        msg = "mine"
        raise LookupError(msg)

    with isolated(crashing_runners.healthy) as infer:
        with pytest.raises(LookupError, match="mine"):
            infer.compare(reference, [sample()])
        assert infer.compare(crashing_runners.doubled, [sample()]).passed


def test_an_error_of_the_samples_is_the_callers_own():
    def samples():
        yield sample()
        raise LookupError

    with isolated(crashing_runners.healthy) as infer:
        with pytest.raises(LookupError):
            infer.compare(crashing_runners.doubled, samples(), repeats=1)
        assert infer.compare(crashing_runners.doubled, [sample()]).passed


def test_warnings_are_given_here():
    with pytest.warns(UserWarning, match="the other one"), isolated(crashing_runners.warns):
        pass


def test_what_is_printed_there_is_not_shown(capfd):
    with isolated(crashing_runners.prints):
        pass
    assert capfd.readouterr() == ("", "")


# Its work


def test_a_comparison_there_finds_what_one_here_finds():
    samples = [sample(seed=seed) for seed in range(3)]
    with crashing_runners.uses_one_buffer_for_all() as infer:
        here = compare(crashing_runners.doubled, infer, samples)
    with isolated(crashing_runners.uses_one_buffer_for_all) as infer:
        there = infer.compare(crashing_runners.doubled, samples)
    assert there == here
    assert {"stale", "tolerance"} <= {finding.kind for finding in there.findings}


def test_runners_take_turns_there_and_the_callers_own_among_them():
    openers = {
        "slow": partial(crashing_runners.is_slow_but_alive, seconds=0.02),
        "fast": crashing_runners.healthy,
    }
    with isolated_together(openers) as there:
        report = there.benchmark(
            dict.fromkeys(openers, sample()), {"here": crashing_runners.doubled}, rounds=30
        )
    assert [entry.name for entry in report.variants] == ["here", "slow", "fast"]
    assert 20 <= report["slow"].p50_ms < 40
    assert report["here"].p50_ms < 1
    assert report["fast"].p50_ms < 1
    assert report.ratio("slow", "here").low > 1
    assert report["slow"].settled


def test_each_runner_may_have_a_sample_of_its_own():
    openers = {
        "small": partial(crashing_runners.takes_only, items=1),
        "large": partial(crashing_runners.takes_only, items=10),
    }
    with isolated_together(openers) as there:
        report = there.benchmark({"small": sample(1), "large": sample(10)}, rounds=12)
    assert [entry.name for entry in report.variants] == ["small", "large"]


def test_of_several_runners_the_one_that_crashed_is_told():
    openers = {
        "sound": crashing_runners.healthy,
        "broken": partial(crashing_runners.drops_dead, at_call=50, sign=signal.SIGSEGV),
    }
    with isolated_together(openers) as there, pytest.raises(RunnerError, match="SIGSEGV") as caught:
        there.benchmark(dict.fromkeys(openers, sample()))
    assert caught.value.runner == "broken"


def test_of_several_runners_the_one_that_fails_is_told():
    openers = {
        "sound": crashing_runners.healthy,
        "broken": partial(crashing_runners.refuses, ValueError("bad shape")),
    }
    with isolated_together(openers) as there, pytest.raises(RunnerError, match="bad") as caught:
        there.benchmark(dict.fromkeys(openers, sample()))
    assert caught.value.runner == "broken"


def test_of_several_runners_the_one_that_crashes_while_it_opens_is_told():
    openers = {"sound": crashing_runners.healthy, "broken": crashing_runners.crashes_while_it_opens}
    opening = isolated_together(openers)
    with pytest.raises(RunnerError, match="SIGABRT") as caught, opening:
        pass
    assert caught.value.runner == "broken"


def test_an_error_of_the_callers_own_is_its_own_among_the_turns():
    def mine(_):
        raise LookupError

    openers = {"sound": crashing_runners.healthy}
    with isolated_together(openers) as there:
        with pytest.raises(LookupError):
            there.benchmark({"sound": sample()}, {"mine": mine})
        assert there.benchmark({"sound": sample()}, rounds=10)["sound"].p50_ms < 1


def test_a_cold_start_counts_what_opening_took():
    with isolated(partial(crashing_runners.is_slow_but_alive, seconds=0.02)) as infer:
        cold = infer.cold_start(sample())
    assert cold.first_call_ms >= 20
    assert cold.second_call_ms >= 20
    assert cold.load_s >= 0
    assert cold.peak_memory_bytes > 10e6
    assert cold.cpu_share is not None
    assert 0 < cold.cpu_share <= 1


def test_callers_at_once_are_over_there():
    with isolated(crashing_runners.answers_two_at_once) as infer:
        found = infer.throughput(sample(), threads=[2], budget_s=0)
    assert found.loads[0].calls == 2
    assert found.loads[0].cpu_share is not None
    assert 0 < found.loads[0].cpu_share <= 1


def test_callers_of_several_threads_get_their_own_outputs_one_after_the_other():
    inputs = [sample(seed=seed) for seed in range(8)] * 50
    with isolated(crashing_runners.healthy) as infer, ThreadPoolExecutor(8) as threads:
        for given, outputs in zip(inputs, threads.map(infer, inputs), strict=True):
            assert np.array_equal(outputs["y"], 2 * given["x"])


def test_a_process_that_is_killed_from_here_is_an_error_of_its_call():
    with closing(WorkerProcess()) as process:
        threading.Timer(0.5, process.kill).start()
        with pytest.raises(RunnerError, match="SIGKILL"):
            process.call(crashing_runners.sleeps)
        assert process.has_ended
        assert "SIGKILL" in process.failure


def test_a_process_that_takes_too_much_memory_is_killed_and_the_sentence_says_how_much():
    take = partial(crashing_runners.takes_memory, number_of_bytes=600 << 20)
    with closing(WorkerProcess()) as process:
        assert process.call(take) == 600 << 20
        with (
            process.limited_to(300 << 20),
            pytest.raises(
                RunnerError,
                match=r"took 0\.\d GB of memory \(at most 0\.3 GB are expected; give a smaller "
                r"graph or inputs\) on much memory\.",
            ),
        ):
            process.call(take)


def test_a_process_may_take_most_of_the_memory_of_the_machine_or_its_container(monkeypatch):
    monkeypatch.setattr("mlflow_e2eai.artifacts.machine.memory_bytes", lambda: 4e9)
    with closing(WorkerProcess()) as process:
        assert process.most_bytes == 0.8 * 4e9


def test_a_graph_that_takes_much_memory_as_it_is_loaded_is_not_loaded(tmp_path, monkeypatch):
    monkeypatch.setattr("mlflow_e2eai.runtime.process._LOADING_BYTES", 300 << 20)
    path = tmp_path / "folds.onnx"
    onnx.save(FOLDS_TO_MUCH, path)
    with (
        pytest.raises(RunnerError, match=r"GB of memory \(at most 0\.3 GB are expected"),
        isolated_onnxruntime(path),
    ):
        pass


def test_a_call_ends_at_its_time_limit_though_it_makes_progress():
    with (
        closing(WorkerProcess()) as process,
        pytest.raises(RunnerError, match=r"did not finish within 3 s at step \d"),
    ):
        process.call(crashing_runners.makes_progress_for_ever, time_limit_s=3)


def test_a_process_serves_several_calls_and_returns_what_each_writes():
    with closing(WorkerProcess()) as process:
        assert process.call(crashing_runners.counts_its_calls) == 1
        written = len(process.log())
        assert process.call(crashing_runners.counts_its_calls) == 2
        assert process.log(written) == b"call 2\n"
