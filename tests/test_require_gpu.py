"""Tests that need a GPU say so where there is none, and fail where one is required."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent


def run(*options):
    """One GPU test on a machine whose GPUs, if any, are hidden."""
    command = [sys.executable, "-m", "pytest", "tests/gpu", "-k", "fp32 and local", *options]
    return subprocess.run(
        [*command, "-p", "no:cacheprovider"],
        cwd=ROOT,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


def test_without_a_gpu_a_gpu_test_is_skipped_with_the_reason():
    done = run()
    assert done.returncode == 0, done.stdout + done.stderr
    assert "needs an NVIDIA GPU, and PyTorch sees none" in done.stdout
    assert "1 skipped" in done.stdout


def test_under_require_gpu_a_skip_is_a_failure():
    done = run("--require-gpu")
    assert done.returncode == 1, done.stdout + done.stderr
    assert "skipped under --require-gpu: " in done.stdout
    assert "needs an NVIDIA GPU" in done.stdout
