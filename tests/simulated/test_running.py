"""Engines on a simulated GPU: memory, streams, profiles, threads, CUDA graphs, and errors."""

import dataclasses
import os
import re
import sys
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import pytest
from conftest import WEIGHT, N, assert_right, rows
from cuda.core import Device

from mlflow_e2eai.artifacts.build_settings import BuildSettings
from mlflow_e2eai.artifacts.machine import has_gpu, local_compute_capability
from mlflow_e2eai.engine import runner as running
from mlflow_e2eai.engine.profiles import profiles
from mlflow_e2eai.engine.runner import engine_runner, unsupported_here
from mlflow_e2eai.errors import (
    ArtifactError,
    EngineMismatchError,
    MissingDependencyError,
    RunnerError,
)
from mlflow_e2eai.latency.concurrency import cold_start

STRIPPED = BuildSettings(strip_weights=True, refit=True)
PICKED = """
main (float[N, 3] x) => (int64[2, found] at, float[N, 3] z) {
    at = NonZero(x)
    z = Relu(x)
}"""


def test_the_driver_tells_what_the_gpu_is():
    assert has_gpu()
    assert local_compute_capability() == "sm89"


def test_every_size_of_the_profile_is_answered(run, ask):
    for count in (1, 2, 4, 16, 8, 5, 4, 1):
        ask(run, count)


def test_memory_is_kept_from_call_to_call(run, ask, calls):
    for count in (2, 16, 4, 8):
        ask(run, count)
    before = calls("cuMemAllocFromPoolAsync"), calls("cuMemAllocHost")
    for count in (16, 1, 2, 4, 8, 16):
        ask(run, count)
    assert (calls("cuMemAllocFromPoolAsync"), calls("cuMemAllocHost")) == before


def test_an_answer_is_the_callers_to_keep(run):
    x = rows(2)
    first = run({"x": x})
    run({"x": rows(1)})
    assert_right(first, x)


def test_memory_goes_back_when_the_engine_is_closed(engine, trt, ask):
    trt.DRIVER.cuMemPoolTrimTo(None, 0)
    before = trt.DRIVER.simulated_reserved()
    with engine_runner(engine()[0]) as infer:
        ask(infer, 16)
        assert trt.DRIVER.simulated_reserved() > before
    assert trt.DRIVER.simulated_reserved() == before
    with pytest.raises(RunnerError, match="was closed; load it again"):
        ask(infer, 16)


def test_what_is_closed_in_a_call_goes_back_when_the_call_is_done(engine, trt, ask):
    with ThreadPoolExecutor(8) as threads:
        with engine_runner(engine()[0]) as infer:
            ask(infer, 2)
            before = trt.DRIVER.simulated_used()
            trt.SETTINGS["slow_s"] = 0.1
            calls = [threads.submit(ask, infer, 2) for _ in range(8)]
            while trt.CALLS["execute_async_v3"] < 3:
                pass
        errors = [call.exception() for call in calls]
    assert {type(error) for error in errors} <= {type(None), RunnerError}
    assert errors.count(None) >= 2
    assert trt.DRIVER.simulated_used() < before


def test_the_gpu_that_a_caller_works_on_stays_current(run, ask):
    """PyTorch would go on where we have been."""
    Device(1).set_current()
    try:
        ask(run, 3)
        run.timed({"x": rows(3)})
        assert Device().device_id == 1
    finally:
        Device(0).set_current()


def test_an_engine_is_loaded_onto_the_first_gpu_whichever_is_current(engine, ask):
    Device(1).set_current()
    try:
        with engine_runner(engine()[0]) as infer:
            assert Device().device_id == 1
            ask(infer, 3)
        assert Device().device_id == 1
    finally:
        Device(0).set_current()


