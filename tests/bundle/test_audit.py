"""A bundle is what its manifest says, in all its files, before one of them is opened."""

from __future__ import annotations

import importlib.util
import json
import os
import py_compile
import shutil
import sys
import time
from collections.abc import Set as AbstractSet
from pathlib import Path

import mlflow
import numpy as np
import pytest
from small_models import features, net

import mlflow_e2eai
from mlflow_e2eai import bundle, tracking
from mlflow_e2eai.artifacts.files import from_json, read_sealed, seal, sha256_of, to_json
from mlflow_e2eai.artifacts.values import WeightFile
from mlflow_e2eai.artifacts.weight_files import digest
from mlflow_e2eai.bundle.audit import refuse_changes
from mlflow_e2eai.bundle.load import load
from mlflow_e2eai.bundle.manifest import Manifest
from mlflow_e2eai.errors import ArtifactError, E2EAIError, InvalidInputError
from mlflow_e2eai.flavor import api, native
from mlflow_e2eai.tracking import downloads
from mlflow_e2eai.tracking.store import integrity

pytestmark = pytest.mark.usefixtures("on_threads")


@pytest.fixture
def model(saved, tmp_path):
    return Path(shutil.copytree(saved, tmp_path / "model"))


@pytest.fixture
def place(model):
    return model / "bundle"


def rewrite(place: Path, **fields: object) -> None:
    """Change the manifest, and seal it again, as whoever makes a bundle can."""
    content = {**json.loads(read_sealed(place / "manifest.json")), **fields}
    plain = to_json(from_json(Manifest, json.dumps(content)))
    (place / "manifest.json").write_text(seal(plain))


def test_a_bundle_as_it_was_written_is_what_its_manifest_says(place):
    found = bundle.audit(place)

    assert [item.sha256 for item in found.files] == [sha256_of(item.path) for item in found.files]
    assert all(item.path.is_absolute() for item in found.files)


# In this order: schema, paths, digests, sizes, extra files


def test_what_is_wrong_first_is_said_first(place):
    (place / "more").write_text("x")
    with pytest.raises(ArtifactError, match=r"'more' in .* is named by no manifest"):
        bundle.audit(place)
    graph, *others = json.loads(read_sealed(place / "manifest.json"))["graphs"]
    rewrite(place, graphs=[{**graph, "size_bytes": 5}, *others])
    with pytest.raises(ArtifactError, match=r"has \d+ bytes, but its manifest says 5"):
        bundle.audit(place)
    (place / "model-fp16.onnx").write_bytes(b"x")
    with pytest.raises(ArtifactError, match=r"model-fp16\.onnx has sha256"):
        bundle.audit(place)
    engine = next((place / "engines").iterdir())
    engine.rename(place / "away")
    engine.symlink_to(place / "away")
    with pytest.raises(ArtifactError, match="is a symbolic link"):
        bundle.audit(place)
    (place / "manifest.json").write_text("{}")
    with pytest.raises(ArtifactError, match="does not end with its own digest"):
        bundle.audit(place)


@pytest.mark.parametrize("name", ["engines", "model.onnx", "input_example.npz", "manifest.json"])
def test_a_file_or_folder_that_is_a_link_out_of_the_bundle_is_refused(place, name, tmp_path):
    (place / name).rename(tmp_path / "outside")
    (place / name).symlink_to(tmp_path / "outside")
    for whole in (True, False):
        with pytest.raises(ArtifactError, match=f"{name} in .* is a symbolic link"):
            bundle.audit(place, whole=whole)


def takers(model: Path, folder: Path):
    """What takes a whole model from a folder."""
    return (
        lambda: mlflow_e2eai.export_triton(str(model), folder / "repository", name="x"),
        lambda: mlflow_e2eai.save_model(str(model), folder / "again"),
        lambda: api.log_model(str(model), "again"),
    )


@pytest.mark.parametrize(
    "name", ["bundle", "MLmodel", "bundle/input_example.npz", "bundle/manifest.json"]
)
def test_a_model_with_a_link_out_of_it_is_refused_by_all_that_take_one(
    model, name, isolated, tmp_path
):
    (model / name).rename(tmp_path / "outside")
    (model / name).symlink_to(tmp_path / "outside")
    for take in (lambda: mlflow_e2eai.load_model(str(model)), *takers(model, tmp_path)):
        with pytest.raises(E2EAIError, match=r"is a symbolic link|outside the artifact directory"):
            take()
    assert not (tmp_path / "again").exists()
    assert not (tmp_path / "repository").exists()


