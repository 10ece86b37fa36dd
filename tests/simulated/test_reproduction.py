"""An engine that crashed is opened and run again from its folder, on a simulated GPU."""

import runpy

import pytest
from conftest import assert_right, rows

from mlflow_e2eai.artifacts.arrays import save_arrays
from mlflow_e2eai.artifacts.build_settings import BuildSettings
from mlflow_e2eai.engine import engine_runner
from mlflow_e2eai.runtime.crashes import native_calls_written

STRIPPED = BuildSettings(strip_weights=True)


@pytest.mark.parametrize("settings", [BuildSettings(), STRIPPED], ids=["whole", "stripped"])
def test_the_folder_has_the_engine_and_the_script_runs_it(settings, engine, tmp_path, monkeypatch):
    made, graph = engine(settings=settings)
    folder = tmp_path / "crash"
    folder.mkdir()
    with native_calls_written(folder), engine_runner(made, graphs=[graph]):
        pass
    save_arrays(folder / "sample.npz", {"x": rows(3)})
    made.path.unlink()
    graph.path.unlink()
    monkeypatch.chdir(tmp_path)  # the script goes to its own folder
    script = folder / "reproduce.py"
    script.write_text(script.read_text() + "    outputs = infer(load_arrays(Path('sample.npz')))\n")
    outputs = runpy.run_path(str(script))["outputs"]
    assert_right(outputs, rows(3))
