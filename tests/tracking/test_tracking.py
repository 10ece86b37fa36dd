"""What MLflow holds after the way: linked runs and models, and numbers that cannot lie."""

from __future__ import annotations

import errno
import json
import math
import warnings

import mlflow
import numpy as np
import pytest
import torch
from small_models import AXES, features, labelled, net

import mlflow_e2eai
from mlflow_e2eai import Axis, tracking
from mlflow_e2eai.errors import (
    E2EAIError,
    ExportError,
    InvalidInputError,
    StorageError,
    TrackingError,
)

pytestmark = pytest.mark.usefixtures("on_threads")


def log(module=None, **options):
    return mlflow_e2eai.log_model(
        module or net(),
        "net",
        input_example={"x": features()},
        dynamic_axes=AXES,
        **{"targets": ("sm86",), **options},
    )


def children(client, parent):
    runs = client.search_runs([parent.info.experiment_id], max_results=100)
    mine = [r for r in runs if r.data.tags.get("mlflow.parentRunId") == parent.info.run_id]
    return {run.info.run_name: client.get_run(run.info.run_id) for run in mine}


def ids(links):
    return [link.model_id for link in links]


def test_every_stage_is_a_child_run_whose_inputs_and_outputs_are_the_models_it_read_and_made(store):
    with mlflow.start_run() as run:
        info = log()
    parent = store.get_run(run.info.run_id)
    stages = children(store, parent)
    assert set(stages) == {
        "export",
        "clean",
        "convert fp16",
        "compile fp32 sm86",
        "compile fp16 sm86",
        "evaluate torch/fp32",
        "evaluate onnxruntime-cpu/raw",
        "evaluate onnxruntime-cpu/fp32",
        "evaluate onnxruntime-cpu/fp16",
        "not measured here",
        "package",
    }
    assert {stage.info.status for stage in stages.values()} == {"FINISHED"}

    def read(name):
        return ids(stages[name].inputs.model_inputs)

    def made(name):
        (model_id,) = ids(stages[name].outputs.model_outputs)
        return model_id

    source, bundle = sorted(
        ids(parent.outputs.model_outputs), key=lambda model_id: model_id == info.model_id
    )
    assert bundle == info.model_id
    assert read("export") == [source]
    assert read("clean") == [made("export")]
    assert read("convert fp16") == [made("clean")]
    assert read("compile fp32 sm86") == [made("clean")]
    assert read("compile fp16 sm86") == [made("convert fp16")]
    assert read("evaluate onnxruntime-cpu/fp16") == [made("convert fp16")]
    assert read("evaluate torch/fp32") == [source]
    assert made("package") == info.model_id
    assert set(read("package")) == {
        made("clean"),
        made("convert fp16"),
        made("compile fp32 sm86"),
        made("compile fp16 sm86"),
    }


def test_engines_are_found_from_the_pytorch_model_and_the_pytorch_model_from_an_engine(store):
    log()
    (source,) = mlflow.search_logged_models(
        filter_string="model_type = 'pytorch'", output_format="list"
    )
    engines = mlflow.search_logged_models(
        filter_string=f"tags.`e2eai.source_model` = '{source.model_id}' "
        "AND model_type = 'tensorrt'",
        output_format="list",
    )
    assert {engine.params["target"] for engine in engines} == {"tensorrt_rtx-sm86"}
    assert {engine.params["precision"] for engine in engines} == {"fp32", "fp16"}
    assert tracking.ancestor(engines[0], ("source",)).model_id == source.model_id
    assert [tracking.ancestor(engines[0], ("export",)).tags["e2eai.stage"]] == ["export"]


