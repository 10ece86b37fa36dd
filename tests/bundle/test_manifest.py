"""The bundle on disk: written, read, checked and loaded."""

import dataclasses
import io
import json
import re
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from multiplying_bundles import (
    CPU16,
    CPU32,
    ENGINE16,
    ENGINE32,
    FAILED,
    PASSED,
    TIMES,
    TWO_INPUTS,
    N,
    X,
    engine,
    fitting,
    graph,
    manifest,
)

from mlflow_e2eai import bundle
from mlflow_e2eai.artifacts.files import seal, sha256_of
from mlflow_e2eai.artifacts.names import shape_text
from mlflow_e2eai.artifacts.values import EngineArtifact
from mlflow_e2eai.bundle import selection
from mlflow_e2eai.bundle.load import load
from mlflow_e2eai.bundle.manifest import EXAMPLE, GRAPH, MANIFEST
from mlflow_e2eai.bundle.model import Model
from mlflow_e2eai.errors import ArtifactError, EngineMismatchError, InvalidInputError, RunnerError
from mlflow_e2eai.evaluation import variants
from mlflow_e2eai.evaluation import variants as evaluation_variants
from mlflow_e2eai.evaluation.evidence import Evidence


@pytest.fixture(autouse=True)
def a_machine_without_a_gpu(monkeypatch):
    monkeypatch.setattr(selection, "onnxruntime_devices", lambda: ("cpu",))


@pytest.fixture
def make(tmp_path):
    """Write a bundle of an fp32 graph that doubles and an fp16 graph that trebles."""

    def made(engines: Sequence[str] = (), **settings: object) -> Path:
        work = tmp_path / "work"
        work.mkdir()
        both = [graph(work, TIMES.format(factor=2)), graph(work, TIMES.format(factor=3), "fp16")]
        found = manifest(both, [engine(work, precision) for precision in engines], **settings)
        bundle.write(tmp_path / "bundle", found, {"x": X})
        return tmp_path / "bundle"

    return made


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def edit_manifest(directory: Path, **fields: object) -> None:
    """Change fields of a manifest, and close it with the digest of what it is then."""
    path = directory / MANIFEST
    said = {**json.loads(path.read_text()), **fields}
    del said["sha256"]
    path.write_text(seal(json.dumps(said, indent=2)))


# The directory


def test_a_bundle_is_read_as_it_was_written(tmp_path):
    found = manifest(
        [graph(tmp_path, TIMES.format(factor=2)), graph(tmp_path, TIMES.format(factor=3), "fp16")],
        [engine(tmp_path)],
        evidence={CPU32: PASSED, CPU16: FAILED, ENGINE32: None},
        latency={CPU32: [1, 2], CPU16: [0.5, 0.25]},
    )
    placed = bundle.write(tmp_path / "bundle", found, {"x": X})

    assert bundle.read(tmp_path / "bundle") == placed
    kept = {"graphs": found.graphs, "engines": found.engines}
    assert dataclasses.replace(placed, **kept) == found


def test_a_bundle_holds_what_its_docstring_shows(make):
    directory = make(engines=["fp32", "fp16"])

    assert {p.relative_to(directory).as_posix() for p in directory.rglob("*") if p.is_file()} == {
        "manifest.json",
        "model.onnx",
        "model-fp16.onnx",
        "engines/tensorrt_rtx-sm00-fp32.engine",
        "engines/tensorrt_rtx-sm00-fp16.engine",
        "input_example.npz",
    }


def test_the_paths_of_a_manifest_are_relative_and_located_where_the_bundle_lies(make, tmp_path):
    directory = make(engines=["fp32"])
    moved = directory.rename(tmp_path / "elsewhere")
    found = bundle.read(moved)

    files = [*found.graphs, *found.engines]
    assert not any(artifact.path.is_absolute() for artifact in files)  # type: ignore[attr-defined]  # mypy sees a wider type
    placed = bundle.audit(moved)
    for artifact in [*placed.graphs, *placed.engines]:
        assert sha256_of(artifact.path) == artifact.sha256  # type: ignore[attr-defined]  # mypy sees a wider type


