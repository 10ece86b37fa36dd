"""How a fault that a stage meets is put on the list."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from mlflow_e2eai.artifacts.machine import has_gpu
from mlflow_e2eai.errors import E2EAIError


@dataclass(frozen=True)
class Staged:
    """A fault, and the stage that meets it.

    Attributes:
        name: What is wrong.
        meet: Takes a folder to write in; gives the kinds of finding, and raises where a stage
            refuses.
        refused: What the stage must raise, or say, by name.
        words: What its error must say.
        missed: Why it is not found today; None where it is.
        gpu: Whether it can be planted where there is a GPU.
    """

    name: str
    meet: Callable[[Path], set[str]]
    refused: str
    words: str = ""
    missed: str | None = None
    gpu: bool = True

    @property
    def can_be_planted(self) -> bool:
        """Whether this machine has what it takes."""
        return self.gpu or not has_gpu()

    def found(self, folder: Path) -> set[str]:
        """What is said of it; an error that does not name the fault is told apart by its words."""
        try:
            return self.meet(folder)
        except E2EAIError as error:
            named = self.words in str(error)
            return {type(error).__name__ if named else f"{type(error).__name__}: {error}"}


STAGED: list[Staged] = []


def staged(name, refused, **settings):
    """Register a function that has a stage meet a fault."""

    def register(meet):
        STAGED.append(Staged(name, meet, refused, **settings))
        return meet

    return register