def test_metrics_sit_on_the_model_they_are_about_with_the_batch_size_as_step(store):
    module = net()
    log(module, targets=(), evaluation_data=labelled(module))
    (half,) = mlflow.search_logged_models(filter_string="name = 'net-fp16'", output_format="list")
    steps = {metric.step for metric in half.metrics if metric.key == "latency/p50_ms"}
    assert steps == {1, 4, 16}
    values = {metric.key: metric.value for metric in half.metrics}
    assert values["parity/passed"] == 1
    assert 0 < values["parity/output/max_abs_error"] < 1e-2
    assert values["task/accuracy"] >= 0.9


def test_the_parent_sums_up_what_was_measured_for_the_table_of_runs(store):
    module = net()
    with mlflow.start_run() as run:
        info = log(module, evaluation_data=labelled(module))
    numbers = store.get_run(run.info.run_id).data.metrics
    manifest = mlflow_e2eai.load_model(info.model_uri).manifest
    assert (numbers["variants/passed"], numbers["variants/failed"]) == (2, 0)
    assert numbers["variants/not_measured"] == 2
    assert 0 < numbers["parity/max_abs_error"] < 1e-2
    assert numbers["task/accuracy"] >= 0.9
    times = {each.name: each.p50_ms for each in manifest.latency["opt"].variants}
    assert {name: numbers[f"p50_ms/{name}"] for name in times} == pytest.approx(times)
    shipped = [f"onnxruntime-cpu/{precision}" for precision in ("fp32", "fp16")]
    assert numbers["fastest/p50_ms"] == pytest.approx(min(times[name] for name in shipped))
    for name in shipped:
        ratio = manifest.latency["opt"].ratio(name, "torch/fp32")
        logged = [numbers.get(f"{word}/{name}") for word in ("ratio_low", "ratio", "ratio_high")]
        known = math.isfinite(ratio.high)  # of a few rounds nothing is
        assert logged == ([ratio.low, ratio.value, ratio.high] if known else [None] * 3)
    stages = {"export", "clean", "convert", "compile", "evaluate"}
    assert {f"seconds/{stage}" for stage in stages} <= set(numbers)
    (bundle,) = mlflow.search_logged_models(filter_string="name = 'net'", output_format="list")
    assert {metric.key for metric in bundle.metrics} >= {"variants/passed", "fastest/p50_ms"}


def test_the_evaluation_data_is_a_dataset_of_the_run(store):
    module = net()
    with mlflow.start_run() as run:
        log(module, targets=(), evaluation_data=labelled(module))
    (entry,) = store.get_run(run.info.run_id).inputs.dataset_inputs
    assert entry.dataset.name == "evaluation"
    assert [(tag.key, tag.value) for tag in entry.tags] == [("mlflow.data.context", "evaluation")]
    assert json.loads(entry.dataset.profile)["features_size"]["x"] > 0
    (child,) = mlflow.search_runs(
        filter_string="attributes.run_name = 'evaluate onnxruntime-cpu/fp32'", output_format="list"
    )
    inputs = store.get_run(child.info.run_id).inputs
    (inherited,) = inputs.dataset_inputs
    assert inherited.dataset.digest == entry.dataset.digest
    (model,) = (store.get_logged_model(each.model_id) for each in inputs.model_inputs)
    on = {metric.key: metric.dataset_digest for metric in model.metrics}
    assert on["task/accuracy"] == entry.dataset.digest
    assert on["latency/p50_ms"] is None
    with mlflow.start_run() as run:
        log(module, targets=())
    assert store.get_run(run.info.run_id).inputs.dataset_inputs == []


def test_a_child_lasts_as_long_as_its_work(store):
    with mlflow.start_run() as run:
        log()
    stages = children(store, store.get_run(run.info.run_id))
    spans = {name: (one.info.start_time, one.info.end_time) for name, one in stages.items()}
    whole, half = spans["evaluate torch/fp32"], spans["evaluate onnxruntime-cpu/fp16"]
    assert whole[0] <= half[0] < half[1] <= whole[1]
    # Nothing else was done between the last engine and the end of the evaluation.
    assert whole[0] - spans["compile fp16 sm86"][1] < 1000
    assert all(start <= end for start, end in spans.values())


