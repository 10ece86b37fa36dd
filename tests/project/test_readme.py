"""The README's Python runs as it stands there, and its commands are real."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from mlflow_e2eai.cli.main import command_line
from mlflow_e2eai.evaluation.gates import gates_from
from mlflow_e2eai.surgery.plan import plan_from

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


@pytest.mark.filterwarnings("ignore:Running onnxruntime-cpu")
def test_the_python_blocks_run_one_after_the_other(store):
    namespace = {}
    for number, block in enumerate(blocks("python")):
        exec(compile(block, f"README.md, Python block {number}", "exec"), namespace)  # noqa: S102
    assert namespace["decision"].promoted
    assert namespace["engine"].target.compute_capability == "sm89"


def test_the_yaml_blocks_are_a_plan_and_gates():
    plan, gates = (yaml.safe_load(block) for block in blocks("yaml"))
    assert plan_from(plan)[0].rule == "bypass"
    assert gates_from(gates)[0].metric == "parity/failed"


def test_the_entry_points_that_it_shows_are_those_of_the_project():
    project = yaml.safe_load((ROOT / "MLproject").read_text(encoding="utf-8"))
    table = set(re.findall(r"^\| `(\w+)` \|", README, re.MULTILINE))
    assert set(project["entry_points"]) <= table
    for name, parameters in re.findall(r"-e (\w+) +((?:-P \S+ ?)+)", README):
        given = set(re.findall(r"-P (\w+)=", parameters))
        assert given <= set(project["entry_points"][name]["parameters"])


def test_the_make_targets_that_it_shows_exist():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in set(re.findall(r"make (demo|test(?:-\w+)?)\b", README)):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE)
    assert command_line.name == "mlflow_e2eai"
