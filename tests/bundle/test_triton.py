"""Triton model repositories, held against Triton's own definition of a configuration."""

import dataclasses
import importlib.util
import os
import re
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from google.protobuf import text_format
from hypothesis import given
from hypothesis import strategies as st
from small_models import AXES, N, features, net

import mlflow_e2eai
from mlflow_e2eai import Axis, bundle
from mlflow_e2eai.artifacts.build_settings import BuildSettings
from mlflow_e2eai.artifacts.files import sha256_of
from mlflow_e2eai.artifacts.values import EngineArtifact, Library, Target, TensorSpec
from mlflow_e2eai.bundle.triton import config
from mlflow_e2eai.cli import main
from mlflow_e2eai.cli.results import DONE
from mlflow_e2eai.errors import ArtifactError, InvalidInputError, RunnerError, TrackingError
from mlflow_e2eai.flavor.triton import export_triton

pytestmark = pytest.mark.usefixtures("on_threads")

TRITONCLIENT = "tritonclient==2.73.0"


@pytest.fixture(scope="session")
def triton(tmp_path_factory):
    """Triton's protobuf definition, of which nothing but the messages is used.

    tritonclient is no requirement of the tests: it asks for an older protobuf and ml_dtypes.
    """
    folder = tmp_path_factory.mktemp("tritonclient")
    words = ["install", "--quiet", "--no-deps", "--target", folder, TRITONCLIENT]
    done = subprocess.run(
        [sys.executable, "-m", "pip", *words], capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        pytest.skip(f"{TRITONCLIENT} cannot be had: {done.stderr[-300:]}")
    path = folder / "tritonclient" / "grpc" / "model_config_pb2.py"
    spec = importlib.util.spec_from_file_location("model_config_pb2", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def directory(tmp_path_factory):
    """A model in fp32 and fp16."""
    place = tmp_path_factory.mktemp("saved") / "digits"
    example = {"x": features()}
    mlflow_e2eai.save_model(net(), place, input_example=example, dynamic_axes=AXES)
    return place


@pytest.fixture
def read(triton):
    """Triton's own reading of a model's configuration."""

    def parsed(place):
        text = (place / "config.pbtxt").read_text("utf-8")
        return text_format.Parse(text, triton.ModelConfig())

    return parsed


def engine(folder, graph, number, **changes):
    """An engine of a graph that no TensorRT built: nothing here looks into one."""
    path = folder / f"{number}.engine"
    path.write_bytes(f"engine {number}".encode())
    fields = {
        "path": path,
        "sha256": sha256_of(path),
        "parent_sha256": graph.sha256,
        "target": Target(backend="tensorrt", compute_capability="sm86", gpu_name="NVIDIA A10"),
        "backend_version": "10.16.1.11",
        "precision": graph.precision,
        "tf32": False,
        "inputs": graph.inputs,
        "outputs": graph.outputs,
        "axes": graph.axes,
        "build_s": 1.0,
        "size_bytes": path.stat().st_size,
    }
    return EngineArtifact(**{**fields, **changes})


@pytest.fixture
def altered(directory, tmp_path):
    """A bundle with its manifest changed by a function of the manifest and a folder for files."""

    def make(change, example=None):
        place = bundle.find(directory)
        manifest = bundle.audit(place)
        example = bundle.read_example(place) if example is None else example
        folder = tmp_path / "files"
        folder.mkdir()
        bundle.write(tmp_path / "altered", change(manifest, folder), example)
        return tmp_path / "altered"

    return make


def with_engines(*several):
    """A change of a manifest: engines of its first graph, each given by its fields."""

    def change(manifest, folder):
        engines = [
            engine(folder, manifest.graphs[0], at, **fields) for at, fields in enumerate(several)
        ]
        return dataclasses.replace(manifest, engines=tuple(engines))

    return change


def capability(name, backend="tensorrt"):
    return {"target": Target(backend=backend, compute_capability=name)}


# What is written


def test_each_graph_becomes_a_model_that_triton_reads(directory, tmp_path, read, triton):
    places = export_triton(str(directory), tmp_path / "repository")

    assert [place.name for place in places] == [
        "digits-onnxruntime-fp32",
        "digits-onnxruntime-fp16",
    ]
    assert sorted(each.name for each in (tmp_path / "repository").iterdir()) == sorted(
        place.name for place in places
    )
    for place, graph in zip(places, bundle.read(bundle.find(directory)).graphs, strict=True):
        said = read(place)
        assert (said.name, said.backend, said.max_batch_size) == (place.name, "onnxruntime", 16)
        assert said.HasField("dynamic_batching")
        assert [(i.name, i.data_type, list(i.dims)) for i in said.input] == [
            ("x", triton.TYPE_FP32, [8])
        ]
        assert [(o.data_type, list(o.dims)) for o in said.output] == [(triton.TYPE_FP32, [3])]
        assert sha256_of(place / "1" / "model.onnx") == graph.sha256
        accelerator = said.optimization.execution_accelerators.gpu_execution_accelerator[0]
        assert (accelerator.name, dict(accelerator.parameters)) == ("cuda", {"use_tf32": "0"})


def test_the_model_that_was_written_answers_at_the_sizes_that_the_configuration_names(
    directory, tmp_path, read
):
    place, *_ = export_triton(str(directory), tmp_path / "repository")
    said = read(place)
    session = onnxruntime.InferenceSession(place / "1" / "model.onnx")

    for size in (1, said.max_batch_size):
        shape = (size, *said.input[0].dims)
        (answer,) = session.run([said.output[0].name], {"x": np.zeros(shape, np.float32)})
        assert answer.shape == (size, *said.output[0].dims)


def test_warm_up_asks_the_example_at_the_corners_of_the_profile(directory, tmp_path, read, triton):
    place, *_ = export_triton(str(directory), tmp_path / "repository")
    requests = {request.name: request for request in read(place).model_warmup}

    assert {name: r.batch_size for name, r in requests.items()} == {"opt": 4, "min": 1, "max": 16}
    for request in requests.values():
        (name,) = request.inputs
        asked = request.inputs[name]
        file = place / "warmup" / asked.input_data_file
        assert (name, asked.data_type, list(asked.dims)) == ("x", triton.TYPE_FP32, [8])
        # One item, of which Triton makes a batch.
        np.testing.assert_array_equal(np.frombuffer(file.read_bytes(), np.float32), features()[0])


def test_each_compute_capability_gets_its_engine(altered, tmp_path, read, triton):
    three = [capability(name) for name in ("sm86", "sm90", "sm120")]
    path = altered(with_engines(*three))
    with pytest.warns(UserWarning, match=r"needs TensorRT 10\.16\.1\.11, and no other"):
        place, *_ = export_triton(str(path), tmp_path / "repository", name="digits")
    said = read(place)

    assert (said.name, said.backend) == ("digits-tensorrt-fp32", "tensorrt")
    assert dict(said.cc_model_filenames) == {
        "8.6": "sm86.plan",
        "9.0": "sm90.plan",
        "12.0": "sm120.plan",
    }
    plans = [(place / "1" / file).read_bytes() for file in said.cc_model_filenames.values()]
    assert sorted(plans) == [b"engine 0", b"engine 1", b"engine 2"]
    (group,) = said.instance_group
    assert (group.kind, group.count) == (triton.ModelInstanceGroup.KIND_GPU, 1)
    assert said.max_batch_size == 16
    assert len(said.model_warmup) == 3


def test_an_engine_for_several_capabilities_or_all_lies_there_once(altered, tmp_path, read):
    path = altered(with_engines(capability("sm86+sm89"), capability("")))
    with pytest.warns(UserWarning, match="needs TensorRT"):
        place, *_ = export_triton(str(path), tmp_path / "repository")
    said = read(place)

    assert dict(said.cc_model_filenames) == {"8.6": "sm86+sm89.plan", "8.9": "sm86+sm89.plan"}
    assert said.default_model_filename == "ampere+.plan"
    assert {file.name: file.read_bytes() for file in (place / "1").iterdir()} == {
        "sm86+sm89.plan": b"engine 0",
        "ampere+.plan": b"engine 1",
    }


def test_each_bucket_is_a_profile_that_is_warmed_up_and_preferred(altered, tmp_path, read):
    axes = (dataclasses.replace(N, buckets=(1, 8)),)

    def change(manifest, folder):
        graphs = [dataclasses.replace(graph, axes=axes) for graph in manifest.graphs]
        made = engine(folder, graphs[0], 0)
        return dataclasses.replace(manifest, graphs=tuple(graphs), engines=(made,))

    with pytest.warns(UserWarning, match="needs TensorRT"):
        place, *_ = export_triton(str(altered(change)), tmp_path / "repository")
    said = read(place)

    assert list(said.instance_group[0].profile) == ["0", "1", "2"]
    assert list(said.dynamic_batching.preferred_batch_size) == [1, 8]
    assert {request.batch_size for request in said.model_warmup} == {1, 4, 8, 16}


@pytest.mark.parametrize(
    ("others", "reason"),
    [
        ([capability("sm89", "tensorrt_rtx")], "tensorrt_rtx-sm89/fp32 is a TensorRT-RTX engine"),
        (
            [{**capability("sm89"), "backend_version": "10.9.0.34"}],
            "tensorrt-sm89/fp32 was built by TensorRT 10.9.0.34, and a server has one",
        ),
        (
            [{**capability("sm89"), "settings": BuildSettings(strip_weights=True)}],
            "tensorrt-sm89/fp32 was built without weights, which Triton cannot refit",
        ),
        (
            [capability("sm86+sm89")],
            "tensorrt-sm86+sm89/fp32 is the second engine for compute capability 8.6, and",
        ),
    ],
)
def test_an_engine_that_triton_cannot_serve_is_named(altered, tmp_path, read, others, reason):
    path = altered(with_engines(capability("sm86"), *others))
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        place, *_ = export_triton(str(path), tmp_path / "repository")

    assert reason in str(heard[0].message)
    assert dict(read(place).cc_model_filenames) == {"8.6": "sm86.plan"}


def test_what_failed_its_comparison_is_left_out(altered, tmp_path):
    def change(manifest, _):
        half = manifest.graphs[1].sha256
        evidence = [
            dataclasses.replace(entry, reason="It broke down.") if entry.sha256 == half else entry
            for entry in manifest.evidence
        ]
        return dataclasses.replace(manifest, evidence=tuple(evidence))

    with pytest.warns(UserWarning, match="onnxruntime/fp16 failed its comparison"):
        places = export_triton(str(altered(change)), tmp_path / "repository")

    assert [place.name for place in places] == ["altered-onnxruntime-fp32"]


@pytest.mark.parametrize(
    ("precision", "kind", "level"), [("bf16", "KIND_GPU", None), ("fp8", "KIND_AUTO", -1)]
)
def test_onnxruntime_is_told_what_a_precision_needs(
    altered, tmp_path, read, triton, precision, kind, level
):
    def change(manifest, _):
        first, second = manifest.graphs
        return dataclasses.replace(
            manifest, graphs=(first, dataclasses.replace(second, precision=precision))
        )

    _, place = export_triton(str(altered(change)), tmp_path / "repository")
    said = read(place)

    assert said.instance_group[0].kind == triton.ModelInstanceGroup.Kind.Value(kind)
    assert said.optimization.HasField("graph") == (level is not None)
    assert said.optimization.graph.level == (level or 0)


def test_int8_without_a_gpu_needs_a_processor_that_does_not_saturate(altered, tmp_path):
    def change(manifest, _):
        first, second = manifest.graphs
        return dataclasses.replace(
            manifest, graphs=(first, dataclasses.replace(second, precision="int8"))
        )

    with pytest.warns(UserWarning, match=r"int8 needs a GPU, or a processor with VNNI"):
        _, place = export_triton(str(altered(change)), tmp_path / "repository")

    assert "processor with VNNI" in (place / "config.pbtxt").read_text()


def test_weights_that_lie_beside_the_graph_go_along(tmp_path, monkeypatch):
    monkeypatch.setattr("mlflow_e2eai.artifacts.external_data.EXTERNAL_BYTES", 1 << 11)
    monkeypatch.setattr("mlflow_e2eai.artifacts.external_data.SMALL_BYTES", 1 << 8)
    module = torch.nn.Linear(8, 1024)
    path = saved(module, features(), {0: N}, tmp_path / "large")
    (place,) = export_triton(path, tmp_path / "repository")

    assert [file.suffix for file in sorted((place / "1").iterdir())] == [".weights", ".onnx"]
    session = onnxruntime.InferenceSession(place / "1" / "model.onnx")
    (answer,) = session.run(None, {"x": features()})
    with torch.no_grad():
        wanted = module(torch.from_numpy(features())).numpy()
    np.testing.assert_allclose(answer, wanted, atol=1e-5)


# Batches


class Mixing(torch.nn.Module):
    """The points of one cloud see each other, though their axis looks like a batch's."""

    def forward(self, x):
        return x - x.mean(0, keepdim=True)


class Flat(torch.nn.Module):
    """One number in and out for each item."""

    def forward(self, x):
        return 2 * x


class Transposing(torch.nn.Module):
    """The batch is the second axis of the output."""

    def forward(self, x):
        return x.T * 2


def saved(module, array, axes, place):
    mlflow_e2eai.save_model(
        module.eval(),
        place,
        input_example={"x": array},
        dynamic_axes={"x": axes},
        precisions=("fp32",),
    )
    return str(place)


def test_requests_of_a_model_whose_items_see_each_other_are_not_put_together(tmp_path, read):
    path = saved(Mixing(), features(), {0: N}, tmp_path / "cloud")
    with pytest.warns(UserWarning, match="depends on the other items along 'N', so that a request"):
        (place,) = export_triton(path, tmp_path / "repository")
    said = read(place)

    assert said.max_batch_size == 0
    assert not said.HasField("dynamic_batching")
    assert list(said.input[0].dims) == [-1, 8]
    request = {each.name: each for each in said.model_warmup}["max"]
    assert (request.batch_size, list(request.inputs["x"].dims)) == (1, [16, 8])
    file = place / "warmup" / request.inputs["x"].input_data_file
    assert file.stat().st_size == 16 * 8 * 4


@pytest.mark.parametrize(
    ("module", "axes"),
    [
        (Transposing(), {0: N}),
        (torch.nn.ReLU(), {0: Axis("N", min=2, opt=4, max=8)}),
        (torch.nn.ReLU(), {0: Axis("N", min=2, opt=4, max=8, multiple=2)}),
        (torch.nn.ReLU(), {1: N}),
        (torch.nn.ReLU(), {}),
    ],
)
def test_without_a_batch_axis_of_all_sizes_the_dimensions_are_explicit(
    tmp_path, read, module, axes
):
    (place,) = export_triton(saved(module, features(), axes, tmp_path / "m"), tmp_path / "r")
    said = read(place)

    assert said.max_batch_size == 0
    assert list(said.input[0].dims) == [-1 if at in axes else (4, 8)[at] for at in (0, 1)]


def test_one_number_for_each_item_is_given_with_an_axis_of_one(tmp_path, read):
    path = saved(Flat(), np.arange(4, dtype=np.float32), {0: N}, tmp_path / "flat")
    (place,) = export_triton(path, tmp_path / "repository")
    said = read(place)

    for tensor in (*said.input, *said.output):
        assert list(tensor.dims) == [1]
        assert tensor.HasField("reshape")
        assert list(tensor.reshape.shape) == []
    assert [list(each.inputs["x"].dims) for each in said.model_warmup] == [[1]] * 3


# Names and places


def test_a_registered_model_gives_its_name(store, directory, tmp_path):
    info = mlflow_e2eai.log_model(bundle.find(directory), "model", registered_model_name="net")
    store.set_registered_model_alias("net", "champion", "1")
    uris = {
        "models:/net@champion": "net",
        "models:/net/1": "net",
        info.model_uri: "model",
        info.model_id: "model",
    }

    for at, (uri, name) in enumerate(uris.items()):
        places = export_triton(uri, tmp_path / str(at))
        assert places[0].name == f"{name}-onnxruntime-fp32"
    with pytest.raises(TrackingError, match="There is no model"):
        export_triton("models:/net@nobody", tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_the_command_prints_the_folders(directory, tmp_path, capsys):
    words = ["export-triton", str(directory), "--repository", str(tmp_path / "r"), "--name", "n"]
    assert main.main(words) == DONE
    assert capsys.readouterr().out.split() == [
        str(tmp_path / "r" / f"n-onnxruntime-{precision}") for precision in ("fp32", "fp16")
    ]

    assert main.main(words) == main.ERROR
    assert "has n-onnxruntime-fp32, n-onnxruntime-fp16; replace them" in capsys.readouterr().err
    assert main.main([*words, "--replace"]) == DONE


def test_models_that_are_there_are_replaced_only_when_told(directory, tmp_path):
    place, *_ = export_triton(str(directory), tmp_path)
    (place / "config.pbtxt").write_text("mine")
    (place / "more").write_text("mine")
    with pytest.raises(InvalidInputError, match="has digits-onnxruntime-fp32, digits-onnx"):
        export_triton(str(directory), tmp_path)
    assert (place / "config.pbtxt").read_text() == "mine"

    export_triton(str(directory), tmp_path, replace=True)

    assert (place / "config.pbtxt").read_text() != "mine"
    assert not (place / "more").exists()


def test_what_fails_leaves_nothing_half_made(directory, tmp_path, monkeypatch):
    written = []

    def full(source, target):
        written.append(target)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("shutil.copyfile", full)
    with pytest.raises(InvalidInputError, match=r"cannot be written: .*No space left"):
        export_triton(str(directory), tmp_path / "repository")

    assert written
    assert [p for p in tmp_path.rglob("*") if p.name != "repository"] == []


def test_a_file_that_changed_is_not_exported(altered, tmp_path):
    path = altered(with_engines(capability("sm86")))
    (plan,) = (path / "engines").iterdir()
    plan.write_bytes(b"another engine")

    with pytest.raises(ArtifactError, match=f"{plan.name} has sha256"):
        export_triton(str(path), tmp_path / "repository")
    assert not (tmp_path / "repository").exists()


@pytest.mark.parametrize("name", ["../up", "", "two words", ".hidden", "a/b"])
def test_a_name_that_is_no_folders_is_refused(directory, tmp_path, name):
    with pytest.raises(InvalidInputError, match="is not a name that Triton takes"):
        export_triton(str(directory), tmp_path, name=name)


def test_libraries_go_along_where_they_are_allowed(altered, tmp_path, read):
    def change(manifest, folder):
        path = folder / "libplugin.so"
        path.write_bytes(b"native code")
        library = Library(path=path, sha256=sha256_of(path), allowed=True)
        made = engine(folder, manifest.graphs[0], 0, libraries=(library,))
        return dataclasses.replace(manifest, engines=(made,))

    path = str(altered(change))
    with pytest.raises(RunnerError, match="allow it by name: allow_native="):
        export_triton(path, tmp_path / "repository")
    assert not (tmp_path / "repository").exists()

    option = re.escape("plugins=<repository>/net-tensorrt-fp32/1/libplugin.so")
    with pytest.warns(UserWarning, match=option):
        place, *_ = export_triton(
            path, tmp_path / "repository", name="net", allow_native=["libplugin.so"]
        )
    assert (place / "1" / "libplugin.so").read_bytes() == b"native code"
    assert read(place).cc_model_filenames["8.6"] == "sm86.plan"


def test_operators_of_a_library_are_found_as_the_server_is_told(tmp_path, read):
    """ONNX Runtime is given the bare name, as by Triton's backend, and finds it on the path."""
    negpos = pytest.importorskip("negpos_model")
    library = Path(negpos.LIBRARY).name
    made = negpos.make()
    mlflow_e2eai.save_model(made.pop("model").eval(), tmp_path / "model", **made)
    with pytest.raises(RunnerError, match="allow it by name: allow_native="):
        export_triton(str(tmp_path / "model"), tmp_path / "repository", name="net")

    path = re.escape(
        f"LD_LIBRARY_PATH=<repository>/net-onnxruntime-fp32/1, where it finds {library}"
    )
    with pytest.warns(UserWarning, match=path):
        places = export_triton(
            str(tmp_path / "model"), tmp_path / "repository", name="net", allow_native=[library]
        )
    assert [list(read(place).model_operations.op_library_filename) for place in places] == [
        [library],
        [library],
    ]
    program = f"""
import numpy, onnxruntime
options = onnxruntime.SessionOptions()
options.register_custom_ops_library({library!r})
session = onnxruntime.InferenceSession("model.onnx", options, ["CPUExecutionProvider"])
numpy.save("answer.npy", session.run(None, {{"x": numpy.load("x.npy")}})[0])
"""
    folder = places[0] / "1"
    np.save(folder / "x.npy", negpos.EXAMPLE.numpy())
    found = {**os.environ, "LD_LIBRARY_PATH": str(folder)}
    subprocess.run([sys.executable, "-c", program], cwd=folder, env=found, check=True)
    right = negpos.WithNegPos()(negpos.EXAMPLE).detach().numpy()
    np.testing.assert_allclose(np.load(folder / "answer.npy"), right, atol=1e-6)

    lost = {**os.environ, "LD_LIBRARY_PATH": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, env=lost, capture_output=True, check=False
    )
    assert library.encode() in done.stderr


# The text


texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20)


@given(name=texts, key=texts, level=st.integers(-(2**31), 2**31 - 1))
def test_any_text_and_number_is_read_as_it_was_written(triton, name, key, level):
    message = {
        "name": name,
        "input": [{"name": key, "data_type": config.Word("TYPE_FP32"), "dims": [level, -1]}],
        "cc_model_filenames": [{"key": key, "value": name}],
        "optimization": {"graph": {"level": level}},
        "dynamic_batching": {},
    }
    said = text_format.Parse(config.text(message), triton.ModelConfig())

    assert (said.name, said.input[0].name, list(said.input[0].dims)) == (name, key, [level, -1])
    assert dict(said.cc_model_filenames) == {key: name}
    assert said.optimization.graph.level == level
    assert said.HasField("dynamic_batching")


@pytest.mark.parametrize("dtype", sorted(config._TYPES))
def test_a_type_is_of_the_size_that_triton_gives_it(triton, dtype):
    spec = TensorSpec(name="x", dtype=dtype, shape=(1,))
    number = triton.DataType.Value(config.data_type(spec))
    sizes = {"BOOL": 1, "8": 1, "16": 2, "32": 4, "64": 8}

    name = triton.DataType.Name(number).removeprefix("TYPE_")
    numpy = onnx.helper.tensor_dtype_to_np_dtype(
        onnx.TensorProto.BFLOAT16
        if dtype == "bfloat16"
        else onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    )
    assert next(size for end, size in sizes.items() if name.endswith(end)) == numpy.itemsize


@pytest.mark.parametrize(
    "shapes", [[("N", "N")], [("N", 2), (2, "N")], [("N", 2), ()], [("M", 2)], [(4, 2)]]
)
def test_an_axis_that_is_not_the_first_of_all_and_once_is_no_batch(shapes):
    specs = [TensorSpec(name="x", dtype="float32", shape=shape) for shape in shapes]

    assert config.batch_axis(specs, [N]) is None
    assert config.batch_axis([TensorSpec(name="x", dtype="float32", shape=("N", "M"))], [N]) == N


@pytest.mark.parametrize(
    ("dtype", "shape", "reason"),
    [
        ("complex64", ("N", 2), "'x' is complex64, a type that Triton does not have"),
        ("object", ("N", 2), "'x' is object, a type that Triton does not have"),
        ("float32", (), "'x' is a scalar, which Triton takes only in a batch"),
    ],
)
def test_a_tensor_that_triton_has_not_is_named(dtype, shape, reason):
    spec = TensorSpec(name="x", dtype=dtype, shape=shape)
    batch = config.batch_axis([spec], [N])

    assert config.why_not_served([spec], batch) == reason
