"""Plans that would change a graph's numbers or names, and versions that must not be promoted."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import onnx
import onnx_graphsurgeon as gs

import mlflow_e2eai
from mlflow_e2eai import Axis, bundle
from mlflow_e2eai.promotion.appraisal import appraise
from mlflow_e2eai.promotion.gates_file import read_policy
from mlflow_e2eai.surgery.plan import plan_from
from mlflow_e2eai.surgery.stage import clean
from staged.cases import staged
from staged.engines import WIDTH, layers

# Surgery


def cleaned(folder, *plan):
    """Clean a graph by a plan, checked on samples of three sizes."""
    rng = np.random.default_rng(0)
    samples = [{"x": rng.standard_normal((n, WIDTH), np.float32)} for n in (4, 1, 8)]
    clean(layers(folder), plan_from(plan), out=folder / "clean.onnx", samples=samples)
    return set()


@staged("a plan that takes an activation out", "SurgeryError", words="numbers")
def _(folder):
    return cleaned(folder, {"bypass": {"op_type": "Relu"}})


@staged("a plan that gives an output the name of an input", "SurgeryError", words="'x'")
def _(folder):
    return cleaned(folder, {"rename": {"outputs": {"y": "x"}}})


def halves(graph):
    """Halve the input, under a name that the graph has already."""
    (tensor,) = graph.inputs
    half = gs.Variable("a", dtype=np.float32)
    reader = tensor.outputs[0]
    graph.nodes.append(
        gs.Node("Mul", inputs=[tensor, gs.Constant("by", np.float32([0.5]))], outputs=[half])
    )
    reader.inputs[0] = half
    return 1


@staged("a rule whose new name overwrites another value", "SurgeryError", words="'a'")
def _(folder):
    return cleaned(folder, halves)


# Promotion

GRAPH = """<ir_version: 8, opset_import: ["" : 18]>
lost (float[N,8] x) => (float[N,8] y)
<float nearly = {1.0001}> { more = Mul (x, nearly) y = Sub (more, x) }"""


@cache
def refused_gates():
    """The gates that refuse a file without an example, whose numbers fp16 rounds away."""
    with TemporaryDirectory() as name:
        folder = Path(name)
        onnx.save(onnx.parser.parse_model(GRAPH), folder / "m.onnx")
        axes = {"x": {0: Axis("N", min=1, opt=1, max=1)}}
        mlflow_e2eai.save_model(
            folder / "m.onnx", folder / "model", dynamic_axes=axes, precisions=("fp32", "fp16")
        )
        decision = appraise(read_policy(None), bundle.find(folder / "model")).decision
    return {verdict.metric for verdict in decision.verdicts if not verdict.passed}


@staged("a version whose inputs are made up", "evidence/assumptions")
def _(_):
    return refused_gates() & {"evidence/assumptions"}


@staged("a version with a variant that is wrong", "parity/failed")
def _(_):
    return refused_gates() - {"evidence/assumptions"}
