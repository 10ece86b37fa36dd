"""A crash of a worker process is kept: the end of its log, its inputs, a reproduction."""

import re
import signal
from contextlib import closing
from functools import partial
from pathlib import Path

import crashing_runners
import numpy as np
import onnx
import pytest
from crashing_graphs import crashes_onnx_runtime, reproduce, save_graph
from onnx import TensorProto, helper

from mlflow_e2eai.artifacts import external_data, graphs
from mlflow_e2eai.artifacts.arrays import load_arrays
from mlflow_e2eai.errors import RunnerError
from mlflow_e2eai.runtime import crashes
from mlflow_e2eai.runtime.crashes import crashes_saved
from mlflow_e2eai.runtime.isolation import isolated, isolated_onnxruntime, isolated_together
from mlflow_e2eai.runtime.process import WorkerProcess


@pytest.fixture
def kept(tmp_path):
    """Keeps crashes in folders, which it lists."""
    folders = []

    def keep(folder):
        place = tmp_path / f"crash-{len(folders)}"
        folder.rename(place)
        folder.mkdir()  # whoever made it removes it
        folders.append(place)
        return f"the folder {place.name}"

    with crashes_saved(keep):
        yield folders


def sample(items=2):
    return {"x": np.arange(items * 3, dtype=np.float32).reshape(items, 3)}


def doubles(path):
    nodes = [helper.make_node("Add", ["x", "x"], ["y"])]
    rows = (TensorProto.FLOAT, ["N", 3])
    return save_graph(path, nodes, rows, rows, {})


def names_in(folder):
    return {path.name for path in folder.iterdir()}


def test_a_graph_that_crashes_onnx_runtime_does_so_again_from_its_folder(kept, tmp_path):
    path = crashes_onnx_runtime(tmp_path / "model.onnx")
    with (
        pytest.raises(
            RunnerError, match=r"SIGSEGV.* Its log and a reproduction are in the folder c"
        ),
        isolated_onnxruntime(path),
    ):
        pass
    (folder,) = kept
    assert names_in(folder) == {"crash.txt", "log.txt", "graph.onnx", "reproduce.py"}
    assert (folder / "graph.onnx").read_bytes() == path.read_bytes()
    assert "mlflow_e2eai" not in (folder / "reproduce.py").read_text()
    text = (folder / "crash.txt").read_text()
    assert text.startswith("Its process crashed (SIGSEGV) while it was opened.\n")
    assert re.search(r"^onnxruntime[\w-]* \d", text, re.MULTILINE)
    path.unlink()
    assert reproduce(folder).returncode == -signal.SIGSEGV


def test_an_optimizer_that_was_off_is_off_in_the_reproduction(kept, tmp_path):
    path = crashes_onnx_runtime(tmp_path / "model.onnx")
    opener = partial(crashing_runners.dies_with_a_session, path, precision="fp16")
    with isolated(opener) as infer, pytest.raises(RunnerError, match=r"SIGSEGV\) on x"):
        infer({"x": np.ones((2, 3, 4), np.float16)})
    assert reproduce(kept[0]).returncode == 0


def test_the_inputs_of_the_last_call_are_run_again(kept, tmp_path):
    opener = partial(crashing_runners.dies_with_a_session, doubles(tmp_path / "model.onnx"))
    with isolated(opener) as infer, pytest.raises(RunnerError, match="SIGSEGV"):
        infer(sample(5))
    (folder,) = kept
    assert np.array_equal(load_arrays(folder / "sample.npz")["x"], sample(5)["x"])
    script = folder / "reproduce.py"
    script.write_text(script.read_text() + "print(session.run(None, inputs)[0].sum())\n")
    done = reproduce(folder)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) == 2 * sample(5)["x"].sum()


@pytest.mark.parametrize("repeats", [1, 3])
def test_the_sample_of_a_comparison_is_the_one_that_it_died_on(repeats, kept):
    samples = (sample(items) for items in (1, 2, 3, 64, 5))
    opener = partial(crashing_runners.crashes_on_large_batches, batch=64)
    with isolated(opener) as infer, pytest.raises(RunnerError, match="on sample 3"):
        infer.compare(crashing_runners.doubled, samples, repeats=repeats)
    assert load_arrays(kept[0] / "sample.npz")["x"].shape == (64, 3)


def test_of_several_runners_it_is_the_inputs_and_the_graph_of_the_one_that_crashed(kept, tmp_path):
    openers = {
        "sound": crashing_runners.healthy,
        "broken": partial(crashing_runners.dies_with_a_session, doubles(tmp_path / "model.onnx")),
    }
    with isolated_together(openers) as there, pytest.raises(RunnerError, match="SIGSEGV"):
        there.benchmark({"sound": sample(1), "broken": sample(7)})
    (folder,) = kept
    assert load_arrays(folder / "sample.npz")["x"].shape == (7, 3)
    assert (folder / "graph.onnx").read_bytes() == (tmp_path / "model.onnx").read_bytes()


