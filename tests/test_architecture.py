"""What holds the rooms apart: who may import whom, and which texts must say the same."""

import argparse
import ast
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import mlflow_e2eai
from mlflow_e2eai.cli import parser

PACKAGE = Path(mlflow_e2eai.__file__).parent
ROOT = PACKAGE.parent
FILES = sorted(PACKAGE.rglob("*.py"))

# A room imports from the lines above its own only. `__init__` (for `__version__`) and `_compat`
# import nothing of ours.
LAYERS = (
    {"__init__", "_compat"},
    {"errors"},
    {"building"},
    {"artifacts", "context", "factories", "files", "garbage", "keywords", "progress", "trees"},
    {"libraries", "weights"},
    {"arrays", "graphs", "modules", "origins"},
    {"calling", "rounding", "scripting", "sessions"},
    {"runners", "parity", "latency", "gates", "samples"},
    {"isolation", "operators"},
    {"rungs", "verification"},
    {"exporter", "surgery", "precision", "engine"},
    {"bisection", "imported", "settings"},
    {"evidence"},
    {"bundle"},
    {"recording", "variants"},
    {"compiling", "evaluation"},
    {"beginning"},
    {"pipeline", "pyfunc", "report"},
    {"tracking"},
    {"chain", "mlmodel", "registry"},
    {"chained"},
    {"fleet"},
    {"flavor"},
    {"evaluator", "jobs", "ondemand", "show", "texts", "triton"},
    {"entry", "options"},
    {"cli"},
)
RANKS = {room: rank for rank, rooms in enumerate(LAYERS) for room in rooms}

KNOW_MLFLOW = {"tracking", "registry", "flavor", "mlmodel", "evaluator", "pyfunc", "_compat"}

LONGEST = 350
# Lines that a file may have all the same, and why.
LONGER = {"flavor.py": (400, "the words of log_model's arguments")}


class Import(NamedTuple):
    """A module that is imported somewhere in a file."""

    module: str
    at_run_time: bool


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(node: ast.AST, *, at_run_time: bool = True) -> Iterator[Import]:
    """All modules that a tree imports, those that it imports by a text among them."""
    yield from (Import(name, at_run_time) for name in imported_by(node))
    for_types = isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
    for child in ast.iter_child_nodes(node):
        only_types = for_types and child in node.body
        yield from imports(child, at_run_time=at_run_time and not only_types)


def imported_by(node: ast.AST) -> list[str]:
    """The modules that one statement or call imports."""
    match node:
        case ast.Import(names=names):
            return [alias.name for alias in names]
        case ast.ImportFrom(module="mlflow_e2eai", names=names, level=0):
            return [f"mlflow_e2eai.{alias.name}" for alias in names]
        case ast.ImportFrom(module=str(module), level=0):
            return [module]
        case ast.ImportFrom():
            pytest.fail(f"a relative import: {ast.unparse(node)}")
        case ast.Call(func=function, args=[ast.Constant(value=str(name)), *_]):
            by_text = ast.unparse(function).rpartition(".")[2] in ("import_module", "__import__")
            return [name] if by_text else []
    return []


IMPORTS = {path: set(imports(ast.parse(path.read_text("utf-8")))) for path in FILES}

every_file = pytest.mark.parametrize(
    "path", FILES, ids=lambda path: path.relative_to(PACKAGE).as_posix()
)


def rooms_that_import(*libraries: str) -> set[str]:
    """The rooms that import a library at run time."""
    return {
        room_of(path)
        for path, found in IMPORTS.items()
        for module, at_run_time in found
        if at_run_time and module.partition(".")[0] in libraries
    }


def test_the_imports_of_a_file_are_seen_wherever_they_hide():
    tree = ast.parse(
        "import a.b\n"
        "from c import d\n"
        "from mlflow_e2eai import bundle, __version__\n"
        "if TYPE_CHECKING:\n    import e\nelse:\n    import f\n"
        "def g():\n    import h\n    importlib.import_module('i')\n"
    )

    assert set(imports(tree)) == {
        Import("a.b", at_run_time=True),
        Import("c", at_run_time=True),
        Import("mlflow_e2eai.bundle", at_run_time=True),
        Import("mlflow_e2eai.__version__", at_run_time=True),
        Import("e", at_run_time=False),
        Import("f", at_run_time=True),
        Import("h", at_run_time=True),
        Import("i", at_run_time=True),
    }


def test_every_room_has_its_line():
    assert {room_of(path) for path in FILES} == set(RANKS)
    assert sum(map(len, LAYERS)) == len(RANKS)


@every_file
def test_imports_go_one_way(path):
    room = room_of(path)
    rooms = {
        module.split(".")[1]
        for module, at_run_time in IMPORTS[path]
        if module.startswith("mlflow_e2eai.") and (at_run_time or room != "__init__")
    }
    # A folder may import within itself; `__version__` is what `__init__` gives.
    others = {"__init__" if name == "__version__" else name for name in rooms - {room}}

    assert {name for name in others if RANKS[name] >= RANKS[room]} == set()
    if (PACKAGE / f"{room}.py").exists():
        assert room not in rooms


