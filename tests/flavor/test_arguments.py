"""Arguments of `log_model` and `save_model`: each is declared once, and the same all over."""

import dataclasses
import inspect
import math
import re
from pathlib import Path

import mlflow
import mlflow.onnx
import numpy as np
import pytest
import torch
from small_models import AXES, features, net

import mlflow_e2eai
from mlflow_e2eai import BuildSettings, tracking
from mlflow_e2eai.errors import E2EAIError, InvalidInputError
from mlflow_e2eai.flavor import repackage
from mlflow_e2eai.flavor.mlmodel import Description
from mlflow_e2eai.pipeline.options import options_of
from mlflow_e2eai.pipeline.settings import Settings

FIELDS = [
    (value, field) for value in (Settings, Description) for field in dataclasses.fields(value)
]

every_field = pytest.mark.parametrize(
    ("value", "field"), FIELDS, ids=lambda it: it.__name__ if isinstance(it, type) else it.name
)
both = pytest.mark.parametrize("function", [mlflow_e2eai.log_model, mlflow_e2eai.save_model])


def arguments_of(function):
    return inspect.signature(function).parameters


@both
@every_field
def test_a_field_is_an_argument_with_its_type_and_default(function, value, field):
    argument = arguments_of(function)[field.name]

    assert argument.kind is argument.KEYWORD_ONLY
    assert (argument.annotation, argument.default) == (field.type, field.default)


@every_field
def test_the_value_is_taken_out_of_the_arguments_of_a_function(value, field):
    defaults = {name: each.default for name, each in arguments_of(mlflow_e2eai.log_model).items()}

    assert value.of(defaults) == value()
    assert value.of({**defaults, "name": "more than its fields"}) == value()


@pytest.mark.parametrize("option", options_of(Settings).values(), ids=lambda option: option.name)
def test_the_default_of_an_option_is_the_text_form_of_the_fields(option):
    default = getattr(Settings(), option.argument)
    value = option.parse(option.default)

    assert (tuple(value) if isinstance(value, list) else value) == default


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ({"precisions": ("half", "bfloat16")}, {"precisions": ("fp16", "bf16")}),
        ({"precisions": "float32,float16"}, {"precisions": ("fp32", "fp16")}),
        ({"precisions": (torch.float16,)}, {"precisions": ("fp16",)}),
        ({"targets": "A100"}, {"targets": ("sm80",)}),
        ({"targets": "RTX 4090,L4,H100"}, {"targets": ("sm89", "trt:sm90")}),
        ({"targets": ("local", "rtx")}, {"targets": ("local", "rtx")}),
    ],
)
def test_precisions_and_gpus_go_by_the_names_that_people_use(given, meant):
    assert Settings(**given) == Settings(**meant)


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ({"dynamic_axes": "x:0=N:1:4:16"}, {"dynamic_axes": AXES}),
        ({"opset": "19"}, {"opset": 19}),
        ({"opset": np.int64(19)}, {"opset": 19}),
        ({"batch_sizes": "16,32"}, {"batch_sizes": (16, 32)}),
        ({"batch_sizes": np.array([16, 32])}, {"batch_sizes": (16, 32)}),
        ({"build_settings": "threads=2"}, {"build_settings": BuildSettings(threads=2)}),
        ({"rebuild": "no"}, {"rebuild": False}),
        ({"evidence_days": "0"}, {"evidence_days": 0}),
    ],
    ids=str,
)
def test_a_setting_is_taken_in_the_text_form_of_the_command_line_too(given, meant):
    assert Settings(**given) == Settings(**meant)


WRONG = [
    *(3, -1, 0.5, math.nan, True, None, "x", b"x", object(), (), ["x"], [1], [-1], [None], {}),
    *({"x": 1}, {1: 2}, {"x": {0: "N"}}, {"x": {"a": AXES["x"][0]}}, [{}]),
]


