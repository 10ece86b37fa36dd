"""What only a GPU can show of running: its memory, streams, kernels kept, threads, and weights."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import onnx
import pytest
import torch
from images import images

from mlflow_e2eai import clean, compare, compile, convert, export, load_model, save_model
from mlflow_e2eai.artifacts import graphs
from mlflow_e2eai.artifacts.build_settings import BuildSettings
from mlflow_e2eai.artifacts.files import to_json
from mlflow_e2eai.artifacts.values import Axis
from mlflow_e2eai.engine.runner import engine_runner, unsupported_here
from mlflow_e2eai.errors import EngineMismatchError, InvalidInputError, RunnerError
from mlflow_e2eai.latency.concurrency import cold_start
from mlflow_e2eai.parity.tolerances import TOLERANCES
from mlflow_e2eai.pytorch.runner import torch_runner
from mlflow_e2eai.runtime.ort import onnxruntime_runner

pytestmark = pytest.mark.gpu

LIMIT = TOLERANCES["fp16"]

KEPT = 16 * 2**20
"""Bytes by which a GPU's free memory may differ: CUDA takes it in pieces of 2 MiB and more."""

WITHOUT_TORCH = """
import sys
sys.modules["torch"] = None
import numpy as np
from pathlib import Path
from mlflow_e2eai.artifacts import EngineArtifact
from mlflow_e2eai.engine import backends, engine_runner
from mlflow_e2eai.artifacts.files import from_json
engine = from_json(EngineArtifact, Path(sys.argv[1]).read_text())
with engine_runner(engine) as infer:
    np.save(sys.argv[3], infer({"image": np.load(sys.argv[2])})["output"])
"""


@pytest.fixture
def graph(cnn, batch, tmp_path):
    axis = dataclasses.replace(batch, buckets=(1, 8, 32))
    raw, _ = export(cnn, images(2), out=tmp_path / "raw.onnx", dynamic_axes={"image": {0: axis}})
    cleaned, _ = clean(raw, out=tmp_path / "clean.onnx")
    made, _ = convert(cleaned, "fp16", out=tmp_path / "fp16.onnx")
    return made


@pytest.fixture
def engine(graph, tmp_path):
    return compile(graph, "local", out=tmp_path / "local.engine")


@pytest.fixture
def reference(cnn):
    with torch_runner(cnn, inputs=["image"], outputs=["output"]) as answer:
        yield answer


def assert_close(found, wanted):
    assert np.abs(found - wanted).max() <= LIMIT * np.abs(wanted).max()


def test_an_engine_runs_without_pytorch(engine, reference, tmp_path):
    (tmp_path / "engine.json").write_text(to_json(engine))
    np.save(tmp_path / "image.npy", images(8)["image"])
    files = [str(tmp_path / name) for name in ("engine.json", "image.npy", "output.npy")]
    words = [sys.executable, "-W", "ignore", "-c", WITHOUT_TORCH, *files]
    subprocess.run(words, check=True)
    assert_close(np.load(tmp_path / "output.npy"), reference(images(8))["output"])


def test_sixteen_threads_at_buckets_and_between_them_get_the_answers_that_one_gets(engine):
    sizes = (1, 2, 8, 20, 32, 64)
    with engine_runner(engine, serving=True) as infer:
        alone = {size: infer(images(size))["output"] for size in sizes}

        def ask(at):
            size = sizes[at % len(sizes)]
            assert_close(infer(images(size))["output"], alone[size])

        with ThreadPoolExecutor(16) as threads:
            list(threads.map(ask, range(480)))


def test_many_answers_from_several_threads_are_right(engine, reference):
    with engine_runner(engine) as infer:
        samples = [images(size) for size in (8, 1, 32, 5)]
        report = compare(reference, infer, samples, precision="fp16", threads=4)
    assert report.passed, report.findings


