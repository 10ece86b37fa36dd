"""Each stage alone, on what an earlier one logged; and models that others logged."""

from __future__ import annotations

import re
import tempfile
from pathlib import Path

import mlflow
import numpy as np
import onnx
import pytest
import torch
from small_models import (
    AXES,
    N,
    Read,
    build,
    build_nested,
    build_overflowing,
    build_scaled,
    features,
    labelled,
    net,
)

import mlflow_e2eai
from mlflow_e2eai import tracking
from mlflow_e2eai.artifacts.build_settings import BuildSettings
from mlflow_e2eai.artifacts.files import from_json
from mlflow_e2eai.artifacts.values import Axis
from mlflow_e2eai.errors import (
    ArtifactError,
    ExportError,
    InvalidInputError,
    PrecisionError,
    SurgeryError,
    TrackingError,
)
from mlflow_e2eai.evaluation.bisection.search import Bisection
from mlflow_e2eai.flavor import repackage
from mlflow_e2eai.fleet import distributed
from mlflow_e2eai.pipeline import build as pipeline_build
from mlflow_e2eai.pipeline import jobs, stages
from mlflow_e2eai.pipeline.options import parse_plan
from mlflow_e2eai.pipeline.settings import Settings
from mlflow_e2eai.precision.stage import PrecisionReport
from mlflow_e2eai.pytorch import consent
from mlflow_e2eai.surgery.plan import plan_from
from mlflow_e2eai.tracking.recorder import Fp32Nodes, MemoryRecorder

pytestmark = pytest.mark.usefixtures("on_threads")


@pytest.fixture
def source(store):
    """Id of a PyTorch model that the job `log` logged."""
    return jobs.log("small_models:build", name="net")


def stage(model_id):
    return tracking.resolve(model_id).tags["e2eai.stage"]


def parent(model_id):
    return tracking.resolve(model_id).tags["e2eai.derived_from"]


def test_the_stages_one_by_one_make_the_chain_that_the_pipeline_makes(source):
    raw = jobs.export(source)
    cleaned = jobs.clean(raw)
    half = jobs.convert(cleaned, precision="fp16")
    (engine,) = distributed.compile(half, targets=["sm86"])
    chain = [source, raw, cleaned, half, engine]
    assert [stage(m) for m in chain] == ["source", "export", "clean", "convert", "compile"]
    assert [parent(m) for m in chain[1:]] == chain[:-1]
    assert mlflow.onnx.load_model(f"models:/{half}").graph.input[0].name == "x"
    evidence = {entry.variant: entry for entry in distributed.evaluate(engine)[0].evidence}
    assert evidence["onnxruntime-cpu/fp16"].passed
    assert evidence["onnxruntime-cpu/fp16"].task["accuracy"] > 0.9
    assert not evidence["tensorrt_rtx-sm86/fp16"].measured


def test_an_engine_in_tf32_is_built_of_the_graph_in_fp32_only(source):
    cleaned = jobs.clean(jobs.export(source))
    (engine,) = distributed.compile(cleaned, targets=["sm86"], precision="tf32")
    model = tracking.resolve(engine)
    assert (model.name, model.params["precision"]) == ("net-sm86-tf32", "tf32")
    half = jobs.convert(cleaned, precision="fp16")
    with pytest.raises(InvalidInputError, match="is in fp16, but an engine in tf32 is expected"):
        distributed.compile(half, targets=["sm86"], precision="tf32")


@pytest.mark.parametrize("executor", [None, pytest.param("local", marks=pytest.mark.slow)])
def test_build_settings_go_with_a_model_to_its_engine_its_key_and_its_run(store, executor):
    source = jobs.log("small_models:build", name="net")
    chosen = BuildSettings(optimization_level=1, threads=2)
    options = {"name": "net", "precisions": ["fp32"], "targets": ["sm86"], "executor": executor}
    info = repackage.package(f"models:/{source}", **options, build_settings=chosen)
    with mlflow_e2eai.load_model(info.model_uri) as model:
        (engine,) = model.manifest.engines
    assert engine.settings == chosen
    run = newest("compile fp32 sm86")
    assert run.data.params == {"build/optimization_level": "1", "build/threads": "2"}
    (made,) = run.outputs.model_outputs
    facts = tracking.resolve(made.model_id).params
    assert facts["build_settings"] == "optimization_level=1,threads=2"
    cleaned = tracking.ancestor(tracking.resolve(made.model_id), ["clean"]).model_id
    again = distributed.compile(cleaned, targets=["sm86"], executor=executor, build_settings=chosen)
    assert again == [made.model_id]
    assert newest("compile fp32 sm86").data.params == run.data.params
    assert distributed.compile(cleaned, targets=["sm86"], executor=executor) != again
    assert newest("compile fp32 sm86").data.params == {}


