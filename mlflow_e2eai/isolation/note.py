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

    def sample(self, number: int) -> None:
        """The calls that follow are about this sample."""
        self._sample = number

    def asking(self, tensors: Tensors) -> None:
        """A call with these inputs begins."""
        self._calls += 1
        sizes = ", ".join(f"{name} {list(array.shape)}" for name, array in tensors.items())
        which = "" if self._sample is None else f"sample {self._sample}, "
        # The count tells calls apart, so that a long series of one kind is seen to go on.
        line = f"{self._calls}|on {which}{sizes}".encode()[: SIZE - 1]
        self._memory[: len(line) + 1] = line + b"\0"

    def read(self) -> bytes:
        """All of it, to be compared with what was read before."""
        return self._memory[:SIZE].partition(b"\0")[0]

    def place(self) -> str:
        """What the last call was about, for people; empty before the first."""
        return self.read().partition(b"|")[2].decode(errors="replace")
