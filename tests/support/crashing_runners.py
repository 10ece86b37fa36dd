"""Runners that do to their process what native code does to it."""

import ctypes
import itertools
import os
import signal
import sys
import threading
import time
import warnings
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from mlflow_e2eai.errors import EngineMismatchError
from mlflow_e2eai.runtime import crashes
from mlflow_e2eai.runtime.ort import onnxruntime_runner


def doubled(tensors):
    return {"y": 2 * tensors["x"]}


@contextmanager
def healthy():
    yield doubled


@contextmanager
def drops_dead(*, at_call, sign):
    """Ends its process by a signal at the so-manieth call, from 0."""
    calls = 0

    def infer(tensors):
        nonlocal calls
        calls += 1
        if calls > at_call:
            os.kill(os.getpid(), sign)
        return doubled(tensors)

    yield infer


@contextmanager
def reads_where_nothing_is():
    """Crashes as native code does, by following a pointer to nowhere."""

    def infer(_):
        ctypes.string_at(0)

    yield infer


@contextmanager
def crashes_on_large_batches(*, batch):
    def infer(tensors):
        if len(tensors["x"]) >= batch:
            os.kill(os.getpid(), signal.SIGSEGV)
        return doubled(tensors)

    yield infer


@contextmanager
def crashes_while_it_opens():
    os.write(2, b"loading\nno such kernel\n")
    os.abort()
    yield doubled


@contextmanager
def hangs(*, seconds):
    def infer(tensors):
        time.sleep(seconds)
        return doubled(tensors)

    yield infer


@contextmanager
def is_slow_but_alive(*, seconds):
    """Takes that long for a call."""

    def infer(tensors):
        time.sleep(seconds)
        return doubled(tensors)

    yield infer


@contextmanager
def answers_two_at_once():
    """Answers when a second caller asks too."""
    both = threading.Barrier(2, timeout=60)

    def infer(tensors):
        both.wait()
        return doubled(tensors)

    yield infer


@contextmanager
def takes_only(*, items):
    def infer(tensors):
        if len(tensors["x"]) != items:
            raise ValueError(len(tensors["x"]))
        return doubled(tensors)

    yield infer


@contextmanager
def refuses(error):
    def infer(_):
        raise error

    yield infer


@contextmanager
def is_for_another_gpu():
    raise EngineMismatchError(wanted="a GPU of sm90", found="no GPU")
    yield doubled


@contextmanager
def warns():
    warnings.warn("Running the other one instead.", UserWarning, stacklevel=2)
    yield doubled


@contextmanager
def prints():
    print("a library says hello")  # noqa: T201 - that is what it does
    yield doubled


@contextmanager
def takes_all_memory():
    def infer(tensors):
        return {"y": np.zeros(1 << 50)}

    yield infer


@contextmanager
def uses_one_buffer_for_all():
    """Answers from a buffer that it forgets to write to from the second call on."""
    buffer = None

    def infer(tensors):
        nonlocal buffer
        if buffer is None:
            buffer = 2 * tensors["x"]
        return {"y": buffer}

    yield infer


@contextmanager
def says_who_it_is():
    def infer(_):
        return {"y": np.array([os.getpid()])}

    yield infer


def tells_who_it_is_and_sleeps(_, path):
    path.write_text(str(os.getpid()))
    time.sleep(600)


def sleeps(_):
    time.sleep(600)


def takes_memory(worker, number_of_bytes):
    worker.note.write_activity("on much memory")
    taken = bytearray(number_of_bytes)
    taken[::4096] = b"x" * len(taken[::4096])
    time.sleep(1)
    return len(taken)


def makes_progress_for_ever(worker):
    for step in itertools.count():
        worker.note.write_activity(f"at step {step}")
        time.sleep(0.01)


def counts_its_calls(worker):
    calls = worker.state["calls"] = worker.state.get("calls", 0) + 1
    os.write(1, f"call {calls}\n".encode())
    return calls


def remember(worker, text):
    worker.state["text"] = os.environ["E2EAI_REMEMBERED"] = text


def remembered(worker):
    return os.environ.get("E2EAI_REMEMBERED", worker.state.get("text"))


def surroundings(_worker, name):
    return os.environ[name], sys.path, str(Path.cwd())


@contextmanager
def dies_with_a_session(path, **options):
    """ONNX Runtime opens and runs a graph; then its process ends as by a fault of it."""
    crashes.LARGEST_BYTES = int(os.environ.get("E2EAI_TEST_LARGEST", crashes.LARGEST_BYTES))
    with onnxruntime_runner(path, **options) as infer:

        def die(tensors):
            infer(tensors)
            os.kill(os.getpid(), signal.SIGSEGV)

        yield die


def writes_and_dies(_, lines, last):
    for number in range(lines):
        os.write(1 + number % 2, f"line {number}\n".encode())
    os.write(2, f"{last}\n".encode())
    os.abort()
