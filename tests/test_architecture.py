"""The house rules: layers, sizes and names of files, who imports which library."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

import mlflow_e2eai

PACKAGE = Path(mlflow_e2eai.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))

# Ground first. A room, which is a folder or a file at the top of the package, imports from the
# layers below its own only.
LAYERS = (
    {"errors", "_version"},
    {"artifacts"},
    {"parity", "latency"},
    {"runtime"},
    {"pytorch", "surgery", "precision", "engine"},
    {"evaluation"},
    {"bundle"},
    {"report"},
    {"tracking"},
    {"pipeline"},
    {"fleet"},
    {"promotion"},
    {"flavor"},
    {"cli"},
    {"__init__", "__main__"},
)
RANKS = {room: rank for rank, rooms in enumerate(LAYERS) for room in rooms}

MOST_AT_THE_TOP = 21
MOST_FILES = 18
MOST_LINES = 400

# One basename is one idea, but for these, which each stage has.
SHARED_NAMES = {
    *("__init__", "batching", "engines", "measure", "metrics", "models", "report", "runner"),
    *("stage", "worker"),
}


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
        only_types = for_types and child in node.body  # type: ignore[attr-defined]  # mypy sees a wider type
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


def files_that_import(*libraries: str) -> set[str]:
    """The files that import a library at run time."""
    return {
        path.relative_to(PACKAGE).as_posix()
        for path, imported in IMPORTS.items()
        for module, at_run_time in imported
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


# Layers


def test_every_room_has_its_layer():
    assert {room_of(path) for path in FILES} == set(RANKS)
    assert sum(map(len, LAYERS)) == len(RANKS)


@every_file
def test_a_file_imports_from_lower_layers_and_its_own_room_only(path):
    room = room_of(path)
    imported = {
        module.split(".")[1]
        for module, at_run_time in IMPORTS[path]
        if module.startswith("mlflow_e2eai.") and (at_run_time or room != "__init__")
    }

    assert {name for name in imported - {room} if RANKS[name] >= RANKS[room]} == set()


# Libraries


def test_only_engine_imports_tensorrt():
    assert {name.split("/")[0] for name in files_that_import("tensorrt", "tensorrt_rtx")} <= {
        "engine"
    }


@every_file
def test_only_engine_looks_a_tensorrt_module_up_by_name(path):
    calls = [
        ast.unparse(node)
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.Call)
        and ast.unparse(node.func).rpartition(".")[2] in ("import_module", "find_spec")
        and "tensorrt" in ast.unparse(node)
    ]

    assert room_of(path) == "engine" or calls == []


def test_only_these_import_pytorch():
    elsewhere = {"bundle/batching.py", "bundle/model.py", "tracking/sources.py"}

    assert {n for n in files_that_import("torch") if not n.startswith("pytorch/")} == elsewhere


def test_only_these_import_mlflow():
    rooms = ("tracking/", "promotion/", "flavor/")
    elsewhere = {"pipeline/publish.py"}

    assert {n for n in files_that_import("mlflow") if not n.startswith(rooms)} == elsewhere


def test_the_private_helpers_of_mlflow_are_imported_in_one_place():
    pattern = re.compile(r"^\s*from mlflow(\.\w+)*( import \(?\s*_|\._)", re.MULTILINE)

    assert [p.name for p in FILES if pattern.search(p.read_text("utf-8"))] == ["_mlflow.py"]


@every_file
def test_a_warning_names_the_line_of_the_user(path):
    """`errors.warn_caller` does; a fixed stack level names a line of ours."""
    calls = [
        node.lineno
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("warnings.warn", "warn")
    ]

    assert calls == [] or path.name == "errors.py"


# Files and folders


@every_file
def test_a_file_fits_on_a_few_screens(path):
    assert len(path.read_text("utf-8").splitlines()) <= MOST_LINES


@pytest.mark.parametrize("folder", sorted({path.parent for path in FILES}), ids=lambda f: f.name)
def test_a_folder_fits_on_one_listing(folder):
    entries = [e for e in folder.iterdir() if e.suffix == ".py" or (e / "__init__.py").exists()]

    assert len(entries) <= (MOST_AT_THE_TOP if folder == PACKAGE else MOST_FILES)


def test_two_files_have_one_name_only_where_each_stage_has_it():
    names = [path.stem for path in FILES]

    assert {name for name in names if names.count(name) > 1} <= SHARED_NAMES


def test_no_file_has_the_name_of_a_public_function():
    assert {path.stem for path in FILES} & set(mlflow_e2eai.__all__) <= {"export", "variants"}


@every_file
def test_a_file_is_named_by_a_noun(path):
    allowed = {"batching", "loading", "mapping", "serving", "timing", "distributed"}

    assert not path.stem.endswith(("ing", "ed")) or path.stem in allowed


@pytest.mark.parametrize(
    "path", [path for path in FILES if path.name == "__init__.py"], ids=lambda p: p.parent.name
)
def test_an_init_hands_on_and_does_nothing_else(path):
    lazy = {PACKAGE, PACKAGE / "flavor"}  # MLflow imports the second while it is being imported
    others = [
        node
        for node in ast.parse(path.read_text("utf-8")).body
        if not isinstance(node, ast.Import | ast.ImportFrom)
        and not (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant))
    ]

    assert path.parent in lazy or others == []
    assert len(path.read_text("utf-8").splitlines()) <= 90


# Words

# Participles that are the field's own words.
PARTICIPLES = {"feed", "isolated", "structured", "timed"}
# Said in the field's words instead: see the commit that named this rule.
PRIVATE_WORDS = {
    *("ahead", "asked", "beginning", "begun", "blame", "elsewhere", "foreign", "gone", "guilty"),
    *("held", "judged", "kept", "made", "noted", "patience", "rung", "said", "seat", "shelf"),
    *("strange", "told", "whoever"),
}
# Values that MLflow's flavors, a pipeline and PyTorch's exporters take are arguments by name of
# these.
MANY_ARGUMENTS = {"benchmark", "export", "log_model", "save_model"}


class Definition(NamedTuple):
    """A function or class, and the file that it is in."""

    file: str
    node: ast.FunctionDef | ast.ClassDef


def definitions() -> Iterator[Definition]:
    """All functions and classes of the package, but for functions inside functions."""
    for path in FILES:
        pending: list[ast.AST] = [ast.parse(path.read_text("utf-8"))]
        while pending:
            for child in ast.iter_child_nodes(pending.pop()):
                if isinstance(child, ast.FunctionDef | ast.ClassDef):
                    yield Definition(path.relative_to(PACKAGE).as_posix(), child)
                if not isinstance(child, ast.FunctionDef):
                    pending.append(child)


DEFINITIONS = list(definitions())
FUNCTIONS = [each for each in DEFINITIONS if isinstance(each.node, ast.FunctionDef)]


def words_of(name: str) -> list[str]:
    return [word.lower() for word in re.findall(r"[A-Z]?[a-z]+", name)]


def test_a_function_is_no_bare_participle():
    bare = {
        (file, node.name)
        for file, node in FUNCTIONS
        if not any(ast.unparse(decorator) == "property" for decorator in node.decorator_list)
        and len(words_of(node.name)) == 1
        and re.search(r"(ed|ing)$", node.name)
        and node.name.lstrip("_") not in PARTICIPLES
    }

    assert bare == set()


def test_no_name_has_a_private_word():
    assert {d.node.name for d in DEFINITIONS if PRIVATE_WORDS & set(words_of(d.node.name))} == set()


# Words that no local variable and no argument has either.
PRIVATE_LOCALS = {
    *("asked", "begun", "beginning", "guilty", "strange", "told", "said", "judged", "held", "rung"),
    *("seat", "shelf", "whoever", "patience", "noted"),
}


def test_no_variable_or_argument_has_a_private_word():
    def names(tree: ast.AST) -> Iterator[str]:
        for node in ast.walk(tree):
            if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                yield node.id
            elif isinstance(node, ast.arg):
                yield node.arg

    private = {
        (path.relative_to(PACKAGE).as_posix(), name)
        for path in FILES
        for name in names(ast.parse(path.read_text("utf-8")))
        if PRIVATE_LOCALS & set(words_of(name.lower()))
    }

    assert private == set()


def first_lines() -> Iterator[tuple[str, str]]:
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and (
                text := ast.get_docstring(node)
            ):
                yield path.relative_to(PACKAGE).as_posix(), text.splitlines()[0]


def test_a_docstring_begins_with_a_short_statement():
    riddles = [
        each
        for each in first_lines()
        if len(each[1]) > 90 or re.match(r"(What|Who|It|Nobody)\b", each[1])
    ]

    assert riddles == []


@every_file
def test_no_argument_is_described_by_another(path):
    assert (
        re.findall(r"^ +\w+: (?:The same|See there)\.$", path.read_text("utf-8"), re.MULTILINE)
        == []
    )


def test_a_function_takes_few_arguments():
    def limit(name: str) -> int:
        return 99 if name in MANY_ARGUMENTS else 7 if name.startswith("_") else 10

    many = {
        (file, node.name)
        for file, node in FUNCTIONS
        if not node.name.startswith("__")
        and len(node.args.args) + len(node.args.kwonlyargs) > limit(node.name)
    }

    assert many == set()


@pytest.mark.parametrize(
    "stage", [path for path in FILES if path.name == "stage.py"], ids=lambda p: p.parent.name
)
def test_a_stage_is_one_function_and_its_report(stage):
    public = [
        node.name
        for node in ast.parse(stage.read_text("utf-8")).body
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_")
    ]

    assert set(public) & set(mlflow_e2eai.__all__) or stage.parent.name == "evaluation"


@pytest.mark.parametrize(
    "init",
    [path for path in FILES if path.name == "__init__.py" and path.parent != PACKAGE],
    ids=lambda path: path.parent.name,
)
def test_a_folders_docstring_lists_its_files(init):
    text = ast.get_docstring(ast.parse(init.read_text("utf-8")))
    rows = re.findall(r"^([a-z0-9_]+(?:, [a-z0-9_]+)*)/? {2,}\S", text or "", re.MULTILINE)
    entries = {path.stem for path in init.parent.glob("*.py")} - {"__init__"}
    entries |= {path.parent.name for path in init.parent.glob("*/__init__.py")}

    assert {name for row in rows for name in row.split(", ")} == entries


# The public face


def offered(path: Path) -> dict[str, str]:
    """What an `__init__` imports from its own package, and from where."""
    return {
        alias.asname or alias.name: node.module
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("mlflow_e2eai.")
        for alias in node.names
        if alias.name != "__version__"
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


HEAVY = {
    *("mlflow", "onnx", "onnx_graphsurgeon", "onnxruntime", "onnxscript", "pandas"),
    *("tensorrt", "tensorrt_rtx", "torch"),
}


@pytest.mark.parametrize(
    ("module", "allowed"),
    [
        ("mlflow_e2eai", set()),
        ("mlflow_e2eai.errors", set()),
        ("mlflow_e2eai.evaluation.gates", {"numpy"}),
        ("mlflow_e2eai.flavor.run_context", set()),
        ("mlflow_e2eai.cli.main", {"numpy"}),
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
