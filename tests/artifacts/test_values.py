import dataclasses
import functools
import importlib
import json
import math
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlflow_e2eai.artifacts.axes import corners, resize
from mlflow_e2eai.artifacts.build_settings import BuildSettings
from mlflow_e2eai.artifacts.files import from_json, to_json
from mlflow_e2eai.artifacts.values import (
    Axis,
    EngineArtifact,
    InputOrigin,
    Library,
    OnnxArtifact,
    Target,
    TensorSpec,
    variant_name,
)
from mlflow_e2eai.bundle.manifest import Manifest
from mlflow_e2eai.errors import ArtifactError, InvalidInputError
from mlflow_e2eai.evaluation.evidence import Evidence
from mlflow_e2eai.evaluation.gates import Decision, Gate
from mlflow_e2eai.latency.concurrency import Opened
from mlflow_e2eai.latency.ratios import Ratio
from mlflow_e2eai.pytorch.pytree import Tree
from mlflow_e2eai.surgery.report import SurgeryReport

TEXT = st.text(max_size=6) | st.sampled_from(["NaN", "Infinity"])  # words, not numbers
WORDS = st.text("NCHWxyz_", min_size=1, max_size=4)
AXES = st.builds(
    lambda name, steps, multiple, buckets: Axis(
        name,
        **{
            at: step * multiple
            for at, step in zip(("min", "opt", "max"), sorted(steps), strict=True)
        },
        multiple=multiple,
        buckets=tuple(
            multiple * step for step in sorted(buckets) if min(steps) <= step <= max(steps)
        ),
    ),
    WORDS,
    st.lists(st.integers(1, 5), min_size=3, max_size=3),
    st.integers(1, 3),
    st.sets(st.integers(1, 5)),
)
SIMPLE = {
    str: TEXT,
    bool: st.booleans(),
    int: st.integers(0, 2**63 - 1),
    float: st.floats(),  # NaN and the infinities are among them
    type(None): st.none(),
    Path: st.lists(WORDS, min_size=1, max_size=3).map(lambda parts: Path(*parts)),
    Axis: AXES,
}
FINITE = st.floats(allow_nan=False, allow_infinity=False)
# Fields that take fewer values than their types.
NARROW = {
    (InputOrigin, "scale"): st.lists(FINITE, max_size=2).map(tuple),
    (InputOrigin, "offset"): st.lists(FINITE, max_size=2).map(tuple),
    # Whether a library is allowed is never believed of a file.
    (Library, "allowed"): st.just(value=False),
    (BuildSettings, "optimization_level"): st.integers(0, 5),
    (BuildSettings, "workspace_bytes"): st.none() | st.integers(1, 2**63 - 1),
    (BuildSettings, "threads"): st.none() | st.integers(1, 2**63 - 1),
    (BuildSettings, "time_limit_s"): st.floats(0, exclude_min=True),
    (Gate, "limit"): FINITE,
}


@functools.cache
def values_of(kind: Any) -> st.SearchStrategy:
    """Values of a type: of a frozen dataclass by the annotations of its fields."""
    if kind in SIMPLE:
        return SIMPLE[kind]
    if dataclasses.is_dataclass(kind):
        hints = typing.get_type_hints(kind)
        fields = {
            field.name: st.deferred(lambda hint=hints[field.name]: values_of(hint))
            for field in dataclasses.fields(kind)
        }
        fields |= {name: values for (owner, name), values in NARROW.items() if owner is kind}
        return st.builds(kind, **fields)
    return _values_of_form(typing.get_origin(kind), typing.get_args(kind))


def _values_of_form(origin: Any, parts: tuple[Any, ...]) -> st.SearchStrategy:
    """Values of a type with parameters."""
    if origin is typing.Literal:
        return st.sampled_from(parts)
    if origin is tuple and parts[-1] is ...:
        return st.lists(values_of(parts[0]), max_size=2).map(tuple)
    strategies = list(map(values_of, parts))
    if origin is tuple:
        return st.tuples(*strategies)
    if origin is Mapping:
        return st.dictionaries(*strategies, max_size=2)
    assert origin in (typing.Union, types.UnionType), f"no values of {origin} are known"
    return st.one_of(strategies)


