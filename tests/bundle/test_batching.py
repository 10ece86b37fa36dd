"""Batches that the profile does not admit, inputs of all kinds, and many callers at once."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from multiplying_bundles import ENGINE32, TIMES, N, X, engine, fitting, graph, manifest

from mlflow_e2eai import bundle
from mlflow_e2eai.artifacts.values import Axis, TensorSpec
from mlflow_e2eai.bundle import selection
from mlflow_e2eai.bundle.batching import batch_axis, bound_sizes, pieces
from mlflow_e2eai.bundle.load import load
from mlflow_e2eai.errors import InvalidInputError

ITEMS = Axis("N", min=2, opt=4, max=6, multiple=2)
SPEC = {"dtype": "float32", "shape": ("N", 3)}
IN, OUT = TensorSpec(name="x", **SPEC), TensorSpec(name="y", **SPEC)


@pytest.fixture(autouse=True)
def a_machine_without_a_gpu(monkeypatch):
    monkeypatch.setattr(selection, "onnxruntime_devices", lambda: ("cpu",))


@pytest.fixture
def directory(tmp_path):
    """A bundle of a graph that doubles and an engine, with a profile of 1 to 4 items."""
    work = tmp_path / "work"
    work.mkdir()
    found = manifest([graph(work, TIMES.format(factor=2))], [engine(work)])
    bundle.write(tmp_path / "bundle", found, {"x": X})
    return tmp_path / "bundle"


# Cutting and filling


@st.composite
def axes(draw) -> Axis:
    multiple = draw(st.integers(1, 4))
    low, mid, high = sorted(draw(st.lists(st.integers(1, 9), min_size=3, max_size=3)))
    sizes = {"min": low * multiple, "opt": mid * multiple, "max": high * multiple}
    return Axis("N", **sizes, multiple=multiple)


@given(axes(), st.integers(1, 100))
def test_every_piece_is_admitted_and_together_they_are_the_batch(axis, size):
    cut = pieces(size, axis)

    assert all(axis.admits(piece.size) for piece in cut)
    assert [i for piece in cut for i in range(piece.start, piece.stop)] == list(range(size))
    assert len(cut) == -(-size // axis.max)
    assert all(piece.size >= piece.stop - piece.start for piece in cut)


@given(axes(), st.integers(1, 100))
def test_a_batch_in_pieces_is_answered_as_each_item_is(axis, size):
    seen = []

    def double(tensors):
        seen.append(len(tensors["x"]))
        return {"y": 2 * tensors["x"]}

    x = np.arange(3 * size, dtype=np.float32).reshape(size, 3)
    answer = bound_sizes(double, [IN], [OUT], [axis], split=True)({"x": x})

    assert np.array_equal(answer["y"], 2 * x)
    assert all(map(axis.admits, seen))


@pytest.mark.parametrize(("size", "split"), [(8, False), (1, False), (3, False), (0, True)])
def test_a_batch_that_is_not_to_be_split_is_refused_with_the_profile(size, split):
    ask = bound_sizes(lambda tensors: tensors, [IN], [OUT], [ITEMS], split=split)

    with pytest.raises(InvalidInputError) as caught:
        ask({"x": np.zeros((size, 3), np.float32)})
    text = f"Input 'x' has {size} along axis 0, but the profile allows 2 to 6 in steps of 2 for 'N'"
    assert str(caught.value).startswith(text)
    assert ("split=True" in str(caught.value)) == (size > 0)


@pytest.mark.parametrize(
    "shape",
    [("N", 3), (3, "N"), (3,), ("?", 3), ()],
    ids=lambda shape: str(len(shape)) + str(shape),
)
def test_only_an_axis_that_comes_first_everywhere_is_a_batch_axis(shape):
    found = batch_axis([IN], [OUT, TensorSpec(name="z", dtype="float32", shape=shape)], [ITEMS])

    assert (found is ITEMS) == (shape == ("N", 3))


def test_what_has_no_batch_axis_is_not_split():
    whole = TensorSpec(name="sum", dtype="float32", shape=())
    ask = bound_sizes(lambda _: {}, [IN], [whole], [ITEMS], split=True)

    with pytest.raises(InvalidInputError, match="give it a size in that range"):
        ask({"x": np.zeros((8, 3), np.float32)})


def test_inputs_of_different_batches_are_refused_before_they_are_split():
    other = TensorSpec(name="z", **SPEC)
    ask = bound_sizes(lambda _: {}, [IN, other], [OUT], [ITEMS], split=True)

    with pytest.raises(InvalidInputError, match="'z' has 8 along axis 0, but another input has 10"):
        ask({"x": np.zeros((10, 3), np.float32), "z": np.zeros((8, 3), np.float32)})


def test_an_engine_refuses_what_its_profile_does_not_admit_unless_it_may_be_split(
    directory, monkeypatch
):
    fitting(monkeypatch)
    x = np.arange(27, dtype=np.float32).reshape(9, 3)
    with pytest.raises(InvalidInputError, match=r"the profile allows 1 to 4 for 'N'.*split=True"):
        load(directory)(x)

    model = load(directory, split=True)
    assert model.variant == ENGINE32
    assert np.array_equal(model(x)["y"], 100 * x)
    answer = model(torch.tensor(x))["y"]
    assert np.array_equal(answer.numpy(), 100 * x)


@pytest.mark.filterwarnings("ignore:Falling back to onnxruntime-cpu")
@pytest.mark.parametrize("split", [True, False])
def test_onnx_runtime_has_no_profile_and_takes_any_batch(directory, split):
    x = np.arange(27, dtype=np.float32).reshape(9, 3)

    assert np.array_equal(load(directory, split=split)(x)["y"], 2 * x)


TWO = """
<ir_version: 8, opset_import: ["" : 18]>
two (float[N, T] x, float[N, T] z) => (float[N, T] y)
{ y = Add(x, z) }
"""

REFUSED = {
    "another length": ((2, 8), (2, 12), "'z' has 12 along axis 1, but another input has 8 along"),
    "another batch": ((2, 8), (3, 8), "'z' has 3 along axis 0, but another input has 2 along 'N'"),
    "one row for all": ((2, 8), (1, 8), "'z' has 1 along axis 0, but another input has 2"),
    "no rows": ((0, 8), (0, 8), "'x' has 0 along axis 0, but the profile allows 1 to 4 for 'N'"),
    "no length": ((2, 0), (2, 0), "'x' has 0 along axis 1, but the profile allows 4 to 8 in steps"),
    "no multiple": ((2, 6), (2, 6), "'x' has 6 along axis 1, but the profile allows 4 to 8 in ste"),
}


@pytest.fixture
def of_two_inputs(tmp_path):
    """A bundle of a graph whose two inputs share both axes."""
    length = Axis("T", min=4, opt=4, max=8, multiple=4)
    found = manifest([graph(tmp_path, TWO, axes=(N, length))])
    example = np.ones((2, 4), np.float32)
    bundle.write(tmp_path / "bundle", found, {"x": example, "z": example})
    return tmp_path / "bundle"


@pytest.mark.parametrize("kind", [np.asarray, torch.tensor])
@pytest.mark.parametrize("case", REFUSED)
def test_sizes_that_no_model_takes_are_refused_before_onnx_runtime_sees_them(
    of_two_inputs, case, kind
):
    x, z, sentence = REFUSED[case]
    given = {"x": kind(np.ones(x, np.float32)), "z": kind(np.ones(z, np.float32))}
    model = load(of_two_inputs)

    with pytest.raises(InvalidInputError, match=sentence):
        model(given)
    with pytest.raises(InvalidInputError, match=sentence):
        model(**given)


def test_sizes_beyond_the_range_run_on_onnx_runtime_where_they_are_multiples(of_two_inputs):
    x = np.ones((7, 12), np.float32)

    assert np.array_equal(load(of_two_inputs)(x=x, z=x)["y"], x + x)


# Inputs


class Capsule:
    """What speaks DLPack and nothing else, as another library's array may."""

    def __init__(self, array: np.ndarray) -> None:
        self.array = array

    def __dlpack__(self, **options: object) -> object:
        return self.array.__dlpack__(**options)

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.array.__dlpack_device__()