@pytest.mark.parametrize("serving", [True, False])
def test_an_output_that_the_engine_leaves_is_seen_where_it_is_judged(serving, engine, trt, ask):
    with engine_runner(engine()[0], serving=serving) as infer:
        ask(infer, 2)
        trt.SETTINGS["skips"] = {"y"}
        answer = infer({"x": rows(2)})
    assert np.isnan(answer["y"]).all() == (not serving)
    assert not np.isnan(answer["z"]).any()


def test_a_call_is_timed_by_the_clock_of_the_gpu(run, trt):
    trt.SETTINGS["slow_s"] = 0.02
    timing = run.timed({"x": rows(2)})
    assert 20 <= timing.device_ms <= timing.host_ms
    with ThreadPoolExecutor(1) as other:
        assert other.submit(run.timed, {"x": rows(2)}).result().device_ms >= 20


def test_sixteen_threads_of_mixed_sizes_get_the_answers_that_one_gets(run):
    def ask(at):
        x = rows(1 + at % 16)
        assert_right(run({"x": x}), x)

    with ThreadPoolExecutor(16) as threads:
        list(threads.map(ask, range(640)))


def test_callers_run_beside_each_other_up_to_a_bound_and_wait_beyond_it(engine, trt, monkeypatch):
    """Calls of 0.1 s that wait for each other would take 0.8 s; four at a time take 0.2."""
    monkeypatch.setattr(running, "MAX_CONTEXTS", 4)
    with engine_runner(engine()[0]) as infer, ThreadPoolExecutor(8) as threads:
        trt.SETTINGS["slow_s"] = 0.1
        began = threading.Barrier(8)

        def ask(count):
            began.wait()
            assert_right(infer({"x": rows(count)}), rows(count))

        list(threads.map(ask, [4] * 8))
        assert trt.CALLS["create_execution_context"] == 1 + 4  # one at opt, which is for 2
        list(threads.map(ask, [4] * 8))
        assert trt.CALLS["create_execution_context"] == 1 + 4


def test_where_memory_takes_no_more_contexts_callers_wait_for_those_there_are(engine, trt):
    with engine_runner(engine()[0]) as infer, ThreadPoolExecutor(8) as threads:
        trt.SETTINGS.update(slow_s=0.01, contexts=1)
        list(threads.map(lambda _: assert_right(infer({"x": rows(2)}), rows(2)), range(32)))
    assert trt.CALLS["create_execution_context"] == 1


def test_contexts_of_a_profile_are_made_when_they_are_first_needed(engine, trt, ask):
    with engine_runner(engine()[0]) as infer:
        assert trt.CALLS["create_execution_context"] == 1
        ask(infer, 2)
        ask(infer, 16)
        assert trt.CALLS["create_execution_context"] == 1  # both are the dynamic profile's
        ask(infer, 8)
        ask(infer, 4)
    assert trt.CALLS["create_execution_context"] == 3
    assert trt.CALLS["set_optimization_profile_async"] == 2


def test_every_size_gets_its_profile(engine, ask, monkeypatch):
    made, _ = engine()
    taken = []
    with engine_runner(made) as infer:
        take = infer._pool.acquire
        monkeypatch.setattr(infer._pool, "acquire", lambda at: taken.append(at) or take(at))
        for size in (1, 4, 7, 8, 16):
            ask(infer, size)
    dynamic = (1, 2, 16)
    found = [profiles(made.axes)[at]["N"] for at in taken]
    assert found == [dynamic, (4, 4, 4), dynamic, (8, 8, 8), dynamic]


def test_shapes_are_set_when_they_change_only(run, trt, ask):
    for _ in range(5):
        ask(run, 2)
    assert trt.CALLS["set_input_shape"] == 1


# CUDA graphs