def test_buckets_go_with_the_model_to_its_engine_and_its_evidence(store, monkeypatch):
    tuned = Axis("N", min=1, opt=4, max=16, buckets=(1, 8))
    given = {**build(), "dynamic_axes": {"x": {0: tuned}}}
    monkeypatch.setattr("small_models.build", lambda: given)
    source = jobs.log("small_models:build", name="net")
    info = repackage.package(f"models:/{source}", name="net", precisions=["fp32"], targets=["sm86"])
    with mlflow_e2eai.load_model(info.model_uri) as model:
        manifest = model.manifest
    assert manifest.engines[0].axes == (tuned,)
    assert set(manifest.latency) == {"opt", "min", "max", "N=8"}


class NormalisedRows(torch.nn.Module):
    """The dynamo optimizer drops its constant, which changes the numbers at zero."""

    def forward(self, x):
        return x / (x.sum(-1, keepdim=True) + 1e-9)


@pytest.mark.exporters
def test_the_run_says_which_exporter_was_taken_and_why_others_were_not(store, monkeypatch):
    given = {"model": NormalisedRows().eval(), "input_example": np.ones((2, 3), dtype=np.float32)}
    monkeypatch.setattr("small_models.build", lambda: given)
    jobs.export(jobs.log("small_models:build", name="net"))
    tags = run_named("export").data.tags
    assert tags["e2eai.exporter"] == "dynamo"
    assert "does not match PyTorch" in tags["e2eai.refused.dynamo"]
    assert "e2eai.refused.trace" not in tags


def test_a_nested_model_goes_from_its_log_to_a_model_that_answers_in_its_shape(store):
    source = jobs.log("small_models:build_nested", name="reader")
    cleaned = jobs.clean(jobs.export(source))
    graph = mlflow.onnx.load_model(f"models:/{cleaned}").graph
    assert [each.name for each in graph.input] == ["tokens.ids", "extra.bias"]
    assert passed(cleaned)["onnxruntime-cpu/fp32"]
    info = repackage.package(f"models:/{source}", name="reader", precisions=["fp32"])
    given = build_nested()
    right = given["model"](**given["input_example"])
    with mlflow_e2eai.load_model(info.model_uri) as model:
        flat = model({"tokens.ids": np.arange(6).reshape(2, 3), "extra.bias": np.ones(4, "f4")})
        nested = model(given["input_example"])
        answer = model.structured(nested)
        with pytest.raises(InvalidInputError, match=r"scale is fixed at 2\.0, but 3\.0 is given"):
            model({**given["input_example"], "scale": 3.0})
    assert isinstance(answer, Read)
    torch.testing.assert_close(answer.score, right.score.detach())
    torch.testing.assert_close(answer.layers[1]["next"], right.layers[1]["next"].detach())
    np.testing.assert_array_equal(flat["score"], nested["score"])


def operators_of(model_id):
    return [each.op_type for each in mlflow.onnx.load_model(f"models:/{model_id}").graph.node]


def test_an_operator_and_its_meaning_go_from_the_log_to_a_package(store):
    source = jobs.log("small_models:build_scaled", name="net")
    cleaned = jobs.clean(jobs.export(source))
    assert "Scale" in operators_of(cleaned)
    assert passed(cleaned)["onnxruntime-cpu/fp32"]
    info = repackage.package(f"models:/{source}", name="net", precisions=["fp32"])
    made = build_scaled()
    with mlflow_e2eai.load_model(info.model_uri) as model, torch.no_grad():
        right = made["model"](torch.from_numpy(made["input_example"]["x"])).numpy()
        np.testing.assert_allclose(model(made["input_example"]["x"])["output"], right, atol=1e-5)


