"""Judging variants: what is measured, what is not, and which step lost the accuracy."""

from __future__ import annotations

import pytest
import torch
from models import AXES, N, features, labelled, net

import mlflow_e2eai
from mlflow_e2eai.artifacts import EngineArtifact, OnnxArtifact, Target, TensorSpec
from mlflow_e2eai.bundle import read
from mlflow_e2eai.evaluation import _lost_at


class RoundedAway(torch.nn.Module):
    """A difference of two weights that fp16 rounds to the same number."""

    def __init__(self):
        super().__init__()
        self.register_buffer("one", torch.full((8,), 1.0))
        self.register_buffer("nearly", torch.full((8,), 1.0001))

    def forward(self, x):
        return x * self.nearly - x * self.one


def saved(module, place, **options):
    mlflow_e2eai.save_model(
        module, place, input_example={"x": features()}, dynamic_axes=AXES, **options
    )
    return {entry.variant: entry for entry in read(place / "bundle").evidence}


def test_the_step_that_lost_the_accuracy_is_named(tmp_path):
    evidence = saved(RoundedAway().eval(), tmp_path / "model")
    assert evidence["onnxruntime-cpu/fp32"].passed
    assert evidence["onnxruntime-cpu/fp32"].lost_at is None
    assert not evidence["onnxruntime-cpu/fp16"].passed
    assert evidence["onnxruntime-cpu/fp16"].lost_at == "convert fp16"


def graph(stage, sha256, parent, precision="fp32"):
    return OnnxArtifact(
        path=None,
        sha256=sha256,
        parent_sha256=parent,
        stage=stage,
        precision=precision,
        opset=18,
        inputs=(TensorSpec(name="x", dtype="float32", shape=("N", 8)),),
        outputs=(),
        axes=(N,),
    )


def engine(parent, precision="fp32"):
    return EngineArtifact(
        path=None,
        sha256=f"engine of {parent}",
        parent_sha256=parent,
        target=Target(backend="tensorrt_rtx", compute_capability="sm90"),
        backend_version="1",
        precision=precision,
        tf32=False,
        inputs=(),
        outputs=(),
        axes=(),
        build_s=0,
        size_bytes=0,
    )


VARIANTS = {
    "tensorrt_rtx-sm90/fp16": engine("half", "fp16"),
    "onnxruntime-cuda/fp16": graph("convert", "half", "clean", "fp16"),
    "onnxruntime-cpu/fp16": graph("convert", "half", "clean", "fp16"),
    "onnxruntime-cpu/fp32": graph("clean", "clean", "raw"),
}


@pytest.mark.parametrize(
    ("failed", "passed", "step"),
    [
        ("tensorrt_rtx-sm90/fp16", {"onnxruntime-cpu/fp16"}, "compile fp16 tensorrt_rtx-sm90"),
        ("tensorrt_rtx-sm90/fp16", {"onnxruntime-cpu/fp32"}, "convert fp16"),
        ("tensorrt_rtx-sm90/fp16", set(), "export or clean"),
        ("onnxruntime-cuda/fp16", {"onnxruntime-cpu/fp16"}, "ONNX Runtime on cuda"),
        ("onnxruntime-cuda/fp16", {"onnxruntime-cpu/fp32"}, "convert fp16"),
        ("onnxruntime-cpu/fp32", set(), "export or clean"),
    ],
)
def test_blame_goes_back_to_the_first_step_whose_input_still_passed(failed, passed, step):
    assert _lost_at(failed, VARIANTS, passed) == step


def test_a_last_call_below_the_profile_is_filled_up_and_the_filling_does_not_count(tmp_path):
    module = net()
    evidence = saved(
        module,
        tmp_path / "model",
        evaluation_data=labelled(module, items=17),
        precisions=("fp32",),
    )
    assert evidence["onnxruntime-cpu/fp32"].task["accuracy"] == 1
