"""Libraries of operators: they travel with the model, and run only where the caller allows it."""

import dataclasses
import hashlib
import json
import logging
import shutil
from pathlib import Path

import mlflow
import numpy as np
import pytest
import torch

from mlflow_e2eai import bundle, load_model, log_model, promote, save_model, tracking
from mlflow_e2eai.artifacts.files import seal, sha256_of
from mlflow_e2eai.artifacts.libraries import (
    copy_libraries,
    describe_libraries,
    loadable,
    native_allowed,
    resolve_libraries,
)
from mlflow_e2eai.artifacts.values import EngineArtifact, Library, Target
from mlflow_e2eai.cli.main import main
from mlflow_e2eai.engine.plugins import load_plugins
from mlflow_e2eai.engine.stage import compile
from mlflow_e2eai.errors import ArtifactError, InvalidInputError, RunnerError
from mlflow_e2eai.evaluation.bisection.nodes import bisect
from mlflow_e2eai.pipeline.settings import Settings
from mlflow_e2eai.precision.stage import convert
from mlflow_e2eai.pytorch.stage import export
from mlflow_e2eai.surgery.plan import DEFAULT_PLAN, plan_from
from mlflow_e2eai.surgery.stage import clean

pytest.importorskip("onnxruntime_extensions")
from negpos_model import AXES, EXAMPLE, LIBRARY, WithNegPos

NAME = Path(LIBRARY).name
SHA256 = hashlib.sha256(Path(LIBRARY).read_bytes()).hexdigest()
NEEDS = rf"needs the library {NAME} \(sha256 {SHA256}\).*allow_native=\['{NAME}'\]"


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    path = tmp_path_factory.mktemp("saved") / "model"
    save_model(
        WithNegPos().eval(),
        path,
        input_example=EXAMPLE,
        dynamic_axes=AXES,
        operator_libraries=[LIBRARY],
    )
    return path


@pytest.fixture
def broken(saved, tmp_path):
    """The saved model with another library of the same name."""
    place = shutil.copytree(saved, tmp_path / "broken")
    library = place / "bundle" / "libraries" / NAME
    library.write_bytes(library.read_bytes() + b"\0")
    return place


def right():
    return WithNegPos()(EXAMPLE).detach().numpy()


def test_a_bundle_holds_the_library_and_its_digest(saved):
    manifest = bundle.read(saved / "bundle")

    assert [graph.precision for graph in manifest.graphs] == ["fp32", "fp16"]
    wanted = (Library(path=Path("libraries", NAME), sha256=SHA256),)
    assert {graph.libraries for graph in manifest.graphs} == {wanted}
    held = saved / "bundle" / "libraries" / NAME
    assert hashlib.sha256(held.read_bytes()).hexdigest() == SHA256
    assert [entry.variant for entry in manifest.evidence if not entry.passed] == []


def test_what_a_library_implements_stays_in_fp32(saved):
    (report,) = bundle.read(saved / "bundle").conversions

    assert [(kept.operator, kept.reason) for kept in report.kept] == [
        ("ai.onnx.contrib::NegPos", "library")
    ]


def test_it_is_loaded_where_the_caller_names_it(saved):
    with load_model(str(saved), allow_native=[NAME]) as model:
        assert model.variant == "onnxruntime-cpu/fp32"
        np.testing.assert_allclose(model(EXAMPLE.numpy())["output"], right(), atol=1e-6)

    config = {"allow_native": [NAME]}
    answer = mlflow.pyfunc.load_model(str(saved), model_config=config).predict(EXAMPLE.numpy())
    np.testing.assert_allclose(answer["output"], right(), atol=1e-6)


@pytest.mark.parametrize("allowed", [[], ["other.so"]])
@pytest.mark.parametrize("variant", [None, "onnxruntime-cpu/fp16"])
def test_it_is_not_loaded_unasked(saved, allowed, variant):
    with pytest.raises(RunnerError, match=NEEDS):
        load_model(str(saved), allow_native=allowed, variant=variant)
    with pytest.raises(RunnerError, match=NEEDS):
        mlflow.pyfunc.load_model(str(saved), model_config={"variant": variant})