def test_cuda_tensors_are_answered_in_the_order_of_the_stream_that_is_current(engine, reference):
    """The input is what long work in a stream of its own comes to, and nobody waits for it."""
    wanted = reference(images(8))["output"]
    with engine_runner(engine, serving=True) as infer:
        infer.on_device({"image": torch.zeros(8, 3, 32, 32, device="cuda")})
        large = torch.randn(4096, 4096, device="cuda")
        image = torch.from_numpy(images(8)["image"]).cuda()
        torch.cuda.synchronize()
        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream):
            for _ in range(20):
                work = large @ large
            made = image + 0 * work[0, 0].nan_to_num(0, 0, 0)
            answer = infer.on_device({"image": made})["output"]
            del made, work
            found = answer.clone()
        stream.synchronize()
    assert answer.device.type == "cuda"
    assert_close(found.cpu().numpy(), wanted)


def test_answers_on_the_gpu_are_the_callers_to_keep(engine, reference):
    with engine_runner(engine, serving=True) as infer:
        asked = [images(8)["image"] * factor for factor in (1, -1, 0.5, 2)]
        answers = [infer.on_device({"image": torch.from_numpy(x).cuda()})["output"] for x in asked]
        torch.cuda.synchronize()
    for x, answer in zip(asked, answers, strict=True):
        assert_close(answer.cpu().numpy(), reference({"image": x})["output"])


def test_what_speaks_dlpack_on_the_gpu_is_answered_there(engine, reference):
    from cuda.core.utils import StridedMemoryView

    class Plain:
        """A tensor on the GPU of which only DLPack is known."""

        def __init__(self, tensor):
            self.tensor, self.shape = tensor, tuple(tensor.shape)

        def __dlpack_device__(self):
            return self.tensor.__dlpack_device__()

        def __dlpack__(self, **named):
            return self.tensor.__dlpack__(**named)

    given = Plain(torch.from_numpy(images(8)["image"]).cuda())
    with engine_runner(engine, serving=True) as infer:
        answer = infer.on_device({"image": given})["output"]
        assert isinstance(answer, StridedMemoryView)
        found = torch.from_dlpack(answer).cpu().numpy()
    assert_close(found, reference(images(8))["output"])


def test_a_part_of_a_cuda_tensor_that_begins_anywhere_is_answered(engine, reference):
    """TensorRT wants addresses that are multiples of 256."""
    image = images(8)["image"]
    held = torch.empty(image.size + 1, device="cuda")
    part = held[1:].view(image.shape)
    part.copy_(torch.from_numpy(image))
    with engine_runner(engine, serving=True) as infer:
        answer = infer.on_device({"image": part})["output"]
    assert_close(answer.cpu().numpy(), reference(images(8))["output"])


def test_what_is_closed_gives_its_memory_back(engine):
    """The first time CUDA loads what it keeps for the process."""

    def free_after_closing():
        with engine_runner(engine) as infer:
            infer(images(64))
        return torch.cuda.mem_get_info()[0]

    first = free_after_closing()
    assert [free for free in (free_after_closing() for _ in range(5)) if first - free > KEPT] == []


def test_a_cuda_tensor_that_does_not_fit_is_refused(engine):
    image = torch.zeros(8, 3, 32, 32, device="cuda")
    with engine_runner(engine) as infer:
        with pytest.raises(InvalidInputError, match="float32 is expected"):
            infer.on_device({"image": image.double()})
        with pytest.raises(InvalidInputError, match="contiguous"):
            infer.on_device({"image": image.transpose(2, 3)})
        with pytest.raises(RunnerError, match="N from 1 to 64"):
            infer.on_device({"image": image.repeat(9, 1, 1, 1)})
        assert infer.on_device({"image": image})["output"].shape == (8, 10)


def test_the_second_start_is_not_slower_and_finds_the_kernels_of_the_first(engine, tmp_path):
    def first_call_s():
        with engine_runner(engine, serving=True) as infer:
            began = time.perf_counter()
            infer(images(20))  # between buckets: kernels for its shape are compiled
            return time.perf_counter() - began

    if engine.target.backend != "tensorrt_rtx":
        pytest.skip("TensorRT compiles when it builds")
    cold = first_call_s()
    (kept,) = (tmp_path / "cache/mlflow_e2eai/kernels").iterdir()
    assert kept.stat().st_size > 0
    assert first_call_s() < cold


