"""The notebooks of examples/: each runs from the top, and leaves nothing behind."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "examples").glob("*.ipynb"))
MOST_CELLS = 25

# One of them is the short form of the others.
marked = [
    pytest.param(path, marks=[pytest.mark.slow] if path.stem != "quick_start" else [], id=path.stem)
    for path in NOTEBOOKS
]


@pytest.mark.system
@pytest.mark.parametrize("path", marked)
def test_a_notebook_runs_from_the_top_and_leaves_nothing_behind(path, tmp_path, monkeypatch):
    nbclient = pytest.importorskip("nbclient")
    nbformat = pytest.importorskip("nbformat")
    temporary, work = tmp_path / "temporary", tmp_path / "work"
    temporary.mkdir()
    work.mkdir()
    monkeypatch.setenv("TMPDIR", str(temporary))
    monkeypatch.setenv("PYTHONPATH", str(ROOT), prepend=os.pathsep)
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    notebook = nbformat.read(path, as_version=4)

    nbclient.NotebookClient(
        notebook, timeout=400, resources={"metadata": {"path": str(work)}}
    ).execute()

    results = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    tables = [each for each in results if "text/html" in each.get("data", {})]
    assert tables
    errors = [each for each in results if each.get("name") == "stderr"]
    assert not any("Traceback" in each["text"] for each in errors)
    assert list(work.iterdir()) == []
    assert not list(temporary.rglob("mlflow.db"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_short_and_has_no_results(path):
    cells = json.loads(path.read_text("utf-8"))["cells"]

    assert len(cells) <= MOST_CELLS
    assert cells[0]["source"][0].startswith("# ")
    assert [cell for cell in cells if cell.get("outputs") or cell.get("execution_count")] == []


def test_the_quick_start_names_each_notebook():
    page = (ROOT / "docs" / "quick-start.md").read_text("utf-8")

    assert [path.name for path in NOTEBOOKS if path.name not in page] == []
