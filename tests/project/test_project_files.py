"""Texts of the project that must say the same: MLproject, the command line, versions, pins."""

import argparse
import ast
import re
import shlex
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import mlflow_e2eai
from mlflow_e2eai.cli.main import parser

ROOT = Path(__file__).parents[2]
PROJECT = yaml.safe_load((ROOT / "MLproject").read_text("utf-8"))
SETTINGS = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
ENTRY_POINTS = PROJECT["entry_points"]
VERBS = {
    name: verb
    for action in parser()._actions
    if isinstance(action, argparse._SubParsersAction)
    for name, verb in action.choices.items()
}


# What is for the machine of whoever calls it, so that a run of a project has no use for it.
AT_THE_CONSOLE = {"choose-buckets", "export-triton", "show"}
STEPS = VERBS.keys() - AT_THE_CONSOLE


def options_of(verb: argparse.ArgumentParser) -> dict[str, argparse.Action]:
    """Options by the name that their parameter has in MLproject."""
    return {
        text.removeprefix("--").replace("-", "_"): action
        for action in verb._actions
        for text in action.option_strings
        if text.startswith("--") and text != "--help"
    }


def given(command: str) -> dict[str, str]:
    """What a command gives to each of its options."""
    words = shlex.split(command)
    first = next(at for at, word in enumerate(words) if word.startswith("--"))
    return dict(zip(words[first::2], words[first + 1 :: 2], strict=True))


def test_each_step_is_an_entry_point_and_each_other_entry_point_is_main():
    assert set(ENTRY_POINTS) == {*STEPS, "main"}
    assert set(VERBS) >= AT_THE_CONSOLE


@pytest.mark.parametrize("name", sorted(STEPS))
def test_an_entry_point_has_its_verbs_options_for_parameters(name):
    assert set(ENTRY_POINTS[name]["parameters"]) == set(options_of(VERBS[name]))


@pytest.mark.parametrize("name", sorted(STEPS))
def test_a_verb_takes_no_positional_arguments(name):
    assert all(action.option_strings for action in VERBS[name]._actions)


@pytest.mark.parametrize("name", ENTRY_POINTS)
def test_a_command_hands_each_parameter_to_its_option(name):
    entry = ENTRY_POINTS[name]

    assert given(entry["command"]) == {
        f"--{parameter.replace('_', '-')}": f"{{{parameter}}}" for parameter in entry["parameters"]
    }


@pytest.mark.parametrize("name", sorted(STEPS))
def test_a_command_calls_its_verb(name):
    assert shlex.split(ENTRY_POINTS[name]["command"])[:2] == ["mlflow_e2eai", name]


@pytest.mark.parametrize("name", sorted(STEPS))
def test_a_parameter_has_the_default_of_its_option(name):
    options = options_of(VERBS[name])
    for parameter, settings in ENTRY_POINTS[name]["parameters"].items():
        if options[parameter].required:
            continue  # the project may know a good one where the command line asks
        assert settings["default"] == options[parameter].default, parameter


@pytest.mark.parametrize("name", ENTRY_POINTS)
def test_a_parameter_is_text_which_mlflow_leaves_alone(name):
    for settings in ENTRY_POINTS[name]["parameters"].values():
        assert settings["type"] == "string"
        assert isinstance(settings.get("default", ""), str)


def test_main_gives_the_digits_example_its_options_and_their_defaults():
    entry = ENTRY_POINTS["main"]
    python, script = shlex.split(entry["command"])[:2]
    calls = [
        node
        for node in ast.walk(ast.parse((ROOT / script).read_text("utf-8")))
        if isinstance(node, ast.Call) and ast.unparse(node.func).endswith(".add_argument")
    ]
    defaults = {
        call.args[0].value.removeprefix("--").replace("-", "_"): str(keyword.value.value)
        for call in calls
        for keyword in call.keywords
        if keyword.arg == "default"
    }

    assert (python, script) == ("python", "examples/digits.py")
    assert {name: found["default"] for name, found in entry["parameters"].items()} == defaults
    assert len(calls) == len(defaults)


CONSTRAINTS = {
    canonicalize_name(name): version
    for name, version in re.findall(
        r"^([\w.-]+)==(\S+)$", (ROOT / "constraints.txt").read_text("utf-8"), re.MULTILINE
    )
}
# What `make` installs.
REQUIREMENTS = [
    Requirement(text)
    for text in (
        *SETTINGS["project"]["dependencies"],
        *SETTINGS["project"]["optional-dependencies"]["torch"],
        *SETTINGS["project"]["optional-dependencies"]["rtx"],
        *SETTINGS["project"]["optional-dependencies"]["ray"],
        *SETTINGS["project"]["optional-dependencies"]["dev"],
    )
]


@pytest.mark.parametrize("requirement", REQUIREMENTS, ids=lambda requirement: requirement.name)
def test_what_the_package_needs_is_pinned_to_a_version_that_it_allows(requirement):
    assert requirement.specifier.contains(CONSTRAINTS[canonicalize_name(requirement.name)])


def test_nothing_is_pinned_twice():
    names = re.findall(r"^([\w.-]+)==", (ROOT / "constraints.txt").read_text("utf-8"), re.MULTILINE)

    assert len({canonicalize_name(name) for name in names}) == len(names)


def test_the_version_is_the_same_in_both_places():
    assert SETTINGS["project"]["version"] == mlflow_e2eai.__version__