LIGHT = (
    "artifacts.values",
    "artifacts.build_settings",
    "parity.report",
    "latency.report",
    "latency.ratios",
    "bundle.manifest",
    "evaluation.gates",
    "precision.calibration",
    "surgery.outline",
    "pytorch.pytree",
)
"""Modules without heavy libraries, whose values go into a bundle."""

KINDS = sorted(
    {
        value
        for name in LIGHT
        for value in vars(importlib.import_module(f"mlflow_e2eai.{name}")).values()
        if isinstance(value, type)
        and dataclasses.is_dataclass(value)
        and not value.__name__.startswith("_")
        # A runner that was opened is no value that flows.
        and value is not Opened
    },
    key=lambda kind: kind.__name__,
)

every_kind = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)


def spelled(value: object) -> object:
    """A value with its types, in which NaN equals NaN and the order of a mapping says nothing."""
    if dataclasses.is_dataclass(value):
        fields = {f.name: spelled(getattr(value, f.name)) for f in dataclasses.fields(value)}
        return (type(value), fields)
    if isinstance(value, Mapping):
        return {key: spelled(item) for key, item in value.items()}
    if isinstance(value, tuple):
        return tuple(spelled(item) for item in value)
    return (type(value), repr(value))


def test_the_values_that_make_up_a_bundle_are_among_them():
    assert {Manifest, OnnxArtifact, EngineArtifact, Evidence, Decision, Tree} <= set(KINDS)
    assert len(KINDS) >= 38


@every_kind
def test_a_value_is_frozen(kind):
    assert kind.__dataclass_params__.frozen


@every_kind
def test_a_value_survives_the_way_to_json_and_back(kind):
    @given(value=values_of(kind))
    def check(value: object) -> None:
        assert spelled(from_json(kind, to_json(value))) == spelled(value)
        assert spelled(from_json(kind, to_json(value).encode())) == spelled(value)

    check()


@every_kind
def test_the_json_is_json_by_the_book(kind):
    def refuse(constant: str) -> None:
        pytest.fail(f"{constant} is no JSON")

    @given(value=values_of(kind))
    def check(value: object) -> None:
        json.loads(to_json(value), parse_constant=refuse)

    check()


def test_the_order_of_a_mapping_survives():
    edits = {"fold_constants": 2, "bypass": 1, "drop_unused": 0}  # the plan's order
    report = SurgeryReport(
        edits=edits,
        nodes_before=3,
        nodes_after=1,
        operators_before={"Relu": 1},
        operators_after={},
        size_before_bytes=1,
        size_after_bytes=1,
        max_abs_error=None,
    )

    assert list(from_json(SurgeryReport, to_json(report)).edits) == list(edits)


@pytest.mark.parametrize("value", [1, "text", {"a": 1}, None, Axis])
def test_only_a_dataclass_instance_is_written(value):
    with pytest.raises(TypeError, match="is not a dataclass instance"):
        to_json(value)


AXIS = {"name": "N", "min": 1, "opt": 2, "max": 3}
SPEC = {"name": "x", "dtype": "float32", "shape": ["N", 3]}
GRAPH = {
    "path": "model.onnx",
    "sha256": "ab",
    "parent_sha256": None,
    "stage": "clean",
    "precision": "fp32",
    "opset": 18,
    "inputs": [SPEC],
    "outputs": [SPEC],
    "axes": [AXIS],
}
EMPTY_EVIDENCE = {"variant": "torch/fp32", "sha256": None, "measured": True}
RATIO = {"value": 1.0, "low": "-Infinity", "high": "NaN"}


@pytest.mark.parametrize(
    ("kind", "data"),
    [(Axis, AXIS), (OnnxArtifact, GRAPH), (Evidence, EMPTY_EVIDENCE), (Ratio, RATIO)],
)
def test_the_examples_that_are_spoilt_below_are_fine_as_they_are(kind, data):
    assert isinstance(from_json(kind, json.dumps(data)), kind)


