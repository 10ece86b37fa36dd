"""What all tests share: what they ran on, and tests that need a GPU."""

from __future__ import annotations

import faulthandler
import functools
import os
import random
import shutil
import sqlite3
import sys
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from weakref import WeakSet

import numpy as np
import pytest
from hypothesis import HealthCheck, settings

from mlflow_e2eai.artifacts.machine import driver_version, gpu_name

if "PYTEST_XDIST_WORKER" in os.environ:
    # Threads of several processes that share the cores wait for each other, and compute while they
    # wait: training the demo's model beside other tests took 13 to 27 s of CPU, and 3 s with one.
    os.environ.setdefault("OMP_NUM_THREADS", "1")

# As in the Makefile. ONNX Runtime's statistics are a thread and a database that processes share.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

# A busy machine is no failure. `make test` draws the same examples every time; `make test-slow`
# draws more, and others each time.
BUSY = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow]}
settings.register_profile("short", **BUSY, max_examples=40, derandomize=True)
settings.register_profile("long", **BUSY, max_examples=500)
settings.load_profile("short")


def pytest_addoption(parser):
    parser.addoption(
        "--require-gpu",
        action="store_true",
        help="fail tests marked gpu that would be skipped: for machines that are there to run them",
    )
    parser.addoption(
        "--processes",
        action="store_true",
        help="start a process for every runner, as the package does, in tests that use threads too",
    )
    parser.addoption(
        "--registry",
        choices=["sqlite", "postgres", "s3"],
        default="sqlite",
        help="the store of tests: a file, or a server over PostgreSQL, with artifacts in S3 or not",
    )


def pytest_report_header():
    names = ["torch", "onnx", "onnxruntime-gpu", "tensorrt_rtx_cu13", "tensorrt_cu13", "mlflow"]
    gpu = f"{gpu_name()}, driver {driver_version()}" if gpu_name() else "none"
    return [", ".join(f"{name} {_installed(name)}" for name in names), f"GPU: {gpu}"]


def _installed(name):
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


def pytest_runtest_setup(item):
    if item.get_closest_marker("slow"):  # they may take an hour
        faulthandler.cancel_dump_traceback_later()
    _seed()
    _read_the_exporters_table_once()
    if item.get_closest_marker("gpu") is None:
        return
    import torch

    if not torch.cuda.is_available():
        pytest.skip("needs an NVIDIA GPU, and PyTorch sees none")


def _seed():
    """Let a test draw the same numbers, whichever tests its process ran before."""
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002 - of code that draws from the global state
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(0)


def _read_the_exporters_table_once():
    """For every graph PyTorch's exporter has onnxscript parse 500 functions again, for 0.8 s."""
    interfaces = sys.modules.get("onnxscript._framework_apis")  # one for each version of PyTorch
    for interface in list(vars(interfaces).values()) if interfaces else []:
        read = getattr(interface, "get_torchlib_ops", None)
        if read is not None and not hasattr(read, "cache_info"):
            interface.get_torchlib_ops = functools.cache(read)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item):
    report = yield
    wanted = item.config.getoption("--require-gpu") and item.get_closest_marker("gpu") is not None
    if wanted and report.skipped:
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
        report.outcome = "failed"
        report.longrepr = f"skipped under --require-gpu: {str(reason).removeprefix('Skipped: ')}"
    return report


@pytest.fixture(scope="module")
def on_threads(request):
    """Runners work on threads, not in processes of their own, whose start takes 0.2 s of CPU each.

    For tests of what is asked and answered. What a crash does, and what loading native code does to
    the caller, needs the processes.
    """
    import threaded_workers

    with pytest.MonkeyPatch.context() as patch:
        if not request.config.getoption("--processes"):
            threaded_workers.instead_of_processes(patch)
        yield


@pytest.fixture
def in_processes(on_threads, monkeypatch):
    """Runners work in processes of their own after all, in a file where others do not."""
    import threaded_workers

    threaded_workers.processes_again(monkeypatch)


@pytest.fixture(scope="session")
def unsynced():
    """SQLite does not wait for the disk: a store that a test makes need not outlive the machine."""
    from sqlalchemy import event
    from sqlalchemy.engine import Engine

    def relax(connection, _):
        if isinstance(connection, sqlite3.Connection):
            connection.execute("PRAGMA synchronous = OFF")

    event.listen(Engine, "connect", relax)
    yield
    event.remove(Engine, "connect", relax)


@pytest.fixture(scope="session")
def databases():
    """The databases that this process has opened; MLflow keeps each of them open to its end."""
    from sqlalchemy import event
    from sqlalchemy.engine import Engine

    opened = WeakSet()

    def remember(connection):
        opened.add(connection.engine)

    event.listen(Engine, "engine_connect", remember)
    yield opened
    event.remove(Engine, "engine_connect", remember)


@pytest.fixture(scope="session")
def empty_store(unsynced, tmp_path_factory):
    """A database with MLflow's tables: making them takes seconds, copying them does not."""
    import mlflow

    database = tmp_path_factory.mktemp("empty_store") / "mlflow.db"
    mlflow.MlflowClient(f"sqlite:///{database}").search_experiments()
    return database