def test_the_median_of_each_size_has_a_name_of_its_own(store):
    log()
    (half,) = mlflow.search_logged_models(filter_string="name = 'net-fp16'", output_format="list")
    by_name = {metric.key: metric.value for metric in half.metrics}
    by_step = {m.step: m.value for m in half.metrics if m.key == "latency/p50_ms"}
    assert {step: by_name[f"latency/p50_ms_at_{step}"] for step in by_step} == by_step


def test_sizes_with_as_many_items_are_one_step_whose_latency_is_that_of_opt(store):
    image = Axis("W", min=4, opt=6, max=8)
    info = mlflow_e2eai.log_model(
        torch.nn.Conv2d(1, 2, 3).eval(),
        "image",
        input_example={"x": torch.rand(1, 1, 4, 6)},
        dynamic_axes={"x": {0: Axis("N", min=1, opt=1, max=2), 3: image}},
        precisions=("fp32",),
    )
    latency = mlflow_e2eai.load_model(info.model_uri).manifest.latency
    assert [report.items for report in latency.values()] == [1, 1, 2, 2, 1]
    (graph,) = mlflow.search_logged_models(
        filter_string="name = 'image-clean'", output_format="list"
    )
    logged = {
        metric.step: metric.value for metric in graph.metrics if metric.key == "latency/p50_ms"
    }
    measured = {
        label: next(each.p50_ms for each in report.variants if each.name == "onnxruntime-cpu/fp32")
        for label, report in latency.items()
    }
    assert logged == {1: measured["opt"], 2: measured["max"]}


def test_an_engine_that_cannot_run_here_is_built_and_not_measured_and_never_passed(store):
    with mlflow.start_run() as run:
        log()
    stages = children(store, store.get_run(run.info.run_id))
    tags = stages["not measured here"].data.tags
    assert tags["e2eai.measured"] == "false"
    assert "no GPU" in tags["e2eai.reason"]
    assert "e2eai.passed" not in tags
    table = mlflow.artifacts.load_dict(
        f"runs:/{stages['not measured here'].info.run_id}/not_measured.json"
    )
    assert [row[0] for row in table["data"]] == [
        "tensorrt_rtx-sm86/fp32",
        "tensorrt_rtx-sm86/fp16",
    ]
    assert all("no GPU" in row[1] for row in table["data"])
    (engine, *_) = mlflow.search_logged_models(
        filter_string="name = 'net-sm86-fp16'", output_format="list"
    )
    assert not engine.metrics


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_metric_that_is_not_finite_is_named_in_a_tag_and_stored_nowhere_as_a_number(store, value):
    with mlflow.start_run() as run:
        model = mlflow.initialize_logged_model("m")
        tracking.log_metrics(
            {"bad": value, "good": 1.0}, run_id=run.info.run_id, model_id=model.model_id
        )
        tracking.log_metrics({"worse": value}, run_id=run.info.run_id, model_id=model.model_id)
    found = store.get_run(run.info.run_id).data
    assert found.metrics == {"good": 1.0}
    assert found.tags["e2eai.nonfinite"] == "bad, worse"
    assert [m.key for m in store.get_logged_model(model.model_id).metrics] == ["good"]


class NotTensors(torch.nn.Module):
    def forward(self, x):
        return {"y": x, "note": "text"}


