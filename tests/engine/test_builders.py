"""A worker's builder is kept for its next engine, unless it died or is told to load libraries."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal

import onnx
import pytest
from crashing_graphs import reproduce
from logged_graphs import TEXT, slow_to_build

from mlflow_e2eai import compile
from mlflow_e2eai.artifacts import graphs
from mlflow_e2eai.artifacts.values import Axis
from mlflow_e2eai.engine import stage as engine_stage
from mlflow_e2eai.engine.stage import reuse_builder, reused_builder
from mlflow_e2eai.errors import EngineBuildError
from mlflow_e2eai.runtime.crashes import crashes_saved
from mlflow_e2eai.runtime.process import WorkerProcess

pytest.importorskip("tensorrt_rtx")

pytestmark = pytest.mark.system


@pytest.fixture
def kept(monkeypatch):
    """The number of the process that is kept; None before its first engine, or after its death."""
    monkeypatch.setattr(engine_stage, "_reused", [])
    reuse_builder()
    engine_stage._reused[:] = [WorkerProcess()]
    yield lambda: engine_stage._reused[0] and engine_stage._reused[0]._process.pid
    if (process := engine_stage._reused[0]) is not None:
        process.close()


def graph_in(folder, model):
    onnx.save(model, folder / "model.onnx")
    return graphs.describe(
        folder / "model.onnx",
        stage="clean",
        precision="fp32",
        axes=(Axis("N", min=1, opt=2, max=8),),
        parent_sha256=None,
    )


def test_the_next_engine_is_built_by_the_same_process_and_is_as_good(kept, tmp_path):
    graph = graph_in(tmp_path, onnx.parser.parse_model(TEXT.replace("SCALE", "1")))
    first = kept()
    one = compile(graph, "sm86", out=tmp_path / "one.engine")
    assert kept() == first
    other = compile(graph, "sm86", out=tmp_path / "other.engine")
    assert kept() == first
    assert (tmp_path / "other.engine").stat().st_size == other.size_bytes
    assert one.target == other.target


def test_a_block_builds_all_its_engines_in_one_process_and_leaves_none(tmp_path):
    graph = graph_in(tmp_path, onnx.parser.parse_model(TEXT.replace("SCALE", "1")))
    with reused_builder():
        assert engine_stage._reused == [None]  # nothing to build, no process
        compile(graph, "sm86", out=tmp_path / "one.engine")
        first = engine_stage._reused[0]
        with reused_builder():
            compile(graph, "sm89", out=tmp_path / "other.engine")
        assert engine_stage._reused == [first]
    assert first.has_ended
    assert engine_stage._reused == []


def test_one_that_is_killed_while_it_has_nothing_to_do_is_replaced(kept, tmp_path):
    graph = graph_in(tmp_path, onnx.parser.parse_model(TEXT.replace("SCALE", "1")))
    first = kept()
    os.kill(first, signal.SIGKILL)
    engine_stage._reused[0]._process.wait()
    compile(graph, "sm86", out=tmp_path / "one.engine")
    assert kept() != first


def test_one_that_is_killed_fails_its_engine_alone(kept, tmp_path):
    graph = graph_in(tmp_path, onnx.parser.parse_model(TEXT.replace("SCALE", "1")))
    first = kept()

    def kill(*_):
        with contextlib.suppress(ProcessLookupError):
            os.kill(first, signal.SIGKILL)

    with pytest.raises(EngineBuildError, match=r"was killed \(SIGKILL, as Linux does when memory"):
        compile(graph, "sm86", out=tmp_path / "one.engine", step=kill)
    assert kept() != first
    compile(graph, "sm86", out=tmp_path / "other.engine")


def test_its_graph_and_settings_are_kept_with_a_script_that_builds_without_this_package(
    kept, tmp_path
):
    graph = graph_in(tmp_path, onnx.parser.parse_model(TEXT.replace("SCALE", "1")))
    first, crash = kept(), tmp_path / "crash"

    def die(*_):
        os.kill(first, signal.SIGSEGV)

    def keep(folder):
        shutil.copytree(folder, crash)
        return "the folder of this test"

    with (
        crashes_saved(keep),
        pytest.raises(EngineBuildError, match=r"SIGSEGV\) in the phase .* folder of this test"),
    ):
        compile(graph, "sm86+sm89", out=tmp_path / "one.engine", step=die)
    assert {path.name for path in crash.iterdir()} == {
        *("crash.txt", "log.txt", "graph.onnx", "reproduce.py")
    }
    script = crash / "reproduce.py"
    assert "mlflow_e2eai" not in script.read_text()
    script.write_text(script.read_text() + CHECKS)
    done = reproduce(crash)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["2", "(1,", "4)", "(8,", "4)"]


CHECKS = """
smallest, _, largest = profile.get_shape("x")
print(config.num_compute_capabilities, tuple(smallest), tuple(largest))
"""


def test_the_limit_counts_from_when_the_build_begins(kept, tmp_path):
    from mlflow_e2eai.artifacts.build_settings import BuildSettings

    graph = graph_in(tmp_path, slow_to_build())
    first = kept()
    with pytest.raises(EngineBuildError, match=r"did not finish within 0\.5 s"):
        compile(graph, "sm86", out=tmp_path / "e", settings=BuildSettings(time_limit_s=0.5))
    assert kept() != first
    compile(graph, "sm86", out=tmp_path / "e", settings=BuildSettings(time_limit_s=300))