def test_an_operator_without_a_meaning_is_refused_unless_the_plan_takes_it_out(store, monkeypatch):
    given = {key: value for key, value in build_scaled(alpha=1.0).items() if key != "operators"}
    monkeypatch.setattr("small_models.build_scaled", lambda: given)
    source = jobs.log("small_models:build_scaled", name="net")
    with pytest.raises(ExportError, match="Nothing implements devtech::Scale"):
        jobs.export(source)
    assert run_named("export").info.status == "FAILED"
    plan = plan_from([{"bypass": {"op_type": "Scale"}}])
    raw = jobs.export(source, plan=plan)
    assert "Scale" in operators_of(raw)
    assert "Scale" not in operators_of(jobs.clean(raw, plan=plan))


def test_a_function_that_is_not_valid_is_refused_before_any_work(store):
    operator = mlflow_e2eai.Operator(name="devtech::Scale", function="Scale (x) =>")
    with pytest.raises(InvalidInputError, match="devtech::Scale is not valid"):
        mlflow_e2eai.log_model(net(), "net", input_example=features(), operators=[operator])
    assert mlflow.search_logged_models(output_format="list") == []


@pytest.fixture
def overflowing(store):
    """Id of the cleaned graph of a model that fails in fp16."""
    return jobs.clean(jobs.export(jobs.log("small_models:build_overflowing", name="net")))


def run_named(name):
    (run,) = mlflow.search_runs(
        filter_string=f"attributes.run_name = '{name}'", output_format="list"
    )
    return run


def newest(name):
    found = mlflow.search_runs(
        filter_string=f"attributes.run_name = '{name}'",
        order_by=["attributes.start_time DESC"],
        output_format="list",
    )
    return mlflow.get_run(found[0].info.run_id)


def passed(model_id):
    return {entry.variant: entry.passed for entry in distributed.evaluate(model_id)[0].evidence}


@pytest.fixture
def unguarded(monkeypatch):
    """Have conversions see no samples, and so keep nothing by themselves."""
    monkeypatch.setattr(stages, "all_samples", lambda *_: ())


@pytest.mark.exporters
def test_a_conversion_keeps_what_fp16_cannot_hold_and_says_why(overflowing):
    half = jobs.convert(overflowing, precision="fp16")
    assert passed(half)["onnxruntime-cpu/fp16"]
    run = run_named("convert fp16")
    uri = f"runs:/{run.info.run_id}"
    report = from_json(PrecisionReport, mlflow.artifacts.load_text(f"{uri}/precision.json"))
    names = [kept.node for kept in report.kept]
    assert names[0] == "node_linear_1"  # its weight; what follows reads its large output
    assert len(names) == 2
    assert {kept.reason for kept in report.kept} == {"overflow"}
    assert tracking.fetch_nodes(f"{uri}/keep_fp32.json") == names


@pytest.mark.exporters
def test_the_ranges_are_seen_on_the_logged_data_too(store, monkeypatch):
    """The example is all zero: no value is large in it."""
    given = build()
    inputs, labels = labelled(given["model"])
    silent = {"x": np.zeros_like(given["input_example"]["x"])}
    loud = {"x": inputs["x"] * np.float32(1e5)}, labels
    made = {**given, "input_example": silent, "evaluation_data": loud}
    monkeypatch.setattr("small_models.build", lambda: made)
    cleaned = jobs.clean(jobs.export(jobs.log("small_models:build", name="net")))
    with pytest.raises(PrecisionError, match="3 of its 3 nodes must stay in fp32"):
        jobs.convert(cleaned, precision="fp16")
    run = run_named("convert fp16")
    text = mlflow.artifacts.load_text(f"runs:/{run.info.run_id}/precision.json")
    report = from_json(PrecisionReport, text)
    assert report.refused == run.data.tags["e2eai.error"] == run.data.tags["e2eai.refused"]
    page = mlflow.artifacts.load_text(f"runs:/{run.info.run_id}/precision.html")
    assert page.count("too large for fp16") == 3
    assert len(report.kept) == 3


