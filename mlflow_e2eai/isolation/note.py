"""What a worker is at, in memory that two processes share and that outlives one of them."""

from __future__ import annotations

import mmap

from mlflow_e2eai.artifacts import Tensors

SIZE = 1000


class Note:
    """A line of text in a file that both processes have open.

    Args:
        fileno: The file, of at least `SIZE` bytes.
    """

    def __init__(self, fileno: int) -> None:
        self._memory = mmap.mmap(fileno, SIZE)
        self._calls = 0
        self._sample: int | None = None
        self._label = ""

    def sample(self, number: int) -> None:
        """The calls that follow are about this sample."""
        self._sample = number

    def label(self, text: str) -> None:
        """What follows is about one of several runners."""
        self._label = text
        self._write("")

    def asking(self, tensors: Tensors) -> None:
        """A call with these inputs begins."""
        self._calls += 1
        sizes = ", ".join(f"{name} {list(array.shape)}" for name, array in tensors.items())
        which = "" if self._sample is None else f"sample {self._sample}, "
        self._write(f"on {which}{sizes}")

    def doing(self, text: str) -> None:
        """Something else than a call begins."""
        self._calls += 1
        self._write(text)

    def _write(self, text: str) -> None:
        # The count tells calls apart, so that a long series of one kind is seen to go on.
        line = f"{self._calls}|{self._label}|{text}".encode()[: SIZE - 1]
        self._memory[: len(line) + 1] = line + b"\0"

    def read(self) -> bytes:
        """All of it, to be compared with what was read before."""
        return self._memory[:SIZE].partition(b"\0")[0]

    def place(self) -> str:
        """What the last call was about, for people; empty before the first."""
        return self._part(2)

    def labelled(self) -> str:
        """Which of several runners it was about; empty where there is one."""
        return self._part(1)

    def _part(self, number: int) -> str:
        parts = self.read().decode(errors="replace").split("|", 2)
        return parts[number] if number < len(parts) else ""
