"""What only a GPU can show: engines that answer, ONNX Runtime on CUDA, and what is chosen."""

from __future__ import annotations

import dataclasses
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from importlib.util import find_spec

import numpy as np
import onnxruntime
import pytest
import torch
from images import images

from mlflow_e2eai import benchmark, clean, compare, compile, convert, export, load_model
from mlflow_e2eai.artifacts.axes import resize
from mlflow_e2eai.engine import backends
from mlflow_e2eai.engine.runner import engine_runner, unsupported_here
from mlflow_e2eai.errors import RunnerError
from mlflow_e2eai.parity.tolerances import TOLERANCES
from mlflow_e2eai.pytorch.runner import torch_runner
from mlflow_e2eai.runtime.isolation import isolated, isolated_together
from mlflow_e2eai.runtime.ort import onnxruntime_runner

pytestmark = pytest.mark.gpu

CALLS = 150
"""So many it took to see the fault of TensorRT-RTX 1.6.1 on an H100 for what it was."""

EXACT = 1e-4
"""Below what TF32 does to these networks, far above what fp32 does."""


def has(module):
    return find_spec(module) is not None


def listed(trt):
    return backends.local_compute_capability().upper() in trt.ComputeCapability.__members__


def supported():
    """Whether what `local` builds with says that it supports this GPU."""
    return has("tensorrt") or listed(pytest.importorskip("tensorrt_rtx"))


def graph_of(model, folder, batch, precision, width):
    raw, _ = export(
        model, images(2, width), out=folder / "raw.onnx", dynamic_axes={"image": {0: batch}}
    )
    cleaned, _ = clean(raw, out=folder / "clean.onnx")
    made, _ = convert(cleaned, precision, out=folder / f"{precision}.onnx")
    return made


def reference_of(model):
    return torch_runner(model, inputs=["image"], outputs=["output"])


def right_answers(model, engine, sample):
    """How many of many answers to one question are right, counted by hand."""
    limit = TOLERANCES[engine.precision]
    with reference_of(model) as reference, engine_runner(engine) as infer:
        wanted = reference(sample)["output"]
        scale = np.abs(wanted).max()
        answers = (infer(sample)["output"] for _ in range(CALLS))
        return sum(bool(np.abs(answer - wanted).max() <= limit * scale) for answer in answers)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_an_engine_for_local_answers_at_every_batch_size(precision, cnn, batch, tmp_path):
    graph = graph_of(cnn, tmp_path, batch, precision, 32)
    engine = compile(graph, "local", out=tmp_path / "local.engine")
    assert unsupported_here(engine) is None
    with reference_of(cnn) as reference, engine_runner(engine) as infer:
        for size in (1, 8, 64, 8, 1):
            answer = infer(images(size, 32))["output"]
            assert answer.shape == (size, 10)
            assert answer.dtype == np.float32
        samples = [images(size, 32) for size in (1, 8, 64)]
        report = compare(reference, infer, samples, precision=precision, threads=1)
    if supported():
        assert report.passed, report.findings


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("size", [1, 8])
def test_the_comparison_sees_wrong_answers_that_a_first_call_hides(
    precision, size, resnet, batch, tmp_path
):
    """TensorRT-RTX 1.6.1 on an H100, this network in fp32, batch 1: two right answers, then wrong.

    Whatever this GPU and version do, the comparison must say what many calls by hand say.
    """
    graph = graph_of(resnet, tmp_path, batch, precision, 224)
    engine = compile(graph, "local", out=tmp_path / "local.engine")
    sample = images(size, 224)
    with reference_of(resnet) as reference, engine_runner(engine) as infer:
        report = compare(reference, infer, [sample], precision=precision, threads=1)
    right = right_answers(resnet, engine, sample)
    assert report.passed == (right == CALLS), f"{right} of {CALLS} right, {report.findings}"
    if supported():
        assert right == CALLS


def test_an_engine_in_fp32_does_not_round_to_tf32(cnn, batch, tmp_path):
    graph = graph_of(cnn, tmp_path, batch, "fp32", 32)
    engine = compile(graph, "local", out=tmp_path / "local.engine")
    with reference_of(cnn) as reference, engine_runner(engine) as infer:
        report = compare(reference, infer, [images(8, 32)], tolerance=EXACT, threads=1)
    assert report.passed, report.findings


