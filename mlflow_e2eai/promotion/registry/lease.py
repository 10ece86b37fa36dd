"""One promoter of a registered model at a time.

MLflow has no compare-and-set: whoever reads an alias and sets it may overwrite what another has set
in between. What it has are tags of the registered model, each of which is a register that one
process writes and all can read. Lamport's bakery (Communications of the ACM 17, 1974, p. 453) needs
no more for mutual exclusion: who enters says so, takes a number above all others', and waits until
nobody is entering or has a lower one.

A process may die with its number. Its entry counts as dead when a waiting process has seen it
unchanged for `LEASE_S` by its own clock, so that clocks of two machines are never compared. A
process that only stood still for as long loses its lease: `Lease.check` says so before each step,
and once more after it.
"""

from __future__ import annotations

import contextlib
import getpass
import json
import os
import random
import socket
import threading
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from mlflow_e2eai.errors import TrackingError
from mlflow_e2eai.tracking.server import responds

LEASE = "e2eai.lease."
"""Prefix of the tags of a registered model, one for each process that moves or waits."""

LEASE_S = 30.0
"""Seconds after which an entry that does not change is dead; a step takes some milliseconds."""

WAIT_S = 600.0
"""Seconds that a process waits for its turn."""

_NEXT_S = 0.2
"""Pause between two looks at the entries for the one whose turn is next."""

_LATER_S = 1.0
"""The same for each further one that comes before, as a turn takes about as long.

Sixteen that look twice a second each kept a server busy with nothing else.
"""


class Lease:
    """The right to move aliases of a registered model, while `check` raises nothing."""

    def __init__(self, name: str) -> None:
        from mlflow_e2eai.tracking._mlflow import registry_client

        self._client = registry_client()
        self._name = name
        self._tag = f"{LEASE}{uuid.uuid4().hex}"
        self._ticket: int | None = None
        self._beats = 0
        self._written_s = 0.0
        self._lost = False
        self._left = threading.Event()
        self._writing = threading.Lock()

    def check(self) -> None:
        """Check that the lease is still this process's, and renew it.

        Raises:
            TrackingError: Another process may have taken this one for dead.
        """
        with self._writing:
            if self._lost or self._tag not in self._entries() or not self._renew():
                self._lost = True
                msg = (
                    f"This process stood still for too long, and another may have moved the "
                    f"aliases of {self._name!r} meanwhile; repeat the call."
                )
                raise TrackingError(msg)

    def enter(self, wait_s: float) -> None:
        """Wait for the turn of this process.

        Raises:
            TrackingError: The wait took too long.
        """
        deadline = _now() + wait_s
        while not self._take_turn(deadline, wait_s):
            pass
        threading.Thread(target=self._beat, daemon=True).start()

    def _take_turn(self, deadline: float, wait_s: float) -> bool:
        """Take a number and wait for its turn; False where others took this process for dead."""
        self._ticket = None
        self._write()
        self._ticket = 1 + max((entry.ticket or 0 for entry in self._entries().values()), default=0)
        self._write()
        seen: dict[str, tuple[str, float]] = {}
        while True:
            # Before the request: an entry that was renewed while it was under way is not dead.
            looked_s = _now()
            entries = self._entries()
            if self._tag not in entries:
                return False  # with its old number it might come before one whose turn it is
            earlier = self._earlier(entries)
            if not earlier:
                return True
            now = _now()
            seen = {
                tag: seen[tag] if tag in seen and seen[tag][0] == entry.text else (entry.text, now)
                for tag, entry in earlier.items()
            }
            for tag, (_, since) in seen.items():
                if looked_s - since > LEASE_S:
                    self._delete(tag)
            if now > deadline:
                first = min(earlier.values(), key=lambda entry: entry.ticket or 0)
                msg = (
                    f"{len(earlier)} other promotions of {self._name!r} are running, the first by "
                    f"{first.owner}, and this one waited {wait_s:g} s; repeat the call later."
                )
                raise TrackingError(msg)
            if now - self._written_s > LEASE_S / 3:
                self._write()
            # Several wait, and are not to ask in step.
            pause_s = min(_LATER_S * (len(earlier) - 1) or _NEXT_S, LEASE_S / 6)
            time.sleep(pause_s * random.uniform(0.5, 1.5))  # noqa: S311 - no secret

    def leave(self, *, is_reached: bool = True) -> None:
        """Give the right up; where the server is not reached, others see the entry die."""
        self._left.set()
        if is_reached:
            with self._writing:
                self._delete(self._tag)

    def _beat(self) -> None:
        """Show that this process is alive, for as long as it has the lease."""
        while not self._left.wait(LEASE_S / 3):
            # Others see what is written; where it cannot be, `check` will say so.
            with contextlib.suppress(Exception), self._writing:
                if self._left.is_set() or self._lost:
                    return
                self._lost = not self._renew()

    def _renew(self) -> bool:
        """Write the entry; whether that came before others could take this process for dead.

        It may stand still before the request or in it. Then another may have deleted the entry,
        which has just come back, and have the turn.
        """
        before = self._written_s
        self._write()
        if in_time := _now() - before <= LEASE_S:
            return in_time
        self._delete(self._tag)
        return in_time

    def _earlier(self, entries: Mapping[str, _Entry]) -> dict[str, _Entry]:
        """Entries that come before this one, and those that have no number yet."""
        own = (self._ticket or 0, self._tag)
        return {
            tag: entry
            for tag, entry in entries.items()
            if tag != self._tag and (entry.ticket is None or (entry.ticket, tag) < own)
        }

    def _entries(self) -> dict[str, _Entry]:
        tags = self._client.get_registered_model(self._name).tags
        return {tag: _Entry.read(text) for tag, text in tags.items() if tag.startswith(LEASE)}

    def _write(self) -> None:
        self._beats += 1
        entry = {"ticket": self._ticket, "beats": self._beats, "owner": _owner()}
        now = _now()  # before the request: others may see it at once
        self._client.set_registered_model_tag(self._name, self._tag, json.dumps(entry))
        self._written_s = now

    def _delete(self, tag: str) -> None:
        from mlflow.exceptions import MlflowException

        # Two that wait may both delete the entry of a dead process.
        with contextlib.suppress(MlflowException):
            self._client.delete_registered_model_tag(self._name, tag)


@dataclass(frozen=True, slots=True)
class _Entry:
    """The tag of one process: its text, its number, and who it is."""

    text: str
    ticket: int | None
    owner: str

    @classmethod
    def read(cls, text: str) -> _Entry:
        """Read a tag; one that a hand wrote has no number, and dies as it never changes."""
        try:
            value: Any = json.loads(text)
        except ValueError:
            value = None
        entry = value if isinstance(value, Mapping) else {}
        ticket = entry.get("ticket")
        number = ticket if isinstance(ticket, int) and not isinstance(ticket, bool) else None
        return cls(text=text, ticket=number, owner=str(entry.get("owner", "an unknown process")))


def _now() -> float:
    """Seconds by a clock that goes on while the machine sleeps."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def _owner() -> str:
    return f"{getpass.getuser()}@{socket.gethostname()}, process {os.getpid()}"


@contextmanager
def lease(name: str, *, wait_s: float = WAIT_S) -> Iterator[Lease]:
    """Hold the right to move the aliases of a registered model in the block.

    Args:
        name: The registered model.
        wait_s: Seconds to wait for the turn of this process.

    Raises:
        TrackingError: The wait took too long.
    """
    own = Lease(name)
    try:
        own.enter(wait_s)
        yield own
    except BaseException:
        own.leave(is_reached=responds())
        raise
    own.leave()
