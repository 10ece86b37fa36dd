"""What went wrong for others, or for MLflow's own flavors, and must not go wrong here."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import sys
import time
from importlib.metadata import entry_points, version
from pathlib import Path

import mlflow
import numpy as np
import onnxruntime
import pytest
import torch
from helpers import (
    BATCH,
    NotInFp16,
    assert_close,
    free_port,
    lines_of,
    run_onnx,
    run_python,
    saved_file,
)
from mlflow.entities import LoggedModelStatus
from mlflow.utils import requirements_utils

import mlflow_e2eai
from mlflow_e2eai import bundle, compile, flavor, tracking
from mlflow_e2eai.errors import (
    ArtifactError,
    InvalidInputError,
    MissingDependencyError,
    RunnerError,
    StorageError,
    TrackingError,
)
from mlflow_e2eai.flavor.run_context import GpuContext

SUPPORT = Path(__file__).parents[1] / "support"

pytestmark = [pytest.mark.exporters, pytest.mark.usefixtures("on_threads")]

UNREADABLE_PROC = """
import pathlib
def unreadable(self):
    raise OSError(107, "Transport endpoint is not connected", str(self))
for name in ("glob", "iterdir", "open", "read_text", "read_bytes"):
    way = getattr(pathlib.Path, name)
    setattr(pathlib.Path, name, lambda self, *a, way=way, **k: (
        unreadable(self) if str(self).startswith("/proc") else way(self, *a, **k)))
"""
BROKEN_TAGS = """
import mlflow_e2eai.flavor.run_context
def broken(self):
    raise OSError("the driver is gone")
