"""What only a GPU can show of a build: the engine itself is held to what was asked for."""

from __future__ import annotations

import dataclasses
from importlib.util import find_spec

import numpy as np
import pytest

from mlflow_e2eai import BuildSettings, clean, compile, convert, export
from mlflow_e2eai.engine import backends
from mlflow_e2eai.engine.loading import load_engine

pytestmark = pytest.mark.gpu


def graph_of(model, folder, batch, precision):
    image = {"image": np.zeros((2, 3, 32, 32), np.float32)}
    raw, _ = export(model, image, out=folder / "raw.onnx", dynamic_axes={"image": {0: batch}})
    cleaned, _ = clean(raw, out=folder / "clean.onnx")
    made, _ = convert(cleaned, precision, out=folder / f"{precision}.onnx")
    return made


def listed():
    """Whether what `local` builds with says that it supports this GPU.

    TensorRT-RTX 1.6.1 does not list an H100: the engine is built for no certain GPU, and not
    loaded.
    """
    if find_spec("tensorrt") is not None:
        return True
    trt = pytest.importorskip("tensorrt_rtx")
    return backends.local_compute_capability().upper() in trt.ComputeCapability.__members__


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_an_engine_is_loaded_after_its_build_and_is_what_was_asked_for(
    precision, cnn, batch, tmp_path
):
    graph = graph_of(cnn, tmp_path, batch, precision)
    engine = compile(graph, "local", out=tmp_path / "local.engine")
    if not listed():
        assert engine.checked == ()
        return
    assert engine.checked[:2] == ("inputs and outputs", "profiles")
    assert "layers" in engine.checked or find_spec("tensorrt") is None


def test_the_dynamic_profile_is_the_last(cnn, batch, tmp_path):
    buckets = dataclasses.replace(batch, buckets=(1, 8))
    graph = graph_of(cnn, tmp_path, buckets, "fp32")
    engine = compile(graph, "local", out=tmp_path / "local.engine")
    with load_engine(engine, None) as found:
        bounds = [found.engine.get_tensor_profile_shape("image", at) for at in range(3)]
    assert [[shape[0] for shape in each] for each in bounds] == [[1] * 3, [8] * 3, [1, 8, 64]]


def test_an_engine_without_its_weights_is_smaller(cnn, batch, tmp_path):
    graph = graph_of(cnn, tmp_path, batch, "fp32")
    whole = compile(graph, "local", out=tmp_path / "whole.engine")
    stripped = compile(
        graph,
        "local",
        out=tmp_path / "stripped.engine",
        settings=BuildSettings(strip_weights=True),
    )
    assert stripped.size_bytes < whole.size_bytes
