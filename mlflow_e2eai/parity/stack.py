"""Small answers, held to be judged in one go: a call of NumPy costs more than their numbers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from mlflow_e2eai.parity.answers import Answer, Circumstances, Question
from mlflow_e2eai.parity.judge import Judge
from mlflow_e2eai.parity.measure import BLOCK

MOST = 256
"""Answers held at most, however small: by then what each costs no longer shrinks."""

Form = tuple[tuple[str, Any, tuple[int, ...]], ...]
"""Name, dtype and shape of each output."""


@dataclass(slots=True)
class Stack:
    """Holds answers of one form until they fill a block.

    What is judged together is only whether all of them are right. Where one is not, each is judged
    on its own, so that nothing of what is said depends on what was held.
    """

    judge: Judge
    held: list[tuple[Question, Mapping[str, Answer], Circumstances]] = field(default_factory=list)
    form: Form | None = None
    most: int = 1

    def answer(
        self, question: Question, given: Mapping[str, Answer], around: Circumstances
    ) -> None:
        """Have an answer judged, now or with those that follow."""
        form = _form(question.right, given)
        if form != self.form:
            self.judge_held()
            self.form = form
            self.most = self._room(question)
        self.held.append((question, given, around))
        if len(self.held) >= self.most:
            self.judge_held()

    def judge_held(self) -> None:
        """Judge all that is held."""
        held, self.held = self.held, []
        if len(held) < 2 or not self.judge.all_right(held):  # noqa: PLR2004 - one is not several
            for each in held:
                self.judge.answer(*each)

    def _room(self, question: Question) -> int:
        """How many answers of this form are held together."""
        if self.form is None or self.judge.stop_when_failed:
            return 1
        largest = max((answer.array.size for answer in question.right.values()), default=0)
        return min(BLOCK // max(largest, 1), MOST)


def _form(right: Mapping[str, Answer], given: Mapping[str, Answer]) -> Form | None:
    """What both sides are alike in; None where they are not, or cannot be put one after another."""
    if right.keys() != given.keys():
        return None
    for name, answer in right.items():
        one, other = answer.array, given[name].array
        if one.shape != other.shape or one.dtype != other.dtype:
            return None
        if answer.items is not None or given[name].items is not None:
            return None
        if not (one.ndim and one.size) or one.dtype.kind not in "fiub":
            return None
    return tuple((name, answer.array.dtype, answer.array.shape) for name, answer in right.items())
