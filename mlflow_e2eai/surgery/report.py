"""The result of a surgery plan."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from mlflow_e2eai.artifacts.files import Real, Summary, Table
from mlflow_e2eai.surgery.outline import Outline


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class SurgeryReport(Summary):
    """Result of a plan.

    Attributes:
        edits: Number of edits by each step, in the plan's order, as ``rule`` or ``rule #2``.
        nodes_before: Nodes in the main graph before.
        nodes_after: Nodes in the main graph after.
        operators_before: Nodes of each operator before.
        operators_after: Nodes of each operator after.
        size_before_bytes: Size of the file before.
        size_after_bytes: Size of the file after.
        max_abs_error: Largest difference in the check of the numbers, over all outputs; None when
            they were not checked.
        outline: Both graphs in one, for people.
        plan: The plan as YAML, to apply to another graph.
        seconds: Duration of each step, named as in `edits`.
        notes: Sentences on what the plan could not do: a library that was left out.
    """

    edits: Mapping[str, int]
    nodes_before: int
    nodes_after: int
    operators_before: Mapping[str, int]
    operators_after: Mapping[str, int]
    size_before_bytes: int
    size_after_bytes: int
    max_abs_error: Real | None
    outline: Outline | None = None
    plan: str | None = None
    seconds: Mapping[str, Real] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def _line(self) -> str:
        error = (
            "numbers not checked"
            if self.max_abs_error is None
            else f"largest error {self.max_abs_error:.2g}"
        )
        sizes = f"{self.size_before_bytes / 1e6:.3g} to {self.size_after_bytes / 1e6:.3g} MB"
        return f"{self.nodes_before} to {self.nodes_after} nodes, {sizes}, {error}"

    def _table(self) -> Table:
        return _Edits, [_Edits(r, n, self.seconds.get(r)) for r, n in self.edits.items()]


@dataclass(frozen=True, slots=True)
class _Edits:
    """A row about one step."""

    step: str
    edits: int
    seconds: Real | None
