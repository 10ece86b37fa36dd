"""README and guides: their Python runs, their commands and links exist, their errors are ours."""

from __future__ import annotations

import ast
import importlib.util
import re
import shlex
from pathlib import Path

import click
import pytest
import yaml

from mlflow_e2eai.cli.main import command_line
from mlflow_e2eai.promotion.gates_file import policy_from
from mlflow_e2eai.surgery.plan import plan_from

pytestmark = pytest.mark.exporters

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
# In the order of the table of contents: what the README logs, the guides load.
PAGES = [README, *sorted((ROOT / "docs").glob("*.md")), ROOT / "CONTRIBUTING.md"]
PROJECT = yaml.safe_load((ROOT / "MLproject").read_text(encoding="utf-8"))

every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)


def blocks(page, language):
    text = page.read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def commands(program):
    """The words of each command of a program, in all pages."""
    lines = [line for page in PAGES for block in blocks(page, "bash") for line in block.split("\n")]
    for page in PAGES:
        for block in blocks(page, "yml"):  # files of services that run jobs
            lines += re.findall(r"- (?:run: )?(.+)$", block, re.MULTILINE)
            lines += re.findall(r"^ +run: (.+)$", block, re.MULTILINE)
    words = [shlex.split(line, comments=True) for line in lines]
    return [each for each in words if each[:1] == [program]]


@pytest.mark.system
@pytest.mark.filterwarnings("ignore:Falling back to onnxruntime-cpu")
def test_the_python_of_every_page_runs(store):
    for page in PAGES:
        namespace = {}
        for number, block in enumerate(blocks(page, "python")):
            exec(compile(block, f"{page.name}, block {number}", "exec"), namespace)  # noqa: S102


@every_page
def test_a_yaml_block_is_a_plan_or_gates(page):
    for block in blocks(page, "yaml"):
        data = yaml.safe_load(block)
        assert plan_from(data) if isinstance(data, list) else policy_from(data)


@pytest.mark.parametrize("words", commands("mlflow_e2eai"), ids=" ".join)
def test_a_command_of_the_console_parses(words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "plan.yaml").write_text("[simplify]")
    (tmp_path / "sizes.json").write_text('{"N": {"1": 3}}')
    context = click.Context(command_line)
    _, command, rest = command_line.resolve_command(context, words[1:])
    command.make_context(words[1], list(rest), parent=context)


@pytest.mark.parametrize("words", commands("mlflow"), ids=" ".join)
def test_a_run_of_the_project_has_that_entry_point_and_these_parameters(words):
    if words[1] != "run":
        return
    entry = PROJECT["entry_points"][words[words.index("-e") + 1]]
    given = [words[at + 1].partition("=")[0] for at, word in enumerate(words) if word == "-P"]
    assert set(given) <= set(entry["parameters"])


@pytest.mark.parametrize("words", commands("make"), ids=" ".join)
def test_a_target_of_make_exists(words):
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert re.search(rf"^{words[1]}:", makefile, re.MULTILINE)


def test_the_readme_names_every_entry_point():
    rows = re.findall(r"^\| `(\w+)` \|", README.read_text(encoding="utf-8"), re.MULTILINE)
    assert set(rows) == set(PROJECT["entry_points"])


def test_the_readme_is_a_front_page():
    assert README.stat().st_size <= 8 * 1024


@every_page
def test_a_link_leads_to_a_file(page):
    for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), target
        # `make docs` refuses a guide that links what is not among the guides.
        assert page.parent != ROOT / "docs" or (page.parent / target).parent == page.parent, target


@pytest.mark.parametrize("page", [ROOT / "docs" / "threat-model.md"], ids=lambda page: page.stem)
def test_a_test_that_a_page_names_exists(page):
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", page.read_text(encoding="utf-8"))
    assert named
    for file, name in named:
        assert f"\ndef {name}(" in (ROOT / file).read_text(encoding="utf-8"), name


def test_every_guide_is_in_the_navigation():
    navigation = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))["nav"]
    listed = [name for entry in navigation for name in entry.values()]
    assert sorted(listed) == sorted(path.name for path in (ROOT / "docs").glob("*.md"))


def test_the_page_of_the_command_line_is_as_its_script_writes_it():
    spec = importlib.util.spec_from_file_location("page", ROOT / "docs" / "command_line.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    assert script.PAGE.read_text(encoding="utf-8") == script.page()


def sentences():
    """The texts of the package, with what is filled in left out."""
    for path in (ROOT / "mlflow_e2eai").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            match node:
                case ast.Constant(value=str(text)):
                    yield text
                case ast.JoinedStr(values=values):
                    yield "".join(v.value for v in values if isinstance(v, ast.Constant))


def test_an_error_in_troubleshooting_is_one_of_ours():
    page = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    texts = " | ".join(sentences())
    for quoted in re.findall(r"^> (.+)$", page, re.MULTILINE):
        assert quoted in texts, quoted