@pytest.mark.parametrize("name", ["bundle/input_example.npz", "requirements.txt"])
def test_a_changed_file_that_no_manifest_names_is_refused_by_all_that_take_a_whole_model(
    model, name, isolated, tmp_path
):
    if name.endswith(".npz"):
        np.savez(model / name, x=features() * 1e9)
    else:
        (model / name).write_text("evil\n")
    for take in takers(model, tmp_path):
        with pytest.raises(ArtifactError, match=f"{Path(name).name} has sha256"):
            take()
    assert not (tmp_path / "again").exists()
    assert not (tmp_path / "repository").exists()


NAMES = ["../x", "/etc/passwd", "C:\\x", "a\\..\\..\\x", "a\0b", "a\nb", "a\x1bb", "x" * 300]


@pytest.mark.parametrize("name", NAMES, ids=range(len(NAMES)))
def test_a_path_that_is_none_of_the_bundle_is_refused_everywhere(place, name):
    graph, *others = json.loads(read_sealed(place / "manifest.json"))["graphs"]
    rewrite(place, graphs=[{**graph, "path": name}, *others])
    for read in (bundle.audit, load):
        with pytest.raises(ArtifactError) as raised:
            read(place)
        assert "\n" not in str(raised.value)


def add_weights_and_library(place: Path) -> None:
    """Give the first graph a file of weights and a library."""
    files = {"model.weights": b"w" * 64, "libraries/op.so": b"native"}
    for name, content in files.items():
        (place / name).parent.mkdir(exist_ok=True)
        (place / name).write_bytes(content)
    weights, library = ({"path": name, "sha256": sha256_of(place / name)} for name in files)
    weight_file = WeightFile(path=Path("model.weights"), sha256=weights["sha256"], size_bytes=64)
    graph, *others = json.loads(read_sealed(place / "manifest.json"))["graphs"]
    changed = {
        "weights": [{**weights, "size_bytes": 64}],
        "libraries": [library],
        "sha256": digest(place / graph["path"], [weight_file]),
        "size_bytes": graph["size_bytes"] + 64,
    }
    rewrite(place, graphs=[{**graph, **changed}, *others])


def test_a_graph_with_a_file_of_weights_and_a_library_is_what_its_manifest_says(place):
    add_weights_and_library(place)
    found = bundle.audit(place).graphs[0]

    assert [file.path for file in found.weights] == [Path("model.weights")]
    assert [library.path for library in found.libraries] == [place / "libraries/op.so"]


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("model.weights", r"model\.weights has sha256"),
        ("libraries/op.so", r"op\.so has sha256"),
        ("model.onnx", r"model\.onnx has changed since its digest was recorded"),
    ],
)
def test_a_changed_byte_of_weights_a_library_or_their_graph_is_refused(place, name, reason):
    add_weights_and_library(place)
    content = bytearray((place / name).read_bytes())
    content[-1] ^= 1
    (place / name).write_bytes(content)

    with pytest.raises(ArtifactError, match=reason):
        bundle.audit(place)


@pytest.mark.parametrize("name", ["../x", "a\0b"])
def test_a_path_of_weights_or_of_a_library_that_is_none_of_the_bundle_is_refused(place, name):
    add_weights_and_library(place)
    graph, *others = json.loads(read_sealed(place / "manifest.json"))["graphs"]
    for field in ("weights", "libraries"):
        rewrite(place, graphs=[{**graph, field: [{**graph[field][0], "path": name}]}, *others])
        with pytest.raises(ArtifactError, match="The manifest of the bundle names"):
            bundle.audit(place)


@pytest.mark.parametrize("name", ["model.onnx", "manifest.json", "input_example.npz"])
def test_two_graphs_in_one_file_are_refused_and_a_graph_in_the_bundles_own(place, name):
    first, second, *others = json.loads(read_sealed(place / "manifest.json"))["graphs"]
    rewrite(place, graphs=[first, {**second, "path": name}, *others])

    with pytest.raises(ArtifactError, match=f"names '{name}' twice"):
        bundle.audit(place)


def test_another_manifest_than_the_recorded_one_is_refused(place):
    with pytest.raises(ArtifactError, match=r"manifest\.json has sha256"):
        bundle.audit(place, sha256="0" * 64)


def test_an_extra_file_is_refused_by_all_that_take_a_bundle(model, isolated, tmp_path):
    (model / "bundle" / "libevil.so").write_bytes(b"x")
    loaders = (
        lambda: mlflow_e2eai.load_model(str(model)),
        lambda: mlflow.pyfunc.load_model(str(model)),
    )
    for take in (*loaders, *takers(model, tmp_path)):
        with pytest.raises(ArtifactError, match=r"'libevil\.so' in .* is named by no manifest"):
            take()


# The digests that MLflow's files and the server have


