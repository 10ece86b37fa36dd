"""Each stage alone, on what an earlier one logged; and models that others logged."""

from __future__ import annotations

import mlflow
import numpy as np
import pytest
import torch
from models import AXES, N, build, features, labelled, net

import mlflow_e2eai
from mlflow_e2eai import jobs, tracking
from mlflow_e2eai.errors import InvalidInputError, TrackingError


@pytest.fixture
def source(store):
    """Id of a PyTorch model that the job `log` logged."""
    return jobs.log("models:build", name="net")


def stage(model_id):
    return tracking.resolve(model_id).tags["e2eai.stage"]


def parent(model_id):
    return tracking.resolve(model_id).tags["e2eai.derived_from"]


def test_the_stages_one_by_one_make_the_chain_that_the_pipeline_makes(source):
    raw = jobs.export(source)
    cleaned = jobs.clean(raw)
    half = jobs.convert(cleaned, precision="fp16")
    (engine,) = jobs.compile(half, targets=["sm86"])
    chain = [source, raw, cleaned, half, engine]
    assert [stage(m) for m in chain] == ["source", "export", "clean", "convert", "compile"]
    assert [parent(m) for m in chain[1:]] == chain[:-1]
    assert mlflow.onnx.load_model(f"models:/{half}").graph.input[0].name == "x"
    evidence = {entry.variant: entry for entry in jobs.evaluate(engine)}
    assert evidence["onnxruntime-cpu/fp16"].passed
    assert evidence["onnxruntime-cpu/fp16"].task["accuracy"] > 0.9
    assert not evidence["tensorrt_rtx-sm86/fp16"].measured


def test_any_model_of_the_chain_will_do_for_any_stage(source):
    info = jobs.package(source, name="net", registered_model_name="net", precisions=("fp32",))
    raw = jobs.export("models:/net/1", exporter="trace", opset=13)
    assert parent(raw) == source
    assert tracking.resolve(raw).params["opset"] == "13"
    cleaned = jobs.clean(info.model_id)
    assert stage(parent(cleaned)) == "export"
    assert stage(parent(jobs.convert("models:/net/1", precision="fp16"))) == "clean"
    assert [entry.variant for entry in jobs.evaluate("models:/net/1")] == [
        "torch/fp32",
        "onnxruntime-cpu/fp32",
    ]


def test_the_pipeline_on_a_logged_model_links_to_it_and_does_not_log_it_again(source):
    info = jobs.package(source, name="net", precisions=("fp32",))
    assert tracking.resolve(info.model_id).tags["e2eai.source_model"] == source
    sources = mlflow.search_logged_models(
        filter_string="model_type = 'pytorch'", output_format="list"
    )
    assert [model.model_id for model in sources] == [source]
    manifest = mlflow_e2eai.load_model(info.model_uri).manifest
    assert manifest.axes == (N,)
    assert all(entry.passed for entry in manifest.evidence)


@pytest.mark.parametrize("serialization_format", ["pt2", "pickle"])
def test_a_model_that_mlflow_pytorch_logged_goes_the_same_way(store, serialization_format):
    with mlflow.start_run():
        other = mlflow.pytorch.log_model(
            net(),
            name="other",
            input_example=features(),
            serialization_format=serialization_format,
            pip_requirements=[],
        )
    info = jobs.package(other.model_uri, name="other", precisions=("fp32",))
    loaded = mlflow_e2eai.load_model(info.model_uri)
    with torch.no_grad():
        wanted = net()(torch.from_numpy(features(9))).numpy()
    (output,) = loaded(features(9)).values()
    np.testing.assert_allclose(output, wanted, atol=1e-5)
    assert loaded.manifest.axes[0].max == 64


def test_a_model_with_only_a_signature_is_exported_on_random_numbers_of_its_shape(store):
    with mlflow.start_run():
        signature = mlflow.models.infer_signature(features(), np.zeros((4, 3), np.float32))
        other = mlflow.pytorch.log_model(
            net(),
            name="other",
            signature=signature,
            serialization_format="pickle",
            pip_requirements=[],
        )
    assert stage(jobs.export(other.model_uri)) == "export"


def test_a_model_with_neither_example_nor_signature_says_what_is_missing(store):
    with mlflow.start_run():
        other = mlflow.pytorch.log_model(
            net(), name="other", serialization_format="pickle", pip_requirements=[]
        )
    with pytest.raises(TrackingError, match="log it with input_example="):
        jobs.export(other.model_uri)


def test_a_stage_that_needs_what_is_not_there_yet_says_so(source):
    with pytest.raises(TrackingError, match="nothing that it was made from is a clean"):
        jobs.convert(source, precision="fp16")
    with pytest.raises(InvalidInputError, match="There are no targets"):
        jobs.compile(source, targets=[])


def test_changed_files_of_a_stage_are_refused(source, tmp_path):
    raw = jobs.export(source)
    path = next((tmp_path / "artifacts").rglob(f"*{raw}*/**/model.onnx"))
    path.write_bytes(path.read_bytes()[:-1] + b"\0")
    with pytest.raises(Exception, match=r"model.onnx has sha256"):
        jobs.clean(raw)


@pytest.mark.parametrize(
    ("factory", "words"),
    [
        ("models", "write package.module:callable"),
        ("models:nothing", "cannot be made"),
        ("no_such_module:build", "cannot be made"),
        ("no/such/file.py:build", "cannot be made"),
        ("models:net", "returned no mapping"),
    ],
)
def test_a_factory_that_cannot_be_called_is_one_clear_sentence(store, factory, words):
    with pytest.raises(InvalidInputError, match=words):
        jobs.log(factory, name="net")


def test_what_log_keeps_beside_the_model_comes_back_with_it(source, tmp_path):
    module, example, axes, evaluation = tracking.fetch_source(tracking.resolve(source), tmp_path)
    made = build()
    assert axes == AXES
    np.testing.assert_array_equal(example["x"], made["input_example"]["x"])
    ((inputs, labels),) = evaluation.batches()
    np.testing.assert_array_equal(inputs["x"], made["evaluation_data"][0]["x"])
    np.testing.assert_array_equal(labels, labelled(net())[1])
    assert list(evaluation.metrics) == ["accuracy"]
    with torch.no_grad():
        torch.testing.assert_close(
            module(torch.from_numpy(features())), net()(torch.from_numpy(features()))
        )