@pytest.mark.parametrize(
    ("kind", "data", "place"),
    [
        (Axis, {**AXIS, "min": "one"}, "min"),
        (Axis, {**AXIS, "min": 1.5}, "min"),
        (Axis, {**AXIS, "min": None}, "min"),
        (Axis, {**AXIS, "min": "1"}, "min"),
        (Axis, {**AXIS, "min": True}, "min"),
        (Axis, {**AXIS, "max": "Infinity"}, "max"),
        (Axis, {**AXIS, "name": 1}, "name"),
        (Axis, {**AXIS, "name": "not a name"}, "the whole"),
        (Axis, {**AXIS, "min": 3}, "the whole"),
        (Axis, {"name": "N", "min": 1, "max": 3}, "opt"),
        (Axis, {}, "name"),
        (Axis, [AXIS], "the whole"),
        (Axis, None, "the whole"),
        (Axis, "N", "the whole"),
        (OnnxArtifact, {**GRAPH, "stage": "train"}, "stage"),
        (OnnxArtifact, {**GRAPH, "precision": "fp64"}, "precision"),
        (OnnxArtifact, {**GRAPH, "path": 1}, "path"),
        (OnnxArtifact, {**GRAPH, "inputs": {"0": SPEC}}, "inputs"),
        (OnnxArtifact, {**GRAPH, "inputs": [SPEC, {**SPEC, "name": 1}]}, "inputs.1.name"),
        (OnnxArtifact, {**GRAPH, "inputs": [{**SPEC, "shape": "N"}]}, "inputs.0.shape"),
        (OnnxArtifact, {**GRAPH, "inputs": [{**SPEC, "shape": [1, True]}]}, "inputs.0.shape.1"),
        (OnnxArtifact, {**GRAPH, "axes": [{**AXIS, "max": 1}]}, "axes.0"),
        (Evidence, {**EMPTY_EVIDENCE, "measured": "yes"}, "measured"),
        (Evidence, {**EMPTY_EVIDENCE, "measured": 1}, "measured"),
        (Evidence, {**EMPTY_EVIDENCE, "task": {"accuracy": "good"}}, "task.accuracy"),
        (Evidence, {**EMPTY_EVIDENCE, "parity": {"data": {}}}, "parity.data.outputs"),
        (Ratio, {**RATIO, "value": "one"}, "value"),
        (Ratio, {**RATIO, "value": "1.5"}, "value"),
        (Ratio, {**RATIO, "value": True}, "value"),
    ],
)
def test_what_is_of_another_type_is_refused_with_its_place(kind, data, place):
    with pytest.raises(ArtifactError, match=f"This is not an? {kind.__name__}: at {place}[,.]"):
        from_json(kind, json.dumps(data))


@pytest.mark.parametrize(
    "text",
    ["", "{", "Axis", "{'name': 'N'}", b"\xff", b"\x00", "1" * 5000, "[" * 100_000],
    ids=["empty", "cut off", "word", "python", "bytes", "null byte", "endless number", "deep"],
)
def test_what_is_no_json_is_refused(text):
    with pytest.raises(ArtifactError, match="Axis"):
        from_json(Axis, text)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=8,
)


@given(text=st.text() | st.binary() | JSON.map(json.dumps))
def test_garbage_is_an_artifact_error_and_nothing_else(text):
    with pytest.raises(ArtifactError):
        from_json(Manifest, text)


@given(field=st.sampled_from(sorted(GRAPH)), found=JSON)
def test_a_value_with_one_strange_field_is_read_or_refused_but_breaks_nothing(field, found):
    try:
        read = from_json(OnnxArtifact, json.dumps({**GRAPH, field: found}))
    except ArtifactError as error:
        assert field in str(error)  # noqa: PT017 - it may also be fine
    else:
        assert json.loads(to_json(read)).keys() == {
            field.name for field in dataclasses.fields(OnnxArtifact)
        }


def test_a_field_that_a_later_version_added_is_no_error():
    assert from_json(Axis, json.dumps({**AXIS, "step": 8})) == Axis("N", min=1, opt=2, max=3)


@pytest.mark.parametrize(
    "sizes",
    [
        {"min": 0, "opt": 1, "max": 2},
        {"min": -1, "opt": 1, "max": 2},
        {"min": 2, "opt": 1, "max": 3},
        {"min": 1, "opt": 3, "max": 2},
        {"min": 3, "opt": 2, "max": 1},
    ],
    ids=str,
)
def test_sizes_out_of_order_are_refused(sizes):
    with pytest.raises(InvalidInputError, match="1 <= min <= opt <= max is expected"):
        Axis("N", **sizes)