def test_the_files_of_another_model_in_its_place_are_refused(model, tmp_path):
    """A whole bundle, which agrees with itself: MLmodel has the digest of the list of all files."""
    other = tmp_path / "other"
    mlflow_e2eai.save_model(
        net(), other, input_example={"x": features()}, precisions=("fp32",), evidence="quick"
    )
    shutil.rmtree(model / "bundle")
    shutil.copytree(other / "bundle", model / "bundle")
    for take in (mlflow_e2eai.load_model, mlflow.pyfunc.load_model, mlflow_e2eai.variants):
        with pytest.raises(ArtifactError, match=r"manifest\.json has sha256"):
            take(str(model))


def test_a_bundle_that_mlmodel_places_outside_is_refused(model, tmp_path):
    shutil.copytree(model / "bundle", tmp_path / "stolen")
    text = (model / "MLmodel").read_text().replace("data: bundle\n", "data: ../stolen\n")
    (model / "MLmodel").write_text(text)
    for take in (mlflow_e2eai.load_model, mlflow_e2eai.variants):
        with pytest.raises(
            ArtifactError, match=r"names the bundle '\.\./stolen', which is outside"
        ):
            take(str(model))


def test_code_that_was_logged_with_a_model_is_verified_before_it_is_imported(model, tmp_path):
    (tmp_path / "helper.py").write_text("ANSWER = 42\n")
    coded = tmp_path / "coded"
    mlflow_e2eai.save_model(str(model), coded, code_paths=[str(tmp_path / "helper.py")])
    mlflow_e2eai.load_model(str(coded))
    (coded / "code" / "helper.py").write_text("ANSWER = 43\n")
    with pytest.raises(ArtifactError, match=r"helper\.py has sha256"):
        mlflow_e2eai.load_model(str(coded))
    (coded / "code" / "helper.py").unlink()
    (coded / "code" / "another.py").write_text("")
    with pytest.raises(ArtifactError, match=r"helper\.py, which was in the model"):
        mlflow_e2eai.load_model(str(coded))


def test_code_that_is_imported_leaves_no_compiled_file_in_the_model_and_none_there_is_run(
    model, tmp_path, monkeypatch
):
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    (tmp_path / "helper_of_16.py").write_text("ANSWER = 42\n")
    coded = tmp_path / "coded"
    mlflow_e2eai.save_model(str(model), coded, code_paths=[str(tmp_path / "helper_of_16.py")])
    source = coded / "code" / "helper_of_16.py"
    planted = tmp_path / "planted.py"
    planted.write_text("ANSWER = 43\n")
    os.utime(planted, ns=(0, source.stat().st_mtime_ns))
    for _ in range(2):
        mlflow_e2eai.load_model(str(coded))
        assert importlib.import_module("helper_of_16").ANSWER == 42
        assert not (coded / "code" / "__pycache__").exists()
        monkeypatch.delitem(sys.modules, "helper_of_16")
    py_compile.compile(str(planted), importlib.util.cache_from_source(str(source)))
    mlflow_e2eai.load_model(str(coded))
    assert importlib.import_module("helper_of_16").ANSWER == 42
    monkeypatch.delitem(sys.modules, "helper_of_16")


def test_a_file_that_no_version_could_be_loaded_with_is_refused_before_anything_is_made(
    model, isolated, tmp_path
):
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "a\u2028b.py").write_text("")
    for argument in ("code_paths", "extra_files"):
        with pytest.raises(InvalidInputError, match="a line break"):
            api.log_model(str(model), "again", **{argument: [str(tmp_path / "code")]})
    assert mlflow.search_logged_models(output_format="list") == []
    assert mlflow.search_runs(output_format="list") == []


def test_forty_thousand_graphs_of_one_manifest_are_looked_through_within_seconds(place):
    content = json.loads(read_sealed(place / "manifest.json"))
    graphs = [{**content["graphs"][0], "path": f"m{at}.onnx"} for at in range(40_000)]
    text = json.dumps({**content, "graphs": graphs}, separators=(",", ":")).removesuffix("}")
    (place / "manifest.json").write_text(seal(f"{text}\n}}"))
    began = time.process_time()
    with pytest.raises(ArtifactError, match="is named by no manifest"):
        bundle.audit(place, whole=False)
    assert time.process_time() - began < 12


# Between the check and the opening


@pytest.mark.parametrize("keeps_time", [False, True])
def test_a_file_that_changes_while_it_is_opened_is_refused(place, keeps_time):
    path = place / "model.onnx"
    before, content = path.stat(), bytearray(path.read_bytes())
    content[100] ^= 1

    def change():
        with refuse_changes([path]):
            path.write_bytes(content)
            if keeps_time:
                os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))

    with pytest.raises(ArtifactError, match=r"model\.onnx was changed while it was opened"):
        change()


