"""Random graphs for laws of surgery."""

from __future__ import annotations

import numpy as np
import onnx
from hypothesis import strategies as st

from mlflow_e2eai.artifacts import graphs
from mlflow_e2eai.artifacts.values import Axis

X = np.array([[-1, 2, -3], [4, -5, 6]], dtype=np.float32)


AXES = (Axis("N", min=1, opt=2, max=4),)


HEADER = '<ir_version: 8, opset_import: ["" : 18, "devtech" : 1]>'


def artifact_of(text, path, *, header=HEADER):
    graphs.write(onnx.parser.parse_model(header + text), path)
    return graphs.describe(path, stage="export", precision="fp32", axes=AXES, parent_sha256=None)


UNARY = ["Relu", "Neg", "Abs", "Identity", "Dropout"]


BINARY = ["Add", "Mul", "Max"]


@st.composite
def random_graphs(draw):
    """ONNX text: some nodes on an input and a constant, each reading whatever was there before."""
    known = ["x", "c"]
    lines = []
    for number in range(draw(st.integers(1, 7))):
        operator = draw(st.sampled_from(UNARY + BINARY))
        read = [draw(st.sampled_from(known)) for _ in range(1 if operator in UNARY else 2)]
        lines.append(f"t{number} = {operator}({', '.join(read)})")
        known.append(f"t{number}")
    made = known[2:]
    chosen = draw(st.lists(st.sampled_from(made), min_size=1, max_size=3, unique=True))
    outputs = ", ".join(f"float[a{i}, b{i}] {name}" for i, name in enumerate(chosen))
    body = "\n".join(lines)
    return f"main (float[N, 3] x) => ({outputs})\n<float[1, 3] c = {{1, -2, 3}}> {{\n{body}\n}}"
