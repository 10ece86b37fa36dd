"""A GPU that is simulated. tests/engine/test_simulated.py runs these tests in a process."""

from __future__ import annotations

import dataclasses
import importlib
import os
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from cuda.core import Device, LegacyPinnedMemoryResource

from mlflow_e2eai.artifacts.build_settings import BuildSettings
from mlflow_e2eai.artifacts.files import sha256_of
from mlflow_e2eai.artifacts.values import Axis, EngineArtifact, OnnxArtifact, Target, TensorSpec
from mlflow_e2eai.engine.profiles import profiles
from mlflow_e2eai.engine.runner import engine_runner

if "SIMULATED_GPUS" not in os.environ:
    collect_ignore_glob = ["test_*.py"]

N = Axis("N", min=1, opt=2, max=16, buckets=(4, 8))
HEADER = '<ir_version: 8, opset_import: ["" : 18]>'
MODEL = """
main (float[N, 3] x) => (float[N, 2] y, float[N, 3] z) {
    y = MatMul(x, w)
    z = Relu(x)
}"""
WEIGHT = np.random.default_rng(0).standard_normal((3, 2), dtype=np.float32)

DEFAULT = BuildSettings()


@pytest.fixture
def trt(monkeypatch, tmp_path):
    """The simulated TensorRT, as both of the real ones."""
    module = importlib.import_module("simulated_tensorrt")
    for name in ("tensorrt", "tensorrt_rtx"):
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    before = dict(module.SETTINGS)
    module.CALLS.clear()
    yield module
    module.SETTINGS.update(before)
    module.DRIVER.simulated_limit(1 << 40)
    module.DRIVER.simulated_capture_fails(0)
    module.DRIVER.simulated_sticks(0)
    failures = list(module.FAILURES)
    module.FAILURES.clear()
    assert failures == []


@pytest.fixture
def calls(trt):
    """How often a function of the driver was called."""
    return lambda name: trt.DRIVER.simulated_calls(name.encode())


def specs_of(values):
    return tuple(
        TensorSpec(
            name=value.name,
            dtype=onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type).name,
            shape=tuple(d.dim_value or d.dim_param for d in value.type.tensor_type.shape.dim),
        )
        for value in values
    )


@pytest.fixture
def engine(trt, tmp_path):
    """Writes an engine of ONNX text, and the graph that it was made from."""

    def write(
        text=MODEL,
        *,
        backend="tensorrt_rtx",
        axes=(N,),
        weights=None,
        settings=DEFAULT,
        on_host=(),
    ) -> tuple[EngineArtifact, OnnxArtifact]:
        model = onnx.parser.parse_model(HEADER + text)
        for name, array in ({"w": WEIGHT} if weights is None else weights).items():
            model.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
        source = tmp_path / "model.onnx"
        onnx.save(model, source)
        common = {
            "inputs": specs_of(model.graph.input),
            "outputs": specs_of(model.graph.output),
            "axes": axes,
        }
        graph = OnnxArtifact(
            path=source,
            sha256=sha256_of(source),
            parent_sha256=None,
            stage="clean",
            precision="fp32",
            opset=18,
            **common,
        )
        path = tmp_path / "model.engine"
        made = EngineArtifact(
            path=path,
            sha256="",
            parent_sha256=graph.sha256,
            target=Target(
                backend=backend,
                compute_capability="sm89",
                version=11 if backend == "tensorrt" else None,
            ),
            backend_version=trt.__version__,
            precision="fp32",
            tf32=False,
            build_s=0.0,
            size_bytes=0,
            settings=settings,
            **common,
        )
        bounds = [dict(each) for each in profiles(axes)]
        path.write_bytes(trt.plan(model, bounds, stripped=settings.strip_weights, on_host=on_host))
        about = {"sha256": sha256_of(path), "size_bytes": path.stat().st_size}
        return dataclasses.replace(made, **about), graph

    return write


@pytest.fixture(params=["tensorrt", "tensorrt_rtx"])
def run(request, engine):
    """The callable of the model, with each of the backends."""
    with engine_runner(engine(backend=request.param)[0]) as infer:
        yield infer


def rows(count):
    return np.random.default_rng(count).standard_normal((count, 3), dtype=np.float32)


def right(x):
    return {"y": x @ WEIGHT, "z": np.maximum(x, 0)}


def assert_right(answer, x):
    wanted = right(x)
    assert list(answer) == list(wanted)
    for name, array in wanted.items():
        np.testing.assert_allclose(answer[name], array, rtol=1e-5, atol=1e-6)


def bytes_at(buffer):
    """What lies on the GPU, read in the order of no stream: whoever gave it must have waited."""
    pinned = LegacyPinnedMemoryResource().allocate(buffer.size)
    stream = Device(0).create_stream()
    buffer.copy_to(pinned, stream=stream)
    stream.sync()
    return np.from_dlpack(pinned).tobytes()


@pytest.fixture
def ask():
    """Asks a callable for some rows, and checks the answer."""

    def ask_for(infer, count):
        x = rows(count)
        assert_right(infer({"x": x}), x)

    return ask_for


__all__ = [
    "HEADER",
    "MODEL",
    "WEIGHT",
    "N",
    "Path",
    "assert_right",
    "bytes_at",
    "dataclasses",
    "right",
    "rows",
]
