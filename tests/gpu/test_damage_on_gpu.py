"""Engines that this GPU cannot have: each is a clear error or an announced fall back, and after
each the process goes on."""

from __future__ import annotations

import dataclasses
import hashlib
import shutil
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from images import images

from mlflow_e2eai import bundle, clean, compile, export, load_model
from mlflow_e2eai.artifacts.files import seal, to_json
from mlflow_e2eai.engine.runner import engine_runner
from mlflow_e2eai.errors import ArtifactError, EngineMismatchError, InvalidInputError, RunnerError
from mlflow_e2eai.evaluation.variants import engine_variant
from mlflow_e2eai.parity.tolerances import TOLERANCES

pytestmark = pytest.mark.gpu

SMALLEST = 2**20
"""Bytes that CUDA has left when no more can be had."""


@pytest.fixture
def copied(saved, tmp_path):
    """A model of this test's own, to be damaged."""
    return shutil.copytree(saved, tmp_path / "model")


def changed(model, change):
    """Change every engine in a bundle, and what is recorded of it."""
    place = bundle.find(model)
    manifest = bundle.read(place)
    engines = tuple(change(place, engine) for engine in manifest.engines)
    text = to_json(dataclasses.replace(manifest, engines=engines))
    (place / bundle.MANIFEST).write_text(seal(text))


def for_another_gpu(_, engine):
    target = dataclasses.replace(engine.target, compute_capability="sm75")
    return dataclasses.replace(engine, target=target)


def for_another_version(_, engine):
    return dataclasses.replace(engine, backend_version="0.0.1")


def cut_and_recorded(place, engine):
    """Half of an engine, with its digest: nothing but TensorRT can tell."""
    path = place / engine.path
    half = path.read_bytes()[: engine.size_bytes // 2]
    path.write_bytes(half)
    return dataclasses.replace(engine, sha256=hashlib.sha256(half).hexdigest())


def assert_right(model, cnn):
    sample = images(8)
    with torch.no_grad():
        wanted = cnn(torch.from_numpy(sample["image"])).numpy()
    answer = model(sample)["output"]
    assert np.abs(answer - wanted).max() <= TOLERANCES["fp16"] * np.abs(wanted).max()


def assert_engine_runs(place, cnn):
    """What went wrong before has not hurt this process."""
    manifest = bundle.read(bundle.find(place))
    (name,) = (engine_variant(e) for e in manifest.engines if e.arithmetic == "fp16")
    with load_model(str(place), variant=name) as model:
        assert_right(model, cnn)


@pytest.mark.parametrize(
    ("change", "error", "said"),
    [
        (for_another_gpu, EngineMismatchError, "a GPU of sm75"),
        (for_another_version, EngineMismatchError, "0.0.1"),
        (cut_and_recorded, RunnerError, "cannot load"),
    ],
)
def test_what_cannot_run_here_is_refused_or_announced_and_replaced(
    change, error, said, saved, copied, cnn
):
    changed(copied, change)
    with pytest.raises(error, match=said):
        load_model(str(copied), fallback=False)
    with pytest.warns(UserWarning, match=f"Falling back to onnxruntime-.*: .*{said}"):
        model = load_model(str(copied))
    with model:
        assert model.variant.startswith("onnxruntime-")
        assert_right(model, cnn)
    assert_engine_runs(saved, cnn)


@pytest.mark.parametrize("damage", ["a flipped byte", "a missing end"])
def test_an_engine_that_changed_on_its_way_is_not_loaded(damage, saved, copied, cnn):
    manifest = bundle.read(bundle.find(copied))
    for engine in manifest.engines:
        path = bundle.find(copied) / engine.path
        content = bytearray(path.read_bytes())
        if damage == "a flipped byte":
            content[len(content) // 2] ^= 1
        path.write_bytes(content if damage == "a flipped byte" else content[:-1])
        with pytest.raises(ArtifactError, match=f"{path.name} has sha256"):
            load_model(str(copied), variant=engine_variant(engine))
    assert_engine_runs(saved, cnn)


def test_a_batch_that_no_profile_has_is_refused_with_the_profile(saved, cnn):
    (name,) = (
        engine_variant(e) for e in bundle.read(bundle.find(saved)).engines if e.arithmetic == "fp16"
    )
    with load_model(str(saved), variant=name) as model:
        with pytest.raises(InvalidInputError, match="has 65 along axis 0, but the profile allows"):
            model(images(65))
        assert_right(model, cnn)
    with load_model(str(saved), variant=name, split=True) as model:
        assert model(images(65))["output"].shape == (65, 10)


@contextmanager
def full_memory():
    """Take all of the GPU's memory that can be had, for the block."""
    held, size = [], 2**34
    while size >= SMALLEST:
        try:
            held.append(torch.empty(size, dtype=torch.uint8, device="cuda"))
        except torch.OutOfMemoryError:
            size //= 2
    try:
        yield
    finally:
        held.clear()
        torch.cuda.empty_cache()


@pytest.fixture
def large(resnet, batch, tmp_path):
    """An engine that needs memory to speak of."""
    example = images(2, 224)
    raw, _ = export(resnet, example, out=tmp_path / "raw.onnx", dynamic_axes={"image": {0: batch}})
    graph, _ = clean(raw, out=tmp_path / "clean.onnx")
    return compile(graph, "local", out=tmp_path / "local.engine")


def test_an_engine_for_which_there_is_no_memory_is_an_error_until_there_is(large):
    with full_memory(), pytest.raises(RunnerError, match="memory"), engine_runner(large):
        pass
    with engine_runner(large) as infer:
        assert np.isfinite(infer(images(8, 224))["output"]).all()


def test_a_call_for_which_there_is_no_memory_is_an_error_until_there_is(large):
    with engine_runner(large) as infer:
        with full_memory(), pytest.raises(RunnerError, match="memory"):
            infer(images(64, 224))
        assert np.isfinite(infer(images(64, 224))["output"]).all()
