"""YAML from outside is read within limits, whatever it holds."""

from __future__ import annotations

import time

import pytest

from mlflow_e2eai.artifacts import yaml_nodes
from mlflow_e2eai.artifacts.build_settings import BuildSettings
from mlflow_e2eai.errors import ArtifactError, InvalidInputError
from mlflow_e2eai.pipeline import options
from mlflow_e2eai.promotion.gates_file import read_policy
from mlflow_e2eai.tracking import _mlflow

LAUGHS = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{at}: &a{at} [{', '.join([f'*a{at - 1}'] * 9)}]\n" for at in range(1, 10)
)

HOSTILE = {
    "aliases that stand for 10^9 values": LAUGHS,
    "an alias of itself": "a: &a [" + ", ".join(["*a"] * 20) + "]",
    "a list in itself": "&a [*a]",
    "a list in its own mapping": "a: &a {b: [*a]}",
    "a mapping that is its own key": "&a {? *a : 1}",
    "a long list tripled by aliases, over and over": "a0: &a0 ["
    + "x, " * 20_000
    + "]\n"
    + "".join(f"a{at}: &a{at} [{f'*a{at - 1}, ' * 3}]\n" for at in range(1, 6)),
    "lists 3,000 deep": "gates: " + "[" * 3000 + "]" * 3000,
    "mappings 100,000 deep": "gates: " + "{a: " * 60_000,
    "a number of 5,000 digits": "gates:\n - {metric: a, at_most: " + "9" * 5000 + "}",
    "a base of 60 with 60,000 places": "a: 1" + ":1" * 100_000,
    "many short lines": "- a\n" * 65_000,
    "many empty lists": "[" + "[]," * 87_000 + "]",
    "too many characters": "a: " + "x" * (1 << 25),
    "a tag that makes an object": "a: !!python/object/apply:os.system [touch ran]",
    "a broken text": "a: \ud800",
    "a NUL": "a: \0",
    "a date that there is not": "a: 2001-99-99",
    "a timestamp that is none": "a: !!timestamp x",
    "a number of no digit": "a: !!int ''",
    "a fraction of no digit": "a: !!float ''",
    "a truth that is none": "a: !!bool x",
    "bytes that are none": "a: !!binary '????'",
    "a base that has no digits": "a: 0x_",
}


@pytest.mark.parametrize("what", HOSTILE)
def test_a_hostile_text_is_read_or_refused_in_a_sentence_within_seconds(what, tmp_path):
    began = time.process_time()
    try:
        yaml_nodes.load(HOSTILE[what], "file.yaml")
    except InvalidInputError as error:
        assert "\n" not in str(error)  # noqa: PT017 - some are harmless after all
    assert time.process_time() - began < 10


@pytest.mark.parametrize("text", ["!!timestamp x", "!!int ''", "!!float ''", "!!bool x"])
def test_a_value_that_does_not_fit_its_tag_is_named_with_its_line(text):
    tag, _, value = text.replace("''", "").partition(" ")
    with pytest.raises(InvalidInputError, match=f"'{value}' is no {tag} in .*, line 2,"):
        yaml_nodes.load(f"a: 1\nb: {text}\n", "file.yaml")


@pytest.mark.parametrize("text", ["&a [*a]", "a: &a {b: [*a]}", "&a {? *a : 1}"])
def test_a_list_in_itself_is_refused_as_more_values_than_are_read(text):
    with pytest.raises(InvalidInputError, match="aliases stand for more than 262144 values"):
        yaml_nodes.load(text, "file.yaml")


READERS = {
    "gates": read_policy,
    "a plan": options.parse_plan,
    "build settings": options.parse_build_settings,
}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("what", HOSTILE)
def test_every_reader_of_a_users_file_refuses_it(reader, what, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "file.yaml"
    path.write_bytes(HOSTILE[what].encode(errors="surrogatepass"))
    began = time.process_time()
    with pytest.raises((InvalidInputError, ArtifactError)) as raised:
        READERS[reader](str(path))
    assert "\n" not in str(raised.value)
    assert time.process_time() - began < 10
    assert [each.name for each in tmp_path.iterdir()] == ["file.yaml"]


@pytest.mark.parametrize("what", HOSTILE)
def test_an_mlmodel_file_is_refused_as_an_artifact(what, tmp_path):
    (tmp_path / "MLmodel").write_bytes(HOSTILE[what].encode(errors="surrogatepass"))
    with pytest.raises(ArtifactError, match=r"log the model again|check the path"):
        _mlflow.get_flavor_configuration(tmp_path, "mlflow_e2eai")


@pytest.mark.parametrize("text", ["", "5", "- a", "flavors: [a]", "flavors: {mlflow_e2eai: 5}"])
def test_an_mlmodel_file_that_describes_no_model_is_refused(text, tmp_path):
    (tmp_path / "MLmodel").write_text(text)
    with pytest.raises(ArtifactError, match="describes no model"):
        _mlflow.get_flavor_configuration(tmp_path, "mlflow_e2eai")


@pytest.mark.parametrize("value", ["9" * 5000, "[" * 1000, "*a", "!!python/name:os.system", "{"])
def test_a_setting_in_one_word_is_refused_alike(value):
    with pytest.raises(InvalidInputError, match=r"is not a build setting|is expected"):
        BuildSettings.parse(f"threads={value}")


def test_a_few_aliases_as_programs_write_them_are_read():
    assert yaml_nodes.load("a: &x [1]\nb: *x\n", "file.yaml") == {"a": [1], "b": [1]}
    with pytest.raises(InvalidInputError, match="line 2: an alias"):
        yaml_nodes.load("a: &x [1]\nb: [" + "*x, " * 17 + "]\n", "file.yaml")