def test_load_model_refuses_a_file_that_is_replaced_after_its_check(model, monkeypatch):
    from mlflow_e2eai.evaluation import variants

    whole, path = variants.verify_graph, model / "bundle" / "model.onnx"

    def replace_after(graph, *rest):
        whole(graph, *rest)
        (path.parent / "new").write_bytes(path.read_bytes())
        (path.parent / "new").replace(path)

    monkeypatch.setattr(variants, "verify_graph", replace_after)
    with pytest.raises(ArtifactError, match=r"model\.onnx was changed while it was opened"):
        mlflow_e2eai.load_model(str(model), variant="onnxruntime-cpu/fp32")


# Single bits

DECIDE_NOTHING: set[str] = {"registered_model_meta"}
"""Files of MLflow's own whose bits nobody reads: no digest covers them.

MLflow writes this one beside a version that it downloads, with the name and the number of it.
"""


@pytest.fixture(scope="module")
def version(empty_store, saved, tmp_path_factory):
    """A registered version: its LoggedModel, and a copy of its files as they are downloaded."""
    folder = tmp_path_factory.mktemp("version")
    (folder / "mlflow.db").write_bytes(empty_store.read_bytes())
    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(f"sqlite:///{folder}/mlflow.db")
    mlflow.create_experiment("bits", artifact_location=(folder / "artifacts").as_uri())
    mlflow.set_experiment("bits")
    info = api.log_model(str(saved), "net", registered_model_name="net")
    model = tracking.resolve(f"models:/net/{info.registered_model_version}")
    (folder / "there").mkdir()
    path = tracking.fetch(model, folder / "there")
    place = Path(shutil.copytree(path, folder / "copy"))
    yield model, place
    mlflow.set_tracking_uri(before)


def flips(place: Path, count: int, seed: int, only: AbstractSet[str] = frozenset()):
    """Files with one flipped bit each, one after another; every file in turn."""
    chance = np.random.default_rng(seed)
    files = [
        path
        for path in sorted(place.rglob("*"))
        if path.is_file() and (not only or path.relative_to(place).as_posix() in only)
    ]
    for number in range(count):
        path = files[number % len(files)]
        content = path.read_bytes()
        if not content:
            continue
        changed, at = bytearray(content), int(chance.integers(len(content)))
        changed[at] ^= 1 << int(chance.integers(8))
        path.write_bytes(changed)
        yield path.relative_to(place).as_posix(), at
        path.write_bytes(content)


def found_by_verification(version, count, seed):
    model, place = version
    tried, missed = set(), []
    for name, at in flips(place, count, seed):
        tried.add(name)
        try:
            integrity.verify_model(place, model)
        except ArtifactError:
            continue
        missed.append((name, at))
    integrity.verify_model(place, model)
    expected = {"MLmodel", "SHA256SUMS", "requirements.txt", "conda.yaml", "python_env.yaml"}
    assert expected <= tried
    return [each for each in missed if each[0] not in DECIDE_NOTHING]


def test_every_flipped_bit_is_found_by_what_promote_verifies(version):
    assert found_by_verification(version, 300, seed=1) == []


@pytest.mark.slow
def test_ten_thousand_flipped_bits_are_found_by_what_promote_verifies(version):
    assert found_by_verification(version, 10_000, seed=2) == []


READ_BY_LOAD = {"MLmodel", "SHA256SUMS", "bundle/manifest.json", "bundle/model.onnx"}


def found_by_load(version, count, seed, monkeypatch):
    """Flipped bits of the files that loading reads, which it missed, with the server's digests."""
    model, _ = version
    monkeypatch.setattr(downloads, "resolve", lambda _: model)
    kept = Path(model.artifact_location.removeprefix("file://"))
    missed = []
    for name, at in flips(kept, count, seed, READ_BY_LOAD):
        try:
            native.load_model(model.model_uri, variant="onnxruntime-cpu/fp32")
        except (E2EAIError, mlflow.MlflowException):
            continue
        missed.append((name, at))
    native.load_model(model.model_uri, variant="onnxruntime-cpu/fp32")
    return missed


def test_every_flipped_bit_of_the_files_that_it_reads_is_found_by_load_model(version, monkeypatch):
    assert found_by_load(version, 150, 3, monkeypatch) == []


@pytest.mark.slow
def test_ten_thousand_flipped_bits_are_found_by_load_model(version, monkeypatch):
    assert found_by_load(version, 10_000, 4, monkeypatch) == []


def test_a_flipped_bit_of_a_file_that_load_model_does_not_read_hinders_nobody(version):
    _, place = version
    path = place / "bundle" / "model-fp16.onnx"
    content = path.read_bytes()
    path.write_bytes(content[:-1] + b"x")
    try:
        with mlflow_e2eai.load_model(str(place), variant="onnxruntime-cpu/fp32") as loaded:
            assert np.isfinite(loaded(features())["output"]).all()
    finally:
        path.write_bytes(content)
