"""Tensors that are on the GPU already: not copied, not moved, and in the order of their streams."""

import sys
import types

import numpy as np
import pytest
from conftest import N, assert_right, bytes_at, rows
from cuda.core import LEGACY_DEFAULT_STREAM, Buffer, Device, LegacyPinnedMemoryResource
from cuda.core.utils import StridedMemoryView

from mlflow_e2eai.bundle.batching import bound_sizes
from mlflow_e2eai.engine.runner import engine_runner
from mlflow_e2eai.errors import InvalidInputError, RunnerError


class OnGpu:
    """A tensor on the GPU, which its own stream is still about to write."""

    def __init__(self, array, *, strides=None):
        self.device = Device(0)
        self.device.set_current()
        self.stream = self.device.create_stream()
        self.buffer = self.device.allocate(array.nbytes, stream=self.stream)
        self.pinned = LegacyPinnedMemoryResource().allocate(array.nbytes)
        np.from_dlpack(self.pinned).view(array.dtype)[:] = array.reshape(-1)
        self.pinned.copy_to(self.buffer, stream=self.stream)
        self.view = StridedMemoryView.from_buffer(
            self.buffer, array.shape, strides, dtype=array.dtype
        )
        self.shape = array.shape

    def __dlpack_device__(self):
        return self.view.__dlpack_device__()

    def __dlpack__(self, *, stream=None, **_):
        if stream is not None:
            self.device.create_stream(Handle(stream)).wait(self.stream)
        return self.view.__dlpack__()


class Handle:
    def __init__(self, handle):
        self.handle = handle

    def __cuda_stream__(self):
        return 0, self.handle


def on_host(tensor):
    """What lies on the GPU, read in the order of no stream: whoever gave it must have waited."""
    view = StridedMemoryView.from_dlpack(tensor, stream_ptr=-1)
    if not view.size:
        return np.empty(view.shape, view.dtype)
    held = bytes_at(Buffer.from_handle(view.ptr, view.size * view.dtype.itemsize))
    return np.frombuffer(held, view.dtype).reshape(view.shape)


def test_tensors_with_dlpack_are_answered_on_the_gpu(run):
    for count in (3, 4, 16, 3):
        answer = run.on_device({"x": OnGpu(rows(count))})
        assert_right({name: on_host(tensor) for name, tensor in answer.items()}, rows(count))


def test_tensors_on_the_gpu_are_neither_copied_nor_moved(run, calls):
    tensors = [OnGpu(rows(3)) for _ in range(5)]
    before = calls("cuMemcpyAsync")
    for tensor in tensors:
        run.on_device({"x": tensor})
    assert calls("cuMemcpyAsync") == before


class Part:
    """All rows but the first of a tensor, which begin where TensorRT takes no tensor."""

    def __init__(self, whole):
        shape = (whole.shape[0] - 1, *whole.shape[1:])
        size = 4 * int(np.prod(shape))
        at = int(whole.buffer.handle) + 4 * int(np.prod(shape[1:]))
        self.held = Buffer.from_handle(at, size, owner=whole.buffer)
        self.view = StridedMemoryView.from_buffer(self.held, shape, dtype=np.dtype(np.float32))
        self.shape, self.whole = shape, whole

    def __dlpack_device__(self):
        return self.view.__dlpack_device__()

    def __dlpack__(self, *, stream=None, **_):
        self.whole.__dlpack__(stream=stream)
        return self.view.__dlpack__()


def test_a_part_of_a_tensor_that_begins_where_tensorrt_takes_none_is_answered(run):
    for count in (4, 5, 4):
        answer = run.on_device({"x": Part(OnGpu(rows(count)))})
        assert_right({name: on_host(each) for name, each in answer.items()}, rows(count)[1:])


def test_memory_for_an_answer_that_is_still_used_is_waited_for(run, monkeypatch):
    """A pool gives memory again as soon as it is free in the order of a stream."""
    fresh = Device.allocate

    def used(self, size, *, stream):
        buffer = fresh(self, size, stream=stream)
        buffer.fill(0xAB, stream=stream)
        return buffer

    monkeypatch.setattr(Device, "allocate", used)
    answer = run.on_device({"x": OnGpu(rows(3))})
    LEGACY_DEFAULT_STREAM.sync()
    assert_right({name: on_host(each) for name, each in answer.items()}, rows(3))