class OnAGpu(Capsule):
    """As the array API standard wants it of what cannot be handed to the CPU."""

    def __dlpack__(self, **_: object) -> object:
        msg = "Cannot export from device (2, 0)"
        raise BufferError(msg)

    def __dlpack_device__(self) -> tuple[int, int]:
        return 2, 0


@pytest.mark.filterwarnings("ignore:Falling back to onnxruntime-cpu")
@pytest.mark.parametrize("kind", [np.asarray, torch.from_numpy, Capsule])
def test_inputs_on_the_cpu_are_not_copied(directory, kind):
    model = load(directory)
    addresses = []
    run = model._infer
    model._infer = lambda tensors: addresses.append(tensors["x"].ctypes.data) or run(tensors)
    x = X.copy()

    answer = model(kind(x))["y"]
    assert np.array_equal(np.asarray(answer), 2 * x)
    assert isinstance(answer, torch.Tensor if kind is torch.from_numpy else np.ndarray)
    assert addresses == [x.ctypes.data]


@pytest.mark.filterwarnings("ignore:Falling back to onnxruntime-cpu")
def test_what_lies_on_a_device_that_numpy_cannot_read_is_refused(directory):
    with pytest.raises(
        InvalidInputError, match=r"Input 'x' is not an array of numbers: Cannot export from device"
    ):
        load(directory)(OnAGpu(X))


# Many callers


LAYERS = """
<ir_version: 8, opset_import: ["" : 18]>
layers (float[N, 3] x) => (float[N, 32] y)
<float[3, 32] w = {{{numbers}}}>
{{ h = MatMul(x, w)  t = Tanh(h)  m = Softmax<axis = 1>(t)  y = Mul(m, h) }}
"""


@pytest.mark.filterwarnings("ignore:Falling back to onnxruntime-cpu")
@pytest.mark.parametrize("seconds", [1.5, pytest.param(60, marks=pytest.mark.slow)])
def test_sixteen_threads_of_mixed_batches_get_the_answers_that_one_gets(tmp_path, seconds):
    rng = np.random.default_rng(5)
    text = LAYERS.format(numbers=", ".join(f"{number:.6f}" for number in rng.normal(size=96)))
    found = manifest([graph(tmp_path, text)])
    bundle.write(tmp_path / "bundle", found, {"x": X})
    model = load(tmp_path / "bundle", split=True)
    asked = [rng.normal(size=(size, 3)).astype(np.float32) for size in (1, 2, 3, 4, 7, 9)]
    alone = [model(x)["y"] for x in asked]
    start = threading.Barrier(16)

    def call(seed: int) -> int:
        order, calls = np.random.default_rng(seed), 0
        start.wait()
        until = time.monotonic() + seconds
        while calls == 0 or time.monotonic() < until:
            at = int(order.integers(len(asked)))
            assert np.array_equal(model(asked[at])["y"], alone[at])
            calls += 1
        return calls

    with ThreadPoolExecutor(16) as threads:
        assert all(calls > 0 for calls in threads.map(call, range(16)))
