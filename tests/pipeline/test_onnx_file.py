"""A chain that an ONNX file begins, with no PyTorch model."""

from __future__ import annotations

import dataclasses

import mlflow
import numpy as np
import onnx
import pytest

import mlflow_e2eai
from mlflow_e2eai import Axis, bundle, tracking
from mlflow_e2eai.bundle.load import load
from mlflow_e2eai.cli import main
from mlflow_e2eai.cli.results import DONE
from mlflow_e2eai.errors import ArtifactError, InvalidInputError, RunnerError
from mlflow_e2eai.evaluation.stage import evaluate
from mlflow_e2eai.evaluation.variants import FILE, Reference
from mlflow_e2eai.flavor import repackage
from mlflow_e2eai.fleet import distributed
from mlflow_e2eai.pipeline import jobs
from mlflow_e2eai.pipeline.jobs import clean_onnx
from mlflow_e2eai.pipeline.onnx_file import import_onnx
from mlflow_e2eai.report.page import html
from mlflow_e2eai.runtime.ort import onnxruntime_runner
from mlflow_e2eai.surgery.stage import clean

pytestmark = pytest.mark.usefixtures("on_threads")

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
    assert main.main(words) == DONE
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
    (found,) = distributed.evaluate(half)
    first, second = found.evidence
    assert (first.variant, first.sha256) == ("onnxruntime-cpu/raw", None)  # the reference
    assert (second.variant, second.before) == ("onnxruntime-cpu/fp16", "onnxruntime-cpu/raw")
    assert second.passed
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
    refused(path, r"leaves size 0 of 'x' open; give its range, .* dynamic_axes=x:0=N:1:8:64")
    strange = {"x": {1: AXES["x"][0]}}
    refused(path, "leaves no such size open", dynamic_axes=strange)
    np.savez(tmp_path / "x.npz", other=W)
    refused(path, "the model expects", example=tmp_path / "x.npz", dynamic_axes=AXES)
    (tmp_path / "w.bin").write_bytes(W.tobytes()[:-1])
    refused(path, "up to byte 96, but that file has 95", kind=ArtifactError, dynamic_axes=AXES)
    path.write_bytes(path.read_bytes()[:-5])
    refused(path, "not a valid ONNX file", kind=ArtifactError, dynamic_axes=AXES)


def test_a_file_that_is_in_fp16_already_is_refused(store, path, tmp_path):
    half = onnx.load(path)
    weight = onnx.numpy_helper.from_array(W.astype(np.float16), "w")
    half.graph.initializer[0].CopyFrom(weight)
    half.graph.input[0].type.tensor_type.elem_type = onnx.TensorProto.FLOAT16
    half.graph.output[0].type.tensor_type.elem_type = onnx.TensorProto.FLOAT16
    onnx.save(half, tmp_path / "half.onnx")
    refused(tmp_path / "half.onnx", "already computes in fp16", dynamic_axes=AXES)
    inside = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 18]> g (float[N,8] x) => (float[N,8] y) '
        "{h = Cast<to: int = 10>(x) r = Relu(h) y = Cast<to: int = 1>(r)}"
    )
    onnx.save(inside, tmp_path / "inside.onnx")
    refused(tmp_path / "inside.onnx", "already computes in fp16", dynamic_axes=AXES)


def test_compile_and_bisect_take_a_chain_that_a_file_began(store, path):
    cleaned = clean_onnx(path, dynamic_axes=AXES)
    (engine,) = distributed.compile(cleaned, targets=["sm86"])
    assert tracking.resolve(engine).tags[tracking.PARENT] == cleaned
    found, _ = jobs.bisect(cleaned)
    assert (found.nodes, found.suspects) == ((), 2)


def numbers(model):
    x = np.random.default_rng(1).standard_normal((5, 8)).astype(np.float32)
    return model({"x": x})["y"], np.maximum(x @ W, 0)


