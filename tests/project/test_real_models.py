"""Real models: no peer leaves fewer nodes on the same file, and the numbers stay."""

from __future__ import annotations

import onnx
import pytest
from trained_models import NOT_TRACED, REAL_MODELS, SLOW_MODELS, peers

from mlflow_e2eai import clean, export
from mlflow_e2eai.artifacts import graphs
from mlflow_e2eai.artifacts.axes import corners, resize

pytestmark = [
    pytest.mark.system,
    pytest.mark.exporters,
    pytest.mark.usefixtures("on_threads"),
]

# Of MiniLM, which takes ten seconds, the exporter that `auto` takes is enough for `make test`.
CASES = [
    pytest.param(
        name,
        exporter,
        id=f"{name}-{exporter}",
        marks=pytest.mark.slow
        if name in SLOW_MODELS or (name, exporter) == ("MiniLM", "trace")
        else (),
    )
    for name in REAL_MODELS
    for exporter in ("auto", "trace")
]


@pytest.mark.parametrize(("name", "exporter"), CASES)
@pytest.mark.filterwarnings("ignore")
def test_no_peer_leaves_fewer_nodes_and_the_numbers_stay(name, exporter, tmp_path):
    real = REAL_MODELS[name]()
    if exporter == "trace" and name in NOT_TRACED:
        pytest.skip("tracing freezes what depends on the data, or lacks an operator")
    raw, taken = export(
        real.module,
        real.example,
        out=tmp_path / "raw.onnx",
        dynamic_axes=real.dynamic_axes,
        exporter=exporter,
        operators=real.operators,
    )
    assert taken.exporter == (real.exporter if exporter == "auto" else exporter)
    assert taken.unverified is None
    sizes = corners(raw.axes).values()
    samples = [resize(real.sample, raw.inputs, each) for each in sizes]

    made, report = clean(raw, out=tmp_path / "clean.onnx", samples=samples)

    assert len(samples) >= 2
    assert report.nodes_after <= min(peers(onnx.load(raw.path)).values())
    assert report.max_abs_error < 1e-5
    assert made.inputs == raw.inputs
    again, _ = clean(made, out=tmp_path / "again.onnx")
    assert len(graphs.read(again.path).graph.node) == report.nodes_after