def test_a_shape_is_captured_at_its_second_call_and_replayed(engine, trt, ask, calls):
    with engine_runner(engine(backend="tensorrt")[0]) as infer:
        ask(infer, 16)  # its memory will do for all that come
        before, _ = calls("cuGraphLaunch"), trt.CALLS.clear()
        for _ in range(10):
            ask(infer, 3)
        assert trt.CALLS["execute_async_v3"] == 3  # twice plain, and then into the graph
        assert calls("cuGraphLaunch") - before == 8
        for _ in range(10):
            ask(infer, 5)
            ask(infer, 3)
    assert trt.CALLS["execute_async_v3"] == 6


def test_no_more_graphs_are_kept_than_the_bound(engine, calls, ask):
    before = calls("cuGraphInstantiateWithParams"), calls("cuGraphExecDestroy")
    with engine_runner(engine(backend="tensorrt")[0]) as infer:
        for count in [1, 2, 3, 5, 6, 7, 9, 10, 11, 12]:
            ask(infer, count)
            ask(infer, count)
        assert calls("cuGraphInstantiateWithParams") - before[0] == 10
        assert calls("cuGraphExecDestroy") - before[1] == 2


def test_what_cannot_be_captured_runs_plain_and_says_so_once(engine, trt, ask):
    trt.DRIVER.simulated_capture_fails(1)
    with engine_runner(engine(backend="tensorrt")[0]) as infer:
        ask(infer, 3)
        with pytest.warns(UserWarning, match="model.engine runs without a CUDA graph"):
            ask(infer, 3)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            for count in (3, 5, 5, 5):
                ask(infer, count)


def test_tensorrt_rtx_captures_by_itself_and_compiles_for_shapes_at_once(engine, calls, ask, trt):
    before = calls("cuStreamBeginCapture")
    with engine_runner(engine()[0]) as infer:
        for _ in range(3):
            ask(infer, 3)
        config = infer._config
    assert calls("cuStreamBeginCapture") == before
    assert config.cuda_graph_strategy == trt.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
    specialised = config.dynamic_shapes_kernel_specialization_strategy
    assert specialised == trt.DynamicShapesKernelSpecializationStrategy.EAGER


# kernels that were compiled


def kept(tmp_path):
    return sorted((tmp_path / "cache/mlflow_e2eai/kernels").glob("*"))


def test_what_was_compiled_is_there_at_the_second_start(engine, ask, tmp_path):
    made, _ = engine()
    with engine_runner(made, serving=True) as infer:
        ask(infer, 3)
        (file,) = kept(tmp_path)  # written by then: a process that is killed closes nothing
        ask(infer, 4)
    first = file.read_text()
    assert file.name == f"{made.sha256}-sm89-tensorrt_rtx-{made.backend_version}"
    assert "(3, 3)" in first
    assert "(4, 3)" in first
    with engine_runner(made, serving=True) as infer:
        ask(infer, 5)
    assert set(re.findall(r"\((\d+), 3\)", file.read_text())) == {"3", "4", "5"}
    assert kept(tmp_path) == [file]


def test_a_broken_cache_is_ignored_and_written_anew(engine, ask, tmp_path):
    made, _ = engine()
    with engine_runner(made, serving=True) as infer:
        ask(infer, 3)
    (file,) = kept(tmp_path)
    good = file.read_bytes()
    file.write_bytes(good[:-5])
    with engine_runner(made, serving=True) as infer:
        ask(infer, 3)
    assert file.read_bytes() == good


def test_a_cache_that_others_could_have_written_is_not_read(
    engine, ask, tmp_path, monkeypatch, trt
):
    made, _ = engine()
    with engine_runner(made, serving=True) as infer:
        ask(infer, 3)
    (file,) = kept(tmp_path)
    read = []
    monkeypatch.setattr(trt.IRuntimeCache, "deserialize", lambda _, content: read.append(content))
    with engine_runner(made, serving=True) as infer:
        ask(infer, 3)
    assert len(read) == 1
    file.chmod(0o666)
    with engine_runner(made, serving=True) as infer:
        ask(infer, 3)
    assert len(read) == 1