@pytest.mark.exporters
def test_the_nodes_that_bisect_finds_are_those_that_convert_must_keep(overflowing, unguarded):
    found, uri = jobs.bisect(overflowing)
    assert found.nodes == ("node_linear_1",)
    assert tracking.fetch_nodes(uri) == list(found.nodes)
    failing = jobs.convert(overflowing, precision="fp16")
    right = jobs.convert(overflowing, precision="fp16", keep_fp32=tracking.fetch_nodes(uri))
    assert not passed(failing)["onnxruntime-cpu/fp16"]
    assert passed(right)["onnxruntime-cpu/fp16"]


def test_the_plan_that_a_run_kept_can_be_replayed(source):
    raw = jobs.export(source)
    plan = plan_from([{"bypass": {"op_type": "Relux"}}, "drop_unused"])
    jobs.clean(raw, plan=plan)
    kept = f"runs:/{run_named('clean').info.run_id}/plan.yaml"
    assert parse_plan(kept) == plan


def test_a_plan_that_misses_what_it_requires_logs_no_graph(source):
    raw = jobs.export(source)
    plan = plan_from([{"bypass": {"op_type": "Relux", "required": True}}])
    with pytest.raises(SurgeryError, match="found nothing to change"):
        jobs.clean(raw, plan=plan)
    assert {stage(m.model_id) for m in mlflow.search_logged_models(output_format="list")} == {
        "source",
        "export",
    }


def test_the_graphs_around_the_step_that_was_refused_are_on_the_failed_run(source):
    raw = jobs.export(source)
    with pytest.raises(SurgeryError, match="Step 'bypass' is to blame"):
        jobs.clean(raw, plan=plan_from(["drop_unused", {"bypass": {"op_type": "Relu"}}]))
    run = run_named("clean")
    assert run.info.status == "FAILED"
    with tempfile.TemporaryDirectory() as folder:
        uri = f"runs:/{run.info.run_id}/refused"
        place = Path(mlflow.artifacts.download_artifacts(uri, dst_path=folder))
        counts = {
            path.name: sum(node.op_type == "Relu" for node in onnx.load(path).graph.node)
            for path in place.iterdir()
        }
    assert counts == {"before.onnx": 1, "after.onnx": 0}


def test_a_graph_of_another_input_type_is_judged_against_the_module_in_every_precision(source):
    convert = {"name": "x", "to": "bytes", "dtype": "int8", "scale": 1 / 32}
    cleaned = jobs.clean(jobs.export(source), plan=plan_from([{"convert_input": convert}]))
    half = jobs.convert(cleaned, precision="fp16")
    assert passed(cleaned)["onnxruntime-cpu/fp32"]
    assert passed(half)["onnxruntime-cpu/fp16"]


@pytest.mark.exporters
def test_a_tensor_that_a_plan_exposes_is_judged_in_every_precision(source):
    plan = plan_from([{"break_fusion": {"first": "Gemm", "then": "Relu"}}])
    cleaned = jobs.clean(jobs.export(source), plan=plan)
    half = jobs.convert(cleaned, precision="fp16")
    evidence = {entry.variant: entry for entry in distributed.evaluate(half)[0].evidence}
    for name in ("onnxruntime-cpu/raw", "onnxruntime-cpu/fp16"):
        assert evidence[name].passed
        outputs = [output.name for output in evidence[name].parity["profile"].outputs]
        assert outputs == ["output", "getitem"]


@pytest.mark.exporters
def test_a_part_of_a_model_is_cleaned_and_converted_but_not_judged_against_the_module(source):
    plan = plan_from([{"extract": {"inputs": ["relu"]}}])
    cleaned = jobs.clean(jobs.export(source), plan=plan)
    half = jobs.convert(cleaned, precision="fp16")
    assert mlflow.onnx.load_model(f"models:/{half}").graph.input[0].name == "relu"
    with pytest.raises(InvalidInputError, match="cannot be compared with the model"):
        distributed.evaluate(half)


