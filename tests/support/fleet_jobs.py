"""Jobs of a fleet, what came of them in the store, and their worker processes."""

from __future__ import annotations

import os
import signal
import threading
import time
from contextlib import contextmanager, suppress
from pathlib import Path

import mlflow

from mlflow_e2eai.artifacts.build_settings import BuildSettings
from mlflow_e2eai.fleet.job import Job


def compiling(model_id, target="sm86", *, resources=None, accelerator=None, **arguments):
    return Job(
        stage="compile",
        model_uri=model_id,
        arguments={"targets": [target], **arguments},
        resources=resources or {},
        accelerator=accelerator,
    )


def children(parent):
    found = mlflow.MlflowClient().search_runs(
        [parent.info.experiment_id],
        f"tags.mlflow.parentRunId = '{parent.info.run_id}'",
        order_by=["attributes.start_time ASC"],
    )
    return [mlflow.get_run(run.info.run_id) for run in found]


def engines():
    """Ids of the finished engines."""
    return [
        model.model_id
        for model in mlflow.search_logged_models(output_format="list")
        if model.tags.get("e2eai.stage") == "compile" and str(model.status) == "READY"
    ]


def parent_of(pid):
    """The number of a process's parent."""
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def descendants(pid):
    """A process's children, and theirs, as numbers and command lines."""
    known = {}
    for place in Path("/proc").iterdir():
        if place.name.isdigit():
            try:
                words = (place / "cmdline").read_bytes()
                known[int(place.name)] = parent_of(place.name), words
            except OSError:
                continue
    found, level = {}, {pid}
    while level:
        level = {each for each, (above, _) in known.items() if above in level}
        found |= {each: known[each][1] for each in level}
    return found


def workers():
    """Processes of the fleet that this process, or a cluster that it began, is waiting for.

    They are forks of a server, and have its command line: the second, the fourth in a row of them.
    """
    forks = {p for p, words in descendants(os.getpid()).items() if b"fork_server" in words}

    def depth(pid):
        return 1 + depth(parent_of(pid)) if pid in forks else 0

    found = []
    for pid in forks:
        with suppress(OSError):  # it has ended meanwhile
            found += [pid] if depth(pid) % 2 == 0 else []
    return found


def owner_of(pid):
    """The process that a worker works for: the parent of its server."""
    return parent_of(parent_of(pid))


def evaluators():
    """Processes of the fleet that have a runner in a process of its own."""
    known = workers()
    return [pid for pid in known if pid in map(owner_of, known)]


def busy_builders():
    """Processes that build an engine, once they have been busy for longer than imports take."""
    known = workers()
    began = {pid: cpu_s(pid) for pid in known if owner_of(pid) in known}
    busy, deadline = [], time.monotonic() + 30
    while began and not busy and time.monotonic() < deadline:
        time.sleep(0.1)
        busy = [pid for pid, before in began.items() if cpu_s(pid) - before > 1.5]
    return busy


def busy_workers():
    """Processes of the fleet whose builder is busy."""
    return [owner_of(pid) for pid in busy_builders()]


def cpu_s(pid):
    """Seconds that a process has kept a core busy; 0 where it has ended."""
    try:
        said = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(said[11]) + int(said[12])) / os.sysconf("SC_CLK_TCK")


def kill_when_building(found, *, times=1, by=signal.SIGKILL):
    """Kill what `found` finds by a signal as soon as a job's run has begun.

    Returns:
        The thread that does it, and a list that it fills with the runs.
    """
    client, killed = mlflow.MlflowClient(), []
    experiment = mlflow.get_experiment_by_name("tests").experiment_id

    def watch():
        deadline = time.monotonic() + 120
        while len(killed) < times and time.monotonic() < deadline:
            running = client.search_runs(
                [experiment], "attributes.status = 'RUNNING' AND tags.`e2eai.ticket` != ''"
            )
            fresh = [run.info.run_id for run in running if run.info.run_id not in killed]
            victims = found() if fresh else []
            if victims:
                for pid in victims:
                    os.kill(pid, by)
                killed.append(fresh[0])
            time.sleep(0.02)

    thread = threading.Thread(target=watch)
    thread.start()
    return thread, killed


DEATHS = {
    "killed": (signal.SIGKILL, "was killed (SIGKILL, as Linux does when memory runs out)"),
    "crashed": (signal.SIGSEGV, "crashed (SIGSEGV)"),
    "hanging": (None, "did not finish within 0.2 s"),
}
"""Ways in which a builder dies: by which signal, if by one, and what is said of it."""


@contextmanager
def dying(how):
    """Have one builder die in the block, if by a signal.

    Yields:
        The settings of its job.
    """
    by, _ = DEATHS[how]
    if by is None:
        yield BuildSettings(time_limit_s=0.2)
        return
    thread, killed = kill_when_building(lambda: busy_builders()[:1], by=by)
    yield BuildSettings()
    thread.join()
    assert len(killed) == 1
