"""Tests that need a GPU say so where there is none, and fail where one is required."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.system

ROOT = Path(__file__).parents[2]

TWICE = """
import pytest
words = ["tests/gpu", "-k", "fp32 and local", "-p", "no:cacheprovider"]
for options in ([], ["--require-gpu"]):
    print("exit code", int(pytest.main([*words, *options])), flush=True)
    print("-- next --", flush=True)
"""


@pytest.fixture(scope="module")
def said():
    """By one GPU test, plainly and where a GPU is required, on a machine whose GPUs are hidden."""
    done = subprocess.run(
        [sys.executable, "-c", TWICE],
        cwd=ROOT,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        check=True,
        timeout=300,
    )
    return done.stdout.split("-- next --")


def test_without_a_gpu_a_gpu_test_is_skipped_with_the_reason(said):
    plainly = said[0]
    assert "exit code 0" in plainly, plainly
    assert "needs an NVIDIA GPU, and PyTorch sees none" in plainly
    assert "1 skipped" in plainly


def test_under_require_gpu_a_skip_is_a_failure(said):
    required = said[1]
    assert "exit code 1" in required, required
    assert "skipped under --require-gpu: " in required
    assert "needs an NVIDIA GPU" in required