@pytest.mark.exporters
def test_a_bisection_is_a_run_on_its_input_with_an_artifact_and_numbers(overflowing, store):
    found, uri = jobs.bisect(overflowing)
    run = store.get_run(run_named("bisect fp16").info.run_id)  # a search leaves inputs out
    assert uri == f"runs:/{run.info.run_id}/bisection.json"
    assert [linked.model_id for linked in run.inputs.model_inputs] == [overflowing]
    assert from_json(Bisection, mlflow.artifacts.load_text(uri)) == found
    assert run.data.metrics == {
        "bisect/nodes": 1,
        "bisect/suspects": 4,
        "bisect/evaluations": found.evaluations,
    }
    assert run.data.tags["e2eai.stage"] == "bisect fp16"
    assert run.data.tags["e2eai.variant"] == "onnxruntime-cpu/fp16"
    assert run.data.tags["e2eai.nodes"] == "node_linear_1"
    assert run.data.tags["e2eai.minimal"] == "true"
    assert run.data.tags["e2eai.reason"] == found.sentence


def test_a_graph_that_passes_has_nothing_to_explain(source):
    found, uri = jobs.bisect(jobs.clean(jobs.export(source)))
    assert "nothing to bisect" in found.sentence
    assert tracking.fetch_nodes(uri) == []


@pytest.mark.exporters
def test_what_fails_on_the_logged_data_only_is_found(store, monkeypatch):
    """At the corners this model gets the example's numbers, which are all zero."""
    given = build_overflowing()
    silent = {"x": np.zeros_like(given["input_example"]["x"])}
    monkeypatch.setattr(
        "small_models.build_overflowing", lambda: {**given, "input_example": silent}
    )
    with torch.no_grad():
        given["model"].first.bias.zero_()
    cleaned = jobs.clean(jobs.export(jobs.log("small_models:build_overflowing", name="net")))
    found, _ = jobs.bisect(cleaned)
    assert found.nodes == ("node_linear_1",)


def test_a_bisection_in_fp32_is_refused_on_its_run(overflowing):
    with pytest.raises(InvalidInputError, match="From fp32 to fp32"):
        jobs.bisect(overflowing, precision="fp32")
    assert run_named("bisect fp32").info.status == "FAILED"


@pytest.mark.exporters
def test_what_was_kept_in_fp32_is_on_the_run_that_converted(overflowing, unguarded):
    jobs.convert(overflowing, precision="fp16", keep_fp32=["node_linear_1"])
    run = run_named("convert fp16")
    assert run.data.tags["e2eai.keep_fp32"] == "node_linear_1"
    uri = f"runs:/{run.info.run_id}/keep_fp32.json"
    assert tracking.fetch_nodes(uri) == ["node_linear_1"]


def test_a_long_list_of_nodes_is_a_number_and_a_digest_in_the_tag_and_whole_in_the_artifact(store):
    nodes = [f"/encoder/layer.{number}/attention/MatMul" for number in range(300)]
    with mlflow.start_run() as run:
        tracking.log_fp32_nodes(nodes, run_id=run.info.run_id)
    tag = mlflow.get_run(run.info.run_id).data.tags["e2eai.keep_fp32"]
    assert re.fullmatch(r"300 nodes, sha256 [0-9a-f]{64}", tag)
    assert tracking.fetch_nodes(f"runs:/{run.info.run_id}/keep_fp32.json") == nodes


def test_a_node_to_keep_that_there_is_not_is_an_error_on_the_run(overflowing):
    with pytest.raises(InvalidInputError, match="no node 'nothing' to keep"):
        jobs.convert(overflowing, precision="fp16", keep_fp32=["nothing"])
    run = run_named("convert fp16")
    assert run.info.status == "FAILED"
    assert run.data.tags["e2eai.keep_fp32"] == "nothing"


@pytest.mark.parametrize(
    ("text", "error", "words"),
    [
        ("no json", ArtifactError, "is not JSON"),
        ("[1]", ArtifactError, "has no list of 'nodes'"),
        ('{"nodes": "a"}', ArtifactError, "has no list of 'nodes'"),
        ('{"nodes": [1]}', ArtifactError, "has no list of 'nodes'"),
        (None, ArtifactError, "Cannot read .*bisection.json: No such file"),
    ],
)
def test_a_file_that_holds_no_nodes_is_one_clear_sentence(store, tmp_path, text, error, words):
    path = tmp_path / "bisection.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(error, match=words):
        tracking.fetch_nodes(str(path))


