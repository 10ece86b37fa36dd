"""Forks of a server: as fresh as new processes, and gone with whoever wanted them."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import time
from contextlib import ExitStack, closing
from functools import partial
from pathlib import Path

import crashing_runners
import pytest
from fleet_jobs import parent_of

from mlflow_e2eai.errors import RunnerError
from mlflow_e2eai.runtime import fork_server
from mlflow_e2eai.runtime.process import WorkerProcess


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_until_over(pid: int) -> None:
    until = time.monotonic() + 30
    while is_running(pid):
        assert time.monotonic() < until
        time.sleep(0.01)


def test_two_processes_are_forks_of_one_server_and_know_nothing_of_each_other():
    with closing(WorkerProcess()) as one, closing(WorkerProcess()) as other:
        one.call(partial(crashing_runners.remember, text="mine"))
        assert parent_of(one._process.pid) == parent_of(other._process.pid) != os.getpid()
        assert one.call(crashing_runners.remembered) == "mine"
        assert other.call(crashing_runners.remembered) is None


def test_a_process_begins_with_the_environment_the_path_and_the_folder_of_now(
    monkeypatch, tmp_path
):
    for text in ("one", "other"):
        monkeypatch.setenv("E2EAI_TEST", text)
        monkeypatch.setattr(sys, "path", [*sys.path, f"/nowhere/{text}"])
        (tmp_path / text).mkdir()
        monkeypatch.chdir(tmp_path / text)
        with closing(WorkerProcess()) as process:
            value, path, folder = process.call(
                partial(crashing_runners.surroundings, name="E2EAI_TEST")
            )
        assert (value, path[-1], folder) == (text, f"/nowhere/{text}", str(tmp_path / text))


def test_one_that_works_goes_on_when_the_next_has_other_surroundings(monkeypatch):
    with closing(WorkerProcess()) as process:
        monkeypatch.setenv("E2EAI_TEST", "changed")
        with closing(WorkerProcess()) as other:
            assert parent_of(other._process.pid) != parent_of(process._process.pid)
        assert process.call(crashing_runners.remembered) is None


def test_a_server_that_was_killed_takes_its_processes_with_it_and_is_replaced():
    with closing(WorkerProcess()) as process:
        os.kill(parent_of(process._process.pid), signal.SIGKILL)
        wait_until_over(process._process.pid)
        with pytest.raises(RunnerError, match="was killed"):
            process.call(crashing_runners.remembered)
    with closing(WorkerProcess()) as process:
        assert process.call(crashing_runners.remembered) is None


def test_a_server_that_had_nothing_to_do_is_gone_and_replaced(monkeypatch):
    monkeypatch.setattr(
        fork_server,
        "_BOOT",
        fork_server._BOOT.replace("run(*", "run(idle_s=0, *"),
    )
    monkeypatch.setenv("E2EAI_TEST", "idle")
    with closing(WorkerProcess()) as process:
        server = parent_of(process._process.pid)
    wait_until_over(server)
    with closing(WorkerProcess()) as process:
        assert parent_of(process._process.pid) != server
    monkeypatch.undo()


def test_how_a_process_ended_is_its_exit_code_and_is_known_for_good():
    with closing(WorkerProcess()) as process:
        child = process._process
        assert child.poll() is None
        with pytest.raises(subprocess.TimeoutExpired):
            child.wait(0)
        process.kill()
        assert child.wait() == child.poll() == child.wait(0) == -signal.SIGKILL
        child.kill()  # its number may be another's by now


def test_a_process_with_a_thousand_open_files_starts_others(monkeypatch):
    monkeypatch.setenv("E2EAI_TEST", "so that the server is a new one, with a high number too")
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(2200, limits[0]), limits[1]))
    with ExitStack() as stack:
        stack.callback(resource.setrlimit, resource.RLIMIT_NOFILE, limits)
        for _ in range(1100):
            stack.enter_context(Path(os.devnull).open())
        with closing(WorkerProcess()) as process:
            process.call(partial(crashing_runners.remember, text="mine"))
            assert process.call(crashing_runners.remembered) == "mine"
            assert process._process.poll() is None


def test_nothing_is_left_of_a_process_that_ends():
    script = (
        "from mlflow_e2eai.runtime.process import WorkerProcess\n"
        "process = WorkerProcess()\n"
        "print(process._process.pid)\n"
        "process.close()\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", script],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stderr == ""
    assert not is_running(int(done.stdout))