@pytest.mark.parametrize("name", ["", "batch size", "1st", "?", "a-b"])
def test_an_axis_is_named_by_an_identifier(name):
    with pytest.raises(InvalidInputError, match="is not an identifier"):
        Axis(name, min=1, opt=1, max=1)


@pytest.mark.parametrize("buckets", [(0,), (65,), (8, 1), (8, 8), (3,)])
def test_buckets_that_are_no_sizes_of_the_axis_are_refused(buckets):
    with pytest.raises(InvalidInputError, match=r"has the buckets \[.*in steps of 2, each once"):
        Axis("N", min=2, opt=8, max=64, multiple=2, buckets=buckets)


def test_the_three_sizes_of_an_axis_may_be_one():
    assert Axis("N", min=4, opt=4, max=4).min == 4


@pytest.mark.parametrize(
    ("text", "fields"),
    [
        ("tensorrt-sm90", {"compute_capability": "sm90", "gpu_name": "NVIDIA H100"}),
        ("tensorrt11-sm90", {"compute_capability": "sm90", "version": 11}),
        ("tensorrt10+compatible", {"compute_capability": "", "version": 10, "compatible": True}),
        ("tensorrt_rtx-sm86", {"backend": "tensorrt_rtx", "compute_capability": "sm86"}),
        ("tensorrt_rtx", {"backend": "tensorrt_rtx", "compute_capability": ""}),
    ],
)
def test_a_target_is_written_as_its_backend_and_compute_capability(text, fields):
    target = Target(**{"backend": "tensorrt", **fields})

    assert str(target) == text
    assert variant_name(str(target), "fp16") == f"{text}/fp16"


def test_a_target_that_was_stored_before_versions_were_keeps_its_name():
    stored = '{"backend": "tensorrt", "compute_capability": "sm90", "gpu_name": "NVIDIA H100"}'

    target = from_json(Target, stored)

    assert str(target) == "tensorrt-sm90"
    assert target.capabilities == ("sm90",)


@pytest.mark.parametrize(
    ("field", "value", "wanted"),
    [
        ("optimization_level", 6, "0 to 5"),
        ("optimization_level", -1, "0 to 5"),
        ("optimization_level", True, "0 to 5"),
        ("workspace_bytes", 0, "a positive 64-bit integer"),
        ("workspace_bytes", 2**63, "a positive 64-bit integer"),
        ("workspace_bytes", "1GB", "a positive 64-bit integer"),
        ("threads", 0, "a positive 64-bit integer"),
        ("threads", 1.5, "a positive 64-bit integer"),
        ("time_limit_s", 0.0, "a number of seconds"),
        ("time_limit_s", math.nan, "a number of seconds"),
        ("time_limit_s", "soon", "a number of seconds"),
        ("refit", "yes", "True or False"),
        ("strip_weights", 1, "True or False"),
    ],
)
def test_a_build_setting_out_of_its_range_is_refused(field, value, wanted):
    with pytest.raises(InvalidInputError, match=rf"{field} is {value!r}, but {wanted} is expected"):
        BuildSettings(**{field: value})


def test_build_settings_say_what_was_chosen():
    assert str(BuildSettings()) == "default"
    assert BuildSettings(threads=2, optimization_level=3).not_default == {"threads": 2}
    assert str(BuildSettings(threads=2, refit=True)) == "threads=2,refit=yes"


N = Axis("N", min=1, opt=8, max=64)
T = Axis("T", min=2, opt=16, max=128)


def test_a_profile_without_axes_has_the_one_corner_static():
    assert corners(()) == {"static": {}}


def test_a_profile_of_one_axis_has_three_corners():
    assert corners((N,)) == {"min": {"N": 1}, "opt": {"N": 8}, "max": {"N": 64}}


def test_a_bucket_is_a_corner_of_its_own():
    axis = Axis("N", min=1, opt=8, max=64, buckets=(1, 8, 32))
    assert corners((axis, T))["N=32"] == {"N": 32, "T": 16}
    assert list(corners((axis,))) == ["opt", "min", "max", "N=32"]


def test_a_profile_of_two_axes_has_the_mixed_corners_too():
    assert corners((N, T)) == {
        "min": {"N": 1, "T": 2},
        "opt": {"N": 8, "T": 16},
        "max": {"N": 64, "T": 128},
        "max N, min others": {"N": 64, "T": 2},
        "max T, min others": {"N": 1, "T": 128},
    }