mlflow_e2eai.flavor.run_context.GpuContext.in_context = broken
mlflow_e2eai.flavor.run_context.GpuContext.tags = broken
"""
REPRODUCIBLE = ["model.onnx", "model-fp16.onnx", "input_example.npz"]


def sha256_of(path) -> str:
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def models_by_stage(client, run_id) -> dict[str, mlflow.entities.LoggedModel]:
    """The LoggedModels of the experiment of a run, by the stage that made them."""
    experiment = client.get_run(run_id).info.experiment_id
    found = client.search_logged_models([experiment])
    return {model.tags["e2eai.stage"]: model for model in found}


def children(client, run_id) -> dict[str, mlflow.entities.Run]:
    """The child runs of a run, whole, by name."""
    experiment = client.get_run(run_id).info.experiment_id
    found = client.search_runs([experiment], f"tags.mlflow.parentRunId = '{run_id}'")
    return {run.info.run_name: client.get_run(run.info.run_id) for run in found}


def inputs_of(run) -> set[str]:
    return {model.model_id for model in run.inputs.model_inputs}


def outputs_of(run) -> set[str]:
    return {model.model_id for model in run.outputs.model_outputs}


# Numbers that are none.


def test_what_is_not_finite_is_stored_as_no_number(store):
    with mlflow.start_run() as run:
        model = mlflow.initialize_logged_model(name="model")
        values = {"good": 0.5, "nan": math.nan, "inf": math.inf, "minus_inf": -math.inf}
        tracking.log_metrics(values, run_id=run.info.run_id, model_id=model.model_id)

    logged = store.get_logged_model(model.model_id)
    assert {metric.key: metric.value for metric in logged.metrics} == {"good": 0.5}
    found = store.get_run(run.info.run_id)
    assert found.data.metrics == {"good": 0.5}
    assert found.data.tags["e2eai.nonfinite"] == "inf, minus_inf, nan"


def test_a_variant_that_answers_nan_is_not_found_by_its_metrics_and_not_promoted(store):
    options = {"input_example": {"x": torch.ones(2, 4)}, "precisions": ("fp32", "fp16")}
    info = mlflow_e2eai.log_model(
        NotInFp16().eval(), "model", **options, registered_model_name="net"
    )
    models = models_by_stage(store, info.run_id)

    as_logged = [metric for model in models.values() for metric in model.metrics or ()]
    assert as_logged
    assert all(math.isfinite(m.value) and abs(m.value) < 1e300 for m in as_logged)
    # MLflow would store a NaN as 0.0, which is a very good error.
    experiment = store.get_run(info.run_id).info.experiment_id
    passing = "metrics.`parity/output/max_abs_error` <= 1e-3"
    good = {m.model_id for m in store.search_logged_models([experiment], passing)}
    assert models["clean"].model_id in good
    assert models["convert"].model_id not in good
    evaluated = children(store, info.run_id)["evaluate onnxruntime-cpu/fp16"]
    assert "parity/output/max_abs_error" in evaluated.data.tags["e2eai.nonfinite"]
    assert evaluated.data.metrics["parity/passed"] == 0

    decision = mlflow_e2eai.promote("net", info.registered_model_version)
    assert not decision.promoted
    registered = store.get_model_version("net", info.registered_model_version)
    assert registered.aliases == []
    assert registered.tags["e2eai.decision"] == "rejected"
    # Nor is it what loads when nobody asks for it.
    assert mlflow_e2eai.load_model(info.model_uri).variant.endswith("/fp32")


# What the caller gave is the caller's.


def test_nothing_of_the_callers_is_changed(store):
    torch.manual_seed(0)
    module = torch.nn.Sequential(
        torch.nn.Linear(4, 8), torch.nn.BatchNorm1d(8), torch.nn.Dropout(0.5), torch.nn.Linear(8, 2)
    ).train()
    module[1].eval()
    module[0].weight.requires_grad_(False)  # noqa: FBT003 - torch's signature
    example = {"x": torch.rand(5, 4)}
    weights = {name: value.clone() for name, value in module.state_dict().items()}
    modes = [part.training for part in module.modules()]
    trained = [parameter.requires_grad for parameter in module.parameters()]
    given = example["x"].clone()

    with pytest.warns(UserWarning, match="training mode"):
        mlflow_e2eai.log_model(
            module,
            "model",
            input_example=example,
            dynamic_axes={"x": {0: BATCH}},
            precisions=("fp32",),
        )

    after = module.state_dict()
    assert list(after) == list(weights)
    assert all(torch.equal(after[name], value) for name, value in weights.items())
    assert [part.training for part in module.modules()] == modes
    assert [parameter.requires_grad for parameter in module.parameters()] == trained
    assert torch.is_grad_enabled()
    assert list(example) == ["x"]
    assert torch.equal(example["x"], given)


def test_a_bundle_that_is_logged_is_left_as_it_was(saved, log):
    before = {path: path.read_bytes() for path in saved.directory.rglob("*") if path.is_file()}
    with mlflow.start_run():
        log()

    after = {path: path.read_bytes() for path in saved.directory.rglob("*") if path.is_file()}
    assert after == before


# The same again is the same.


def test_a_model_logged_twice_is_the_same_twice(saved, store):
    options = {**saved.options, "precisions": ("fp32", "fp16"), "fresh": True}
    first, second = (mlflow_e2eai.log_model(saved.module, "model", **options) for _ in range(2))

    assert first.model_id != second.model_id
    for name in REPRODUCIBLE:
        files = [saved_file(info.model_uri, "bundle", name) for info in (first, second)]
        assert files[0].read_bytes() == files[1].read_bytes(), name
    for info in (first, second):  # mlflow.onnx loses the weights of the second
        graph = mlflow.onnx.load_model(info.model_uri)
        assert_close(run_onnx(graph, saved.inputs)["output"], saved.outputs["output"])


def test_digests_are_the_same_in_another_process(saved_in_two_precisions, tmp_path):
    made = saved_in_two_precisions
    (tmp_path / "elsewhere").mkdir()
    torch.save(made.module, tmp_path / "module.pt")
    np.savez(tmp_path / "example.npz", **made.options["input_example"])
    program = f"""