class Branches(torch.nn.Module):
    def forward(self, x):
        return x * 2 if x.sum() > 0 else x


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"input_example": {"x": features()[:, :5]}}, InvalidInputError, "does not accept"),
        ({"model": NotTensors().eval()}, InvalidInputError, "'note'"),
        (
            {"model": Branches().eval(), "exporter": "dynamo"},
            ExportError,
            "dynamo exporter failed",
        ),
        ({"model": net().half()}, InvalidInputError, "torch.float16, but torch.float32"),
        ({"evaluation_data": ({"x": features()}, features())}, InvalidInputError, "metrics="),
        ({"evaluation_data": ({"y": features()}, [0, 1, 2, 0])}, InvalidInputError, "['y']"),
        ({"targets": ("sm99",)}, InvalidInputError, "'sm99'"),
        ({"targets": ("local",)}, InvalidInputError, "needs a GPU"),
        ({"precisions": ("fp12",)}, InvalidInputError, "'fp12'"),
        ({"surgery": ["bypas"]}, InvalidInputError, "'bypas'"),
        ({"dynamic_axes": {"y": AXES["x"]}}, InvalidInputError, "['y']"),
        ({"source_model": "models:/nothing/1"}, TrackingError, "'models:/nothing/1'"),
    ],
)
def test_bad_input_fails_its_run_with_the_reason_and_leaves_no_model_or_version_half_made(
    store, options, error, words
):
    given = {"model": net(), "input_example": {"x": features()}, "dynamic_axes": AXES, **options}
    with pytest.raises(error) as raised:
        mlflow_e2eai.log_model(given.pop("model"), "net", registered_model_name="net", **given)
    assert words in str(raised.value)
    runs = store.search_runs([mlflow.get_experiment_by_name("tests").experiment_id])
    assert {run.info.status for run in runs} == {"FAILED"}
    assert {run.data.tags["e2eai.error"] for run in runs} == {str(raised.value)}
    assert store.search_registered_models() == []
    left = mlflow.search_logged_models(output_format="list")
    assert all(model.status == "READY" for model in left)
    assert all(model.tags.get("e2eai.stage") == "source" for model in left)


def test_a_failure_while_packaging_leaves_the_model_failed_and_says_why(store, monkeypatch):
    def fail(*_, **__):
        raise OSError(errno.ENOSPC, "the disk is full")

    monkeypatch.setattr("mlflow_e2eai.flavor.api.describe", fail)
    with pytest.raises(StorageError, match="No space left on device"):
        log(targets=(), precisions=("fp32",))
    (model,) = mlflow.search_logged_models(filter_string="name = 'net'", output_format="list")
    assert model.status == "FAILED"
    assert "No space left on device" in model.tags["e2eai.error"]


def test_a_model_in_training_mode_is_logged_in_evaluation_mode_and_gets_its_mode_back(store):
    module = net().train()
    module.body[1].eval()  # a batch norm that was frozen on purpose
    with pytest.warns(UserWarning, match="training mode") as warned:
        info = log(module, targets=(), precisions=("fp32",))
    assert {each.filename for each in warned if "training mode" in str(each.message)} == {__file__}
    assert module.training
    assert module.body[3].training
    assert not module.body[1].training
    loaded = mlflow_e2eai.load_model(info.model_uri)
    with torch.no_grad():
        wanted = module.eval()(torch.from_numpy(features()))
    assert torch.allclose(loaded(torch.from_numpy(features()))["output"], wanted, atol=1e-5)


