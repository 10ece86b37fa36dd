"""`mlflow run .` as a user types it: a real launcher, a real process for every entry point."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import mlflow
import pytest
from mlflow.exceptions import ExecutionException

pytestmark = pytest.mark.system

ROOT = Path(__file__).parents[2]


def mlflow_run(folder, *words):
    """Run the project on a store of its own, with this environment's programs first."""
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db",
        "MLFLOW_DISABLE_TELEMETRY": "true",
    }
    for name in ("MLFLOW_RUN_ID", "MLFLOW_EXPERIMENT_ID"):
        environment.pop(name, None)
    return subprocess.run(
        ["mlflow", "run", str(ROOT), "--env-manager", "local", "--experiment-name", "p", *words],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


@pytest.fixture
def refused_run(folder, monkeypatch, capfd):
    """Run an entry point that must fail by `mlflow.projects`, without a launcher of its own.

    MLflow's own program makes the same call. Returns what the entry point printed on stderr.
    """
    monkeypatch.chdir(folder)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder}/mlflow.db")
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent), prepend=os.pathsep)
    for name in ("MLFLOW_RUN_ID", "MLFLOW_EXPERIMENT_ID"):
        monkeypatch.delenv(name, raising=False)
    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(f"sqlite:///{folder}/mlflow.db")

    def run(entry_point, experiment="p", **parameters):
        with pytest.raises(ExecutionException):
            mlflow.projects.run(
                str(ROOT),
                entry_point,
                parameters=parameters,
                experiment_name=experiment,
                env_manager="local",
            )
        return capfd.readouterr().err

    yield run
    mlflow.set_tracking_uri(before)


@pytest.fixture(scope="module")
def folder(empty_store, tmp_path_factory):
    place = tmp_path_factory.mktemp("project")
    (place / "mlflow.db").write_bytes(empty_store.read_bytes())
    client = mlflow.MlflowClient(f"sqlite:///{place}/mlflow.db")
    client.create_experiment("p", artifact_location=(place / "artifacts").as_uri())
    return place


@pytest.fixture(scope="module")
def client(folder):
    return mlflow.MlflowClient(f"sqlite:///{folder}/mlflow.db")


DEMO = ("-P", "epochs=4", "-P", "targets=sm86")


@pytest.fixture(scope="module")
def demo(folder):
    return mlflow_run(folder, *DEMO)


def runs(client):
    experiment = client.get_experiment_by_name("p").experiment_id
    return client.search_runs([experiment], max_results=500)


def test_the_demo_ends_with_a_table_a_version_and_the_way_to_the_ui(demo, folder):
    assert demo.returncode == 0, demo.stderr
    lines = demo.stdout.splitlines()
    header = next(line for line in lines if line.startswith("variant"))
    assert re.split(r"\s{2,}", header) == [
        "variant",
        "max abs error",
        "accuracy",
        "p50 ms at 8",
        "decision",
    ]
    rows = {re.split(r"\s{2,}", line)[0]: re.split(r"\s{2,}", line) for line in lines}
    assert rows["torch/fp32"][-1] == "reference"
    assert rows["onnxruntime-cpu/fp32"][-1] == "passed"
    assert float(rows["onnxruntime-cpu/fp32"][1]) < 1e-3
    assert float(rows["onnxruntime-cpu/fp16"][2]) > 0.9
    assert rows["tensorrt_rtx-sm86/fp16"][1:] == ["-", "-", "-", "built, not measured here"]
    assert "digits version 1 is the champion: models:/digits/1" in lines
    command = Path(sys.executable).with_name("mlflow")
    ui = f"See it with: {command} ui --backend-store-uri sqlite:///{folder}/mlflow.db"
    assert ui in lines


def test_the_demo_shows_a_line_for_each_stage_and_nothing_of_mlflows(demo):
    lines = [line for line in demo.stderr.splitlines() if re.search(r"\d\.\d s$", line)]
    names = [re.split(r"\s{2,}", line)[0] for line in lines]
    assert names[:4] == ["log", "export", "clean", "convert fp16"]
    assert names[-3:] == ["evaluate", "package", "promote"]
    assert "Downloading artifacts" not in demo.stderr
    assert "Successfully registered" not in demo.stderr
    assert "Warning" not in demo.stderr


def test_a_stage_runs_alone_and_without_a_parameter_on_what_the_demo_logged(demo, folder, client):
    done = mlflow_run(folder, "-e", "export")
    assert done.returncode == 0, done.stderr
    (latest,) = [line for line in done.stderr.splitlines() if line.startswith("latest is ")]
    assert latest.endswith(" (digits-source)")
    model_id = done.stdout.strip().splitlines()[-1].removeprefix("models:/")
    model = client.get_logged_model(model_id)
    assert model.tags["e2eai.stage"] == "export"
    run = client.get_run(model.source_run_id)
    assert (run.info.run_name, run.info.status) == ("export", "FINISHED")
    assert run.data.tags["mlflow.project.entryPoint"] == "export"
    assert f"latest is {run.data.tags['e2eai.latest']}" == latest