def test_a_cache_that_cannot_be_written_stops_nobody(engine, ask, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with engine_runner(engine()[0], serving=True) as infer:
        ask(infer, 3)


def test_what_is_judged_starts_cold(engine, ask, tmp_path):
    with engine_runner(engine()[0]) as infer:
        ask(infer, 3)
    assert kept(tmp_path) == []


# outputs whose shape depends on the data


@pytest.mark.parametrize("backend", ["tensorrt", "tensorrt_rtx"])
def test_an_output_may_be_as_large_as_the_data_make_it(backend, engine):
    made, _ = engine(PICKED, backend=backend, weights={})
    assert made.outputs[0].shape == (2, "found")
    with engine_runner(made) as infer:
        for x in (np.eye(3), np.zeros((2, 3)), np.ones((16, 3)), np.eye(3)[:2], np.ones((1, 3))):
            answer = infer({"x": x.astype(np.float32)})
            np.testing.assert_array_equal(answer["at"], np.array(np.nonzero(x)))
            np.testing.assert_array_equal(answer["z"], x)


@pytest.mark.parametrize("backend", ["tensorrt", "tensorrt_rtx"])
def test_an_input_may_decide_shapes(backend, engine):
    """TensorRT reads such a one on the host: an address on the GPU would end the process."""
    text = "main (float[N, 3] x, int64[2] to) => (float[a, b] y) { y = Reshape(x, to) }"
    made, _ = engine(text, backend=backend, weights={}, on_host=["to"])
    with engine_runner(made) as infer:
        for to in ([3, 4], [4, 3], [12, 1], [3, 4], [3, 4]):
            x = rows(4)
            found = infer({"x": x, "to": np.array(to, np.int64)})["y"]
            np.testing.assert_array_equal(found, x.reshape(to))


def test_an_output_for_which_there_is_no_memory_is_told_and_the_next_call_is_answered(engine, trt):
    with engine_runner(engine(PICKED, weights={})[0]) as infer:
        infer({"x": np.eye(3, dtype=np.float32)})
        infer({"x": np.zeros((16, 3), np.float32)})
        trt.DRIVER.simulated_limit(trt.DRIVER.simulated_used() + 16)
        with pytest.raises(RunnerError, match="the GPU is out of memory"):
            infer({"x": np.ones((16, 3), np.float32)})
        trt.DRIVER.simulated_limit(1 << 40)
        assert infer({"x": np.ones((16, 3), np.float32)})["at"].shape == (2, 48)


@pytest.mark.parametrize(("size", "captures"), [("N", True), ("M", False)])
def test_tensorrt_rtx_captures_where_the_sizes_of_outputs_are_known(size, captures, engine, trt):
    text = f"main (float[N, 3] x) => (float[{size}, 3] z) {{ z = Relu(x) }}"
    with engine_runner(engine(text, weights={})[0]) as infer:
        whole = infer._config.cuda_graph_strategy == trt.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
    assert whole == captures


# weights


@pytest.mark.parametrize("backend", ["tensorrt", "tensorrt_rtx"])
def test_an_engine_without_weights_gets_them_from_its_graph(backend, engine, ask, trt):
    made, graph = engine(backend=backend, settings=STRIPPED)
    reason = unsupported_here(made)
    assert isinstance(reason, EngineMismatchError)
    assert "stripped" in reason.wanted
    assert unsupported_here(made, [graph]) is None
    with engine_runner(made, graphs=[graph]) as infer:
        ask(infer, 3)
    assert trt.CALLS["refit_cuda_engine"] == 1


def test_another_graph_does_not_give_an_engine_its_weights(engine):
    made, graph = engine(settings=STRIPPED)
    other = dataclasses.replace(graph, sha256="0" * 64)
    with pytest.raises(EngineMismatchError, match="stripped"):
        engine_runner(made, graphs=[other]).__enter__()


def test_a_graph_that_has_changed_gives_no_weights(engine):
    made, graph = engine(settings=STRIPPED)
    graph.path.write_bytes(graph.path.read_bytes() + b" ")
    with pytest.raises(ArtifactError, match="changed"), engine_runner(made, graphs=[graph]):
        pass


def test_weights_that_the_graph_lacks_are_named(engine, trt, monkeypatch):
    made, graph = engine(settings=STRIPPED)
    monkeypatch.setattr(trt.OnnxParserRefitter, "refit_from_file", lambda *_: False)
    with pytest.raises(RunnerError, match="1 are missing, 'w' first"):
        engine_runner(made, graphs=[graph]).__enter__()


# errors


def test_a_size_that_no_profile_covers_is_told_with_the_profile(run, ask):
    with pytest.raises(RunnerError, match=r"'x' of shape \[17, 3\].*N from 1 to 16"):
        run({"x": rows(17)})
    ask(run, 16)


def test_a_full_gpu_is_told_when_the_engine_starts_and_the_process_goes_on(engine, trt, ask):
    trt.SETTINGS["contexts"] = 0
    with pytest.raises(RunnerError, match="the GPU is out of memory"):
        engine_runner(engine()[0]).__enter__()
    trt.SETTINGS["contexts"] = 1
    with engine_runner(engine()[0]) as infer:
        ask(infer, 2)


def test_a_gpu_that_is_full_in_a_call_is_told_and_the_next_call_is_answered(run, trt, ask):
    ask(run, 1)
    trt.DRIVER.simulated_limit(trt.DRIVER.simulated_used() + 16)
    with pytest.raises(RunnerError, match="the GPU is out of memory"):
        run({"x": rows(16)})
    ask(run, 1)
    trt.DRIVER.simulated_limit(1 << 40)
    ask(run, 16)


@pytest.mark.parametrize(
    "asks", ["set_optimization_profile_async", "infer_shapes", "execute_async_v3"]
)
def test_what_tensorrt_refuses_is_told_in_its_own_words_and_the_next_call_is_answered(
    asks, run, ask, trt, caplog
):
    trt.SETTINGS["refuses"] = {asks: "Error Code 3: API Usage Error (why)\n and more"}
    with pytest.raises(
        RunnerError, match=r"cannot run model\.engine: Error Code 3: .*\(why\) and more$"
    ):
        ask(run, 8)
    assert "TensorRT: Error Code 3" in caplog.text
    trt.SETTINGS["refuses"] = {}
    ask(run, 8)


def test_an_engine_that_does_not_load_is_told_in_tensorrts_words_or_for_want_of_memory(engine, trt):
    made, _ = engine(backend="tensorrt")
    trt.SETTINGS["refuses"] = {"deserialize_cuda_engine": "Version tag does not match"}
    with pytest.raises(RunnerError, match=r"load model.engine \(Version tag .*compile it again"):
        engine_runner(made).__enter__()
    trt.SETTINGS["refuses"] = {"deserialize_cuda_engine": "Error Code 2: OutOfMemory (...)"}
    with pytest.raises(RunnerError, match="the GPU is out of memory; stop other processes"):
        engine_runner(made).__enter__()


def test_a_tensorrt_that_does_not_start_is_told_with_the_driver(engine, trt):
    said = "CUDA initialization failure with error: 35"
    trt.SETTINGS["refuses"] = {"Runtime": said}
    with pytest.raises(
        RunnerError, match=rf"does not start .*: {said}; check with `nvidia-smi` that the driver"
    ):
        engine_runner(engine()[0]).__enter__()


def test_a_context_that_cannot_be_made_for_another_reason_than_memory_says_it(engine, trt):
    trt.SETTINGS["refuses"] = {"create_execution_context": "no such strategy"}
    with pytest.raises(RunnerError, match=r"cannot run model\.engine: no such strategy"):
        engine_runner(engine()[0]).__enter__()


def test_a_failure_after_which_cuda_does_no_more_says_that_the_process_is_to_be_started_again(
    engine, trt, ask
):
    with engine_runner(engine()[0]) as infer:
        ask(infer, 2)
        trt.DRIVER.simulated_sticks(700)
        for _ in range(2):
            with pytest.raises(
                RunnerError, match=r"ILLEGAL_ADDRESS\), and can no longer be used .* again"
            ):
                ask(infer, 2)


def test_a_forked_process_is_told_that_cuda_does_not_go_there(run, ask):
    ask(run, 2)
    reader, writer = os.pipe()
    if (child := os.fork()) == 0:
        try:
            ask(run, 2)
        except RunnerError as error:
            os.write(writer, str(error).encode())
        finally:
            os._exit(0)
    os.close(writer)
    os.waitpid(child, 0)
    assert b"was forked from one that uses the GPU" in os.read(reader, 1000)
    os.close(reader)
    ask(run, 2)


@pytest.mark.parametrize(
    ("reason", "advice"),
    [
        ("OLD_CUDA_DRIVER", "driver is too old for it: install a newer one"),
        ("INSUFFICIENT_GPU_MEMORY", "the GPU has too little free memory for it"),
        ("VERSION_MISMATCH", "compile it again on this machine"),
        ("MALFORMED_ENGINE", "it is not an engine"),
    ],
)
def test_tensorrts_own_reasons_become_one_sentence(reason, advice, engine, trt):
    trt.SETTINGS["invalid"] = int(trt.EngineInvalidityDiagnostics.__members__[reason])
    with pytest.raises(RunnerError, match=f"cannot load model.engine .{reason}.*{advice}"):
        engine_runner(engine()[0]).__enter__()


HALF, FLOAT = (
    {"LayerType": "gemm", "Outputs": [{"Name": "y", "Format/Datatype": said}]}
    for said in ("Half", "Float")
)


@pytest.mark.parametrize("layers", [[HALF], [FLOAT, HALF], ["only its name"]])
def test_an_engine_that_computes_in_its_precision_or_does_not_tell_is_taken(
    layers, engine, trt, ask
):
    trt.SETTINGS["layers"] = layers
    with engine_runner(dataclasses.replace(engine()[0], precision="fp16")) as infer:
        ask(infer, 2)


def test_an_engine_that_says_a_precision_and_computes_in_another_is_refused(engine, trt):
    trt.SETTINGS["layers"] = [FLOAT]
    made = dataclasses.replace(engine()[0], precision="fp16")
    with pytest.raises(
        RunnerError, match=r"declared as fp16, but none of .* computes in it, but in Float"
    ):
        engine_runner(made).__enter__()


def test_an_engine_of_another_version_is_refused_before_it_is_loaded(engine, trt):
    made = dataclasses.replace(engine()[0], backend_version="1.5.0")
    with pytest.raises(EngineMismatchError, match=r"TensorRT-RTX 1\.5\.0"):
        engine_runner(made).__enter__()
    assert trt.CALLS["deserialize_cuda_engine"] == 0


def test_without_cuda_core_the_extra_is_named(engine, monkeypatch):
    monkeypatch.setitem(sys.modules, "cuda.core", None)
    reason = unsupported_here(engine()[0])
    assert isinstance(reason, MissingDependencyError)
    assert (reason.package, reason.extra) == ("cuda-core", "rtx")
    with pytest.raises(MissingDependencyError, match=r"mlflow_e2eai\[rtx\]"):
        engine_runner(engine()[0]).__enter__()


def test_pytorch_is_not_needed(run, ask):
    ask(run, 3)
    assert N.buckets
    assert WEIGHT.any()
    assert "torch" not in sys.modules


def test_what_each_profile_takes_of_the_gpu_is_told_with_the_cold_start(engine):
    made, _ = engine()
    found = cold_start(partial(engine_runner, made), {"x": rows(2)})
    assert found.profile_memory_bytes == (3000, 1000, 2000)
