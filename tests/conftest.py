"""What all tests share: what they ran on, and tests that need a GPU."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

import pytest

from mlflow_e2eai.context import driver_version, gpu_name


def pytest_addoption(parser):
    parser.addoption(
        "--require-gpu",
        action="store_true",
        help="fail tests marked gpu that would be skipped: for machines that are there to run them",
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
    if item.get_closest_marker("gpu") is None:
        return
    import torch

    if not torch.cuda.is_available():
        pytest.skip("needs an NVIDIA GPU, and PyTorch sees none")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item):
    report = yield
    wanted = item.config.getoption("--require-gpu") and item.get_closest_marker("gpu") is not None
    if wanted and report.skipped:
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
        report.outcome = "failed"
        report.longrepr = f"skipped under --require-gpu: {reason}"
    return report