@pytest.mark.parametrize("name", [field.name for field in dataclasses.fields(Settings)])
def test_a_value_of_any_type_is_taken_or_refused_in_a_sentence(name):
    refused = []
    for value in WRONG:
        try:
            Settings(**{name: value})
        except E2EAIError as error:
            refused.append(str(error))
    assert all(sentence.endswith((".", "?")) for sentence in refused), refused
    assert len(refused) > 5 or name == "samples_at"  # the examples are read with the model


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"opset": [18]}, "opset is [18], of the type list; give a number such as 18."),
        ({"rebuild": 1}, "rebuild is 1, of the type int; give True or False."),
        ({"targets": 3}, "targets is 3, of the type int; give names such as ('A100', 'sm86')."),
        ({"targets": [80]}, "targets has a value that is 80, of the type int; give names"),
        ({"batch_sizes": [0]}, "batch_sizes is [0]; give sizes of at least 1."),
        ({"dynamic_axes": ["x"]}, "dynamic_axes is ['x'], of the type list; give axes by input"),
        ({"operators": ["x"]}, "operators has a value that is 'x', of the type str; give mlflow_e"),
    ],
    ids=str,
)
def test_a_value_of_another_type_is_named_with_what_to_give(given, sentence):
    with pytest.raises(InvalidInputError, match=re.escape(sentence)):
        Settings(**given)


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (
            {"precisions": ("fp61",)},
            "but one of fp32, tf32, fp16, bf16, int8, fp8 is expected. Did you mean fp16?",
        ),
        ({"precisions": ("FP 16",)}, "Did you mean fp16?"),
        ({"targets": ("RTX 4091",)}, "Did you mean RTX 4090?"),
        ({"evidence": "Standart"}, "did you mean standard?"),
        ({"opset": 99}, "Opset 99 is too new: PyTorch and the installed ONNX Runtime"),
        ({"opset": 3}, "Opset 3 is too old"),
    ],
)
def test_a_slip_in_a_setting_is_told_before_any_work_with_what_was_meant(given, sentence):
    with pytest.raises(InvalidInputError, match=re.escape(sentence)):
        Settings(**given)


def test_each_field_has_a_text_form_but_for_what_is_no_text():
    fields = {field.name for field in dataclasses.fields(Settings)}

    assert fields - options_of(Settings).keys() == {"samples_at", "output_names", "operators"}


@pytest.mark.parametrize("name", ["log_model", "save_model"])
def test_the_arguments_of_mlflows_flavors_are_in_the_signature(name):
    of_onnx = {"onnx_model", "artifact_path", "onnx_execution_providers", "onnx_session_options"}
    of_onnx |= {"save_as_external_data", "kwargs"}
    theirs = set(arguments_of(getattr(mlflow.onnx, name))) - of_onnx

    assert theirs <= set(arguments_of(getattr(mlflow_e2eai, name)))


def test_every_argument_of_log_model_is_described():
    described = inspect.getdoc(mlflow_e2eai.log_model)

    assert [
        n for n in arguments_of(mlflow_e2eai.log_model) if f"\n    {n}: " not in described
    ] == []


def test_the_signature_names_every_argument():
    assert not hasattr(mlflow_e2eai.log_model, "__signature__")
    kinds = {each.kind for each in inspect.signature(mlflow_e2eai.log_model).parameters.values()}
    assert kinds == {inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY}


def test_a_typing_error_is_reported_before_a_run_begins(store):
    with pytest.raises(TypeError, match="no argument 'presisions'; did you mean precis"):
        mlflow_e2eai.log_model(None, presisions=["fp16"])  # type: ignore[call-arg]  # wrong on purpose
    assert mlflow.search_runs(search_all_experiments=True).empty


@pytest.mark.parametrize(
    ("model", "options", "sentence"),
    [
        ("models:/m-1", {}, "m-1 is a logged model; run `mlflow_e2eai pipeline models:/m-1`, or"),
        (net(), {"precisions": ("int8",)}, "int8 is calibrated on evaluation data"),
    ],
)
def test_what_the_arguments_show_is_reported_before_a_run_begins(store, model, options, sentence):
    with pytest.raises(InvalidInputError, match=sentence):
        mlflow_e2eai.log_model(model, name="net", input_example={"x": features()}, **options)
    assert mlflow.search_runs(search_all_experiments=True).empty
    assert not mlflow.search_logged_models(output_format="list")


WRONG_NAMES = [
    {"registered_model_name": "team/net"},
    {"registered_model_name": "net\n"},
    {"registered_model_name": " "},
    {"name": "net.v2"},
    {"name": "a/b"},
    {"name": ""},
]