def test_an_artifact_that_there_is_not_is_one_clear_sentence(store):
    with pytest.raises(TrackingError, match="cannot be downloaded"):
        tracking.fetch_nodes(f"runs:/{'0' * 32}/bisection.json")


def fp32_nodes(recorder):
    return [value.nodes for _, value in recorder.values if isinstance(value, Fp32Nodes)]


@pytest.mark.exporters
@pytest.mark.parametrize(("keep", "right"), [((), False), (("node_linear_1",), True)])
def test_the_pipeline_keeps_the_nodes_of_its_settings_in_fp32(keep, right, tmp_path, unguarded):
    given, recorder = build_overflowing(), MemoryRecorder()
    manifest, _ = pipeline_build.build(
        given["model"],
        given["input_example"],
        Settings(dynamic_axes=AXES, keep_fp32=keep),
        work=tmp_path,
        recorder=recorder,
    )
    (half,) = (e for e in manifest.evidence if e.variant == "onnxruntime-cpu/fp16")
    assert half.passed is right
    assert fp32_nodes(recorder) == ([keep, keep] if keep else [])


def test_the_pipeline_guards_fp16_and_the_manifest_says_how(tmp_path):
    given, recorder = build_overflowing(), MemoryRecorder()
    manifest, _ = pipeline_build.build(
        given["model"],
        given["input_example"],
        Settings(dynamic_axes=AXES),
        work=tmp_path,
        recorder=recorder,
    )
    (half,) = (e for e in manifest.evidence if e.variant == "onnxruntime-cpu/fp16")
    assert half.passed
    (report,) = manifest.conversions
    assert fp32_nodes(recorder) == [tuple(kept.node for kept in report.kept)] != [()]


@pytest.mark.exporters
def test_a_precision_that_holds_no_node_is_refused_and_the_pipeline_goes_on(tmp_path):
    given = build()
    loud = {"x": np.full_like(given["input_example"]["x"], 1e5)}
    manifest, _ = pipeline_build.build(
        given["model"],
        loud,
        Settings(dynamic_axes=AXES),
        work=tmp_path,
        recorder=MemoryRecorder(),
    )
    assert [graph.precision for graph in manifest.graphs] == ["fp32"]
    assert "onnxruntime-cpu/fp32" in {entry.variant for entry in manifest.evidence if entry.passed}
    (report,) = manifest.conversions
    assert report.precision == "fp16"
    assert "3 of its 3 nodes must stay in fp32" in report.refused
    assert len(report.kept) == 3
    assert not (tmp_path / "fp16.onnx").exists()


def test_any_model_of_the_chain_will_do_for_any_stage(source):
    info = repackage.package(source, name="net", registered_model_name="net", precisions=("fp32",))
    raw = jobs.export("models:/net/1", exporter="trace", opset=13)
    assert parent(raw) == source
    assert tracking.resolve(raw).params["opset"] == "13"
    cleaned = jobs.clean(info.model_id)
    assert stage(parent(cleaned)) == "export"
    assert stage(parent(jobs.convert("models:/net/1", precision="fp16"))) == "clean"
    assert [entry.variant for entry in distributed.evaluate("models:/net/1")[0].evidence] == [
        "torch/fp32",
        "onnxruntime-cpu/raw",
        "onnxruntime-cpu/fp32",
    ]


def test_the_pipeline_on_a_logged_model_links_to_it_and_does_not_log_it_again(source):
    info = repackage.package(source, name="net", precisions=("fp32",))
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
    pickled = serialization_format == "pickle"
    info = repackage.package(
        other.model_uri, name="other", precisions=("fp32",), allow_pickle=pickled
    )
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
    assert stage(jobs.export(other.model_uri, allow_pickle=True)) == "export"