def test_a_library_that_changed_is_not_loaded(broken):
    with pytest.raises(ArtifactError, match=f"{NAME} has sha256"):
        load_model(str(broken), allow_native=[NAME])


def test_a_manifest_is_not_believed_that_a_library_is_allowed(saved, tmp_path):
    place = shutil.copytree(saved, tmp_path / "sly")
    mlmodel = place / "MLmodel"
    lines = mlmodel.read_text().splitlines(keepends=True)
    mlmodel.write_text("".join(line for line in lines if "digests:" not in line))
    path = place / "bundle" / "manifest.json"
    said = json.loads(path.read_text())
    for graph in said["graphs"]:
        graph["libraries"][0]["allowed"] = True
    del said["sha256"]
    path.write_text(seal(json.dumps(said, indent=2)))

    with pytest.raises(RunnerError, match=NEEDS):
        load_model(str(place))


@pytest.mark.parametrize("path", ["/lib/libc.so", "../lib.so"])
def test_a_library_outside_the_model_is_refused(path, tmp_path):
    with (
        native_allowed(["libc.so", "lib.so"]),
        pytest.raises(ArtifactError, match="outside"),
    ):
        resolve_libraries([Library(path=Path(path), sha256="0")], tmp_path)


def test_a_saved_model_is_saved_again_without_loading_the_library(saved, tmp_path):
    save_model(saved, tmp_path / "again")

    manifest = bundle.read(tmp_path / "again" / "bundle")
    assert manifest.graphs[0].libraries == bundle.read(saved / "bundle").graphs[0].libraries


def test_mlflows_onnx_flavor_is_left_out_and_that_is_said(saved, tmp_path, caplog):
    with caplog.at_level(logging.WARNING, "mlflow_e2eai"):
        save_model(saved, tmp_path / "again")

    assert "onnx" not in mlflow.models.Model.load(str(saved)).flavors
    assert f"no flavor 'onnx': MLflow's own could not run its graph, which needs {NAME}" in (
        caplog.text
    )


def test_libraries_of_one_name_are_refused(tmp_path):
    other = tmp_path / NAME
    other.write_bytes(b"other")

    with pytest.raises(InvalidInputError, match=f"Two libraries are named {NAME}"):
        describe_libraries([LIBRARY, other])
    copy_libraries(describe_libraries([other]), tmp_path / "bundle")
    with pytest.raises(InvalidInputError, match=f"Two libraries are named {NAME}"):
        copy_libraries(describe_libraries([LIBRARY]), tmp_path / "bundle")


@pytest.mark.parametrize("names", ["lib.so", ["folder/lib.so"]])
def test_libraries_are_allowed_by_a_list_of_file_names(names):
    with pytest.raises(InvalidInputError, match="a list of file names"), native_allowed(names):
        pass


def test_a_library_is_allowed_in_the_block_only():
    stored = [Library(path=Path(LIBRARY).relative_to("/"), sha256=SHA256)]
    with native_allowed([NAME]):
        assert loadable(resolve_libraries(stored, Path("/"))) == (Path(LIBRARY),)

    with pytest.raises(RunnerError, match=NEEDS):
        loadable(resolve_libraries(stored, Path("/")))


@pytest.fixture
def raw(tmp_path):
    made, _ = export(
        WithNegPos().eval(),
        EXAMPLE,
        out=tmp_path / "raw.onnx",
        dynamic_axes=AXES,
        operator_libraries=[LIBRARY],
    )
    return made


