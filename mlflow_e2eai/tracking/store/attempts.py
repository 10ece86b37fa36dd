"""The process of a run as tags, and its heartbeat, by which others know whether it lives."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import socket
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from mlflow_e2eai.tracking.server import address

PROCESS = "e2eai.process"
"""Tag of a run: its process as JSON, see `RunProcess`."""

BEAT_S = 60.0
"""Seconds between two heartbeats."""

DEAD_AFTER_H = 24.0
"""Hours without a heartbeat after which a process on another host counts as dead. Generous: a
machine may sleep, a network may be down for a night, and clocks differ."""

LEAST_DEAD_H = 0.1
"""The fewest such hours: six heartbeats."""

_SLACK_S = 1.0
"""Seconds by which two readings of the start of one process may differ."""


@dataclass(frozen=True, slots=True)
class RunProcess:
    """The process of a run.

    Attributes:
        host: Its host.
        pid: Its number there.
        started: When it began, in seconds since the epoch; numbers are given again.
        space: Where that number is unique: the boot of the kernel, and the container.
        alive: When it last said that it lives, in UTC.
    """

    host: str
    pid: int
    started: float
    space: str
    alive: datetime

    @classmethod
    def current(cls) -> RunProcess:
        """This process, alive now."""
        return cls(*_identity(os.getpid()), alive=datetime.now(UTC))

    @classmethod
    def of(cls, tags: Mapping[str, str]) -> RunProcess | None:
        """The process of a run with these tags; None where they do not say."""
        try:
            found = cls(**json.loads(tags[PROCESS]))
            alive = datetime.fromisoformat(str(found.alive)).astimezone(UTC)
            return cls(str(found.host), int(found.pid), float(found.started), found.space, alive)
        except (KeyError, ValueError, TypeError, OverflowError, RecursionError):
            return None  # not by this package, or changed by hand

    def text(self) -> str:
        """The tag `PROCESS` of its runs, as JSON."""
        alive = self.alive.isoformat(timespec="seconds")
        return json.dumps({**asdict(self), "alive": alive})

    def is_dead(self, dead_after_h: float = DEAD_AFTER_H) -> bool:
        """Whether it is dead; False where that is not sure.

        Args:
            dead_after_h: Hours without a heartbeat after which one elsewhere counts as dead.
        """
        if self.space == _pid_space():
            return not _lives(self.pid, self.started)
        return datetime.now(UTC) - self.alive > timedelta(hours=dead_after_h)


@functools.cache
def _identity(pid: int) -> tuple[str, int, float, str]:
    import psutil

    started = round(psutil.Process(pid).create_time(), 2)
    return socket.gethostname(), pid, started, _pid_space()


def _pid_space() -> str:
    """The numbers of processes that this process sees; the host's name where Linux is not."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot}/{Path('/proc/self/ns/pid').stat().st_ino}"
    except OSError:
        return socket.gethostname()


def _lives(pid: int, started: float) -> bool:
    import psutil

    try:
        process = psutil.Process(pid)
        is_same: bool = abs(process.create_time() - started) <= _SLACK_S
        return is_same and bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False
    except (psutil.Error, ValueError, OverflowError):  # it may not be seen, or is no number of one
        return True


class _Heart:
    """The thread that writes the heartbeat of the open runs of this process."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._runs: dict[str, str] = {}
        self._ended: threading.Event | None = None

    def add(self, run_id: str, uri: str) -> bool:
        """Beat for a run too; whether it is a new one."""
        with self._lock:
            is_new = run_id not in self._runs
            self._runs[run_id] = uri
            if self._ended is None:
                self._ended = threading.Event()
                thread = threading.Thread(target=self._beat, args=(self._ended,), daemon=True)
                thread.start()
        return is_new

    def remove(self, run_id: str) -> None:
        """Beat for a run no more; the thread ends with the last."""
        with self._lock:
            self._runs.pop(run_id, None)
            if not self._runs and self._ended is not None:
                self._ended.set()
                self._ended = None

    def _beat(self, ended: threading.Event) -> None:
        from mlflow import MlflowClient

        while not ended.wait(BEAT_S):
            with self._lock:
                runs = dict(self._runs)
            for run_id, uri in runs.items():
                # A server that is away for an hour is no reason to end the work.
                with contextlib.suppress(Exception):
                    MlflowClient(uri).set_tag(run_id, PROCESS, RunProcess.current().text())


_HEART = _Heart()


@contextmanager
def with_heartbeat(run_id: str) -> Iterator[None]:
    """Write the heartbeat of a run that has this process as a tag, as long as the block lasts."""
    is_new = _HEART.add(run_id, address())
    try:
        yield
    finally:
        if is_new:
            _HEART.remove(run_id)


@contextmanager
def attend_to(run: Any) -> Iterator[None]:
    """Tag and beat for a run that the caller started, as long as the block lasts.

    Afterwards it has no such tag, and nobody takes its process for dead.
    """
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    run_id = run.info.run_id
    if not _HEART.add(run_id, address()):
        yield
        return
    client = MlflowClient()
    try:
        client.set_tag(run_id, PROCESS, RunProcess.current().text())
        yield
    finally:
        _HEART.remove(run_id)
        with contextlib.suppress(MlflowException):
            client.delete_tag(run_id, PROCESS)