WRONG_DESCRIPTIONS: list[dict[str, object]] = [
    {"pip_requirements": "/nope.txt"},
    {"pip_requirements": ["-r /nope.txt"]},
    {"pip_requirements": 3},
    {"extra_pip_requirements": ["-c /nope.txt"]},
    {"conda_env": "/nope.yaml"},
    {"conda_env": ["numpy"]},
    {"code_paths": ["/nope.py"]},
    {"code_paths": "code.py"},
    {"extra_files": ["/nope.txt"]},
    {"metadata": {"a": print}},
    {"signature": "x"},
]


CYCLE: list[object] = []
CYCLE.append(CYCLE)

UNSTORABLE = {
    **{
        f"{argument} with {what}": {argument: {"a": value}}
        for argument in ("tags", "params", "metadata")
        for what, value in {
            "a set": {1},
            "a cycle": CYCLE,
            "a surrogate": "\ud800",
            "NUL": "a\0b",
            "NUL in a list": ["a\0b"],
            "an integer of 5,000 digits": 10**5000,
        }.items()
    },
    **{
        f"{argument} of {what}": {argument: value}
        for argument in ("name", "registered_model_name")
        for what, value in {"5,000 letters": "x" * 5000, "NUL": "a\0b", "no text": "\ud800"}.items()
    },
    "tags with a name of 5,000 letters": {"tags": {"x" * 5000: "a"}},
    "tags with NUL in a name": {"tags": {"a\0b": "a"}},
    "tags in a list": {"tags": [1]},
    "model_type with a surrogate": {"model_type": "\ud800"},
    "step of 31 digits": {"step": 10**30},
    "step in words": {"step": "one"},
}


@pytest.mark.parametrize("what", UNSTORABLE)
def test_what_no_server_can_store_is_one_sentence_before_anything_is_made(store, what):
    with pytest.raises(InvalidInputError, match=what.split()[0]) as raised:
        mlflow_e2eai.log_model(None, **{"name": "net", **UNSTORABLE[what]})
    assert str(raised.value).isprintable()
    assert len(str(raised.value)) < 500
    assert mlflow.search_runs(search_all_experiments=True).empty
    assert not mlflow.search_logged_models(output_format="list")


def test_plain_values_of_many_kinds_can_be_stored():
    values = {"a": None, 5: 1.5, "b": [1, "\\u0000"], "c": {"d": True}, "e": Path("f")}
    tracking.check_storable(tags=values, params=None, step=-1, model_type="classifier")


@pytest.mark.parametrize("wrong", [*WRONG_NAMES, *WRONG_DESCRIPTIONS], ids=str)
def test_what_mlflow_would_refuse_at_the_end_is_told_before_anything_is_made(store, wrong):
    with pytest.raises(InvalidInputError, match=next(iter(wrong))):
        mlflow_e2eai.log_model(None, **{"name": "net", **wrong})
    assert mlflow.search_runs(search_all_experiments=True).empty
    assert not mlflow.search_logged_models(output_format="list")


@pytest.mark.parametrize("wrong", WRONG_DESCRIPTIONS, ids=str)
def test_a_wrong_description_makes_no_folder(tmp_path, wrong):
    with pytest.raises(InvalidInputError):
        mlflow_e2eai.save_model(None, tmp_path / "net", **wrong)
    assert not (tmp_path / "net").exists()


@pytest.mark.parametrize("wrong", WRONG_NAMES, ids=str)
def test_the_pipeline_checks_names_before_it_looks_for_the_model(store, wrong):
    with pytest.raises(InvalidInputError, match=next(iter(wrong))):
        repackage.package("models:/none/1", **{"name": "net", **wrong})
    assert mlflow.search_runs(search_all_experiments=True).empty


@pytest.mark.parametrize(
    ("word", "near"),
    [
        ("registerd_model_name", "registered_model_name"),
        ("pip_requirement", "pip_requirements"),
        ("artifact_path", "name"),
        ("code_path", "code_paths"),
        ("dynamic_axis", "dynamic_axes"),
    ],
)
def test_a_misspelt_argument_is_refused_with_the_right_one(word, near):
    with pytest.raises(TypeError, match=f"has no argument '{word}'; did you mean {near}[?]"):
        mlflow_e2eai.log_model(net(), "net", **{word: "x"})
