"""Faults that no number shows: what runs is not what it says. The stages must refuse them."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

import mlflow_e2eai
from mlflow_e2eai import Axis
from mlflow_e2eai.artifacts import graphs
from mlflow_e2eai.engine.runner import engine_runner
from mlflow_e2eai.runtime.ort import onnxruntime_runner
from staged.cases import staged

WIDTH = 32
N = Axis("N", min=1, opt=4, max=8)


def layers(folder, *, powers=0, precision="fp32"):
    """x [N, 32] -> MatMul -> Relu -> Mul -> MatMul -> Tanh -> y [N, 32]; said to be of a precision.

    The first weights are larger by a power of two and the factor is smaller by it, so that y does
    not depend on it, and what is between them does.
    """
    rng = np.random.default_rng(0)
    first, second = rng.standard_normal((2, WIDTH, WIDTH)).astype(np.float32) / WIDTH
    weights = [
        numpy_helper.from_array(first * np.float32(2**powers), "first"),
        numpy_helper.from_array(np.float32([2**-powers]), "factor"),
        numpy_helper.from_array(second, "second"),
    ]
    steps = [
        helper.make_node("MatMul", ["x", "first"], ["a"], "one"),
        helper.make_node("Relu", ["a"], ["b"], "two"),
        helper.make_node("Mul", ["b", "factor"], ["c"], "three"),
        helper.make_node("MatMul", ["c", "second"], ["d"], "four"),
        helper.make_node("Tanh", ["d"], ["y"], "five"),
    ]
    return written(folder / "m.onnx", steps, weights, precision)


def written(path, steps, weights, precision):
    """A graph from x [N, 32] to y [N, 32] as an artifact."""
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["N", WIDTH]) for n in ("x", "y")]
    made = helper.make_graph(steps, "layers", ends[:1], ends[1:], weights)
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    graphs.write(model, path)
    return graphs.describe(path, stage="export", precision=precision, axes=(N,), parent_sha256=None)


@staged("a GPU provider that silently fell back to the CPU", "RunnerError", gpu=False)
def _(folder):
    with onnxruntime_runner(layers(folder).path, device="cuda"):
        return set()


@staged("a graph that says fp16 and has nothing in fp16", "PrecisionError")
def _(folder):
    source = layers(folder)
    names = graphs.node_names(onnx.load(source.path))
    mlflow_e2eai.convert(source, "fp16", out=folder / "half.onnx", keep_fp32=names)
    return set()


@staged(
    "an engine that is fp32 and says fp16",
    "EngineBuildError",
)
def _(folder):
    mlflow_e2eai.compile(layers(folder, precision="fp16"), "sm120", out=folder / "m.engine")
    return set()


@staged(
    "an engine whose weights are fp16 and whose arithmetic is fp32",
    "EngineBuildError",
)
def _(folder):
    weight = numpy_helper.from_array(np.eye(WIDTH, dtype=np.float16), "half")
    steps = [
        helper.make_node("Cast", ["half"], ["whole"], "back", to=TensorProto.FLOAT),
        helper.make_node("MatMul", ["x", "whole"], ["a"], "product"),
        helper.make_node("Tanh", ["a"], ["y"], "end"),
    ]
    source = written(folder / "m.onnx", steps, [weight], "fp16")
    mlflow_e2eai.compile(source, "sm120", out=folder / "m.engine")
    return set()


@staged("fp16 overflow that the CPU hides", "nonfinite")
def _(folder):
    source = layers(folder, powers=14)
    half, _ = mlflow_e2eai.convert(source, "fp16", out=folder / "half.onnx")
    rng = np.random.default_rng(0)
    samples = [{"x": 90 * rng.standard_normal((n, WIDTH), np.float32)} for n in (4, 1, 8)]
    with (
        onnxruntime_runner(source.path) as reference,
        onnxruntime_runner(half.path, precision="fp16", rounded=True) as candidate,
    ):
        report = mlflow_e2eai.compare(reference, candidate, samples, precision="fp16")
    return {finding.kind for finding in report.findings}


@staged("an engine file that was changed", "ArtifactError")
def _(folder):
    engine = mlflow_e2eai.compile(layers(folder), "sm120", out=folder / "m.engine")
    engine.path.write_bytes(engine.path.read_bytes() + b"\0")
    with engine_runner(engine):
        return set()


@staged("an engine for a GPU that is not there", "EngineMismatchError", gpu=False)
def _(folder):
    engine = mlflow_e2eai.compile(layers(folder), "sm120", out=folder / "m.engine")
    with engine_runner(engine):
        return set()