def test_a_model_with_neither_example_nor_signature_says_what_is_missing(store):
    with mlflow.start_run():
        other = mlflow.pytorch.log_model(
            net(), name="other", serialization_format="pickle", pip_requirements=[]
        )
    with pytest.raises(TrackingError, match="log it with input_example="):
        jobs.export(other.model_uri, allow_pickle=True)


def test_axes_that_the_logged_model_fixes_are_refused_with_the_reason(store):
    Path("fixed.py").write_text(
        "from small_models import build as whole\n"
        "def build():\n"
        "    return {key: whole()[key] for key in ('model', 'input_example')}\n"
    )
    model_id = jobs.log("fixed.py:build", name="net")
    with pytest.raises(InvalidInputError, match=r"logged with axis 0 of 'x' fixed at \d+, so"):
        jobs.export(model_id, dynamic_axes=AXES)
    assert stage(jobs.export(model_id)) == "export"


def test_other_bounds_of_an_axis_that_was_logged_are_taken(source):
    wider = {"x": {0: Axis("M", min=1, opt=2, max=32)}}
    raw = jobs.export(source, dynamic_axes=wider)
    assert tracking.resolve(raw).model_id == raw


def register_as_mlflow_2(store, name, **form):
    """A version whose files are artifacts of a run, as MLflow 2 kept them."""
    example = {"input_example": features(), "pip_requirements": []}
    mlflow.pytorch.save_model(net(), "saved", **example, **form)
    with mlflow.start_run() as run:
        mlflow.log_artifacts("saved", "model")
    mlflow.register_model(f"runs:/{run.info.run_id}/model", name)
    return run.info.run_id


def test_a_pytorch_model_of_mlflow_2_is_a_source_and_copied_once(store):
    run_id = register_as_mlflow_2(store, "old")
    store.set_registered_model_alias("old", "best", "1")
    for uri in ("models:/old/1", "models:/old@best", f"runs:/{run_id}/model"):
        raw = tracking.resolve(jobs.export(uri))
        assert tracking.source_of(raw).tags["e2eai.copy_of"] == uri.replace("@best", "/1")
    copies = mlflow.search_logged_models(
        filter_string="tags.`e2eai.copy_of` = 'models:/old/1'", output_format="list"
    )
    assert [(one.name, str(one.status)) for one in copies] == [("old-source", "READY")]


@pytest.mark.parametrize("uri", ["models:/old/1", "models:/old@best", "old"])
@pytest.mark.parametrize("step", [jobs.export, repackage.package])
def test_the_refusal_of_a_pickle_names_the_version_as_the_caller_did(store, uri, step, monkeypatch):
    monkeypatch.setattr(consent, "_permitted", set())  # another test may have permitted this file
    register_as_mlflow_2(store, "old", serialization_format="pickle")
    store.set_registered_model_alias("old", "best", "1")
    with pytest.raises(InvalidInputError, match=rf"^{uri}: model.pth is a pickle that runs code"):
        step(uri)


def test_a_model_of_mlflow_2_that_is_not_pytorch_is_refused_by_its_flavors(store):
    mlflow.pyfunc.save_model("saved", loader_module="mlflow.sklearn", pip_requirements=[])
    with mlflow.start_run() as run:
        mlflow.log_artifacts("saved", "model")
    with pytest.raises(TrackingError, match=r"MLflow 2 and has the flavors python_function; give"):
        jobs.export(f"runs:/{run.info.run_id}/model")


def test_a_version_of_mlflow_2_is_no_bundle_to_promote(store):
    register_as_mlflow_2(store, "old")
    with pytest.raises(TrackingError, match=r"models:/old/1 .*MLflow 2"):
        mlflow_e2eai.promote("old", "1")


def test_a_name_that_mlflow_refuses_is_told_before_the_model_is_made(store):
    with pytest.raises(InvalidInputError, match="name='net/x'"):
        jobs.log("small_models:build", name="net/x")
    assert mlflow.search_runs(search_all_experiments=True).empty


def test_an_onnx_file_may_have_a_name_that_mlflow_refuses_for_a_model(source, tmp_path):
    graph = tracking.fetch_graph(tracking.resolve(jobs.export(source)), tmp_path / "fetched")
    file = graph.path.rename(graph.path.with_name("net.v2 'a'.onnx"))
    cleaned = tracking.resolve(jobs.clean_onnx(file, dynamic_axes=AXES))
    assert cleaned.name == "net_v2 _a_-clean"


