"""A folder is full, or read-only: the command ends in one sentence, its runs with it, and goes on.

The folders are file systems of a few megabytes of their own, as root ignores permissions.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from contextlib import contextmanager, nullcontext

import mlflow
import pytest

import mlflow_e2eai
from mlflow_e2eai.errors import StorageError

pytestmark = pytest.mark.system

MODEL = """
import torch

def build():
    torch.manual_seed(0)
    layers = torch.nn.Linear(512, 512), torch.nn.ReLU(), torch.nn.Linear(512, 512)
    model = torch.nn.Sequential(*layers).eval()
    return {"model": model, "input_example": {"x": torch.ones(2, 512)}}
"""
COMMAND = ["run", "net.py:build", "--precisions", "fp32,fp16", "--evidence", "quick"]
# Its weights are 2 MB.
LIMIT = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (1_500_000, 1_500_000))"


@contextmanager
def disk(folder, megabytes):
    """A file system of its own in a folder, for the block."""
    with mounted(folder, "-t", "tmpfs", "-o", f"size={megabytes}m", "none"):
        yield


@contextmanager
def read_only(folder):
    """A folder as if its file system were mounted for reading, for the block."""
    with mounted(folder, "--bind", folder):
        subprocess.run(["mount", "-o", "remount,bind,ro", folder], check=True)
        yield


@contextmanager
def mounted(folder, *words):
    if subprocess.run(["mount", *words, folder], check=False, capture_output=True).returncode:
        pytest.skip("only root may mount, which gives a folder that is full or read-only")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


def fill(folder, *, but=0):
    """Fill a disk up to some bytes."""
    room = shutil.disk_usage(folder).free - but
    (folder / "filler").write_bytes(bytes(max(room, 0)))


@pytest.fixture
def place(tmp_path, empty_store, isolated):
    """A working folder with a model, and a store whose parts may be on other disks."""
    (tmp_path / "net.py").write_text(MODEL)
    for name in ("db", "artifacts", "tmp", "home"):
        (tmp_path / name).mkdir()
    return tmp_path


def prepare(place, empty_store):
    shutil.copyfile(empty_store, place / "db" / "mlflow.db")
    mlflow.set_tracking_uri(f"sqlite:///{place}/db/mlflow.db")
    mlflow.create_experiment("full", artifact_location=(place / "artifacts").as_uri())


def run(place, *, before="pass"):
    """Run the command in a process of its own; its exit code and the lines on stderr."""
    environment = {
        **os.environ,
        "MLFLOW_TRACKING_URI": f"sqlite:///{place}/db/mlflow.db",
        "MLFLOW_EXPERIMENT_NAME": "full",
        "TMPDIR": str(place / "tmp"),
        "HOME": str(place / "home"),
        "XDG_CACHE_HOME": str(place / "home" / "cache"),
    }
    code = f"import sys; {before}; from mlflow_e2eai.cli.main import main; sys.exit(main())"
    done = subprocess.run(
        [sys.executable, "-c", code, *COMMAND],
        check=False,
        cwd=place,
        env=environment,
        capture_output=True,
        text=True,
        timeout=250,
    )
    assert "Traceback" not in done.stderr, done.stderr
    return done.returncode, done.stderr.strip().splitlines()


def statuses():
    runs = mlflow.search_runs(experiment_names=["full"], output_format="list")
    return {run.info.status for run in runs}


def ends_with(lines, reason):
    """The last two lines are the sentence with a reason, and the command that goes on."""
    sentence, going_on = lines[-2:]
    assert reason in sentence, lines
    assert "make room, or give a folder" in sentence
    assert going_on.startswith(f"To continue: mlflow_e2eai {' '.join(COMMAND)}")
    return True


def test_a_limit_to_the_size_of_files_ends_the_runs_and_without_it_the_command_goes_on(
    place, empty_store
):
    prepare(place, empty_store)
    code, lines = run(place, before=LIMIT)
    assert (code, ends_with(lines, "File too large")) == (1, True)
    assert statuses() == {"FAILED"}
    reasons = {
        run.data.tags["e2eai.error"]
        for run in mlflow.search_runs(experiment_names=["full"], output_format="list")
    }
    assert all("cannot be written (File too large)" in reason for reason in reasons)
    assert run(place)[0] == 0
    assert not list((place / "tmp").glob("mlflow_e2eai-*"))


@pytest.mark.parametrize("name", ["tmp", "artifacts"])
def test_a_disk_that_becomes_full_ends_the_runs(place, empty_store, name):
    with disk(place / name, 4):
        prepare(place, empty_store)
        fill(place / name, but=3_000_000 if name == "artifacts" else 200_000)
        code, lines = run(place)
        assert (code, ends_with(lines, "No space left on device")) == (1, True)
        assert statuses() <= {"FAILED", "FINISHED"}
        assert "FAILED" in statuses()


def test_a_read_only_folder_of_artifacts_ends_the_runs(place, empty_store):
    prepare(place, empty_store)
    with read_only(place / "artifacts"):
        code, lines = run(place)
        assert (code, ends_with(lines, "Read-only file system")) == (1, True)
        assert statuses() == {"FAILED"}


@pytest.mark.parametrize(
    ("state", "reason"),
    [("read-only", "readonly database"), ("full", "database or disk is full")],
)
def test_a_database_that_cannot_be_written_is_one_sentence(place, empty_store, state, reason):
    with disk(place / "db", 4):
        prepare(place, empty_store)
        if state == "full":
            fill(place / "db")
        with read_only(place / "db") if state == "read-only" else nullcontext():
            code, lines = run(place)
        assert (code, ends_with(lines, reason)) == (1, True)


def test_caches_that_cannot_be_written_are_done_without(place, empty_store):
    prepare(place, empty_store)
    with read_only(place / "home"):
        code, lines = run(place)
        assert code == 0, lines


@pytest.mark.parametrize("write", [mlflow_e2eai.export, mlflow_e2eai.save_model])
def test_an_output_folder_that_cannot_be_made_is_one_sentence(isolated, tmp_path, write):
    import torch

    (tmp_path / "file").write_text("in the way")
    out = {"export": "out", "save_model": "path"}[write.__name__]
    where = {out: tmp_path / "file" / "models" / "net.onnx"}
    with pytest.raises(StorageError, match=r"cannot be written \((Not a directory|File exists)\)"):
        write(torch.nn.Linear(8, 4).eval(), input_example={"x": torch.ones(2, 8)}, **where)
