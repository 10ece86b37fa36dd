"""Real models: no peer leaves fewer nodes on the same file, and the numbers stay."""

from __future__ import annotations

import copy

import onnx
import onnx_graphsurgeon as gs
import onnxsim
import onnxslim
import pytest
from polygraphy.backend.onnx import fold_constants
from real_models import REAL_MODELS

from mlflow_e2eai import clean, export, graphs
from mlflow_e2eai.arrays import corners, resize


def peers(model):
    """Nodes that each peer leaves."""
    folded = gs.import_onnx(fold_constants(copy.deepcopy(model))).cleanup()
    return {
        "onnxsim": len(onnxsim.simplify(model)[0].graph.node),
        "onnxslim": len(onnxslim.slim(copy.deepcopy(model)).graph.node),
        "polygraphy": len(folded.nodes),
    }


@pytest.mark.parametrize("exporter", ["dynamo", "trace"])
@pytest.mark.parametrize("name", REAL_MODELS)
@pytest.mark.filterwarnings("ignore")
def test_no_peer_leaves_fewer_nodes_and_the_numbers_stay(name, exporter, tmp_path):
    real = REAL_MODELS[name]()
    raw, taken = export(
        real.module,
        real.example,
        out=tmp_path / "raw.onnx",
        dynamic_axes=real.dynamic_axes,
        exporter=exporter,
    )
    assert taken.exporter == exporter
    sizes = corners(raw.axes).values()
    samples = [resize(real.sample, raw.inputs, each) for each in sizes]

    made, report = clean(raw, out=tmp_path / "clean.onnx", samples=samples)

    assert len(samples) >= 2
    assert report.nodes_after <= min(peers(onnx.load(raw.path)).values())
    assert report.max_abs_error < 1e-5
    assert made.inputs == raw.inputs
    again, _ = clean(made, out=tmp_path / "again.onnx")
    assert len(graphs.read(again.path).graph.node) == report.nodes_after