def test_the_stages_hand_libraries_on_as_values(raw, tmp_path):
    samples = [{"x": EXAMPLE.numpy()}]
    cleaned, _ = clean(raw, DEFAULT_PLAN, out=tmp_path / "clean.onnx", samples=samples)
    half, _ = convert(cleaned, "fp16", out=tmp_path / "fp16.onnx", samples=samples)
    found = bisect(cleaned, samples=samples, tolerance=1e-9)

    assert raw.libraries == describe_libraries([LIBRARY])
    assert {graph.libraries for graph in (raw, cleaned, half)} == {raw.libraries}
    assert found.nodes
    assert not any("NegPos" in node for node in found.nodes)


class Foo(torch.autograd.Function):
    @staticmethod
    def symbolic(g, x):
        return g.op("devtech::Foo", x).setType(x.type())

    @staticmethod
    def forward(_ctx, x):
        return x * 1


class WithFoo(torch.nn.Module):
    def forward(self, x):
        return Foo.apply(x + 1)


def test_where_surgery_takes_the_operator_out_no_library_is_needed(tmp_path):
    raw, _ = export(
        WithFoo().eval(),
        EXAMPLE,
        out=tmp_path / "raw.onnx",
        deferred=["Foo"],
        operator_libraries=[LIBRARY],
    )
    cleaned, _ = clean(
        raw,
        plan_from([{"bypass": {"op_type": "Foo", "domain": "devtech"}}]),
        out=tmp_path / "c.onnx",
    )

    assert raw.libraries == describe_libraries([LIBRARY])
    assert cleaned.libraries == ()


FACTORY = Path(__file__).parents[1] / "support" / "negpos_model.py"


@pytest.mark.slow
def test_every_stage_runs_by_its_verb_where_the_library_is_allowed(store, capsys):
    def verb(name, *words, code=0, whole=False):
        capsys.readouterr()
        assert main([name, *words]) == code
        printed = capsys.readouterr()
        if code:
            return printed.err
        return printed.out if whole else printed.out.split()[-1]

    allow = ("--allow-native", NAME)
    source = verb("log", "--model", f"{FACTORY}:make")
    for name in ("export", "pipeline"):
        assert f"needs the library {NAME}" in verb(name, "--model-uri", source, code=1)
    raw = verb("export", "--model-uri", source, *allow)
    assert f"needs the library {NAME}" in verb("clean", "--model-uri", raw, code=1)
    cleaned = verb("clean", "--model-uri", raw, *allow)
    half = verb("convert", "--model-uri", cleaned, "--precision", "fp16", *allow)
    verb("bisect", "--model-uri", half, *allow)
    unasked = verb("evaluate", "--model-uri", half, whole=True)
    assert f"onnxruntime-cpu/fp16: not measured (The model needs the library {NAME}" in unasked
    asked = verb("evaluate", "--model-uri", half, *allow, whole=True)
    assert "onnxruntime-cpu/fp16: passed" in asked
    package = verb("pipeline", "--model-uri", source, "--registered-model-name", "negpos", *allow)
    with load_model(package, allow_native=[NAME]) as model:
        np.testing.assert_allclose(model(EXAMPLE.numpy())["output"], right(), atol=1e-6)


def test_promote_measures_both_versions_where_the_library_is_allowed(store, saved):
    log_model(saved, registered_model_name="negpos")
    log_model(
        WithNegPos().eval(),
        registered_model_name="negpos",
        input_example=EXAMPLE,
        dynamic_axes=AXES,
        operator_libraries=[LIBRARY],
        precisions=["fp32"],
    )
    gates = {"gates": [{"metric": "champion/latency_ratio", "at_most": 1000}]}

    def decided(version, *names):
        return promote("negpos", version, gates=gates, remeasure=True, allow_native=names)

    assert promote("negpos", 1).promoted
    assert not decided(2).promoted
    assert decided(2, NAME).promoted


def test_an_onnx_file_with_such_operators_begins_a_chain(store, raw, capsys):
    words = ["clean", "--onnx", str(raw.path), "--dynamic-axes", "x:0=N:1:3:8"]
    assert main(words) == 1
    assert "cannot load raw.onnx" in capsys.readouterr().err

    assert main([*words, "--operator-libraries", LIBRARY]) == 0
    model = tracking.resolve(capsys.readouterr().out.split()[-1])
    with native_allowed([NAME]):
        cleaned = tracking.fetch_graph(model, raw.path.parent / "cleaned")
    assert loadable(cleaned.libraries)[0].read_bytes() == Path(LIBRARY).read_bytes()


