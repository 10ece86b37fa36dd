"""The goal of a choice among variants, and the choice with its reasons."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal, TypeAlias, cast

from mlflow_e2eai.artifacts.files import Summary, Table
from mlflow_e2eai.errors import E2EAIError, InvalidInputError, nearest, require_kind

Aim: TypeAlias = Literal["latency", "throughput", "memory"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Goal:
    """The criterion of the best variant.

    Attributes:
        aim: ``latency``: the shortest median time of a call. ``throughput``: the highest
            measured number of items a second. ``memory``: the least GPU memory where both of two
            variants take some, else the least peak memory of the process that ran it.
        items: Items in that call; by default as many as the profile's opt. For latency only.
    """

    aim: Aim = "latency"
    items: int | None = None

    @classmethod
    def parse(cls, text: str) -> Goal:
        """Read a goal: ``latency``, ``latency@8``, ``throughput``, ``memory``.

        Raises:
            InvalidInputError: It is none of these.
        """
        require_kind("goal", text, str, "'latency', 'latency@8', 'throughput' or 'memory'")
        match = re.fullmatch(r"(latency|throughput|memory)|latency@([1-9]\d*)", text)
        if match is None:
            near = nearest(text, ("latency", "throughput", "memory"))
            msg = (
                f"There is no goal {text!r}; give 'latency', 'latency@8' for calls of 8 items, "
                f"'throughput' or 'memory'.{f' Did you mean {near}?' if near else ''}"
            )
            raise InvalidInputError(msg)
        if match.group(2) is not None:
            return cls(items=int(match.group(2)))
        return cls(aim=cast("Aim", match.group(1)))

    def __str__(self) -> str:
        """The text that `parse` reads."""
        return self.aim if self.items is None else f"{self.aim}@{self.items}"


@dataclass(frozen=True, slots=True, kw_only=True)
class PassedOver:
    """A variant that was not chosen.

    Attributes:
        variant: Its name.
        reason: Why not, as a sentence.
        error: Why it cannot run here; None where it could run, and another is better.
    """

    variant: str
    reason: str
    error: E2EAIError | None = None


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Choice(Summary):
    """The variant that runs, and the reasons against the others.

    Attributes:
        variant: The chosen variant.
        reason: Why, as a sentence.
        goal: The goal; None where the caller named the variant.
        others: All other variants of the bundle, in the order engines, ONNX Runtime on a GPU, on
            the CPU.
    """

    variant: str
    reason: str
    goal: Goal | None
    others: tuple[PassedOver, ...]

    def __str__(self) -> str:
        """A line for each variant, the chosen one first."""
        lines = [f"{self.variant} was chosen: {self.reason}"]
        return "\n".join(lines + [f"not {each.variant}: {each.reason}" for each in self.others])

    def _line(self) -> str:
        return f"{self.variant}, {self.reason}"

    def _table(self) -> Table:
        return PassedOver, [
            PassedOver(variant=self.variant, reason=f"chosen: {self.reason}"),
            *self.others,
        ]
