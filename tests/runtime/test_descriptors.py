"""Lines of C++ on stderr: those of one kind go to the log, and no other is lost."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import textwrap
import threading
from contextlib import redirect_stderr
from io import StringIO
from pathlib import Path

import pytest

from mlflow_e2eai.runtime.descriptors import stderr_lines_logged

OURS = re.compile(rb"\[W")


def write(text: str) -> None:
    """Write to the descriptor, as C++ does."""
    os.write(2, text.encode())


def run(program: str, **options) -> subprocess.CompletedProcess[str]:
    before = """
        import os, re, sys
        from mlflow_e2eai.runtime.descriptors import stderr_lines_logged
        OURS = re.compile(rb"\\[W")
    """
    text = textwrap.dedent(before) + textwrap.dedent(program)
    return subprocess.run(
        [sys.executable, "-c", text], capture_output=True, text=True, check=False, **options
    )


def open_descriptors() -> set[str]:
    return {path.name for path in Path("/proc/self/fd").iterdir()}


@pytest.fixture
def logged():
    return []


def test_lines_of_the_kind_are_logged_and_others_are_on_the_screen_afterwards(capfd, logged):
    with stderr_lines_logged(OURS, logged.append):
        write("[W1 one]\nsomebody else\n[W2 two]\nwithout an end")
        assert capfd.readouterr().err == ""
    assert logged == ["[W1 one]", "[W2 two]"]
    assert capfd.readouterr().err == "somebody else\nwithout an end"
    write("later\n")
    assert capfd.readouterr().err == "later\n"


def test_an_error_in_the_block_loses_no_line(capfd, logged):
    def fail() -> None:
        with stderr_lines_logged(OURS, logged.append):
            write("[W1 one]\nother\n")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert (logged, capfd.readouterr().err) == (["[W1 one]"], "other\n")


def test_the_descriptor_is_meant_whatever_sys_stderr_is(capfd, logged):
    stream = StringIO()
    with redirect_stderr(stream), stderr_lines_logged(OURS, logged.append):
        write("[W1 one]\n")
        sys.stderr.write("python\n")
    assert (logged, capfd.readouterr().err, stream.getvalue()) == (["[W1 one]"], "", "python\n")


def test_of_blocks_in_two_threads_the_last_one_gives_the_descriptor_back(capfd, logged):
    second_is_open, first_is_closed = threading.Event(), threading.Event()

    def second() -> None:
        with stderr_lines_logged(OURS, logged.append):
            second_is_open.set()
            first_is_closed.wait(60)
            write("[W2 two]\n")

    thread = threading.Thread(target=second)
    with stderr_lines_logged(OURS, logged.append):
        thread.start()
        second_is_open.wait(60)
        write("[W1 one]\n")
    first_is_closed.set()
    thread.join()
    write("later\n")
    assert (logged, capfd.readouterr().err) == (["[W1 one]", "[W2 two]"], "later\n")


def test_no_descriptor_is_left_open(logged):
    before = open_descriptors()
    for _ in range(3):
        with stderr_lines_logged(OURS, logged.append):
            write("[W1 one]\n")
    assert open_descriptors() == before


def test_where_stderr_is_closed_nothing_is_done():
    done = run("""
        os.close(2)
        with stderr_lines_logged(OURS, print):
            print("went on")
        try:
            os.fstat(2)
        except OSError:
            print("is closed still")
    """)
    assert (done.returncode, done.stdout) == (0, "went on\nis closed still\n")


def test_a_crash_in_the_block_shows_what_was_written():
    done = run("""
        with stderr_lines_logged(OURS, print):
            os.write(2, b"[W1 the last words]\\n")
            os.abort()
    """)
    assert done.returncode == -6
    assert done.stderr == "[W1 the last words]\n"
    assert done.stdout == ""


def test_what_python_holds_back_is_written_in_its_order(capfd):
    done = run("""
        print("before", file=sys.stderr, end=" ")
        with stderr_lines_logged(OURS, lambda line: print("logged", line)):
            os.write(2, b"[W1 one]\\n")
        print("after", file=sys.stderr)
    """)
    assert (done.stderr, done.stdout) == ("before after\n", "logged [W1 one]\n")