def test_an_engine_without_weights_gets_them_from_its_graph(graph, reference, tmp_path):
    settings = BuildSettings(strip_weights=True)
    stripped = compile(graph, "local", out=tmp_path / "stripped.engine", settings=settings)
    assert isinstance(unsupported_here(stripped), EngineMismatchError)
    with engine_runner(stripped, graphs=[graph]) as infer:
        report = compare(reference, infer, [images(8)], precision="fp16")
    assert report.passed, report.findings


def test_an_output_may_be_as_large_as_the_data_make_it(tmp_path):
    axis = Axis("N", min=1, opt=4, max=16)
    text = """<ir_version: 8, opset_import: ["" : 18]>
    main (float[N, 3] x) => (int64[2, found] at) { at = NonZero(x) }"""
    graphs.write(onnx.parser.parse_model(text), tmp_path / "picked.onnx")
    picked = graphs.describe(
        tmp_path / "picked.onnx", stage="clean", precision="fp32", axes=(axis,), parent_sha256=None
    )
    built = compile(picked, "local", out=tmp_path / "picked.engine")
    with engine_runner(built) as infer:
        for x in (np.eye(3), np.zeros((2, 3)), np.ones((16, 3)), np.eye(3)):
            given = x.astype(np.float32)
            wanted = np.array(np.nonzero(x))
            np.testing.assert_array_equal(infer({"x": given})["at"], wanted)
            on_gpu = infer.on_device({"x": torch.from_numpy(given).cuda()})["at"]
            np.testing.assert_array_equal(on_gpu.cpu().numpy(), wanted)


def test_what_each_profile_takes_is_told(engine):
    found = cold_start(partial(engine_runner, engine), images(8))
    assert len(found.profile_memory_bytes) == 4
    assert all(size > 0 for size in found.profile_memory_bytes)


def test_a_full_gpu_is_told_and_the_process_goes_on(engine):
    torch.cuda.empty_cache()
    free, _ = torch.cuda.mem_get_info()
    held = torch.empty(free - (32 << 20), dtype=torch.uint8, device="cuda")
    rest = []
    try:
        while True:
            rest.append(torch.empty(2 << 20, dtype=torch.uint8, device="cuda"))
    except torch.OutOfMemoryError:
        pass
    full = pytest.raises(
        RunnerError, match=r"out of memory|too little free memory|cannot load|cannot start"
    )
    with full, engine_runner(engine) as infer:
        infer(images(64))
    del held, rest
    torch.cuda.empty_cache()
    with engine_runner(engine) as infer:
        assert infer(images(8))["output"].shape == (8, 10)


def test_a_model_that_is_split_answers_sizes_between_its_buckets(cnn, batch, reference, tmp_path):
    axis = dataclasses.replace(batch, buckets=(1, 8, 32))
    save_model(
        cnn,
        tmp_path / "model",
        input_example=images(2),
        dynamic_axes={"image": {0: axis}},
        precisions=["fp16"],
        targets=("local",),
    )
    with load_model(str(tmp_path / "model"), split=True) as model:
        for size in (5, 20, 64, 70):
            for _ in range(10):
                assert_close(model(images(size))["output"], reference(images(size))["output"])
                image = torch.from_numpy(images(size)["image"]).cuda()
                answer = model(image)["output"]
                assert answer.is_cuda
                assert_close(answer.cpu().numpy(), reference(images(size))["output"])


def test_onnxruntime_on_cuda_takes_cuda_tensors_where_they_are(graph, reference):
    with onnxruntime_runner(graph.path, device="cuda") as infer:
        image = torch.from_numpy(images(8)["image"]).cuda()
        answer = infer.on_device({"image": image})["output"]
        assert answer.is_cuda
        assert_close(answer.cpu().numpy(), reference(images(8))["output"])