@pytest.fixture
def isolated(unsynced, databases, tmp_path, monkeypatch):
    """Nothing is read from or written to the working folder or the store of whoever runs this."""
    import mlflow

    monkeypatch.chdir(tmp_path)
    before = mlflow.get_tracking_uri()
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_ID", "MLFLOW_RUN_ID"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(mlflow.tracking.fluent, "_active_experiment_id", None)
    mlflow.set_tracking_uri(f"sqlite:///{tmp_path}/mlflow.db")
    yield
    left_open = mlflow.active_run()
    while mlflow.active_run() is not None:
        mlflow.end_run()
    mlflow.set_tracking_uri(before)
    for each in list(databases):  # thousands of tests would have more files open than a process may
        if str(tmp_path) in str(each.url.database):
            each.dispose()
    assert left_open is None, f"run {left_open.info.run_id} was left open"


@pytest.fixture(scope="session")
def chosen_server(request, tmp_path_factory):
    """The server that ``--registry`` names; None for a file."""
    kind = request.config.getoption("--registry")
    if kind == "sqlite":
        yield None
    else:
        from registry_servers import registry_server

        with registry_server(kind, tmp_path_factory.mktemp("registry")) as server:
            yield server


@pytest.fixture
def artifacts(chosen_server, tmp_path):
    """Where the store has its artifacts; ``edited`` gives a test the files of a model."""
    from registry_servers import Folder

    return Folder(tmp_path / "artifacts") if chosen_server is None else chosen_server.artifacts


@pytest.fixture
def store(empty_store, chosen_server, isolated, tmp_path, monkeypatch):
    """A tracking store of the test's own, with an experiment that is active.

    Pictures of what is logged are made up to their files, which take a tenth of a second each;
    tests/report/test_plots.py has them written, and so have the demo and the tests of the page.
    """
    import mlflow

    from mlflow_e2eai.report import canvas

    monkeypatch.setattr(canvas, "png", lambda *_: b"\x89PNG\r\n\x1a\n")
    monkeypatch.setattr(canvas, "svg", lambda *_: "<svg/>")
    if chosen_server is None:
        shutil.copyfile(empty_store, tmp_path / "mlflow.db")
        mlflow.create_experiment("tests", artifact_location=(tmp_path / "artifacts").as_uri())
    else:
        chosen_server.empty()
        mlflow.set_tracking_uri(chosen_server.uri)
        mlflow.create_experiment("tests")
    mlflow.set_experiment("tests")
    return mlflow.MlflowClient()


@pytest.fixture(scope="session")
def budgets():
    """For how long models are timed, by the name that holds it."""
    from mlflow_e2eai.evaluation.effort import EFFORTS
    from mlflow_e2eai.latency.measure import BUDGET_S

    short = {
        level: replace(
            effort, latency_s=0.05, other_latency_s=0.05, load_s=min(effort.load_s, 0.02)
        )
        for level, effort in EFFORTS.items()
    }
    return {
        "mlflow_e2eai.evaluation.stage.EFFORTS": (EFFORTS, short),
        "mlflow_e2eai.bundle.side_by_side.BUDGET_S": (BUDGET_S, 0.5),
    }


@pytest.fixture(scope="session", autouse=True)
def timed_for_a_moment(budgets):
    """Every logged model is timed; here what comes out of that matters, not how exact it is.

    Nor how busy the machine is: a test that is about that says so by `least_cpu_share`.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mlflow_e2eai.latency.cpu.LEAST_SHARE", 0.0)
        for name, (_, moment) in budgets.items():
            patch.setattr(name, moment)
        yield


def _try_exporters(patch, names):
    from mlflow_e2eai.pytorch import stage

    patch.setattr(stage, "AUTO", names)


@pytest.fixture(scope="session")
def exporters():
    """The order in which the package tries the exporters."""
    from mlflow_e2eai.pytorch import stage

    return stage.AUTO


@pytest.fixture(scope="module", autouse=True)
def traced(request, exporters):
    """Small models are traced first, in a twentieth of the time that dynamo takes.

    Not where the exporter, or a name that it gives, is the subject: in files and tests that are
    marked ``exporters``.
    """
    with pytest.MonkeyPatch.context() as patch:
        if request.node.get_closest_marker("exporters") is None:
            _try_exporters(patch, ("trace", *(name for name in exporters if name != "trace")))
        yield


@pytest.fixture(autouse=True)
def exported_as_by_users(request, exporters, monkeypatch):
    if request.node.get_closest_marker("exporters") is not None:
        _try_exporters(monkeypatch, exporters)


@pytest.fixture(autouse=True)
def timed_in_full_on_a_gpu(request, budgets, monkeypatch):
    if request.node.get_closest_marker("gpu") is not None:
        for name, (whole, _) in budgets.items():
            monkeypatch.setattr(name, whole)