DISTINCT_AXES = st.lists(AXES, min_size=1, max_size=3, unique_by=lambda axis: axis.name).map(tuple)


@given(axes=DISTINCT_AXES)
def test_corners_are_in_the_profile_and_reach_each_bound_of_each_axis_once(axes):
    found = corners(axes)

    reached = {axis.name: {sizes[axis.name] for sizes in found.values()} for axis in axes}
    assert reached == {axis.name: {axis.min, axis.opt, axis.max, *axis.buckets} for axis in axes}
    assert all(sizes.keys() == reached.keys() for sizes in found.values())
    unique = {tuple(sizes.items()) for sizes in found.values()}
    assert len(unique) == len(found)


@given(axes=DISTINCT_AXES)
def test_opt_is_a_corner_of_its_own_name_even_where_min_or_max_is_the_same(axes):
    # Reports and the choice of a variant look for the latency at "opt".
    assert corners(axes)["opt"] == {axis.name: axis.opt for axis in axes}


def spec(*shape: int | str, name: str = "x") -> TensorSpec:
    return TensorSpec(name=name, dtype="float32", shape=shape)


def resized(array: np.ndarray, *shape: int | str, **sizes: int) -> np.ndarray:
    return resize({"x": array}, (spec(*shape),), sizes)["x"]


SIZES = st.integers(1, 9)
DATA = np.arange(12, dtype=np.float32).reshape(4, 3)


@given(size=SIZES)
def test_an_axis_gets_its_size_by_repeating_or_cutting_what_was_there(size):
    found = resized(DATA, "N", 3, N=size)

    assert found.shape == (size, 3)
    assert all((found[at] == DATA[at % 4]).all() for at in range(size))


@given(n=SIZES, t=SIZES)
def test_resizing_again_changes_nothing(n, t):
    once = resized(DATA, "N", "T", N=n, T=t)

    assert once.shape == (n, t)
    assert np.array_equal(resized(once, "N", "T", N=n, T=t), once)


@given(size=st.integers(4, 20))
def test_growing_and_cutting_back_gives_the_same(size):
    assert np.array_equal(resized(resized(DATA, "N", 3, N=size), "N", 3, N=4), DATA)


@given(n=SIZES, t=SIZES)
def test_axes_do_not_mind_each_others_order(n, t):
    both = resized(DATA, "N", "T", N=n, T=t)

    assert np.array_equal(both, resized(resized(DATA, "N", "T", T=t), "N", "T", N=n))


@given(size=SIZES)
def test_the_values_stay_in_their_range_and_their_type(size):
    found = resized(DATA.astype(np.int16), "N", 3, N=size)

    assert found.dtype == np.int16
    assert set(found.ravel()) <= set(DATA.ravel())
    assert found.flags.c_contiguous


def test_axes_that_are_not_named_stay_as_they_are():
    assert np.array_equal(resized(DATA, "N", "T", B=9), DATA)
    assert resized(DATA, 4, 3, N=9).shape == (4, 3)
    assert resized(DATA, "?", 3, N=9).shape == (4, 3)


def test_inputs_that_share_an_axis_get_the_same_size():
    found = resize(
        {"a": DATA, "b": np.zeros((3, 4)), "c": np.zeros(5)},
        (spec("N", 3, name="a"), spec(3, "N", name="b"), spec(5, name="c")),
        {"N": 7},
    )

    assert {name: array.shape for name, array in found.items()} == {
        "a": (7, 3),
        "b": (3, 7),
        "c": (5,),
    }


def test_an_axis_that_comes_twice_in_an_input_is_resized_twice():
    assert resized(np.eye(2), "N", "N", N=5).shape == (5, 5)


def test_a_scalar_stays_a_scalar():
    assert resized(np.array(3.0)).shape == ()


def test_the_callers_array_is_left_alone():
    before = DATA.copy()
    found = resized(DATA, "N", 3, N=8)
    found[:] = -1

    assert np.array_equal(DATA, before)


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf, -0.0, 5e-324, 0.1])
def test_every_float_is_read_as_it_was_written(number):
    found = from_json(Ratio, to_json(Ratio(value=number, low=0, high=0))).value

    assert repr(found) == repr(number)
