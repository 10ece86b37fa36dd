"""Loading from a tracking server that proxies its artifacts: only the files that are needed."""

import dataclasses
import os
import re
import subprocess
import sys
import time
import tomllib
import urllib.request
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import mlflow
import numpy as np
import pytest
from mlflow.store.artifact.artifact_repository_registry import (
    get_registered_artifact_repositories,
)
from multiplying_bundles import CPU32, TIMES, X, engine, graph, manifest
from tracking_servers import tracking_server

import mlflow_e2eai
from mlflow_e2eai import bundle
from mlflow_e2eai.artifacts.files import sha256_of
from mlflow_e2eai.artifacts.values import Infer, Target
from mlflow_e2eai.bundle import selection
from mlflow_e2eai.errors import ArtifactError, InvalidInputError, TrackingError
from mlflow_e2eai.evaluation import variants
from mlflow_e2eai.flavor import api
from mlflow_e2eai.flavor.artifact_repository import OnDemand

GPUS = [f"sm{number:02}" for number in range(12)]
ENGINE_BYTES = 300_000


@pytest.fixture(scope="module")
def served(tmp_path_factory) -> Iterator[tuple[str, Path]]:
    """A real tracking server; where it is, and what it says of each request."""
    folder = tmp_path_factory.mktemp("server")
    with tracking_server(folder) as server:
        yield server.uri, folder / "server.log"


@pytest.fixture(scope="module")
def logged(served, tmp_path_factory) -> str:
    """URI of a version with twelve engines, each for a GPU of its own."""
    work = tmp_path_factory.mktemp("work")
    engines = []
    for gpu in GPUS:
        made = engine(work, name=gpu)
        made.path.write_bytes(os.urandom(ENGINE_BYTES))
        target = Target(backend="tensorrt_rtx", compute_capability=gpu)
        engines.append(dataclasses.replace(made, sha256=sha256_of(made.path), target=target))
    found = manifest([graph(work, TIMES.format(factor=2))], engines)
    bundle.write(work / "bundle", found, {"x": X})
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", served[0])
        mlflow.set_tracking_uri(served[0])
        mlflow.set_experiment("fleet")
        info = api.log_model(work / "bundle", "net", registered_model_name="net")
    mlflow.set_tracking_uri(None)
    return f"models:/net/{info.registered_model_version}"


@pytest.fixture
def client(served, logged, monkeypatch):
    monkeypatch.setattr(selection, "onnxruntime_devices", lambda: ("cpu",))
    mlflow.set_tracking_uri(served[0])
    yield logged
    mlflow.set_tracking_uri(None)


@contextmanager
def downloads(served: tuple[str, Path]) -> Iterator[list[str]]:
    """The files that the server is asked for in the block."""
    address, log = served
    asked: list[str] = []
    before = len(log.read_text())
    yield asked
    # The server writes a line once an answer is out: the one of this request is the last.
    last = f"/health?{uuid.uuid4().hex}"
    with urllib.request.urlopen(address + last, timeout=60):  # noqa: S310 - http, on this machine
        until = time.monotonic() + 60
    while last not in log.read_text():
        assert time.monotonic() < until
        time.sleep(0.01)
    pattern = r"GET /api/2\.0/mlflow-artifacts/artifacts/\S*?/artifacts/(\S+) HTTP"
    asked += re.findall(pattern, log.read_text()[before:])


def fits(monkeypatch, gpu: str) -> None:
    """Make the engines for one GPU run here: they multiply by a hundred."""

    @contextmanager
    def runner(artifact, **_) -> Iterator[Infer]:
        assert sha256_of(artifact.path) == artifact.sha256
        yield lambda tensors: {"y": 100 * tensors["x"]}

    real = selection.unsupported_here
    monkeypatch.setattr(
        selection,
        "unsupported_here",
        lambda e, _: None if e.target.compute_capability == gpu else real(e),
    )
    monkeypatch.setattr(variants, "engine_runner", runner)


