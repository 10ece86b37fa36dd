"""Progress of long work: a line for each stage, and a bar in a terminal meanwhile."""

import io
import logging
import re
import sys
import time
import warnings

import pytest

from mlflow_e2eai.runtime import progress as module
from mlflow_e2eai.runtime.progress import (
    LOGGER,
    progress,
    report_stage,
    reported_on_stderr,
    steps,
    timed_stage,
)


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


def line_of(text):
    name, result, seconds = re.fullmatch(r"(\S.*?) {2,}(.*?) +([\d.]+ s)", text).groups()
    return name, result, seconds


def test_a_stage_is_one_line_with_its_result_and_its_time(capsys):
    with reported_on_stderr(logging.INFO), timed_stage("export") as result:
        result += ["dynamo", "opset 18"]
    out, err = capsys.readouterr()
    assert out == ""
    assert line_of(err.rstrip("\n")) == ("export", "dynamo, opset 18", "0.0 s")


@pytest.mark.parametrize(("level", "lines"), [(logging.INFO, []), (logging.DEBUG, ["clean"])])
def test_the_line_of_a_stage_that_fails_is_a_detail(level, lines, capsys):
    with pytest.raises(ZeroDivisionError), reported_on_stderr(level), timed_stage("clean"):
        1 / 0  # noqa: B018 - an error is the point
    err = capsys.readouterr().err
    assert [line_of(line)[0] for line in err.splitlines()] == lines
    assert [line_of(line)[1] for line in err.splitlines()] == ["failed"] * len(lines)


def test_a_terminal_shows_a_clock_while_a_stage_runs(monkeypatch):
    monkeypatch.delenv("TQDM_DISABLE", raising=False)
    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    with reported_on_stderr(logging.INFO), timed_stage("export"):
        pass
    shown = terminal.getvalue()
    assert re.search(r"export +00:00", shown)
    assert line_of(shown.rpartition("\r")[2].rstrip("\n"))[0] == "export"


def test_a_log_shows_that_a_long_stage_goes_on(caplog, monkeypatch):
    monkeypatch.setattr(module, "_SILENCE_S", 0.01)
    caplog.set_level(logging.INFO, "mlflow_e2eai")

    def lines():
        return [record.args for record in caplog.records if record.args[1] == "still running"]

    until = time.monotonic() + 60
    with timed_stage("compile"):
        while len(lines()) < 3:
            assert time.monotonic() < until
            time.sleep(0.01)
    shown = lines()
    assert shown[:3] == [("compile", "still running", 0.01 * times) for times in (1, 2, 4)]
    time.sleep(0.1)
    assert lines() == shown


def test_a_short_stage_has_one_line(caplog):
    caplog.set_level(logging.INFO, "mlflow_e2eai")
    with timed_stage("compile"):
        pass
    assert [record.args[0] for record in caplog.records] == ["compile"]


def test_quiet_shows_neither_lines_nor_bars(monkeypatch):
    monkeypatch.delenv("TQDM_DISABLE", raising=False)
    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    with reported_on_stderr(logging.WARNING), timed_stage("export"):
        assert list(progress("ab", "letters", unit="letters")) == ["a", "b"]
    assert terminal.getvalue() == ""


def test_a_library_shows_its_lines_by_default_and_cleans_up(capsys, monkeypatch):
    monkeypatch.setattr(LOGGER, "propagate", False)  # pytest has handlers above
    with reported_on_stderr(), reported_on_stderr():
        report_stage("export", "dynamo", 0.7)
    report_stage("after", "nobody listens", 1)
    assert line_of(capsys.readouterr().err.rstrip("\n")) == ("export", "dynamo", "0.7 s")
    assert LOGGER.handlers == []
    assert LOGGER.level == logging.NOTSET


def test_a_caller_silences_a_library_by_its_logger(capsys, monkeypatch):
    monkeypatch.setattr(LOGGER, "propagate", False)
    before = LOGGER.level
    LOGGER.setLevel(logging.WARNING)
    with reported_on_stderr():
        report_stage("export", "dynamo", 0.7)
    LOGGER.setLevel(before)
    assert capsys.readouterr().err == ""


def test_a_caller_who_has_set_up_logging_gets_records_and_no_second_line(caplog, capsys):
    with caplog.at_level(logging.INFO), reported_on_stderr():
        report_stage("export", "dynamo", 0.7)
    assert capsys.readouterr().err == ""
    assert caplog.records[0].getMessage().startswith("export")


LIBRARY = "/env/lib/python3.11/site-packages/torch/onnx/exporter.py"


def test_a_warning_of_a_library_is_a_detail_and_any_other_is_shown(capsys, recwarn):
    with reported_on_stderr(logging.INFO):
        warnings.warn_explicit("deprecated", FutureWarning, LIBRARY, 7)
        warnings.warn_explicit("your model", UserWarning, "/home/me/model.py", 7)
    assert [str(warning.message) for warning in recwarn] == ["your model"]
    assert capsys.readouterr().err == ""
    with reported_on_stderr(logging.DEBUG):
        warnings.warn_explicit("deprecated", FutureWarning, LIBRARY, 8)
    assert f"FutureWarning: deprecated ({LIBRARY}:8)" in capsys.readouterr().err