class Recurrent(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.gru = torch.nn.GRU(4, 4, batch_first=True)

    def forward(self, x):
        return self.gru(x)[0]


def test_a_recurrent_model_is_logged_without_warnings_of_pytorch(store):
    with mlflow.start_run() as run, warnings.catch_warnings():
        warnings.simplefilter("error")
        tracking.log_source(
            Recurrent().eval(), {"x": np.ones((2, 3, 4), "f")}, name="net", run_id=run.info.run_id
        )


@pytest.mark.parametrize("kind", ["script", "exported"])
def test_a_script_module_and_an_exported_program_go_the_whole_way(store, kind):
    module = net()
    if kind == "script":
        with pytest.warns(DeprecationWarning, match="script"):
            given = torch.jit.script(module)
    else:
        batch = torch.export.Dim("batch", min=1, max=16)
        example = (torch.from_numpy(features()),)
        given = torch.export.export(module, example, dynamic_shapes=({0: batch},))
    info = log(given, targets=(), precisions=("fp32",))
    with torch.no_grad():
        wanted = module(torch.from_numpy(features())).numpy()
    found = mlflow_e2eai.load_model(info.model_uri)({"x": features()})
    assert abs(found["output"] - wanted).max() < 1e-5


def test_an_unreachable_server_is_said_within_seconds_and_not_retried_for_minutes(monkeypatch):
    monkeypatch.setattr(mlflow.tracking.fluent, "_active_experiment_id", None)
    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri("http://127.0.0.1:9")
    try:
        with pytest.raises(TrackingError, match=r"http://127.0.0.1:9 cannot be reached"):
            log()
    finally:
        mlflow.set_tracking_uri(before)


@pytest.mark.parametrize(
    ("uri", "words"),
    [
        ("models:/nothing/1", "There is no model"),
        ("models:/nothing@champion", "There is no model"),
        ("models:/m-00000000000000000000000000000000", "There is no model"),
        ("runs:/0123456789abcdef0123456789abcdef/net", "There is no model"),
        ("models:/nothing/latest", "There is no model"),
        ("models:/nothing/v1", "'v1' is no version of 'nothing'; give a number, 'latest' or '@al"),
        ("nothing/1", "There is no file or folder 'nothing/1', and no such model at "),
        ("net", "There is no file or folder 'net', and no such model at "),
        ("nets/net", "'nets/net' is not a model URI"),
        ("s3://bucket/net", "is not a model URI"),
    ],
)
def test_a_uri_that_names_no_model_is_one_clear_sentence(store, uri, words):
    with pytest.raises(E2EAIError, match=words):
        tracking.resolve(uri)


def test_all_forms_of_a_uri_name_the_same_model(store):
    with mlflow.start_run() as run:
        info = log(targets=(), precisions=("fp32",), registered_model_name="net")
    store.set_registered_model_alias("net", "best", "1")
    uris = [
        info.model_id,
        info.model_uri,
        "models:/net/1",
        "models:/net@best",
        f"runs:/{run.info.run_id}/net",
    ]
    assert {tracking.resolve(uri).model_id for uri in uris} == {info.model_id}


def test_an_engine_that_may_round_to_tf32_says_so_by_its_name(store):
    info = log(precisions=("fp32", "tf32"))
    manifest = mlflow_e2eai.load_model(info.model_uri).manifest
    engines = ["tensorrt_rtx-sm86/fp32", "tensorrt_rtx-sm86/tf32"]
    assert [e.variant for e in manifest.evidence][-2:] == engines
    assert [graph.precision for graph in manifest.graphs] == ["fp32"]
    everywhere = [one.experiment_id for one in store.search_experiments()]
    models = store.search_logged_models(everywhere)
    names = {model.name for model in models}
    assert {"net-sm86-fp32", "net-sm86-tf32"} <= names


def test_tf32_without_a_target_is_refused_before_anything_is_made(store):
    with pytest.raises(InvalidInputError, match="tf32, which only engines have"):
        log(precisions=("fp32", "tf32"), targets=())
    everywhere = [one.experiment_id for one in store.search_experiments()]
    assert not store.search_logged_models(everywhere)


def test_what_a_start_costs_and_what_many_callers_get_are_metrics(store):
    with mlflow.start_run() as run:
        log(precisions=("fp32",), targets=())
    measured = children(store, store.get_run(run.info.run_id))["evaluate onnxruntime-cpu/fp32"]
    assert measured.data.metrics["cold_start/first_call_ms"] > 0
    assert measured.data.metrics["cold_start/peak_memory_bytes"] > 10e6
    history = store.get_metric_history(measured.info.run_id, "concurrency/items_per_s")
    assert sorted(point.step for point in history) == [1, 2, 4]
    assert all(point.value > 0 for point in history)
    by_name = {
        point.step: measured.data.metrics[f"concurrency/items_per_s_at_{point.step}"]
        for point in history
    }
    assert by_name == {point.step: point.value for point in history}
