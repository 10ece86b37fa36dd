"""Keyword arguments that are the fields of values: shown, sorted, and refused like any other."""

import dataclasses
import inspect

import mlflow.onnx
import pytest

import mlflow_e2eai
from mlflow_e2eai.flavor.arguments import parted, shows
from mlflow_e2eai.flavor.mlmodel import Description, DescriptionArguments
from mlflow_e2eai.pipeline.settings import Settings, SettingsArguments


@dataclasses.dataclass(frozen=True)
class Size:
    width: int = 1
    height: int = 2


def names(function):
    return list(inspect.signature(function).parameters)


def test_the_fields_are_shown_with_their_defaults_and_can_be_given():
    @shows(Size)
    def area(scale, *, name="x", **arguments):
        (size,) = parted(arguments, Size)
        return scale * Size(**size).width * Size(**size).height

    assert str(inspect.signature(area)) == "(scale, *, name='x', width: int = 1, height: int = 2)"
    assert area(2, height=5) == 10


def test_what_is_no_field_is_refused_with_what_may_be_meant():
    with pytest.raises(TypeError, match=r"no argument 'heigth'; did you mean height\?"):
        parted({"heigth": 1}, Size)


@pytest.mark.parametrize(
    ("typed", "value"), [(SettingsArguments, Settings), (DescriptionArguments, Description)]
)
def test_type_checkers_know_each_field_of_a_value_and_no_other(typed, value):
    assert list(typed.__annotations__) == [field.name for field in dataclasses.fields(value)]


@pytest.mark.parametrize("name", ["log_model", "save_model"])
def test_what_mlflows_flavors_take_is_in_the_signature(name):
    of_onnx = {"onnx_model", "artifact_path", "onnx_execution_providers", "onnx_session_options"}
    of_onnx |= {"save_as_external_data", "kwargs"}
    theirs = set(names(getattr(mlflow.onnx, name))) - of_onnx
    ours = names(getattr(mlflow_e2eai, name))
    assert theirs <= set(ours)
    assert {"model", "input_example", "precisions", "targets", "build_settings"} <= set(ours)
    assert "arguments" not in ours


def test_every_argument_of_log_model_is_described():
    described = inspect.getdoc(mlflow_e2eai.log_model)
    others = {field.name for field in dataclasses.fields(Description)}
    for name in names(mlflow_e2eai.log_model):
        assert name in described if name in others else f"\n    {name}: " in described


def test_a_typing_error_is_told_before_a_run_begins(store):
    with pytest.raises(TypeError, match=r"no argument 'presisions'; did you mean precisions\?"):
        mlflow_e2eai.log_model(None, presisions=["fp16"])
    assert mlflow.search_runs(search_all_experiments=True).empty