import sys
sys.path.insert(0, {str(SUPPORT)!r})
import numpy, pytest, threaded_workers, torch, mlflow_e2eai
from dataclasses import replace
from mlflow_e2eai.evaluation import stage
brief = replace(stage.EFFORTS["standard"], latency_s=0.05, other_latency_s=0.05)
stage.EFFORTS = {{"standard": brief}}
threaded_workers.instead_of_processes(pytest.MonkeyPatch())
mlflow_e2eai.save_model(
    torch.load({str(tmp_path / "module.pt")!r}, weights_only=False),
    {str(tmp_path / "model")!r},
    input_example=dict(numpy.load({str(tmp_path / "example.npz")!r})),
    dynamic_axes={{"input": {{0: mlflow_e2eai.Axis("batch", min=1, opt=5, max={BATCH.max})}}}},
    output_names=["output"],
    precisions=("fp32", "fp16"),
)
"""
    run_python(program, cwd=tmp_path / "elsewhere", PYTHONHASHSEED="7")

    for name in REPRODUCIBLE:
        there = tmp_path / "model" / "bundle" / name
        assert sha256_of(there) == sha256_of(made.bundle / name), name


def test_digests_are_those_of_the_files(saved, log, store):
    manifest = json.loads((saved.bundle / "manifest.json").read_text())
    for graph in manifest["graphs"]:
        assert graph["sha256"] == sha256_of(saved.bundle / graph["path"])

    with mlflow.start_run():
        info = log()
    tag = store.get_logged_model(info.model_id).tags["e2eai.sha256"]
    assert tag == sha256_of(saved_file(info.model_uri, "bundle", "manifest.json"))


def test_a_logged_file_that_was_changed_is_not_loaded(log, store):
    with mlflow.start_run():
        info = log()
    place = store.get_logged_model(info.model_id).artifact_location.removeprefix("file://")
    graph = Path(place, "bundle", "model.onnx")
    content = bytearray(graph.read_bytes())
    content[-1] ^= 1
    graph.write_bytes(content)

    for load in (mlflow_e2eai.load_model, mlflow.pyfunc.load_model):
        with pytest.raises(ArtifactError, match=r"model\.onnx has sha256"):
            load(info.model_uri)


# What runs is what was asked for.


def test_a_provider_that_onnxruntime_dropped_is_an_error(saved, monkeypatch):
    # On a machine with a GPU as on one without: the session says that it runs on the CPU.
    monkeypatch.setattr(
        onnxruntime.InferenceSession, "get_providers", lambda _: ["CPUExecutionProvider"]
    )
    wanted = {"variant": "onnxruntime-cuda/fp32"}

    for load in (
        lambda: mlflow_e2eai.load_model(str(saved.directory), **wanted),
        lambda: mlflow.pyfunc.load_model(str(saved.directory), model_config=wanted),
    ):
        with pytest.raises(RunnerError, match=r"CUDAExecutionProvider|on cuda"):
            load()


def test_a_variant_is_chosen_by_model_config(saved_in_two_precisions, monkeypatch):
    made = saved_in_two_precisions
    for variant in ("onnxruntime-cpu/fp32", "onnxruntime-cpu/fp16"):
        loaded = mlflow.pyfunc.load_model(str(made.directory), model_config={"variant": variant})
        assert loaded.get_raw_model().variant == variant
        answer = loaded.predict(made.inputs)["output"]
        np.testing.assert_allclose(answer, made.outputs["output"], atol=1e-2)

    monkeypatch.setenv("MLFLOW_PYFUNC_INFERENCE_CONFIG", '{"variant": "onnxruntime-cpu/fp16"}')
    by_environment = mlflow.pyfunc.load_model(str(made.directory))
    assert by_environment.get_raw_model().variant == "onnxruntime-cpu/fp16"


def test_a_variant_that_there_is_not_is_named_with_those_that_there_are(saved):
    with pytest.raises(
        InvalidInputError, match=r"no variant 'tensorrt/int1'.*onnxruntime-cpu/fp32"
    ):
        mlflow.pyfunc.load_model(str(saved.directory), model_config={"variant": "tensorrt/int1"})


# Other processes.


def test_a_fresh_process_loads_and_runs_the_model_without_torch(saved, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    np.save(tmp_path / "input.npy", saved.inputs["input"])
    program = f"""