def test_a_chain_that_a_file_began_ends_in_a_version(store, path, tmp_path, capsys):
    np.savez(tmp_path / "x.npz", x=np.random.default_rng(0).standard_normal((4, 8), np.float32))
    cleaned = clean_onnx(path, example=tmp_path / "x.npz", dynamic_axes=AXES)
    words = ["--model-uri", cleaned, "--registered-model-name", "given", "--targets", "sm86"]
    assert main.main(["pipeline", *words]) == DONE
    assert "models:/given/1" in capsys.readouterr().out.splitlines()
    model = mlflow_e2eai.load_model("models:/given/1")
    np.testing.assert_allclose(*numbers(model), rtol=1e-5)
    manifest = model.manifest
    assert (manifest.source_model, manifest.export) == (None, None)
    raw = tracking.resolve(tracking.resolve(cleaned).tags[tracking.PARENT])
    assert manifest.graphs[0].parent_sha256 == raw.tags[tracking.SHA256]
    assert [entry.variant for entry in manifest.evidence if entry.sha256 is None] == [FILE]
    timed = [entry.name for entry in manifest.latency["opt"].variants]
    assert timed == [FILE, "onnxruntime-cpu/fp32", "onnxruntime-cpu/fp16"]  # in one process
    page = html(manifest)
    assert "From the ONNX file to each file" in page
    assert "PyTorch" not in page
    assert mlflow_e2eai.promote(
        "given", "1", gates={"gates": "default", "unmeasured": "exclude"}
    ).promoted
    # What comes after stands on the raw graph that is there, which is not logged again.
    raws = [
        logged
        for logged in mlflow.search_logged_models(output_format="list")
        if logged.tags[tracking.STAGE] == "export"
    ]
    assert len(raws) == 1


def test_a_file_that_is_the_reference_is_timed_where_the_others_are(path, tmp_path):
    raw, example = import_onnx(path, out=tmp_path / "raw.onnx", dynamic_axes=AXES)
    cleaned, _ = clean(raw, out=tmp_path / "clean.onnx")

    def across_a_pipe(_):
        pytest.fail("the file was timed in another process than what is made of it")

    with onnxruntime_runner(raw.path) as itself:
        _, latency, _ = evaluate(
            Reference(infer=itself, alone=across_a_pipe, name=FILE), [cleaned], [], example, raw=raw
        )
    assert FILE in [entry.name for entry in latency["opt"].variants]


def test_a_file_whose_variants_all_failed_is_not_called_a_pytorch_model(path, tmp_path):
    saved = tmp_path / "saved"
    mlflow_e2eai.save_model(path, saved, dynamic_axes=AXES, precisions=("fp32",))
    stored = bundle.find(saved)
    manifest = bundle.audit(stored)
    evidence = tuple(
        entry if entry.sha256 is None else dataclasses.replace(entry, reason="planted")
        for entry in manifest.evidence
    )
    spoilt = dataclasses.replace(manifest, evidence=evidence)
    bundle.write(tmp_path / "spoilt", spoilt, bundle.read_example(stored))
    with pytest.raises(RunnerError, match="passed its comparison with the ONNX file; name one"):
        load(tmp_path / "spoilt")


def test_a_file_is_logged_by_its_path_and_saved(store, path, tmp_path):
    info = mlflow_e2eai.log_model(str(path), "given", dynamic_axes=AXES, precisions=("fp32",))
    np.testing.assert_allclose(*numbers(mlflow_e2eai.load_model(info.model_uri)), rtol=1e-5)
    package = tracking.resolve(info.model_uri)
    raw = tracking.ancestor(package, ("export",))
    assert (raw.name, tracking.PARENT in raw.tags) == ("given-raw", False)
    mlflow_e2eai.save_model(path, tmp_path / "saved", dynamic_axes=AXES, precisions=("fp32",))
    np.testing.assert_allclose(*numbers(mlflow_e2eai.load_model(tmp_path / "saved")), rtol=1e-5)


def test_evaluation_data_judges_what_a_file_began(store, path):
    x = np.random.default_rng(2).standard_normal((40, 8)).astype(np.float32)
    info = mlflow_e2eai.log_model(
        path,
        "given",
        input_example={"x": x[:4]},
        dynamic_axes=AXES,
        precisions=("fp32",),
        evaluation_data=({"x": x}, np.argmax(np.maximum(x @ W, 0), 1)),
    )
    evidence = mlflow_e2eai.load_model(info.model_uri).manifest.evidence
    assert {entry.variant: entry.task["accuracy"] for entry in evidence if entry.task} == {
        FILE: 1.0,
        "onnxruntime-cpu/fp32": 1.0,
    }


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"exporter": "trace"}, "exporter is for PyTorch models"),
        ({"opset": 20}, "opset is for PyTorch models"),
        ({"dynamic_axes": AXES}, "axes of an ONNX file are set by clean"),
    ],
)
def test_what_only_an_exporter_heeds_is_refused_for_a_file(store, path, options, words):
    cleaned = clean_onnx(path, dynamic_axes=AXES)
    before = len(mlflow.search_logged_models(output_format="list"))
    with pytest.raises(InvalidInputError, match=words):
        repackage.package(cleaned, name="given", **options)
    assert len(mlflow.search_logged_models(output_format="list")) == before


def test_clean_takes_a_chain_or_a_file(capsys):
    assert main.main(["clean", "--model-uri", "m-1", "--onnx", "x.onnx"]) == main.ERROR
    assert "either model_uri or onnx" in capsys.readouterr().err