def test_only_engine_imports_tensorrt():
    assert rooms_that_import("tensorrt", "tensorrt_rtx") <= {"engine"}


@every_file
def test_only_engine_asks_for_a_tensorrt_module_by_name(path):
    calls = [
        ast.unparse(node)
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.Call)
        and ast.unparse(node.func).rpartition(".")[2] in ("import_module", "find_spec")
        and "tensorrt" in ast.unparse(node)
    ]

    assert room_of(path) == "engine" or calls == []


def test_only_those_who_must_import_mlflow():
    assert rooms_that_import("mlflow") == KNOW_MLFLOW


def test_the_private_helpers_of_mlflow_are_imported_in_one_place():
    pattern = re.compile(r"^\s*from mlflow\.\S+ import \(?\s*_|^\s*from mlflow\S*\._", re.MULTILINE)

    assert [p.name for p in FILES if pattern.search(p.read_text("utf-8"))] == ["_compat.py"]


def test_only_those_who_know_mlflow_know_its_private_helpers():
    users = {
        room_of(path)
        for path, found in IMPORTS.items()
        if any(module.startswith("mlflow_e2eai._compat") for module, _ in found)
    }

    assert users
    assert users <= KNOW_MLFLOW


@every_file
def test_a_file_fits_on_a_few_screens(path):
    name = path.relative_to(PACKAGE).as_posix()
    limit, _ = LONGER.get(name, (LONGEST, ""))

    assert len(path.read_text("utf-8").splitlines()) <= limit


def test_a_file_that_was_split_is_no_longer_excused():
    excused = {name for name in LONGER if (PACKAGE / name).exists()}
    short = {n for n in excused if len((PACKAGE / n).read_text("utf-8").splitlines()) <= LONGEST}

    assert excused == set(LONGER)
    assert short == set()


# The public face


def offered(path: Path) -> dict[str, str]:
    """What an `__init__` imports from its own package, and from where."""
    return {
        alias.asname or alias.name: node.module
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("mlflow_e2eai.")
        for alias in node.names
    }


def test_the_public_names_are_those_that_type_checkers_see():
    public = offered(PACKAGE / "__init__.py")

    assert sorted(mlflow_e2eai.__all__) == sorted([*public, "__version__"])
    assert dir(mlflow_e2eai) == sorted(mlflow_e2eai.__all__)


@pytest.mark.parametrize("name", sorted(set(mlflow_e2eai.__all__) - {"__version__"}))
def test_a_public_name_is_found_where_type_checkers_see_it(name):
    found = getattr(mlflow_e2eai, name)

    assert f"{found.__module__}.".startswith(offered(PACKAGE / "__init__.py")[name] + ".")
    assert found.__name__ == name
    assert found.__doc__


def test_a_name_that_there_is_not_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        mlflow_e2eai.nothing  # noqa: B018 - to ask is the point


@pytest.mark.parametrize("folder", ["engine", "tracking"])
def test_a_folder_offers_what_its_init_imports(folder):
    path = PACKAGE / folder / "__init__.py"
    (listed,) = (
        ast.literal_eval(node.value)
        for node in ast.parse(path.read_text("utf-8")).body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__"
    )

    assert sorted(listed) == sorted(offered(path))
    assert len(set(listed)) == len(listed)


HEAVY = {
    *("mlflow", "onnx", "onnx_graphsurgeon", "onnxruntime", "onnxscript", "pandas"),
    *("tensorrt", "tensorrt_rtx", "torch"),
}


@pytest.mark.parametrize(
    ("module", "allowed"),
    [
        ("mlflow_e2eai", set()),
        ("mlflow_e2eai.errors", set()),
        ("mlflow_e2eai.gates", set()),
        ("mlflow_e2eai.context", set()),
        ("mlflow_e2eai.cli", {"numpy"}),
        ("mlflow_e2eai.report", {"numpy"}),
        ("mlflow_e2eai.pipeline", {"numpy"}),
        ("mlflow_e2eai.tracking", {"numpy"}),
    ],
)
def test_importing_brings_nothing_heavy(module, allowed):
    code = f"import sys, {module}; print(*{{name.partition('.')[0] for name in sys.modules}})"
    done = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=60
    )

    assert set(done.stdout.split()) & (HEAVY | {"numpy"}) <= allowed


# Texts that must say the same

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


def test_the_rules_for_ruff_let_only_those_import_mlflow_who_may():
    message = SETTINGS["tool"]["ruff"]["lint"]["flake8-tidy-imports"]["banned-api"]["mlflow"]["msg"]

    assert set(re.findall(r"(\w+)(?:\.py|/)", message)) == KNOW_MLFLOW
