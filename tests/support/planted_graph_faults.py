"""Faults planted in graphs, and in what runs them."""

from __future__ import annotations

import math
from contextlib import contextmanager
from itertools import pairwise

import numpy as np
import onnx
from onnx import helper, numpy_helper

from mlflow_e2eai.artifacts import graphs
from mlflow_e2eai.artifacts.values import Axis
from mlflow_e2eai.runtime.ort import onnxruntime_runner

N = Axis("N", min=1, opt=2, max=4)
HEADER = '<ir_version: 8, opset_import: ["" : 18]>'


def promised_for_one(nodes):
    return 2 * math.log2(nodes) + 10


def artifact(model, path):
    graphs.write(model, path)
    return graphs.describe(path, stage="clean", precision="fp32", axes=(N,), parent_sha256=None)


def plant(model, position):
    """Make one node's weights too large for fp16, and scale its output back: the same in fp32.

    ONNX Runtime on the CPU computes fp16 in fp32, and hides an overflow between nodes; it cannot
    hide a weight that was cut to fp16's largest.
    """
    planted = onnx.ModelProto()
    planted.CopyFrom(model)
    nodes = planted.graph.node
    node, name = nodes[position], graphs.node_names(model)[position]
    weights = {weight.name: weight for weight in planted.graph.initializer}
    for weight in (weights[read] for read in node.input[1:]):
        large = numpy_helper.to_array(weight) * np.float32(2.0**30)
        weight.CopyFrom(numpy_helper.from_array(large, weight.name))
    result = node.output[0]
    down, steps = f"{name}_down", [f"{name}_larger", f"{name}_large", result]
    planted.graph.initializer.append(numpy_helper.from_array(np.float32(2.0**-15), down))
    node.output[0] = steps[0]
    for offset, (read, written) in enumerate(pairwise(steps), start=1):
        scale = helper.make_node("Mul", [read, down], [written], name=f"{name}_scale_{offset}")
        nodes.insert(position + offset, scale)
    return planted


def places(model):
    """Positions of the nodes that can carry a planted fault."""
    weights = {weight.name for weight in model.graph.initializer}
    return [
        position
        for position, node in enumerate(model.graph.node)
        if node.op_type in ("Conv", "Gemm", "MatMul") and set(node.input[1:]) <= weights
    ]


def layers(count, *, named=True):
    """A chain of products with weights around 1."""
    rng = np.random.default_rng(0)
    nodes, weights = [], []
    for number in range(count):
        turn = np.linalg.qr(rng.standard_normal((4, 4)))[0].astype(np.float32)
        weights.append(numpy_helper.from_array(turn, f"w{number}"))
        inputs = [f"v{number}", f"w{number}"]
        name = f"layer_{number}" if named else ""
        nodes.append(helper.make_node("MatMul", inputs, [f"v{number + 1}"], name=name))
    value = onnx.TensorProto.FLOAT
    graph = helper.make_graph(
        nodes,
        "main",
        [helper.make_tensor_value_info("v0", value, ["N", 4])],
        [helper.make_tensor_value_info(f"v{count}", value, ["N", 4])],
        weights,
    )
    return helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 18)])


X = {"v0": np.array([[1, -2, 3, -4], [0.5, 0.25, -1, 2]], dtype=np.float32)}


def wrong_kernels(*names):
    """What builds a graph with wrong kernels for these nodes, where they are all in it together.

    ONNX Runtime runs it, with the cosine of what the last of the nodes should give.
    """

    @contextmanager
    def build(piece):
        model = onnx.load(piece.path)
        found = dict(zip(graphs.node_names(model), model.graph.node, strict=True))
        if set(names) <= found.keys():
            node = found[names[-1]]
            result, node.output[0] = node.output[0], "before the fault"
            fault = helper.make_node("Cos", ["before the fault"], [result])
            model.graph.node.insert(list(model.graph.node).index(node) + 1, fault)
        path = piece.path.with_name("wrong.onnx")
        graphs.write(model, path)
        with onnxruntime_runner(path) as infer:
            yield infer

    return build
