"""Runs tests/simulated/ on a GPU that is not there: a driver that is compiled here.

In a process of its own, as this one is to go on without a GPU.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.system

TESTS = Path(__file__).parents[1]
FOLDER = TESTS / "simulated"
SUPPORT = TESTS / "support"


@pytest.fixture(scope="session")
def driver(tmp_path_factory):
    """A folder with a libcuda.so.1 that keeps the GPU's memory on the host."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("there is no C compiler")
    pytest.importorskip("cuda.core", reason="cuda-core is not installed")
    pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed")
    folder = tmp_path_factory.mktemp("driver")
    words = ["-shared", "-fPIC", "-O1", "-Wl,-soname,libcuda.so.1", "-o", folder / "libcuda.so.1"]
    subprocess.run([compiler, *words, SUPPORT / "driver.c", "-lpthread"], check=True)
    return folder


@pytest.mark.parametrize("name", sorted(path.name for path in FOLDER.glob("test_*.py")))
def test_on_a_simulated_gpu(name, driver, tmp_path):
    words = ["-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", "-rfE"]
    done = subprocess.run(
        [sys.executable, *words, "--basetemp", tmp_path / "inside", FOLDER / name],
        env={
            **os.environ,
            "LD_LIBRARY_PATH": str(driver),
            "SIMULATED_GPUS": "2",
            "PYTHONPATH": os.pathsep.join([str(SUPPORT), os.environ.get("PYTHONPATH", "")]),
        },
        cwd=TESTS.parent,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