@pytest.mark.slow
@pytest.mark.parametrize(
    "step",
    ["log", "export", "clean", "convert", "bisect", "compile", "evaluate", "pipeline", "promote"],
)
def test_each_step_works_without_a_parameter_after_the_demo(demo, folder, step):
    done = mlflow_run(folder, "-e", step)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_what_bisect_finds_is_what_convert_keeps(demo, folder, client):
    """On a model of its own, whose weights fp16 cannot hold."""
    said = []
    model = f"{ROOT}/tests/support/small_models.py:build_overflowing"
    for words in (
        ["-e", "log", "-P", f"model={model}"],
        ["-e", "export", "-P", "model_uri={}"],
        ["-e", "clean", "-P", "model_uri={}"],
    ):
        done = mlflow_run(folder, *(word.format(*said[-1:]) for word in words))
        assert done.returncode == 0, done.stderr
        said.append(done.stdout.strip().splitlines()[-1])
    cleaned = said[-1]

    done = mlflow_run(folder, "-e", "bisect", "-P", f"model_uri={cleaned}")

    assert done.returncode == 0, done.stderr
    sentence, uri = done.stdout.strip().splitlines()[-2:]
    assert sentence.startswith("The variant passes when 1 of 4 nodes are kept")
    run = client.get_run(uri.removeprefix("runs:/").partition("/")[0])
    assert (run.info.run_name, run.info.status) == ("bisect fp16", "FINISHED")
    assert run.data.tags["mlflow.project.entryPoint"] == "bisect"
    words = ["-e", "convert", "-P", f"model_uri={cleaned}", "-P", f"keep_fp32={uri}"]
    done = mlflow_run(folder, *words)
    assert done.returncode == 0, done.stderr
    half = client.get_logged_model(done.stdout.strip().splitlines()[-1].removeprefix("models:/"))
    kept = client.get_run(half.source_run_id).data.tags["e2eai.keep_fp32"]
    assert kept.split(", ")[0] == "node_linear_1"  # convert's own guard may keep others


def test_a_wrong_parameter_is_one_sentence_and_a_failed_run_that_says_why(refused_run, client):
    printed = refused_run("export", model_uri="models:/digits/1", opset="x")
    sentence = "export: --opset: must be a positive integer, got 'x'"
    assert f"mlflow_e2eai: {sentence}" in printed
    assert "Traceback" not in printed
    (run,) = [run for run in runs(client) if run.data.tags.get("e2eai.error") == sentence]
    assert run.info.status == "FAILED"


@pytest.mark.slow
def test_a_wrong_parameter_of_the_demo_is_one_sentence_too(demo, folder, client):
    done = mlflow_run(folder, "-P", "epochs=many")
    sentence = "main: --epochs: must be a positive integer, got 'many'"
    assert f"mlflow_e2eai: {sentence}" in done.stderr
    (run,) = [run for run in runs(client) if run.data.tags.get("e2eai.error") == sentence]
    assert run.info.status == "FAILED"


@pytest.mark.slow
def test_a_rejection_is_a_failed_project_run_so_that_a_pipeline_stops_there(demo, folder, client):
    gates = folder / "gates.yaml"
    gates.write_text("gates: [{metric: task/accuracy, at_least: 2}]")
    words = ["-e", "promote", "-P", "name=digits", "-P", "version=1", "-P", f"gates={gates}"]
    done = mlflow_run(folder, *words)
    assert done.returncode == 1
    assert "rejected: task/accuracy" in done.stdout
    (run,) = [run for run in runs(client) if run.data.tags.get("e2eai.decision") == "rejected"][:1]
    assert run.info.status == "FAILED"


@pytest.mark.slow
def test_a_second_demo_makes_version_2_and_compares_it_with_version_1(demo, folder, client):
    """What is compared, and how, is tested in tests/promotion/test_promote.py in less time."""
    second = mlflow_run(folder, *DEMO)
    # Whether it is promoted is for two trainings and the clock to say; that it is compared is not.
    assert "digits version 2 " in second.stdout
    assert "champion/latency_ratio" in second.stdout
    tags = client.get_model_version("digits", "2").tags
    assert tags["e2eai.previous"] == "1"
    assert tags["e2eai.decision"] in ("promoted", "rejected")


def test_no_run_is_left_that_says_running(demo, client):
    assert {run.info.status for run in runs(client)} <= {"FINISHED", "FAILED"}


def test_with_nothing_logged_a_step_says_what_to_do_first(refused_run):
    lines = refused_run("clean", experiment="empty").splitlines()
    (sentence,) = [line for line in lines if line.startswith("mlflow_e2eai: ")]
    assert (
        "Experiment 'empty' does not have an exported graph; make one with `mlflow run . -e"
        in sentence
    )


def evaluate_in(project, folder, **settings):
    """Run the step `evaluate` of a checkout from a folder, which may fail."""
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        **settings,
    }
    for name in ("MLFLOW_RUN_ID", "MLFLOW_EXPERIMENT_ID"):
        environment.pop(name, None)
    return subprocess.run(
        ["mlflow", "run", str(project), "--env-manager", "local", "-e", "evaluate"],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


def test_a_store_that_is_relative_to_another_folder_is_named(folder, tmp_path):
    done = evaluate_in(ROOT, tmp_path, MLFLOW_TRACKING_URI="sqlite:///elsewhere.db")
    (sentence,) = [line for line in done.stderr.splitlines() if line.startswith("mlflow_e2eai:")]
    assert "sqlite:///elsewhere.db, which is relative" in sentence
    assert not (ROOT / "elsewhere.db").exists()


def test_a_checkout_runs_its_own_code_in_an_environment_that_is_anothers(folder, tmp_path):
    """MLflow names an environment by what it installs: two checkouts have one."""
    package = tmp_path / "checkout"
    for name in ("mlflow_e2eai", "entry_points", "MLproject", "python_env.yaml", "constraints.txt"):
        source = ROOT / name
        copy = shutil.copytree if source.is_dir() else shutil.copyfile
        package.mkdir(exist_ok=True)
        copy(source, package / name)
    version = package / "mlflow_e2eai" / "_version.py"
    version.write_text(version.read_text() + 'raise SystemExit("the other checkout")\n')
    store = f"sqlite:///{folder}/mlflow.db"
    done = evaluate_in(package, folder, MLFLOW_TRACKING_URI=store, PYTHONPATH=str(ROOT))
    assert "the other checkout" in done.stderr
