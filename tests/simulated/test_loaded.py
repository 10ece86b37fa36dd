"""A bundle with an engine, loaded on a simulated GPU."""

import dataclasses
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from conftest import assert_right, rows
from multiplying_bundles import manifest
from test_devices import OnGpu, on_host

from mlflow_e2eai import bundle
from mlflow_e2eai.artifacts.build_settings import BuildSettings
from mlflow_e2eai.bundle.load import load
from mlflow_e2eai.errors import InvalidInputError

STRIPPED = BuildSettings(strip_weights=True)
ENGINE = "tensorrt_rtx-sm89/fp32"


@pytest.fixture
def directory(tmp_path):
    """Writes a bundle of an engine and its graph."""

    def write(made, graph):
        bundle.write(tmp_path / "bundle", manifest([graph], [made]), {"x": rows(2)})
        return tmp_path / "bundle"

    return write


def test_the_engine_is_chosen_and_answers(directory, engine):
    with load(directory(*engine())) as model:
        assert model.variant == ENGINE
        assert_right(model(rows(3)), rows(3))
        assert_right(model({"x": rows(8)}), rows(8))


def test_tensors_on_the_gpu_are_answered_there(directory, engine, calls):
    with load(directory(*engine())) as model:
        before = calls("cuMemcpyAsync")
        tensor = OnGpu(rows(3))
        answer = model(tensor)
        assert calls("cuMemcpyAsync") - before == 1  # by the one who made it
        assert_right({name: on_host(each) for name, each in answer.items()}, rows(3))
        assert model.sizes == {"N": {3: 1}}


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        (lambda: {"z": OnGpu(rows(3))}, r"inputs are \['z'\], but the model expects \['x'\]"),
        (lambda: OnGpu(np.ones((3, 4), np.float32)), r"shape \[3, 4\], but \['N', 3\] is expected"),
        (lambda: OnGpu(rows(17)), "the profile allows 1 to 16 for 'N'"),
    ],
)
def test_tensors_on_the_gpu_that_do_not_fit_are_refused(inputs, message, directory, engine):
    with load(directory(*engine())) as model, pytest.raises(InvalidInputError, match=message):
        model(inputs())


def test_an_engine_without_weights_gets_them_from_the_bundle(directory, engine, trt):
    place, fetched = directory(*engine(settings=STRIPPED)), []
    with load(place, fetch=fetched.append) as model:
        assert model.variant == ENGINE
        assert_right(model(rows(3)), rows(3))
    assert trt.CALLS["refit_cuda_engine"] == 1
    assert {path.suffix for path in fetched} == {".json", ".engine", ".onnx"}


def test_an_engine_without_weights_and_graph_is_passed_over(directory, engine):
    made, graph = engine(settings=STRIPPED)
    other = dataclasses.replace(made, parent_sha256="0" * 64)
    with (
        pytest.warns(UserWarning, match=r"Falling back to .* its weights, which were strip"),
        load(directory(other, graph), variant=None) as model,
    ):
        assert model.variant.startswith("onnxruntime")


def test_threads_of_mixed_sizes_that_are_split_and_filled_get_their_answers(directory, engine):
    def ask(at):
        x = rows(1 + at % 40)
        assert_right(model(x), x)

    with load(directory(*engine()), split=True) as model, ThreadPoolExecutor(16) as threads:
        list(threads.map(ask, range(400)))