import sys, mlflow_e2eai, numpy
model = mlflow_e2eai.load_model({str(saved.directory)!r})
answer = model(numpy.load({str(tmp_path / "input.npy")!r}))
numpy.save({str(tmp_path / "output.npy")!r}, answer["output"])
print(sorted({{"torch", "onnx"}} & set(sys.modules)))
"""
    printed = run_python(program, cwd=tmp_path / "elsewhere")

    assert_close(np.load(tmp_path / "output.npy"), saved.outputs["output"])
    assert printed.split() == ["[]"]


def test_the_native_load_works_where_mlflow_may_run_no_code_of_models(saved, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    program = f"""
import mlflow, mlflow_e2eai
print(mlflow_e2eai.load_model({str(saved.directory)!r}).variant)
print(len(mlflow.onnx.load_model({str(saved.directory)!r}).graph.initializer))
"""
    forbidden = {
        "MLFLOW_ALLOW_MODEL_CODE_EXECUTION": "false",
        "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
    }
    variant, weights = run_python(program, cwd=tmp_path / "elsewhere", **forbidden).split()

    assert variant.startswith("onnxruntime-")
    assert weights == "4"


def test_mlflow_asks_our_context_provider():
    (plugin,) = entry_points(group="mlflow.run_context_provider", name="e2eai_gpu")

    assert plugin.load() is GpuContext
    asked = mlflow.tracking.context.registry._run_context_provider_registry
    assert any(isinstance(provider, GpuContext) for provider in asked)


@pytest.mark.parametrize(
    "breakage",
    [
        pytest.param(
            UNREADABLE_PROC,
            id="unreadable_proc",
        ),
        pytest.param(
            BROKEN_TAGS,
            id="broken_tags",
        ),
    ],
)
def test_mlflow_works_with_our_plugin_broken(store, tmp_path, breakage):
    program = f"""
import warnings
warnings.simplefilter("error", UserWarning)
{breakage}
import mlflow
from mlflow_e2eai.flavor.run_context import GpuContext
mlflow.set_experiment("tests")
with mlflow.start_run() as run:
    print(run.info.run_id)
"""
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    run_id = run_python(program, cwd=tmp_path, MLFLOW_TRACKING_URI=uri).split()[-1]

    assert store.get_run(run_id).info.status == "FINISHED"


def test_a_driver_that_cannot_be_read_is_no_gpu(tmp_path):
    program = f"""{UNREADABLE_PROC}
from mlflow_e2eai.flavor.run_context import GpuContext
print(GpuContext().in_context(), GpuContext().tags())
"""
    assert run_python(program, cwd=tmp_path).strip() == "False {}"


@pytest.mark.parametrize("module", ["mlflow_e2eai", "mlflow_e2eai.flavor.run_context"])
def test_the_package_and_its_plugin_import_the_standard_library_only(tmp_path, module):
    program = f"""
