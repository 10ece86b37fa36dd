"""A graph that crashes ONNX Runtime, and its reproduction in a process that has the libraries."""

import os
import subprocess
import sys

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


def save_graph(path, nodes, x, y, weights):
    """Write a graph from x to y, each a type and a shape."""
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("x", *x)],
        [helper.make_tensor_value_info("y", *y)],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, path)
    return path


def crashes_onnx_runtime(path):
    """ONNX Runtime 1.31 follows a pointer to nowhere as it loads this graph."""
    nodes = [
        helper.make_node("Transpose", ["x"], ["t"], perm=[1, 0, 2]),
        helper.make_node("MatMul", ["t", "w"], ["y"]),
    ]
    half = TensorProto.FLOAT16
    weights = {"w": np.ones((4, 6), np.float16)}
    return save_graph(path, nodes, (half, [2, 3, 4]), (half, [3, 2, 6]), weights)


def reproduce(folder):
    """Run a reproduction where nothing of this checkout can be imported."""
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [sys.executable, "-P", folder / "reproduce.py"]
    return subprocess.run(
        command, check=False, env=env, capture_output=True, text=True, timeout=120
    )