def test_a_batch_beyond_the_profile_is_an_error_that_names_the_profile(cnn, batch, tmp_path):
    graph = graph_of(cnn, tmp_path, batch, "fp32", 32)
    engine = compile(graph, "local", out=tmp_path / "local.engine")
    with engine_runner(engine) as infer:
        with pytest.raises(RunnerError, match="N from 1 to 64"):
            infer(images(65, 32))
        assert infer(images(8, 32))["output"].shape == (8, 10)


def test_an_engine_with_buckets_answers_at_them_and_between_them(cnn, batch, tmp_path):
    buckets = dataclasses.replace(batch, buckets=(1, 8, 32))
    graph = graph_of(cnn, tmp_path, buckets, "fp16", 32)
    engine = compile(graph, "local", out=tmp_path / "local.engine")
    with reference_of(cnn) as reference, engine_runner(engine) as infer:
        samples = [images(size, 32) for size in (1, 5, 8, 32, 64, 8, 1)]
        report = compare(reference, infer, samples, precision="fp16", threads=1)
    if supported():
        assert report.passed, report.findings


def by_hand_ms(engine, sample):
    """Median of what the engine takes on the GPU, by CUDA events around nothing but the engine.

    With the settings that ours runs with, where the backend has them.
    """
    backend = backends.BACKENDS[engine.target.backend]
    trt = backends.load(backend)
    log = trt.Logger(trt.Logger.ERROR)
    loaded = trt.Runtime(log).deserialize_cuda_engine(engine.path.read_bytes())
    config = loaded.create_runtime_config()
    if backend.graph_capture is not None:
        specialisation = trt.DynamicShapesKernelSpecializationStrategy
        config.cuda_graph_strategy = trt.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
        config.dynamic_shapes_kernel_specialization_strategy = specialisation.EAGER
    context, stream = loaded.create_execution_context(config), torch.cuda.Stream()
    held = {name: torch.from_numpy(array).cuda() for name, array in sample.items()}
    for name, tensor in held.items():
        context.set_input_shape(name, tuple(tensor.shape))
    for spec in engine.outputs:
        shape = tuple(context.get_tensor_shape(spec.name))
        held[spec.name] = torch.empty(shape, dtype=getattr(torch, spec.dtype), device="cuda")
    for name, tensor in held.items():
        context.set_tensor_address(name, tensor.data_ptr())
    torch.cuda.synchronize()

    def enqueue():
        context.execute_async_v3(stream.cuda_stream)

    if backend.graph_capture is None:
        enqueue()
        stream.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            enqueue()
        run = graph.replay
    else:
        run = enqueue
    times = []
    with torch.cuda.stream(stream):
        for _ in range(400):
            began, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            began.record(stream)
            run()
            ended.record(stream)
            stream.synchronize()
            times.append(began.elapsed_time(ended))
    return float(np.median(times[100:]))


def test_device_times_are_those_of_an_event_loop_written_by_hand(resnet, batch, tmp_path):
    graph = graph_of(resnet, tmp_path, batch, "fp16", 224)
    engine = compile(graph, "local", out=tmp_path / "local.engine")
    sample = images(8, 224)
    before = by_hand_ms(engine, sample)
    with engine_runner(engine) as infer:
        measured = benchmark({"engine": infer}, sample)["engine"]
    after = by_hand_ms(engine, sample)
    assert measured.device_p50_ms == pytest.approx((before + after) / 2, rel=0.02)
    assert measured.device_p50_ms < measured.p50_ms


def test_an_engine_in_a_process_of_its_own_answers_and_tells_device_times(cnn, batch, tmp_path):
    graph = graph_of(cnn, tmp_path, batch, "fp16", 32)
    engine = compile(graph, "local", out=tmp_path / "local.engine")
    with engine_runner(engine) as here, isolated(partial(engine_runner, engine)) as there:
        wanted = here(images(8, 32))["output"]
        np.testing.assert_array_equal(there(images(8, 32))["output"], wanted)
    with isolated_together({"engine": partial(engine_runner, engine)}) as runners:
        assert runners.benchmark({"engine": images(8, 32)})["engine"].device_p50_ms > 0


