"""Progress of long work: a line for each stage, a bar inside long stages on a terminal.

Lines are records of the logger ``mlflow_e2eai``. `reported_on_stderr` shows them where nothing else
has been set up for that logger, so that a program silences or redirects them as any other log.
"""

from __future__ import annotations

import functools
import logging
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO, TypeVar

Item = TypeVar("Item")

LOGGER = logging.getLogger("mlflow_e2eai")

_log = logging.getLogger(__name__)

_TICK_S = 0.5
"""Seconds between two drawings of the clock of a stage."""

_SILENCE_S = 10.0
"""Seconds after which a stage without a terminal has a line that it goes on; the next comes after
twice as long."""

_PACKAGE = str(Path(__file__).parents[1])


def progress(items: Iterable[Item], title: str, *, unit: str) -> Iterator[Item]:
    """Yield items, with a bar on stderr meanwhile.

    There is none where stderr is no terminal, nor where tqdm's own ``TQDM_DISABLE`` is set.

    Args:
        items: The items; their number is shown where it is known.
        title: Title of the bar.
        unit: Noun for the items, in the plural.
    """
    # tqdm.auto would draw a widget in notebooks, and warns where ipywidgets is missing.
    from tqdm import tqdm

    yield from tqdm(items, desc=title, unit=f" {unit}", leave=False, disable=_is_disabled())


@contextmanager
def steps(title: str) -> Iterator[Callable[[str, int, int], None]]:
    """Show a bar, as `progress`, for work that reports by itself how far it is.

    Args:
        title: Title of the bar.

    Yields:
        A function of the phase, its steps that are done, and all of its steps.
    """
    from tqdm import tqdm

    with tqdm(desc=title, leave=False, disable=_is_disabled()) as bar:

        def show(phase: str, done: int, of: int) -> None:
            bar.total, bar.n = of, done
            bar.set_postfix_str(phase)

        yield show


def _is_disabled() -> bool | None:
    """True where the lines are silenced too; None lets tqdm decide by the terminal."""
    return True if LOGGER.level > logging.INFO else None


def report_stage(name: str, result: str, seconds: float, *, level: int = logging.INFO) -> None:
    """Report the end of a stage: its name, its result and its time."""
    LOGGER.log(level, "%-17s %-52s %6.1f s", name, result, seconds)


@contextmanager
def timed_stage(name: str, *, level: int = logging.INFO) -> Iterator[list[str]]:
    """Report a stage when the block ends; meanwhile draw a clock on a terminal.

    Elsewhere a long stage has lines that it goes on, so that a log is not silent for an hour. The
    line of a stage that fails is a detail: its error has a sentence of its own.

    Args:
        name: Name of the stage.
        level: Level of the line.

    Yields:
        The parts of the result, to be added to.
    """
    results: list[str] = []
    start = time.perf_counter()
    try:
        with _clock(name, level):
            yield results
    except BaseException:
        results.append("failed")
        level = logging.DEBUG
        raise
    finally:
        report_stage(name, ", ".join(results), time.perf_counter() - start, level=level)


@contextmanager
def _clock(name: str, level: int) -> Iterator[None]:
    """Draw a name and the time that has passed on a terminal, or report it now and then."""
    from tqdm import tqdm

    form = "{desc} {elapsed}"
    with tqdm(desc=f"{name:<17}", bar_format=form, leave=False, disable=_is_disabled()) as bar:
        ended = threading.Event()

        def draw() -> None:
            while not ended.wait(_TICK_S):
                bar.refresh()

        def report() -> None:
            pause_s = seconds = _SILENCE_S
            while not ended.wait(pause_s):
                report_stage(name, "still running", seconds, level=level)
                pause_s = seconds
                seconds += pause_s

        thread = threading.Thread(target=report if bar.disable else draw, daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()


class _Stderr(logging.Handler):
    """Write lines above a bar that is being drawn, to whatever stderr is at the moment."""

    def emit(self, record: logging.LogRecord) -> None:
        from tqdm import tqdm

        tqdm.write(self.format(record), file=sys.stderr)


class NestedBlocks:
    """Nested blocks, also in several threads: the first one installs, the last one restores.

    An installer changes a global and returns the function that restores it; or it returns None
    where it does not apply yet, and the next block tries again.
    """

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._open = 0
        self._restore: dict[str, Callable[[], None]] = {}

    @contextmanager
    def enter(self, **installers: Callable[[], Callable[[], None] | None]) -> Iterator[None]:
        """Enter a block, with its installers by name."""
        with self._lock:
            for name, install in installers.items():
                if name not in self._restore and (restore := install()) is not None:
                    self._restore[name] = restore
            self._open += 1
        try:
            yield
        finally:
            with self._lock:
                self._open -= 1
                while not self._open and self._restore:
                    self._restore.popitem()[1]()


_BLOCKS = NestedBlocks()

_PLAIN = logging.Formatter("%(message)s")


@contextmanager
def reported_on_stderr(level: int | None = None) -> Iterator[None]:
    """Show the package's lines on stderr inside the block, and log what libraries warn of.

    Blocks may be nested, and open in several threads: the first one decides.

    Args:
        level: Level of a program of ours. None is for a library: nothing is shown where the caller
            has set up the logger ``mlflow_e2eai``, or one above it.
    """
    with _BLOCKS.enter(warnings=_log_warnings, lines=functools.partial(_show_lines, level)):
        yield


def _log_warnings() -> Callable[[], None]:
    showwarning = warnings.showwarning
    warnings.showwarning = functools.partial(_log_or_show, showwarning)
    return lambda: setattr(warnings, "showwarning", showwarning)


def _show_lines(level: int | None) -> Callable[[], None]:
    if level is None and (LOGGER.hasHandlers() or LOGGER.level != logging.NOTSET):
        return lambda: None
    handler, before, propagate = _Stderr(), LOGGER.level, LOGGER.propagate
    handler.setFormatter(_PLAIN)
    LOGGER.addHandler(handler)
    LOGGER.setLevel(logging.INFO if level is None else level)
    LOGGER.propagate = False

    def restore() -> None:
        LOGGER.removeHandler(handler)
        LOGGER.setLevel(before)
        LOGGER.propagate = propagate

    return restore


def _log_or_show(
    show: Callable[..., None],
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """Log a warning of a library, which its user cannot act on; show any other."""
    is_installed = not {"site-packages", "dist-packages"}.isdisjoint(Path(filename).parts)
    if file is None and is_installed and not filename.startswith(_PACKAGE):
        _log.debug("%s: %s (%s:%d)", category.__name__, message, filename, lineno)
    else:
        show(message, category, filename, lineno, file, line)
