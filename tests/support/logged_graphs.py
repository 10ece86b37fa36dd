"""Chains in a tracking store that hold a small graph and nothing that takes long to make."""

from __future__ import annotations

import numpy as np
import onnx

from mlflow_e2eai import tracking
from mlflow_e2eai.artifacts import graphs
from mlflow_e2eai.artifacts.values import Axis
from mlflow_e2eai.tracking.recorder import Output

TEXT = """
<ir_version: 10, opset_import: ["" : 18]>
g (float[N,4] x) => (float[N,3] y) <float[4,3] w = {SCALE,2,3,4,5,6,7,8,9,10,11,12}> {
    y = MatMul (x, w)
}
"""
EXAMPLE = {"x": np.ones((2, 4), dtype=np.float32)}
STEPS = 60


def slow_to_build():
    """A graph of which an engine takes seconds: long enough to be killed while it is built."""
    steps, last = [], "x"
    for at in range(STEPS):
        steps += [
            f"a{at} = MatMul({last}, w)",
            f"b{at} = Softmax(a{at})",
            f"c{at} = MatMul(b{at}, w)",
        ]
        last = f"d{at}" if at < STEPS - 1 else "y"
        steps.append(f"{last} = Sin(c{at})")
    head, _, tail = TEXT.partition("y = MatMul (x, w)")
    square = head.replace("float[N,3]", "float[N,4]").replace("float[4,3]", "float[4,4]")
    weight = square.replace("SCALE", "1").replace("12}", "12,13,14,15,16}")
    return onnx.parser.parse_model(weight + "\n".join(steps) + tail)


def log_graph(folder, *, scale=1, name="net", model=None):
    """Id of a cleaned graph whose chain an ONNX file began."""
    path = folder / f"{name}-{scale}.onnx"
    onnx.save(model or onnx.parser.parse_model(TEXT.replace("SCALE", str(scale))), path)
    raw = graphs.describe(
        path,
        stage="export",
        precision="fp32",
        axes=(Axis("N", min=1, opt=2, max=8),),
        parent_sha256=None,
    )
    # Cleaning would keep the file as it is; a graph is known by its digest, so it gets another.
    model = onnx.load(path)
    model.doc_string = "clean"
    clean = path.with_suffix(".clean.onnx")
    onnx.save(model, clean)
    cleaned = graphs.describe(
        clean, stage="clean", precision="fp32", axes=raw.axes, parent_sha256=raw.sha256
    )
    recorder = tracking.MlflowRecorder(name=name, source=None)
    for artifact in (raw, cleaned):
        parents = [] if artifact.parent_sha256 is None else [artifact.parent_sha256]
        with recorder.stage(artifact.stage, inputs=parents) as log:
            log(Output(artifact=artifact, example=EXAMPLE))
    return recorder.models[cleaned.sha256]
