"""Texts of the project that must say the same: MLproject, the command line, versions, pins."""

import ast
import importlib
import re
import runpy
import shlex
import subprocess
import sys
import tomllib
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, distribution, packages_distributions
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import mlflow_e2eai
from mlflow_e2eai.cli.main import entry_point
from mlflow_e2eai.cli.verbs import CONSOLE_ONLY, VERBS, load
from mlflow_e2eai.pipeline.options import Option

ROOT = Path(__file__).parents[2]
PROJECT = yaml.safe_load((ROOT / "MLproject").read_text("utf-8"))
SETTINGS = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
ENTRY_POINTS = PROJECT["entry_points"]
SCRIPTS = {path.stem: path for path in sorted((ROOT / "entry_points").glob("*.py"))}
STEPS = [verb for verb in VERBS.values() if verb.name not in CONSOLE_ONLY]

every_step = pytest.mark.parametrize("verb", STEPS, ids=lambda verb: verb.name)


def given(command: str) -> dict[str, str]:
    """The word that a command gives to each of its options."""
    words = shlex.split(command)
    first = next(at for at, word in enumerate(words) if word.startswith("--"))
    return dict(zip(words[first::2], words[first + 1 :: 2], strict=True))


def options_of_the_demo() -> dict[str, Option]:
    demo = runpy.run_path(str(ROOT / "examples/digits.py"), run_name="digits")["DEMO"]
    return {option.name: option for option in demo.all_options()}


def test_each_step_is_an_entry_point_and_each_other_entry_point_is_main():
    assert set(ENTRY_POINTS) == {*(verb.name for verb in STEPS), "main"}
    assert set(VERBS) >= CONSOLE_ONLY


@every_step
def test_an_entry_point_has_its_verbs_options_and_their_defaults(verb):
    parameters = ENTRY_POINTS[verb.name]["parameters"]
    # The project may know a good default where the command line must ask.
    defaults = {option.name: option.default for option in verb.all_options() if option.default}

    assert list(parameters) == [option.name for option in verb.all_options()]
    assert {name: parameters[name].get("default") for name in defaults} == defaults


@pytest.mark.parametrize("name", ENTRY_POINTS)
def test_an_entry_point_works_without_a_parameter(name):
    assert all("default" in it for it in ENTRY_POINTS[name]["parameters"].values())


@every_step
def test_a_verb_of_a_step_asks_for_no_argument_without_an_option(verb):
    assert verb.positional == ()


@pytest.mark.parametrize("name", ENTRY_POINTS)
def test_a_command_calls_its_script_and_hands_each_parameter_to_its_option(name):
    entry = ENTRY_POINTS[name]

    here, *words = shlex.split(entry["command"])
    assert here == "PYTHONPATH=$PWD:$PYTHONPATH"
    assert words[:3] == ["python", "-P", f"entry_points/{name}.py"]
    assert given(entry["command"]) == {
        f"--{parameter.replace('_', '-')}": f"{{{parameter}}}" for parameter in entry["parameters"]
    }


@pytest.mark.parametrize("name", ENTRY_POINTS)
def test_a_parameter_is_text_which_mlflow_leaves_alone(name):
    for settings in ENTRY_POINTS[name]["parameters"].values():
        assert settings["type"] == "string"
        assert isinstance(settings.get("default", ""), str)


def test_main_gives_the_digits_example_its_options_and_their_defaults():
    defaults = {name: option.default for name, option in options_of_the_demo().items()}

    assert {k: v["default"] for k, v in ENTRY_POINTS["main"]["parameters"].items()} == defaults


def test_there_is_a_script_for_each_entry_point():
    assert set(SCRIPTS) == set(ENTRY_POINTS)


@pytest.mark.parametrize("path", SCRIPTS.values(), ids=lambda path: path.stem)
def test_a_script_is_the_shortest_example_of_its_step(path):
    lines = path.read_text("utf-8").splitlines()

    assert len(lines) <= 12
    assert lines[0].startswith('"""')


@every_step
def test_a_script_calls_the_function_of_its_verb_and_prints_with_its_printer(verb):
    tree = ast.parse(SCRIPTS[verb.name].read_text("utf-8"))
    imported = {
        getattr(importlib.import_module(node.module), alias.name)
        for node in tree.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }

    assert imported == {entry_point, load(verb.function), load(verb.printer)}


@pytest.mark.parametrize("path", SCRIPTS.values(), ids=lambda path: path.stem)
def test_a_script_is_not_in_the_way_of_the_standard_library(path):
    """`bisect.py` would be, for `random` and all that imports it, without -P."""
    code = "import runpy, sys, random, bisect; print(bisect.__file__, *sys.path)"
    words = [sys.executable, "-S", "-P", "-c", code]
    done = subprocess.run(words, cwd=path.parent, capture_output=True, text=True, check=True)
    help_of = [sys.executable, "-P", str(path), "--help"]
    shown = subprocess.run(help_of, capture_output=True, text=True, check=False, timeout=100)

    assert str(path.parent) not in done.stdout
    assert shown.returncode == 0, shown.stderr
    assert "Usage:" in shown.stdout


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
        *SETTINGS["project"]["optional-dependencies"]["sign"],
        *SETTINGS["project"]["optional-dependencies"]["dev"],
    )
]


@pytest.mark.parametrize("requirement", REQUIREMENTS, ids=lambda requirement: requirement.name)
def test_what_the_package_needs_is_pinned_to_a_version_that_it_allows(requirement):
    assert requirement.specifier.contains(CONSTRAINTS[canonicalize_name(requirement.name)])


EXTRAS = {
    "cuda": "rtx",
    "cyclonedx": "sign",
    "netron": "show",
    "packageurl": "sign",
    "pynvml": "nvml",
    "ray": "ray",
    "tensorrt": "tensorrt",
    "tensorrt_rtx": "rtx",
    "torch": "torch",
    "transformers": "transformers",
}
"""Modules that an extra brings, which is named where it is not installed."""


def closure(requirements):
    """The names of distributions that come with requirements."""
    names, todo = set(), [Requirement(text) for text in requirements]
    while todo:
        one = todo.pop()
        name = canonicalize_name(one.name)
        if name in names or not (one.marker is None or one.marker.evaluate({"extra": ""})):
            continue
        names.add(name)
        with suppress(PackageNotFoundError):
            todo += map(Requirement, distribution(name).requires or ())
    return names


def imported_modules():
    """The top-level modules that the package imports and that Python does not bring."""
    found = set()
    for path in (ROOT / "mlflow_e2eai").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Import):
                found |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                found.add(str(node.module).partition(".")[0])
    return found - sys.stdlib_module_names - {"mlflow_e2eai"}


def test_everything_that_is_imported_is_required_or_brought_by_an_extra():
    brought = closure(SETTINGS["project"]["dependencies"])
    homes = packages_distributions()
    unknown = {
        name
        for name in imported_modules() - EXTRAS.keys()
        if not brought & {canonicalize_name(home) for home in homes.get(name, ())}
    }
    assert unknown == set()
    assert set(EXTRAS.values()) <= SETTINGS["project"]["optional-dependencies"].keys()


def test_nothing_is_pinned_twice():
    names = re.findall(r"^([\w.-]+)==", (ROOT / "constraints.txt").read_text("utf-8"), re.MULTILINE)

    assert len({canonicalize_name(name) for name in names}) == len(names)


def test_the_version_is_the_same_in_both_places():
    assert SETTINGS["project"]["version"] == mlflow_e2eai.__version__