def test_a_manifest_has_the_interface_of_its_first_graph(make):
    found = bundle.read(make())

    assert found.inputs == found.graphs[0].inputs
    assert found.outputs == found.graphs[0].outputs
    assert found.axes == (N,)
    assert [spec.name for spec in (*found.inputs, *found.outputs)] == ["x", "y"]


def test_a_file_that_changed_before_it_was_packaged_is_refused(tmp_path):
    changed = graph(tmp_path, TIMES.format(factor=2))
    flip(changed.path)

    with pytest.raises(ArtifactError, match="changed since it was made"):
        bundle.write(tmp_path / "bundle", manifest([changed]), {"x": X})
    assert not (tmp_path / "bundle" / MANIFEST).exists()


def test_two_engines_of_one_name_do_not_silently_become_one(tmp_path):
    twins = [engine(tmp_path, name="one"), engine(tmp_path, name="other")]
    found = manifest([graph(tmp_path, TIMES.format(factor=2))], twins)

    try:
        bundle.write(tmp_path / "bundle", found, {"x": X})
    except InvalidInputError:
        return
    placed = bundle.audit(tmp_path / "bundle")
    assert [sha256_of(twin.path) for twin in placed.engines] == [twin.sha256 for twin in twins]


@pytest.mark.parametrize(
    "example",
    [
        {"x": X},
        {"x": np.float32(3), "ids": np.array([[1, 2]], np.int64), "mask": np.array([True])},
        {"model/x:0": X, "file": X, "allow_pickle": X, "x.npy": X},
        {},
    ],
    ids=["one", "types", "names", "none"],
)
def test_the_input_example_is_read_as_it_was_written(tmp_path, example):
    bundle.write(tmp_path, manifest([graph(tmp_path, TIMES.format(factor=2))]), example)
    found = bundle.read_example(tmp_path)

    assert found.keys() == example.keys()
    for name, array in example.items():
        assert found[name].dtype == array.dtype
        assert found[name].shape == array.shape
        assert np.array_equal(found[name], array)