import sys
before = set(sys.modules)
import {module}
print(*{{name.partition(".")[0] for name in set(sys.modules) - before}})
"""
    imported = set(run_python(program, cwd=tmp_path).split())

    assert imported - sys.stdlib_module_names == {"mlflow_e2eai"}


# Requirements.


def test_requirements_name_this_package_itself(saved):
    lines = lines_of(saved.directory / "requirements.txt")

    assert f"mlflow_e2eai=={version('mlflow_e2eai')}" in lines


def test_without_torch_the_extra_is_named(saved, model_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)

    with pytest.raises(MissingDependencyError, match=r"mlflow_e2eai\[torch\]"):
        mlflow_e2eai.save_model(saved.module, model_path, **saved.options)
    assert not Path(model_path).exists()


def test_cuda_core_is_required_where_an_engine_needs_it_and_nowhere_else(saved, model_path):
    place = saved.bundle
    manifest = bundle.audit(place)
    (graph,) = manifest.graphs
    engine = compile(graph, "sm86", out=Path(model_path, "engine"))
    manifest = dataclasses.replace(manifest, engines=(engine,))
    wanted = ["mlflow_e2eai", "onnxruntime-gpu", "numpy"]

    def names(lines) -> list[str]:
        return [line.partition("==")[0] for line in lines]

    assert names(lines_of(saved.directory / "requirements.txt")) == ["mlflow", *wanted]
    needed = flavor.get_default_pip_requirements(manifest)
    assert names(needed) == [*wanted, "cuda-core", "cuda-bindings", "tensorrt-rtx-cu13"]
    assert not any("+" in line for line in needed)


def test_a_uv_project_in_the_working_folder_changes_no_requirements(saved, model_path, tmp_path):
    (tmp_path / "pyproject.toml").write_text(
        '[project]\nname = "other"\nversion = "1"\ndependencies = ["rich"]\n'
        'requires-python = ">=3.11"\n'
    )
    (tmp_path / "uv.lock").write_text(
        'version = 1\nrequires-python = ">=3.11"\n\n[[package]]\nname = "other"\n'
        'version = "1"\nsource = { virtual = "." }\ndependencies = [{ name = "rich" }]\n\n'
        '[[package]]\nname = "rich"\nversion = "13.0.0"\n'
        'source = { registry = "https://pypi.org/simple" }\n'
    )
    mlflow_e2eai.save_model(saved.bundle, model_path)

    found = lines_of(Path(model_path, "requirements.txt"))
    assert found == lines_of(saved.directory / "requirements.txt")
    assert {path.name for path in Path(model_path).iterdir()} == {
        path.name for path in saved.directory.iterdir()
    }


def test_no_requirements_are_inferred(saved, store, monkeypatch, tmp_path):
    inferred = []
    for module in (mlflow.models, mlflow.utils.environment):
        monkeypatch.setattr(
            module, "infer_pip_requirements", lambda *a, **_: inferred.append(a) or []
        )
    monkeypatch.setattr(
        requirements_utils, "_capture_imported_modules", lambda *a, **_: inferred.append(a) or []
    )
    mlflow_e2eai.log_model(saved.module, "model", **saved.options)
    assert inferred == []

    # And whoever does infer them would have been seen.
    mlflow.onnx.save_model(mlflow.onnx.load_model(str(saved.directory)), tmp_path / "of_mlflow")
    assert inferred != []


# Errors.


@pytest.fixture
def full_disk(monkeypatch):
    """What is known to be wrong is refused before; this shows as the model is written."""

    def describe(*_, **__):
        msg = "No space left on device"
        raise OSError(msg)

    monkeypatch.setattr("mlflow_e2eai.flavor.api.describe", describe)
    return "No space left on device"


def test_an_error_leaves_the_logged_model_failed_and_says_why(log, store, full_disk):
    says = full_disk
    with pytest.raises(StorageError, match=says):
        log()

    experiment = store.get_experiment_by_name("tests").experiment_id
    (model,) = store.search_logged_models([experiment])
    assert model.status == LoggedModelStatus.FAILED
    assert says in model.tags["e2eai.error"]
    run = store.get_run(model.source_run_id)
    assert run.info.status == "FAILED"
    assert says in run.data.tags["e2eai.error"]


def test_an_error_leaves_the_logged_model_that_was_given_failed_and_says_why(log, store, full_disk):
    given = mlflow.initialize_logged_model(name="given")
    with pytest.raises(StorageError, match=full_disk):
        log(model_id=given.model_id)

    model = store.get_logged_model(given.model_id)
    assert model.status == LoggedModelStatus.FAILED
    assert full_disk in model.tags["e2eai.error"]


def test_a_stage_that_fails_leaves_the_logged_model_that_was_given_failed(store):
    given = mlflow.initialize_logged_model(name="given")
    with pytest.raises(InvalidInputError, match="does not accept the input example"):
        mlflow_e2eai.log_model(
            torch.nn.Linear(4, 2).eval(),
            "model",
            input_example={"input": torch.ones(2, 3)},
            model_id=given.model_id,
        )

    model = store.get_logged_model(given.model_id)
    assert model.status == LoggedModelStatus.FAILED
    assert "does not accept the input example" in model.tags["e2eai.error"]


def test_a_stage_that_fails_says_why_on_its_run_and_on_the_parent(store):
    class UnusedInput(torch.nn.Module):
        def forward(self, x, unused):
            return x * 2

    example = {"x": torch.ones(2, 4), "unused": torch.ones(2, 4)}
    with pytest.raises(mlflow_e2eai.errors.E2EAIError) as raised, mlflow.start_run() as parent:
        mlflow_e2eai.log_model(
            UnusedInput().eval(),
            "model",
            input_example=example,
            precisions=("fp32",),
            exporter="trace",
        )

    export = children(store, parent.info.run_id)["export"]
    for run in (export, store.get_run(parent.info.run_id)):
        assert run.info.status == "FAILED"
        assert run.data.tags["e2eai.error"] == str(raised.value)
    assert "package" not in models_by_stage(store, parent.info.run_id)


def test_a_server_that_is_not_there_is_an_error_within_seconds(saved):
    mlflow.set_tracking_uri(f"http://127.0.0.1:{free_port()}")
    calls = (
        lambda: mlflow_e2eai.log_model(saved.bundle, "model"),
        lambda: mlflow_e2eai.promote("net", 1),
    )
    for call in calls:
        began = time.monotonic()
        with pytest.raises(TrackingError, match="cannot be reached"):
            call()
        assert time.monotonic() - began < 30  # MLflow by itself tries for minutes
    assert mlflow.active_run() is None


# Lineage.


def _assert_lineage(client, info):
    runs = children(client, info.run_id)
    models = models_by_stage(client, info.run_id)
    source, raw, clean = (models[stage].model_id for stage in ("source", "export", "clean"))

    # By the runs: what each stage was given and what it made.
    assert (inputs_of(runs["export"]), outputs_of(runs["export"])) == ({source}, {raw})
    assert (inputs_of(runs["clean"]), outputs_of(runs["clean"])) == ({raw}, {clean})
    assert inputs_of(runs["evaluate torch/fp32"]) == {source}
    assert inputs_of(runs["evaluate onnxruntime-cpu/fp32"]) == {clean}
    assert (inputs_of(runs["package"]), outputs_of(runs["package"])) == ({clean}, {info.model_id})
    assert {source, info.model_id} <= outputs_of(client.get_run(info.run_id))

    # By search, from the root down and from the end up.
    experiment = client.get_run(info.run_id).info.experiment_id

    def search(key, value):
        found = client.search_logged_models([experiment], f"tags.`{key}` = '{value}'")
        return {model.model_id for model in found}

    assert search("e2eai.source_model", source) == {raw, clean, info.model_id}
    assert search("e2eai.derived_from", source) == {raw}
    assert search("e2eai.derived_from", raw) == {clean}
    assert search("e2eai.derived_from", clean) == {info.model_id}
    way, at = [], client.get_logged_model(info.model_id)
    while (parent := at.tags.get("e2eai.derived_from")) is not None:
        way.append(parent)
        at = client.get_logged_model(parent)
    assert way == [clean, raw, source]


def test_the_lineage_can_be_walked_both_ways(saved, store):
    info = mlflow_e2eai.log_model(saved.module, "model", **saved.options)

    _assert_lineage(store, info)
    assert all(run.info.status == "FINISHED" for run in children(store, info.run_id).values())


def test_all_of_it_works_over_http(saved, remote_store):
    info = mlflow_e2eai.log_model(
        saved.module, "over_http", **saved.options, registered_model_name="over_http"
    )

    assert mlflow.get_tracking_uri().startswith("http://")
    _assert_lineage(_Only(remote_store, info.run_id), info)
    loaded = mlflow_e2eai.load_model("models:/over_http/1")
    assert_close(loaded(saved.inputs)["output"], saved.outputs["output"])
    assert mlflow_e2eai.promote("over_http", info.registered_model_version).promoted
    champion = remote_store.get_model_version_by_alias("over_http", "champion")
    assert str(champion.version) == str(info.registered_model_version)
    of_pyfunc = mlflow.pyfunc.load_model("models:/over_http@champion")
    assert_close(of_pyfunc.predict(saved.inputs)["output"], saved.outputs["output"])


class _Only:
    """A client that finds only what the runs of one parent made: others log to the server too."""

    def __init__(self, client, run_id) -> None:
        self._client = client
        self._name = client.get_run(run_id).info.run_name.partition(" ")[0]

    def __getattr__(self, name):
        return getattr(self._client, name)

    def search_logged_models(self, experiments, filter_string=None):
        ours = f"name LIKE '{self._name}%'"
        both = ours if filter_string is None else f"{filter_string} AND {ours}"
        return self._client.search_logged_models(experiments, both)


# Names.


@pytest.mark.parametrize("name", ["file", "allow_pickle", "args"])
def test_an_input_may_have_any_name(model_path, name):
    example = {name: torch.ones(2, 4)}
    mlflow_e2eai.save_model(
        torch.nn.ReLU().eval(), model_path, input_example=example, precisions=("fp32",)
    )

    answer = mlflow.pyfunc.load_model(model_path).predict({name: np.ones((2, 4), np.float32)})
    assert_close(answer["output"], np.ones((2, 4)))