def test_the_log_is_its_last_200_lines_without_passwords(kept, monkeypatch):
    monkeypatch.setenv("E2EAI_TEST_PASSWORD", "sesame-open")
    with closing(WorkerProcess()) as process, pytest.raises(RunnerError):
        process.call(partial(crashing_runners.writes_and_dies, lines=300, last="sesame-open"))
    lines = (kept[0] / "log.txt").read_text().splitlines()
    assert lines == [*(f"line {number}" for number in range(101, 300)), "***"]


def test_a_crash_without_a_native_call_has_its_log_and_inputs_alone(kept):
    opener = partial(crashing_runners.drops_dead, at_call=0, sign=signal.SIGKILL)
    with isolated(opener) as infer, pytest.raises(RunnerError, match="Its log is in the folder"):
        infer(sample())
    assert names_in(kept[0]) == {"crash.txt", "log.txt", "sample.npz"}


def test_weights_in_other_files_are_in_the_folder(kept, tmp_path, monkeypatch):
    monkeypatch.setattr(external_data, "EXTERNAL_BYTES", 64)
    monkeypatch.setattr(external_data, "SMALL_BYTES", 64)
    folder = crash_with_weights(kept, tmp_path)
    assert len([*folder.glob("*.weights")]) == 1
    assert reproduce(folder).returncode == 0


def test_a_large_file_is_named_by_its_digest(kept, tmp_path, monkeypatch):
    monkeypatch.setattr(external_data, "EXTERNAL_BYTES", 64)
    monkeypatch.setattr(external_data, "SMALL_BYTES", 64)
    monkeypatch.setattr(crashes, "LARGEST_BYTES", 1000)
    monkeypatch.setenv("E2EAI_TEST_LARGEST", "1000")
    folder = crash_with_weights(kept, tmp_path)
    (line,) = (folder / "files.sha256").read_text().splitlines()
    sha256, name = line.split("  ")
    assert names_in(folder) >= {"graph.onnx", "reproduce.py"}
    assert not (folder / name).exists()
    assert "sha256sum -c" in (folder / "crash.txt").read_text()
    (weights,) = (tmp_path / "graph").glob("*.weights")
    assert weights.name == name
    assert sha256.startswith(weights.stem)


def crash_with_weights(kept, tmp_path):
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"])]
    weights = {"w": np.ones((3, 400), np.float32)}
    x, y = (TensorProto.FLOAT, ["N", 3]), (TensorProto.FLOAT, ["N", 400])
    save_graph(tmp_path / "plain.onnx", nodes, x, y, weights)
    (tmp_path / "graph").mkdir()
    path = tmp_path / "graph" / "model.onnx"
    graphs.write(graphs.read(tmp_path / "plain.onnx"), path)
    opener = partial(crashing_runners.dies_with_a_session, path)
    with isolated(opener) as infer, pytest.raises(RunnerError, match="SIGSEGV"):
        infer(sample())
    return kept[0]


def test_a_graph_with_a_gpus_rounding_is_the_one_that_ran(kept, tmp_path):
    nodes = [helper.make_node("Add", ["x", "x"], ["a"]), helper.make_node("Neg", ["a"], ["y"])]
    rows = (TensorProto.FLOAT16, ["N", 3])
    path = save_graph(tmp_path / "model.onnx", nodes, rows, rows, {})
    opener = partial(crashing_runners.dies_with_a_session, path, precision="fp16", rounded=True)
    with isolated(opener) as infer, pytest.raises(RunnerError, match="SIGSEGV"):
        infer({"x": np.ones((2, 3), np.float16)})
    (folder,) = kept
    outputs = onnx.load(folder / "graph.onnx").graph.output
    assert [output.name for output in outputs] == ["y", "a"]
    assert reproduce(folder).returncode == 0


def test_a_process_that_is_stopped_on_purpose_has_not_crashed(kept):
    with closing(WorkerProcess()) as process:
        process.kill()
        with pytest.raises(RunnerError, match="SIGKILL"):
            process.call(crashing_runners.sleeps)
    assert kept == []


def test_a_crash_that_cannot_be_kept_is_the_error_all_the_same(caplog):
    def fails(_):
        msg = "no room"
        raise OSError(msg)

    with (
        crashes_saved(fails),
        pytest.raises(RunnerError, match=r"SIGABRT.*no such kernel$"),
        isolated(crashing_runners.crashes_while_it_opens),
    ):
        pass
    assert "The crash could not be kept: no room" in caplog.text


def test_outside_such_a_block_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with (
        pytest.raises(RunnerError, match=r"no such kernel$"),
        isolated(crashing_runners.crashes_while_it_opens),
    ):
        pass
    assert [*Path(tmp_path).iterdir()] == []
