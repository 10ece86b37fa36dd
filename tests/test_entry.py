"""A chain that an ONNX file begins, with no PyTorch model."""

from __future__ import annotations

import mlflow
import numpy as np
import onnx
import pytest

from mlflow_e2eai import Axis, cli, jobs, tracking
from mlflow_e2eai.entry import clean_onnx
from mlflow_e2eai.errors import ArtifactError, InvalidInputError

W = np.random.default_rng(0).standard_normal((8, 3)).astype(np.float32)
AXES = {"x": {0: Axis("N", min=1, opt=4, max=16)}}
TEXT = (
    '<ir_version: 8, opset_import: ["" : 18]> g (float[unk__1,8] x) => (float[unk__1,3] y) '
    "{h = Identity(x) m = MatMul(h, w) y = Relu(m)}"
)


@pytest.fixture
def path(tmp_path):
    """An ONNX file as tf2onnx names its axes, with its weight in another file."""
    model = onnx.parser.parse_model(TEXT)
    model.graph.initializer.append(onnx.numpy_helper.from_array(W, "w"))
    path = tmp_path / "given.onnx"
    onnx.save(model, path, save_as_external_data=True, size_threshold=0, location="w.bin")
    return path


def test_an_onnx_file_goes_the_way_from_clean_on(store, path, capsys):
    words = ["clean", "--onnx", str(path), "--dynamic-axes", "x:0=N:1:4:16"]
    assert cli.main(words) == cli.DONE
    cleaned = tracking.resolve(capsys.readouterr().out.strip())
    raw = tracking.resolve(cleaned.tags[tracking.PARENT])
    assert (raw.name, cleaned.name) == ("given-raw", "given-clean")
    assert tracking.PARENT not in raw.tags
    assert tracking.SOURCE not in cleaned.tags
    runs = mlflow.search_runs(output_format="list")
    (top,) = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
    children = {run.info.run_id for run in runs} - {top.info.run_id}
    assert children == {raw.source_run_id, cleaned.source_run_id}
    half = jobs.convert(cleaned.model_id, precision="fp16")
    evidence = {entry.variant: entry for entry in jobs.evaluate(half)}
    assert evidence["onnxruntime-cpu/fp16"].passed
    graph = mlflow.onnx.load_model(cleaned.model_uri).graph
    assert [node.op_type for node in graph.node] == ["MatMul", "Relu"]
    assert graph.output[0].type.tensor_type.shape.dim[0].dim_param == "N"


def test_the_example_that_is_given_is_kept(store, path, tmp_path):
    x = np.full((4, 8), 2.5, np.float32)
    np.savez(tmp_path / "x.npz", x=x)
    made = clean_onnx(path, example=tmp_path / "x.npz", dynamic_axes=AXES)
    place = tracking.fetch(tracking.resolve(made), tmp_path / "fetched")
    np.testing.assert_array_equal(np.load(place / "input_example.npz")["x"], x)


def refused(path, match, *, kind=InvalidInputError, **options):
    """The file is refused in a sentence, and nothing is logged."""
    with pytest.raises(kind, match=match):
        clean_onnx(path, **options)
    assert mlflow.search_logged_models(output_format="list") == []
    assert mlflow.search_runs(output_format="list") == []


def test_what_cannot_be_taken_leaves_nothing_logged(store, path, tmp_path):
    refused(path, r"leaves size 0 of 'x' open; say which sizes .* dynamic_axes=x:0=N:1:8:64")
    strange = {"x": {1: AXES["x"][0]}}
    refused(path, "leaves no such size open", dynamic_axes=strange)
    np.savez(tmp_path / "x.npz", other=W)
    refused(path, "the model wants", example=tmp_path / "x.npz", dynamic_axes=AXES)
    (tmp_path / "w.bin").write_bytes(W.tobytes()[:-1])
    refused(path, "up to byte 96, but that file has 95", kind=ArtifactError, dynamic_axes=AXES)
    path.write_bytes(path.read_bytes()[:-5])
    refused(path, "not a valid ONNX file", kind=ArtifactError, dynamic_axes=AXES)


def test_clean_takes_a_chain_or_a_file(capsys):
    for words in ([], ["--model-uri", "m-1", "--onnx", "x.onnx"]):
        assert cli.main(["clean", *words]) == cli.ERROR
        assert "one of model_uri and onnx" in capsys.readouterr().err
