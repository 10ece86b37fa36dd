"""A registered version has the names that MLflow and people use, in every place that takes one."""

from __future__ import annotations

from pathlib import Path

import mlflow
import pytest

from mlflow_e2eai import tracking
from mlflow_e2eai.errors import E2EAIError, InvalidInputError, TrackingError
from mlflow_e2eai.promotion.registry.record import last_record
from mlflow_e2eai.tracking.versions import (
    all_versions,
    find_version,
    split_version,
    uri_of,
    version_at,
)


@pytest.fixture
def models(store):
    """The models of ten versions, by number: as text, 10 is before 9."""
    store.create_registered_model("digits")
    experiment = mlflow.create_experiment("digits")
    made = {}
    for number in range(1, 11):
        model = store.create_logged_model(experiment, f"digits-{number}")
        store.finalize_logged_model(model.model_id, "READY")
        store.create_model_version("digits", f"models:/{model.model_id}", model_id=model.model_id)
        made[number] = model.model_id
    store.set_registered_model_alias("digits", "champion", "2")
    return made


@pytest.mark.parametrize("name", ["net'work", 'net"work', "net work", "net''work", "né"])
def test_a_name_with_quotes_is_found(store, name):
    for each in (name, "net"):
        store.create_registered_model(each)
        store.create_model_version(each, "s3://there/model")
    assert [version.name for version in all_versions(name)] == [name]
    assert find_version(name, "latest").name == name


def test_a_name_with_both_kinds_of_quotes_is_refused_before_anything_is_made(store):
    with pytest.raises(InvalidInputError, match="leave out one of the two kinds of quotes"):
        tracking.check_names("net", 'net\'s "work"')
    assert store.search_registered_models() == []


@pytest.mark.parametrize("prefix", ["models:/", ""])
@pytest.mark.parametrize(
    ("name", "number"),
    [
        ("digits/1", 1),
        ("digits/9", 9),
        ("digits/latest", 10),
        ("digits/Latest", 10),
        ("digits@champion", 2),
        ("digits@latest", 10),
        ("digits", 10),
    ],
)
def test_a_version_is_found_by_each_of_its_names(models, prefix, name, number):
    assert tracking.resolve(prefix + name).model_id == models[number]
    assert int(version_at(prefix + name).version) == number


@pytest.mark.parametrize("text", ["digits", "digits/1", "model.onnx", "./digits", "net.pt"])
def test_a_path_is_no_name_of_a_version(isolated, text):
    Path("digits/1").mkdir(parents=True)
    assert uri_of(text) == text
    assert not tracking.is_uri(text)


@pytest.mark.parametrize(
    ("version", "number"), [(3, 3), ("3", 3), ("latest", 10), ("@champion", 2)]
)
def test_beside_a_name_its_version_is_a_number_latest_or_an_alias(models, version, number):
    assert int(find_version("digits", version).version) == number
    with pytest.raises(TrackingError, match=f"Nothing was decided about version {number} of"):
        last_record("digits", version)


def test_the_latest_version_is_the_highest_that_is_left(models, store):
    store.delete_model_version("digits", "10")
    assert int(find_version("digits", "latest").version) == 9
    assert tracking.resolve("models:/digits/latest").model_id == models[9]


def test_a_registered_model_without_versions_has_no_latest_one(store):
    store.create_registered_model("it's empty")
    with pytest.raises(TrackingError, match='The registered model "it\'s empty" has no version'):
        find_version("it's empty", "latest")


@pytest.mark.parametrize(
    ("name", "version", "words"),
    [
        ("digits", 11, "There is no version 11 of 'digits'"),
        ("digits", "@nobody", "There is no version '@nobody' of 'digits'"),
        ("nothing", "latest", "There is no version 'latest' of 'nothing'"),
        ("digits", "v1", "'v1' is no version of 'digits'; give a number, 'latest' or '@alias'"),
        ("digits", "-1", "'-1' is no version of 'digits'"),
        ("digits", "", "'' is no version of 'digits'"),
    ],
)
def test_a_version_that_is_not_there_is_one_sentence(models, name, version, words):
    with pytest.raises(E2EAIError, match=words) as caught:
        find_version(name, version)
    assert len(str(caught.value).splitlines()) == 1


def test_a_plain_name_splits_into_no_two_parts():
    assert split_version("digits") is None


@pytest.mark.parametrize("text", ["a/b/c", "/1", "digits/", "@x", "a@", "C:/x"])
def test_a_text_that_names_no_version_is_none(text):
    assert split_version(text) is None
    with pytest.raises(
        InvalidInputError, match="does not name a version; give models:/name/version or"
    ):
        version_at(text)