def test_a_tensor_on_another_gpu_is_refused(run, monkeypatch):
    tensor = OnGpu(rows(3))
    monkeypatch.setattr(type(run._gpu.device), "device_id", 1)
    with pytest.raises(InvalidInputError, match="is on GPU 0, but the engine runs on GPU 1; move"):
        run.on_device({"x": tensor})


def test_answers_on_the_gpu_are_the_callers_to_keep(run):
    first = run.on_device({"x": OnGpu(rows(3))})
    for _ in range(5):
        run.on_device({"x": OnGpu(-rows(3))})
    assert_right({name: on_host(tensor) for name, tensor in first.items()}, rows(3))


def test_an_output_whose_shape_depends_on_the_data_stays_on_the_gpu(engine):
    text = "main (float[N, 3] x) => (int64[2, found] at) { at = NonZero(x) }"
    with engine_runner(engine(text, weights={})[0]) as infer:
        for x in (np.eye(3, dtype=np.float32), np.zeros((2, 3), np.float32)):
            answer = infer.on_device({"x": OnGpu(x)})["at"]
            assert tuple(answer.shape) == (2, np.count_nonzero(x))
            np.testing.assert_array_equal(on_host(answer), np.array(np.nonzero(x)))


def test_arrays_beside_tensors_on_the_gpu_are_brought_there(engine):
    text = "main (float[N, 3] a, float[N, 3] b) => (float[N, 3] c) { c = Add(a, b) }"
    with engine_runner(engine(text, weights={})[0]) as infer:
        for count in (3, 3, 4):
            tensors = {"a": rows(count), "b": OnGpu(rows(count))}
            np.testing.assert_array_equal(on_host(infer.on_device(tensors)["c"]), 2 * rows(count))


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        (lambda: OnGpu(rows(3).astype(np.float64)), "is float64, but float32 is expected"),
        (lambda: OnGpu(rows(3), strides=(1, 3)), "is not contiguous; make it so"),
    ],
)
def test_a_tensor_that_does_not_fit_is_refused(tensor, message, run):
    with pytest.raises(InvalidInputError, match=message):
        run.on_device({"x": tensor()})
    answer = run.on_device({"x": OnGpu(rows(3))})
    assert_right({name: on_host(tensor) for name, tensor in answer.items()}, rows(3))


def test_a_full_gpu_is_told(run, trt):
    tensor = OnGpu(rows(16))
    trt.DRIVER.simulated_limit(trt.DRIVER.simulated_used())
    with pytest.raises(RunnerError, match="the GPU is out of memory"):
        run.on_device({"x": tensor})


def test_what_cannot_be_cut_is_told(run, engine):
    made, _ = engine()
    cut = bound_sizes(run.on_device, made.inputs, made.outputs, (N,), split=True)
    with pytest.raises(InvalidInputError, match="'x' cannot be split; give an array or a torch"):
        cut({"x": OnGpu(rows(17))})


# what stands for PyTorch, of which there is none for CUDA here


PINNED = []
"""What streams are still to read."""


class Tensor:
    """A tensor in the memory of PyTorch's current stream, which may still be about to write it."""

    is_cuda = True
    device = types.SimpleNamespace(index=0)
    dtype = "torch.float32"

    def __init__(self, shape, current, dtype=np.float32):
        self.shape = shape
        self.buffer = None  # of an empty tensor, as with PyTorch
        if size := np.dtype(dtype).itemsize * int(np.prod(shape)):
            self.buffer = Device(0).allocate(size, stream=current)
            # Whoever had this memory before may still have work under way with it.
            self.buffer.fill(0xAB, stream=current)
            self.view = StridedMemoryView.from_buffer(self.buffer, shape, dtype=np.dtype(dtype))

    def written(self, array, current):
        PINNED.append(LegacyPinnedMemoryResource().allocate(array.nbytes))
        np.from_dlpack(PINNED[-1]).view(array.dtype)[:] = array.reshape(-1)
        PINNED[-1].copy_to(self.buffer, stream=current)
        return self

    def data_ptr(self):
        return int(self.buffer.handle) if self.buffer is not None else 0

    def is_contiguous(self):
        return True

    def __dlpack_device__(self):
        return self.view.__dlpack_device__()

    def __dlpack__(self, *, stream=None, **_):
        return self.view.__dlpack__()  # the order of streams is for who asks to keep