class Registry:
    """A builder or runtime whose registry of plugins takes some libraries."""

    def __init__(self, *known):
        self.known, self.loaded = known, []

    def get_plugin_registry(self):
        return self

    def load_library(self, path):
        self.loaded.append(path)
        return object() if path in self.known else None


def test_plugins_are_loaded_into_the_registry_where_they_are_allowed(tmp_path):
    registry = Registry(LIBRARY)
    load_plugins(registry, describe_libraries([LIBRARY]))
    assert registry.loaded == [LIBRARY]

    unasked = [Library(path=Path(LIBRARY), sha256=SHA256)]
    with pytest.raises(RunnerError, match=NEEDS):
        load_plugins(registry, unasked)
    assert registry.loaded == [LIBRARY]
    with pytest.raises(RunnerError, match=f"cannot load plugins from {NAME}"):
        load_plugins(Registry(), describe_libraries([LIBRARY]))


def test_tensorrts_own_registry_is_asked_and_refuses_what_holds_no_plugins():
    trt = pytest.importorskip("tensorrt_rtx")  # it has the interface of TensorRT's registry

    with pytest.raises(RunnerError, match=f"cannot load plugins from {NAME}"):
        load_plugins(
            trt.Builder(trt.Logger(trt.Logger.INTERNAL_ERROR)), describe_libraries([LIBRARY])
        )


def test_tensorrt_rtx_takes_no_plugins_which_is_said_before_any_work(tmp_path, raw, store, capsys):
    pytest.importorskip("tensorrt_rtx")
    said = f"TensorRT-RTX takes no plugins, but {NAME} was given for the target tensorrt_rtx-sm86"

    with pytest.raises(InvalidInputError, match=said):
        compile(raw, "sm86", out=tmp_path / "out.engine", plugin_libraries=[LIBRARY])
    with pytest.raises(InvalidInputError, match=said):
        Settings(targets=["sm86"], plugin_libraries=[LIBRARY])
    words = ["--model-uri", "m-0", "--targets", "sm86", "--plugin-libraries", LIBRARY]
    assert main(["compile", *words]) == 1
    assert said in capsys.readouterr().err


def test_plugins_lie_in_the_bundle_and_are_allowed_by_name(saved, tmp_path):
    manifest, example = (
        bundle.audit(saved / "bundle"),
        bundle.read_example(saved / "bundle"),
    )
    path = tmp_path / "some.engine"
    path.write_bytes(b"engine")
    plugin = tmp_path / "libplugin.so"
    plugin.write_bytes(b"plugin")
    engine = EngineArtifact(
        path=path,
        sha256=sha256_of(path),
        parent_sha256=manifest.graphs[0].sha256,
        target=Target(backend="tensorrt", compute_capability="sm90", gpu_name="H100"),
        backend_version="10.16.1",
        precision="fp32",
        tf32=False,
        inputs=manifest.inputs,
        outputs=manifest.outputs,
        axes=manifest.axes,
        build_s=1.0,
        size_bytes=6,
        libraries=describe_libraries([plugin]),
    )
    place = tmp_path / "bundle"
    bundle.write(place, dataclasses.replace(manifest, engines=(engine,)), example)

    (stored,) = bundle.read(place).engines
    assert [library.path for library in stored.libraries] == [Path("libraries", "libplugin.so")]
    with native_allowed(["libplugin.so"]):
        (placed,) = bundle.audit(place).engines
    assert loadable(placed.libraries) == (place / "libraries" / "libplugin.so",)
    (placed,) = bundle.audit(place).engines
    with pytest.raises(RunnerError, match=r"needs the library libplugin\.so"):
        loadable(placed.libraries)
