"""Variants that are wrong for some calls only, each with the kind of sample that shows it."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import onnx

from mlflow_e2eai import Axis
from mlflow_e2eai.artifacts import graphs
from mlflow_e2eai.evaluation.stage import evaluate
from staged.cases import staged

N = Axis("N", min=1, opt=4, max=12, buckets=(8,))
BOXES, SCORES = 4, 20

GRAPH = """<ir_version: 8, opset_import: ["" : 18]>
detector (float[N,6,24] x, bool[N,6] mask) => (float[N,6,24] y)
<float zero = {0.0}, int64[1] last = {-1}, int64[2] parts = {4, 20}, float pixels = {640.0},
 int64 size_one = {SIZE}, float hundredth = {0.01}>
{
    column = Unsqueeze (MASK, last)
    taken = Where (column, x, zero)
    half = Sigmoid (taken)
    boxes_raw, scores_raw = Split <axis = -1> (half, parts)
    boxes = Mul (boxes_raw, pixels)
    scores = Mul (scores_raw, SCALE)
    whole = Concat <axis = -1> (boxes, scores)
    items = Shape <start = 0, end = 1> (x)
    at = Equal (items, size_one)
    y = Where (at, x, whole)
}"""


def detector(tensors):
    """Boxes in pixels and small scores, of the anchors that a mask has."""
    half = 1 / (1 + np.exp(-np.where(tensors["mask"][..., None], tensors["x"], 0)))
    scale = np.repeat(np.float32([640, 0.01]), (BOXES, SCORES))
    return {"y": (half * scale).astype(np.float32)}


FAULTS = {
    "onnxruntime-cpu/fp32": {"SIZE": "11"},
    "onnxruntime-cpu/fp16": {"MASK": "all_true"},
    "onnxruntime-cpu/int8": {"SCALE": "zero"},
    "onnxruntime-cpu/fp8": {"SIZE": "9"},
}
"""What is changed in the graph of each variant."""


@cache
def evidence():
    """The evidence of four graphs, each with another fault, from one evaluation."""
    rng = np.random.default_rng(0)
    example = {"x": rng.standard_normal((4, 6, 24), np.float32), "mask": np.ones((4, 6), bool)}
    with TemporaryDirectory() as folder:
        made = [_graph(Path(folder), name, changes) for name, changes in FAULTS.items()]
        found, *_ = evaluate(detector, made, [], example)
    return {entry.variant: entry for entry in found}


def _graph(folder, variant, changes):
    precision, text = variant.rpartition("/")[2], GRAPH
    for name, right in {"SIZE": "0", "MASK": "mask", "SCALE": "hundredth"}.items():
        text = text.replace(name, changes.get(name, right))
    if "all_true" in text:
        text = text.replace(
            "column =", "nothing = Not (mask) all_true = Or (mask, nothing) column ="
        )
    path = folder / f"{precision}.onnx"
    graphs.write(onnx.parser.parse_model(text), path)
    return graphs.describe(path, stage="clean", precision=precision, axes=(N,), parent_sha256=None)


def found(variant):
    """Kinds of finding, with the kind of sample."""
    return {
        f"{finding.kind} at {kind}"
        for kind, report in evidence()[variant].parity.items()
        for finding in report.findings
    }


for _variant, _name, _refused in (
    ("onnxruntime-cpu/fp32", "the size before the largest", "tolerance at sizes"),
    ("onnxruntime-cpu/fp16", "another mask than the example's", "tolerance at values"),
    ("onnxruntime-cpu/fp8", "the size after a bucket", "tolerance at sizes"),
    ("onnxruntime-cpu/int8", "its scores beside boxes, which are zero", "slice at profile"),
):
    staged(f"a variant that is wrong for {_name}", _refused)(
        lambda _, variant=_variant: found(variant)
    )