def given(torch, count):
    return Tensor((count, 3), torch.current).written(rows(count), torch.current)


@pytest.fixture
def torch(monkeypatch):
    Device(0).set_current()
    current = Device(0).create_stream()
    module = types.SimpleNamespace(
        Tensor=Tensor,
        float32=np.float32,
        int64=np.int64,
        current=current,
        cuda=types.SimpleNamespace(
            current_stream=lambda _: types.SimpleNamespace(cuda_stream=int(current.handle))
        ),
        empty=lambda shape, dtype, **_: Tensor(shape, current, dtype),
    )
    monkeypatch.setitem(sys.modules, "torch", module)
    return module


@pytest.mark.parametrize("backend", ["tensorrt", "tensorrt_rtx"])
def test_torch_tensors_are_answered_in_the_order_of_pytorchs_stream(backend, engine, torch, calls):
    with engine_runner(engine(backend=backend)[0]) as infer:
        for count in (3, 3, 4, 3):
            tensor = given(torch, count)
            before = calls("cuStreamSynchronize")
            answer = infer.on_device({"x": tensor})
            assert calls("cuStreamSynchronize") == before  # nobody waits here
            assert all(isinstance(tensor, Tensor) for tensor in answer.values())
            torch.current.sync()
            found = {name: on_host(tensor) for name, tensor in answer.items()}
            assert_right(found, rows(count))


def test_an_empty_torch_tensor_has_no_address_and_is_answered(engine, torch):
    text = """main (float[N, 3] x) => (float[N, 0] none, float[N, 3] z, int64[2, found] at) {
        zero = Constant<value_ints = [0]>()
        one = Constant<value_ints = [1]>()
        none = Slice(x, zero, zero, one)
        z = Relu(x)
        at = NonZero(x)
    }"""
    with engine_runner(engine(text, weights={})[0]) as infer:
        tensor = Tensor((2, 3), torch.current).written(np.zeros((2, 3), np.float32), torch.current)
        answer = infer.on_device({"x": tensor})
        torch.current.sync()
        assert answer["none"].shape == (2, 0)
        assert answer["at"].shape == (2, 0)
        assert not on_host(answer["z"]).any()


def test_what_decides_shapes_stays_until_the_call_before_has_read_it(engine, torch):
    text = """main (float[N, 3] x, int64[1] from, int64[1] to) => (float[2, 3] y) {
        y = Slice(x, from, to)
    }"""
    made, _ = engine(text, weights={}, on_host=["from", "to"])
    with engine_runner(made) as infer:
        answers = [
            infer.on_device(
                {"x": given(torch, 9), "from": np.array([at]), "to": np.array([at + 2])}
            )
            for at in (0, 5, 7)
        ]
        torch.current.sync()
        for at, answer in zip((0, 5, 7), answers, strict=True):
            np.testing.assert_array_equal(on_host(answer["y"]), rows(9)[at : at + 2])


def test_an_array_beside_a_torch_tensor_is_read_before_the_next_takes_its_place(engine, torch):
    text = "main (float[N, 3] a, float[N, 3] b) => (float[N, 3] c) { c = Add(a, b) }"
    with engine_runner(engine(text, weights={})[0]) as infer:
        asked = [rows(3), -rows(3), 2 * rows(3)]
        answers = [infer.on_device({"a": a, "b": given(torch, 3)})["c"] for a in asked]
        torch.current.sync()
        for a, answer in zip(asked, answers, strict=True):
            np.testing.assert_allclose(on_host(answer), a + rows(3), rtol=1e-6)


def test_calls_on_one_context_come_after_each_other_though_nobody_waits(engine, torch):
    with engine_runner(engine()[0]) as infer:
        asked = [3, 5, 3, 7, 3]
        answers = [infer.on_device({"x": given(torch, n)}) for n in asked]
        # This one waits for our stream alone, before PyTorch's has come to write a tensor.
        assert_right(infer({"x": rows(2)}), rows(2))
        torch.current.sync()
        for count, answer in zip(asked, answers, strict=True):
            assert_right({name: on_host(tensor) for name, tensor in answer.items()}, rows(count))