def test_a_graph_is_cleaned_without_its_module_where_that_cannot_be_loaded(
    source, monkeypatch, caplog
):
    raw = jobs.export(source)

    def refuse(*_, **__):
        msg = "its class is gone"
        raise TrackingError(msg)

    monkeypatch.setattr(tracking, "fetch_source", refuse)

    assert stage(jobs.clean(raw)) == "clean"
    assert any(
        message.startswith("The PyTorch model cannot be used as the reference: ")
        and message.endswith(": its class is gone")
        for message in caplog.messages
    )


def test_a_stage_that_needs_what_is_not_there_yet_says_so(source):
    with pytest.raises(TrackingError, match="but this step needs a cleaned graph"):
        jobs.convert(source, precision="fp16")
    with pytest.raises(InvalidInputError, match="There are no targets"):
        distributed.compile(source, targets=[])


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
        ("small_models:nothing", "There is no callable 'nothing' in small_models"),
        ("no_such_module:build", "cannot be created"),
        ("no/such/file.py:build", "cannot be created"),
        ("small_models:net", "must return a mapping"),
    ],
)
def test_a_factory_that_cannot_be_called_is_one_clear_sentence(store, factory, words):
    with pytest.raises(InvalidInputError, match=words):
        jobs.log(factory, name="net")


def test_what_log_keeps_beside_the_model_comes_back_with_it(source, tmp_path):
    model = tracking.resolve(source)
    logged = tracking.fetch_source(model, tmp_path)
    made = build()
    assert logged.dynamic_axes == AXES
    np.testing.assert_array_equal(logged.input_example["x"], made["input_example"]["x"])
    ((inputs, labels),) = logged.evaluation.batches()
    np.testing.assert_array_equal(inputs["x"], made["evaluation_data"][0]["x"])
    np.testing.assert_array_equal(labels, labelled(net())[1])
    assert list(logged.evaluation.metrics) == ["accuracy"]
    with torch.no_grad():
        torch.testing.assert_close(
            logged.model(torch.from_numpy(features())), net()(torch.from_numpy(features()))
        )


def test_int8_is_calibrated_on_the_data_that_was_logged_with_the_model(source):
    made = jobs.convert(jobs.clean(jobs.export(source)), precision="int8")
    assert stage(made) == "convert"
    run_id = tracking.resolve(made).source_run_id
    text = mlflow.artifacts.load_text(f"runs:/{run_id}/precision.json")
    report = from_json(PrecisionReport, text)
    seen = np.abs(features(50)).max()
    assert report.calibration.values[0].magnitude == pytest.approx(seen, abs=1e-6)
    assert (report.samples, report.calibration.calibrator) == (4, "mse")
    with pytest.raises(InvalidInputError, match="from fp32 to fp16 and bf16 only"):
        jobs.bisect(made, precision="int8")


def test_int8_without_evaluation_data_is_one_sentence_and_makes_no_graph(store):
    made = {**build(), "evaluation_data": None}
    info = mlflow_e2eai.log_model(made.pop("model"), "silent", precisions=("fp32",), **made)
    before = len(mlflow.search_logged_models(output_format="list"))
    with pytest.raises(
        InvalidInputError, match=r"int8 is calibrated on evaluation data, .* leave int8 out"
    ):
        jobs.convert(info.model_uri, precision="int8")
    assert len(mlflow.search_logged_models(output_format="list")) == before


def test_the_pipeline_hands_plugins_to_the_compiler_which_refuses_them_before_any_work(
    source, tmp_path
):
    plugin = tmp_path / "libplugin.so"
    plugin.write_bytes(b"plugin")
    before = len(mlflow.search_logged_models(output_format="list"))
    with pytest.raises(InvalidInputError, match=r"takes no plugins, but libplugin\.so"):
        repackage.package(source, name="net", targets=["sm86"], plugin_libraries=[plugin])
    assert len(mlflow.search_logged_models(output_format="list")) == before
