"""Progress of long work: a bar in a terminal, silence in a log."""

import io
import re
import sys

from mlflow_e2eai.runtime.progress import progress, steps


class Terminal(io.StringIO):
    def isatty(self):
        return True


def worked_through(monkeypatch, stderr):
    monkeypatch.setattr(sys, "stderr", stderr)
    assert list(progress(["a", "b", "c"], "compile", unit="engines")) == ["a", "b", "c"]
    return stderr.getvalue()


def test_a_terminal_shows_what_is_done_and_how_much_of_it(monkeypatch):
    monkeypatch.delenv("TQDM_DISABLE", raising=False)
    shown = worked_through(monkeypatch, Terminal())
    assert "compile:" in shown
    assert "/3 " in shown
    assert shown.endswith("\r")  # and wipes it away at the end


def test_a_log_stays_quiet(monkeypatch):
    assert worked_through(monkeypatch, io.StringIO()) == ""


def test_work_that_says_how_far_it_is_has_a_bar_too(monkeypatch):
    monkeypatch.delenv("TQDM_DISABLE", raising=False)
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with steps("net.onnx for sm86") as show:
        show("tactics", 3, 7)
    assert re.search("net.onnx for sm86.*3/7.*tactics", terminal.getvalue())