def test_two_runners_of_one_engine_do_not_disturb_each_other(cnn, batch, tmp_path):
    graph = graph_of(cnn, tmp_path, batch, "fp16", 32)
    engine = compile(graph, "local", out=tmp_path / "local.engine")
    with engine_runner(engine) as first, engine_runner(engine) as second:
        before = first(images(8, 32))["output"]
        second(images(64, 32))
        np.testing.assert_array_equal(first(images(8, 32))["output"], before)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_onnxruntime_on_cuda_really_runs_on_cuda(precision, cnn, batch, tmp_path, monkeypatch):
    sessions = []

    class Session(onnxruntime.InferenceSession):
        def __init__(self, *arguments, **named):
            super().__init__(*arguments, **named)
            sessions.append(self)

    graph = graph_of(cnn, tmp_path, batch, precision, 32)
    monkeypatch.setattr(onnxruntime, "InferenceSession", Session)
    with reference_of(cnn) as reference, onnxruntime_runner(graph.path, device="cuda") as infer:
        samples = [images(size, 32) for size in (1, 8, 64)]
        report = compare(reference, infer, samples, precision=precision, threads=1)
    (session,) = sessions
    assert session.get_providers()[0] == "CUDAExecutionProvider"
    assert report.passed, report.findings


def test_onnxruntime_on_cuda_in_fp32_does_not_round_to_tf32(cnn, batch, tmp_path):
    graph = graph_of(cnn, tmp_path, batch, "fp32", 32)
    with reference_of(cnn) as reference, onnxruntime_runner(graph.path, device="cuda") as infer:
        report = compare(reference, infer, [images(8, 32)], tolerance=EXACT)
    assert report.passed, report.findings


def test_pytorch_on_cuda_is_a_reference_in_fp32(cnn):
    """PyTorch rounds convolutions on CUDA to TF32 unless told otherwise."""
    sample = images(8, 32)
    with reference_of(cnn) as reference:
        wanted = reference(sample)
    try:
        with reference_of(cnn.cuda()) as on_cuda:
            report = compare(lambda _: wanted, on_cuda, [sample], tolerance=EXACT)
    finally:
        cnn.cpu()
    assert report.passed, report.findings


@pytest.fixture
def loaded(saved):
    with load_model(str(saved)) as model:
        yield model


def test_of_what_passed_its_comparison_nothing_was_measured_to_be_faster_than_what_runs(loaded):
    names = {each.variant for each in loaded.explain().others} | {loaded.variant}
    entries = [entry for entry in loaded.manifest.evidence if entry.variant in names]
    engines = [entry for entry in entries if entry.variant.startswith("tensorrt")]
    assert [entry.measured for entry in engines] == [True, True]
    passed = {entry.variant for entry in entries if entry.passed}
    report = loaded.manifest.latency["opt"]

    assert loaded.variant in passed
    for other in passed - {loaded.variant}:
        assert report.ratio(other, loaded.variant).high >= 1
    if supported():
        assert passed >= {entry.variant for entry in engines}


def test_sixteen_threads_of_mixed_batches_get_the_answers_that_one_gets(saved, batch):
    with load_model(str(saved), split=True) as model:
        asked = [images(size, 32)["image"] for size in (1, 2, 3, batch.max, batch.max + 3)]
        alone = [model(image)["output"] for image in asked]
        with ThreadPoolExecutor(16) as threads:
            answers = list(threads.map(lambda at: model(asked[at % 5])["output"], range(800)))

    for at, answer in enumerate(answers):
        assert np.allclose(answer, alone[at % 5], rtol=0, atol=EXACT), f"call {at}"


def test_evidence_was_taken_on_the_gpu_for_every_variant(loaded):
    measured = {entry.variant for entry in loaded.manifest.evidence if entry.measured}
    assert {"onnxruntime-cuda/fp32", "onnxruntime-cuda/fp16", "torch/fp32"} <= measured
    assert set(loaded.manifest.latency) == {"min", "opt", "max"}


def test_cuda_tensors_in_give_cuda_tensors_out(loaded, cnn):
    image = torch.from_numpy(images(8, 32)["image"])
    answer = loaded(image.cuda())["output"]
    assert answer.device.type == "cuda"
    with torch.no_grad():
        wanted = cnn(image)
    limit = TOLERANCES["fp16"] * wanted.abs().max()
    assert (answer.cpu() - wanted).abs().max() <= limit


def test_arrays_and_tensors_of_the_host_stay_on_the_host(loaded):
    image = images(8, 32)["image"]
    assert isinstance(loaded(image)["output"], np.ndarray)
    assert loaded(torch.from_numpy(image))["output"].device.type == "cpu"


def test_a_batch_of_any_size_in_the_profile_is_answered(loaded, batch):
    specs = loaded.manifest.inputs
    for size in (batch.min, batch.opt, batch.max):
        sample = resize(images(2, 32), specs, {batch.name: size})
        assert loaded(sample)["output"].shape == (size, 10)