def saved(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


@pytest.mark.parametrize(
    "spoil",
    [
        lambda _: b"",
        lambda _: b"text",
        lambda _: saved(X),
        lambda content: content[: len(content) // 2],
        lambda content: content.replace(X.tobytes(), (X + 1).tobytes()),
    ],
    ids=["empty", "text", "one array", "cut off", "changed"],
)
def test_a_broken_input_example_is_an_artifact_error(make, spoil: Callable[[bytes], bytes]):
    directory = make()
    path = directory / EXAMPLE
    path.write_bytes(spoil(path.read_bytes()))

    with pytest.raises(ArtifactError, match=f"Cannot read {EXAMPLE}"):
        bundle.read_example(directory)


def test_a_missing_input_example_is_an_artifact_error(make):
    directory = make()
    (directory / EXAMPLE).unlink()

    with pytest.raises(ArtifactError, match=f"Cannot read {EXAMPLE}"):
        bundle.read_example(directory)


def test_a_folder_without_a_manifest_is_no_bundle(tmp_path):
    with pytest.raises(ArtifactError, match=f"has no {MANIFEST}"):
        bundle.read(tmp_path)


def test_a_manifest_that_is_cut_off_is_refused(make):
    directory = make()
    path = directory / MANIFEST
    path.write_bytes(path.read_bytes()[:-20])

    with pytest.raises(ArtifactError, match=r"manifest\.json does not end with its own digest"):
        bundle.read(directory)


NEWER = "has format 2, written by mlflow_e2eai 9.9.9, but the installed version reads format 1"


def test_a_newer_format_is_refused_with_both_versions(make):
    directory = make()
    edit_manifest(directory, format_version=2, package_version="9.9.9")

    with pytest.raises(ArtifactError, match=NEWER):
        bundle.read(directory)


def test_a_newer_format_is_told_as_such_even_where_its_fields_are_others(make):
    directory = make()
    edit_manifest(directory, format_version=2, package_version="9.9.9", graphs={"fp32": "x"})

    with pytest.raises(ArtifactError, match=NEWER):
        bundle.read(directory)


def test_a_failed_write_leaves_the_bundle_that_was_there(make):
    directory = make()
    before = (directory / MANIFEST).read_bytes()
    again = bundle.audit(directory)
    broken = dataclasses.replace(again.graphs[0], sha256="0" * 64)

    with pytest.raises(ArtifactError):
        bundle.write(directory, dataclasses.replace(again, graphs=(broken,)), {"x": X})
    assert (directory / MANIFEST).read_bytes() == before
    assert Model is type(load(directory))


# Evidence


@pytest.mark.parametrize(
    ("fields", "passed"),
    [
        ({"measured": True, "parity": {"profile": PASSED}}, True),
        ({"measured": True, "parity": {"profile": PASSED, "data": PASSED}}, True),
        ({"measured": True, "parity": {"profile": PASSED, "data": FAILED}}, False),
        ({"measured": True, "parity": {}}, False),
        ({"measured": True, "parity": {"profile": PASSED}, "reason": "it broke down"}, False),
        ({"measured": False, "parity": {"profile": PASSED}}, False),
        ({"measured": False}, False),
    ],
)
def test_only_what_was_measured_compared_and_found_right_has_passed(fields, passed):
    assert Evidence(variant="a/fp32", sha256=None, **fields).passed is passed


def test_evidence_gathers_the_sentences_of_all_comparisons():
    evidence = Evidence(
        variant="a/fp32", sha256=None, measured=True, parity={"profile": FAILED, "data": FAILED}
    )

    assert evidence.findings == ("Too far off.", "Too far off. (evaluation data)")


# The model


@pytest.fixture
def model(make):
    with load(make()) as loaded:
        yield loaded


@pytest.fixture
def two_inputs(tmp_path):
    found = manifest([graph(tmp_path, TWO_INPUTS)])
    bundle.write(tmp_path / "bundle", found, {"x": X, "shift": np.int32(1)})
    with load(tmp_path / "bundle") as loaded:
        yield loaded


def test_a_model_says_what_it_is(model):
    assert repr(model) == "<mlflow_e2eai.Model onnxruntime-cpu/fp32 (x: float32[N, 3])>"
    assert [(each.name, each.shape) for each in model.inputs] == [("x", ("N", 3))]
    assert [each.name for each in model.outputs] == [each.name for each in model.manifest.outputs]


@pytest.mark.parametrize(
    "ask",
    [
        lambda model: model({"x": X}),
        lambda model: model(X),
        lambda model: model(x=X),
        lambda model: model(X.tolist()),
        lambda model: model(X.astype(np.float64)),
        lambda model: model(np.asfortranarray(X)),
        lambda model: model(np.repeat(X, 2, axis=1)[:, ::2]),
    ],
    ids=["mapping", "array", "keyword", "list", "float64", "fortran order", "strides"],
)
def test_arrays_go_in_and_arrays_come_out(model, ask):
    answer = ask(model)

    assert type(answer) is dict
    assert list(answer) == ["y"]
    assert answer["y"].dtype == np.float32
    assert np.array_equal(answer["y"], 2 * X)


@pytest.mark.parametrize(
    "ask",
    [
        lambda model, x: model({"x": x}),
        lambda model, x: model(x),
        lambda model, x: model(x=x),
        lambda model, x: model(x.double()),
        lambda model, x: model(x.requires_grad_()),
        lambda model, x: model(x.T.contiguous().T),
    ],
    ids=["mapping", "tensor", "keyword", "float64", "with a gradient", "strides"],
)
def test_tensors_go_in_and_tensors_come_out(model, ask):
    answer = ask(model, torch.tensor(X))

    assert list(answer) == ["y"]
    assert isinstance(answer["y"], torch.Tensor)
    assert answer["y"].dtype == torch.float32
    assert torch.equal(answer["y"], torch.tensor(2 * X))


def test_several_inputs_are_taken_by_position_in_the_order_of_the_graph(two_inputs):
    named = {"x": X, "shift": np.int32(1)}
    assert [spec.name for spec in two_inputs.inputs] == [*named]
    outputs, expected = two_inputs(*named.values()), two_inputs(**named)
    assert all(np.array_equal(outputs[name], expected[name]) for name in expected)
    for refused in (lambda: two_inputs(X), lambda: two_inputs(X, shift=np.int32(1))):
        with pytest.raises(InvalidInputError, match=r"\['x', 'shift'\], but 1 given"):
            refused()


def test_a_shape_is_read_without_brackets_that_say_nothing():
    assert shape_text(("N", 3, "4*((H//4))", "(((W)))")) == "[N, 3, 4*(H//4), (W)]"


def test_every_size_of_a_dynamic_axis_is_taken(model):
    for size in range(1, 6):
        assert model(np.ones((size, 3), np.float32))["y"].shape == (size, 3)


@pytest.mark.parametrize(
    ("ask", "sentence"),
    [
        (lambda model: model({"z": X}), "inputs are ['z'], but the model expects ['x']"),
        (lambda model: model({"x": X}, z=X), "inputs are ['x', 'z'], but the model expects ['x']"),
        (lambda model: model(), "No input is given; the model expects x: float32[N, 3]."),
        (
            lambda model: model(X, z=X),
            "but 1 given by position and 'z' by name; give",
        ),
        (
            lambda model: model(X, X),
            "has the inputs ['x'], but 2 given by position; give",
        ),
        (lambda model: model(X[0]), "['N', 3] is expected; give it 2 axes, not 1."),
        (lambda model: model(X[None]), "shape [1, 2, 3], but ['N', 3] is expected"),
        (lambda model: model(X.T), "expected; give it the size 3 along axis 1, not 2."),
        (lambda model: model(X.astype(np.float16)), "is float16, but float32 is expected"),
        (lambda model: model(X.astype(np.int64)), "is int64, but float32 is expected"),
        (lambda model: model(torch.tensor(X).half()), "is float16, but float32 is expected"),
        (lambda model: model(X > 2), "is bool, but float32 is expected"),
        (lambda model: model(X.astype(np.complex64)), "is complex64, but float32 is expected"),
        (lambda model: model([["a", "b", "c"]]), "float32 is expected"),
        (lambda model: model([[1, 2, 3], [4]]), "'x'"),
        (lambda model: model(torch.tensor(X).bfloat16()), "bfloat16"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_does_not_fit_is_refused_with_what_does(model, ask, sentence):
    with pytest.raises(InvalidInputError, match=f"(?i){re.escape(sentence)}"):
        ask(model)


@pytest.mark.parametrize("shift", [np.int32(1), np.int64(1), np.array(1, np.int32), 1])
def test_a_scalar_input_is_taken(two_inputs, shift):
    answer = two_inputs({"x": X, "shift": shift})

    assert np.array_equal(answer["y"], X + 1)
    assert answer["z"].shape == ()


def test_several_inputs_are_given_by_name(two_inputs):
    assert np.array_equal(two_inputs(x=X, shift=np.array(3, np.int32))["y"], X + 3)
    assert np.array_equal(two_inputs({"x": X}, shift=np.array(3, np.int32))["y"], X + 3)
    with pytest.raises(InvalidInputError, match=re.escape("the inputs ['x', 'shift']")):
        two_inputs(X)


def test_an_integer_that_the_input_cannot_hold_is_refused(two_inputs):
    with pytest.raises(InvalidInputError, match="is int64, but int32 is expected"):
        two_inputs(x=X, shift=np.array(2**40))


def test_a_tensor_among_arrays_makes_all_answers_tensors(two_inputs):
    answer = two_inputs(x=torch.tensor(X), shift=np.array(1, np.int32))

    assert {type(value) for value in answer.values()} == {torch.Tensor}


# Which variant runs


def quietly(directory: Path, **settings: object) -> str:
    """The variant that is loaded, when nothing is to be announced."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with load(directory, **settings) as loaded:
            return loaded.variant


@pytest.mark.parametrize(("variant", "factor"), [(CPU32, 2), (CPU16, 3)])
def test_the_variant_that_is_named_runs(make, variant, factor):
    with load(make(), variant=variant) as loaded:
        assert loaded.variant == variant
        assert np.array_equal(loaded(X)["y"], factor * X)


@pytest.mark.parametrize("variant", ["onnxruntime-cpu/int8", "torch/fp32", "", ENGINE32])
def test_an_unknown_variant_is_refused_with_those_that_there_are(make, variant):
    with pytest.raises(InvalidInputError, match=f"There is no variant '{variant}'") as caught:
        load(make(), variant=variant)
    assert CPU32 in str(caught.value)
    assert CPU16 in str(caught.value)


@pytest.mark.parametrize("fallback", [True, False])
def test_a_bundle_without_engines_runs_its_fp32_graph_without_a_warning(make, fallback):
    assert quietly(make(), fallback=fallback) == CPU32


def test_an_engine_that_fits_comes_first_without_a_warning(make, monkeypatch):
    fitting(monkeypatch)
    directory = make(engines=["fp32", "fp16"])

    assert quietly(directory) == ENGINE32
    assert np.array_equal(load(directory)(X)["y"], 100 * X)


def test_when_one_of_the_engines_fits_the_others_need_no_warning(make, monkeypatch):
    fitting(monkeypatch, ["fp16"])

    assert quietly(make(engines=["fp32", "fp16"])) == ENGINE16


def test_engines_that_do_not_fit_are_announced_once_and_passed_over(make):
    with pytest.warns(UserWarning, match=r"Falling back to .*/fp32: .*sm00") as caught:
        loaded = load(make(engines=["fp32", "fp16"]))

    assert len(caught) == 1
    assert caught[0].filename == __file__
    assert loaded.variant == CPU32


def test_a_loaded_model_explains_what_runs_it_and_why_its_engines_do_not(make):
    with pytest.warns(UserWarning, match="Falling back"):
        choice = load(make(engines=["fp32"])).explain()

    assert choice.variant == CPU32
    assert f"not {ENGINE32}: " in str(choice)
    assert isinstance(choice.others[0].error, EngineMismatchError)


def test_a_goal_decides_what_runs(make):
    slow = {CPU32: 20 * [1.0], CPU16: 20 * [2.0]}
    directory = make(latency=slow)

    assert quietly(directory, goal="latency@2") == CPU32
    with pytest.raises(InvalidInputError, match="There is no goal 'speed'"):
        load(directory, goal="speed")


def test_engines_that_do_not_fit_are_an_error_when_falling_back_is_refused(make):
    with pytest.raises(EngineMismatchError) as caught:
        load(make(engines=["fp32", "fp16"]), fallback=False)
    assert caught.value.wanted == "a GPU of sm00"


def test_an_engine_that_is_named_and_does_not_fit_is_an_error(make):
    with pytest.raises(EngineMismatchError):
        load(make(engines=["fp32"]), variant=ENGINE32)


def test_an_engine_that_breaks_down_is_announced_once_and_passed_over(make, monkeypatch):
    fitting(monkeypatch)

    def broken(_: EngineArtifact, **__: object) -> None:
        msg = "TensorRT cannot load it"
        raise RunnerError(msg)

    monkeypatch.setattr(evaluation_variants, "engine_runner", broken)
    directory = make(engines=["fp32", "fp16"])
    with pytest.warns(UserWarning, match="TensorRT cannot load it") as caught:
        assert load(directory).variant == CPU32
    assert len(caught) == 1
    with pytest.raises(RunnerError, match="TensorRT cannot load it"):
        load(directory, fallback=False)


@pytest.mark.parametrize("name", [GRAPH, "model-fp16.onnx"])
def test_a_graph_that_changed_is_not_run(make, name):
    directory = make()
    flip(directory / name)

    with pytest.raises(ArtifactError, match=f"{name} has sha256"):
        load(directory, variant=CPU32 if name == GRAPH else CPU16)


def test_a_graph_that_changed_is_no_reason_to_fall_back(make):
    directory = make()
    flip(directory / GRAPH)

    with pytest.raises(ArtifactError, match="changed since it was made"):
        load(directory)


def test_a_missing_graph_is_an_artifact_error(make):
    directory = make()
    (directory / GRAPH).unlink()

    with pytest.raises(ArtifactError, match="Cannot read"):
        load(directory)


def test_an_engine_that_changed_is_refused_before_anything_else_is_asked(make):
    directory = make(engines=["fp32"])
    flip(directory / "engines" / "tensorrt_rtx-sm00-fp32.engine")

    with pytest.raises(ArtifactError, match="changed since it was made"):
        load(directory, variant=ENGINE32)


@pytest.mark.parametrize("bad", [FAILED, None], ids=["failed", "never compared"])
def test_what_did_not_pass_is_not_chosen_unasked_but_runs_when_named(make, bad):
    directory = make(evidence={CPU32: bad, CPU16: PASSED})

    assert quietly(directory) == CPU16
    assert quietly(directory, variant=CPU32) == CPU32


def test_an_engine_that_did_not_pass_is_not_chosen_unasked_and_that_is_announced(make, monkeypatch):
    fitting(monkeypatch)
    directory = make(engines=["fp32"], evidence={ENGINE32: FAILED, CPU32: PASSED})

    with pytest.warns(UserWarning, match=f"{ENGINE32} failed its comparison"):
        assert load(directory).variant == CPU32
    with pytest.raises(RunnerError, match="failed its comparison"):
        load(directory, fallback=False)


def test_a_variant_that_did_not_pass_is_not_chosen_even_when_it_is_the_fastest(make):
    directory = make(
        evidence={CPU32: PASSED, CPU16: FAILED}, latency={CPU32: 20 * [2.0], CPU16: 20 * [1.0]}
    )

    assert quietly(directory) == CPU32


def test_when_nothing_passed_nothing_is_chosen_unasked(make):
    with pytest.raises(
        RunnerError, match=r"passed its comparison with the PyTorch module; name one"
    ):
        load(make(evidence={CPU32: FAILED, CPU16: FAILED}))


def test_a_precision_that_was_measured_to_be_faster_is_chosen(make):
    both = {CPU32: PASSED, CPU16: PASSED}

    assert quietly(make(evidence=both, latency={CPU32: 20 * [2.0], CPU16: 20 * [1.0]})) == CPU16


@pytest.mark.parametrize(
    "half",
    [20 * [2.0], 20 * [3.0], [*11 * [1.9], *9 * [3.0]]],
    ids=["as fast", "slower", "faster only within the noise"],
)
def test_a_precision_that_was_not_measured_to_be_faster_is_not_chosen(make, half):
    assert quietly(make(latency={CPU32: 20 * [2.0], CPU16: half})) == CPU32


def test_a_precision_that_was_never_timed_is_not_chosen(make):
    assert quietly(make(latency={CPU32: 20 * [2.0]})) == CPU32


def test_a_graph_that_was_faster_on_another_machine_does_not_come_before_an_engine(
    make, monkeypatch
):
    fitting(monkeypatch)
    latency = {ENGINE32: 20 * [2.0], CPU32: 20 * [1.0], CPU16: 20 * [0.5]}

    assert quietly(make(engines=["fp32"], latency=latency)) == ENGINE32


def test_the_fp16_engine_comes_first_when_it_was_measured_to_be_faster(make, monkeypatch):
    fitting(monkeypatch)
    latency = {ENGINE32: 20 * [2.0], ENGINE16: 20 * [1.0]}

    assert quietly(make(engines=["fp32", "fp16"], latency=latency)) == ENGINE16


def test_a_runner_of_none_of_the_files_is_refused(make):
    placed = bundle.read(make())

    with pytest.raises(InvalidInputError, match="among these graphs and engines"):
        variants.open_variant("torch/fp32", placed.graphs, placed.engines)


@pytest.mark.parametrize("place", ["/etc/model.onnx", "../model.onnx"])
def test_a_manifest_that_names_a_file_outside_the_bundle_is_refused(make, place):
    directory = make()
    graph, *_ = json.loads((directory / MANIFEST).read_text())["graphs"]
    edit_manifest(directory, graphs=[{**graph, "path": place}])
    with pytest.raises(ArtifactError, match="outside the model"):
        bundle.read(directory)