def test_of_twelve_engines_the_one_that_fits_is_downloaded(client, served, monkeypatch, tmp_path):
    fits(monkeypatch, "sm07")
    with downloads(served) as asked:
        model = mlflow_e2eai.load_model(client, str(tmp_path))

    assert model.variant == "tensorrt_rtx-sm07/fp32"
    assert np.array_equal(model(X)["y"], 100 * X)
    name = "bundle/engines/tensorrt_rtx-sm07-fp32.engine"
    assert asked == ["MLmodel", "SHA256SUMS", "bundle/manifest.json", name]
    here = {p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*") if p.is_file()}
    assert here == set(asked)
    assert sum(p.stat().st_size for p in tmp_path.rglob("*.engine")) == ENGINE_BYTES


def test_without_a_gpu_no_engine_is_downloaded(client, served):
    with (
        downloads(served) as asked,
        pytest.warns(UserWarning, match=f"Falling back to {CPU32}"),
        mlflow_e2eai.load_model(client) as model,
    ):
        assert np.array_equal(model(X)["y"], 2 * X)

    assert asked == ["MLmodel", "SHA256SUMS", "bundle/manifest.json", "bundle/model.onnx"]


def test_every_name_of_a_model_loads_its_variant(client, served):
    version = mlflow.MlflowClient().get_model_version("net", client.rpartition("/")[2])
    run = mlflow.get_run(version.run_id)
    for uri in (version.source, f"runs:/{run.info.run_id}/net"):
        with downloads(served) as asked, mlflow_e2eai.load_model(uri, variant=CPU32) as model:
            assert np.array_equal(model(X)["y"], 2 * X)
        assert asked == ["MLmodel", "SHA256SUMS", "bundle/manifest.json", "bundle/model.onnx"]


def test_what_was_downloaded_is_a_model_for_pyfunc(client, monkeypatch, tmp_path):
    fits(monkeypatch, "sm07")
    mlflow_e2eai.load_model(client, str(tmp_path))

    loaded = mlflow.pyfunc.load_model(str(tmp_path))
    assert np.array_equal(loaded.predict({"x": X})["y"], 100 * X)


def test_pyfunc_loads_the_whole_model(client):
    with pytest.warns(UserWarning, match="Falling back"):
        loaded = mlflow.pyfunc.load_model(client)

    assert np.array_equal(loaded.predict({"x": X})["y"], 2 * X)


@pytest.fixture
def scheme(monkeypatch):
    """What the entry point registers where the package is installed."""
    monkeypatch.setitem(get_registered_artifact_repositories(), "e2eai", OnDemand)


def on_demand(uri: str) -> str:
    return uri.replace("models:/", "e2eai:/")


def test_mlflow_finds_the_scheme_by_an_entry_point_that_imports_nothing_else():
    project = tomllib.loads(Path(__file__).parents[2].joinpath("pyproject.toml").read_text())
    found = project["project"]["entry-points"]["mlflow.artifact_repository"]
    assert found == {"e2eai": f"{OnDemand.__module__}:{OnDemand.__qualname__}"}
    code = (
        "import sys; before = set(sys.modules); import mlflow_e2eai.flavor.artifact_repository;"
        "new = {name.partition('.')[0] for name in set(sys.modules) - before};"
        "print(*sorted(new - sys.stdlib_module_names))"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["mlflow_e2eai"]


@pytest.mark.usefixtures("scheme")
def test_pyfunc_downloads_one_of_twelve_engines_on_demand(client, served, monkeypatch, tmp_path):
    fits(monkeypatch, "sm07")
    with downloads(served) as asked:
        loaded = mlflow.pyfunc.load_model(on_demand(client), dst_path=tmp_path)

    assert np.array_equal(loaded.predict({"x": X})["y"], 100 * X)
    assert loaded.get_raw_model().variant == "tensorrt_rtx-sm07/fp32"
    assert loaded.metadata.signature is not None
    there = [path for path in asked if path.startswith("bundle/")]
    assert there == ["bundle/manifest.json", "bundle/engines/tensorrt_rtx-sm07-fp32.engine"]
    assert {"requirements.txt", "python_env.yaml"} <= set(asked)
    asked.clear()
    with downloads(served) as asked:
        again = mlflow.pyfunc.load_model(str(tmp_path), model_config={"variant": CPU32})
    assert np.array_equal(again.predict({"x": X})["y"], 2 * X)
    assert [path for path in asked if path != "MLmodel"] == ["bundle/model.onnx"]


@pytest.mark.usefixtures("scheme")
def test_every_name_of_a_model_has_its_files_on_demand(client, served, tmp_path):
    store = mlflow.MlflowClient()
    name, version = client.removeprefix("models:/").split("/")
    store.set_registered_model_alias(name, "here", version)
    model_id = store.get_model_version(name, version).source.removeprefix("models:/")
    for uri in (f"{name}/{version}", f"{name}@here", model_id):
        with downloads(served) as asked:
            path = mlflow.artifacts.download_artifacts(f"e2eai:/{uri}/bundle/manifest.json")
            info = mlflow.models.get_model_info(f"e2eai:/{uri}")
        assert bundle.read(Path(path).parent).engines
        assert info.model_id == model_id
        assert not [each for each in asked if each.endswith((".engine", ".onnx"))]


@pytest.mark.usefixtures("scheme")
def test_what_is_on_demand_is_verified(client, served):
    (graph,) = served[1].parent.rglob("model.onnx")
    whole = graph.read_bytes()
    graph.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    try:
        with pytest.raises(ArtifactError, match=r"model.onnx has sha256 .* but .* was recorded"):
            mlflow.pyfunc.load_model(on_demand(client), model_config={"variant": CPU32})
    finally:
        graph.write_bytes(whole)


@pytest.mark.usefixtures("scheme", "client")
@pytest.mark.parametrize(
    ("uri", "error", "words"),
    [
        ("e2eai:/nothing/1", TrackingError, "There is no model 'models:/nothing/1'"),
        ("e2eai:/net@nobody", TrackingError, "There is no model 'models:/net@nobody'"),
        ("e2eai:/nobody", TrackingError, "There is no model 'models:/nobody/latest'"),
        ("e2eai:/net/one", InvalidInputError, "'one' is no version of 'net'"),
    ],
)
def test_what_names_no_model_has_no_files_on_demand(uri, error, words):
    with pytest.raises(error, match=words):
        mlflow.pyfunc.load_model(uri)


def test_a_file_that_the_server_lost_is_named(client, served):
    lost = [*served[1].parent.rglob("model.onnx")]
    for path in lost:
        path.rename(path.with_suffix(".lost"))
    try:
        with pytest.raises(
            ArtifactError, match=r"bundle/model.onnx of models:/net/1 cannot be downloaded"
        ):
            mlflow_e2eai.load_model(client, variant=CPU32)
    finally:
        for path in lost:
            path.with_suffix(".lost").rename(path)


def test_a_model_that_a_run_does_not_have_is_refused(client):
    version = mlflow.MlflowClient().get_model_version("net", client.rpartition("/")[2])

    with pytest.raises(TrackingError, match="has no model 'other'"):
        mlflow_e2eai.load_model(f"runs:/{version.run_id}/other")
