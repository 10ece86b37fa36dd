"""The step of a surgery plan that broke the graph, and the nodes that it should have spared."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from mlflow_e2eai.artifacts.values import Infer, OnnxArtifact, Tensors
from mlflow_e2eai.errors import InvalidInputError, SurgeryError
from mlflow_e2eai.evaluation.bisection.search import Bisection, search
from mlflow_e2eai.surgery.plan import DEFAULT_PLAN, Step, step_name
from mlflow_e2eai.surgery.rules import Rule
from mlflow_e2eai.surgery.stage import attempt, failing_step

if TYPE_CHECKING:
    import onnx_graphsurgeon as gs

_NODE_BY_NODE = {"bypass", "remove", "drop_identities"}
"""The rules that select nodes by operator, so that a node with another operator is spared."""


def bisect_plan(
    source: OnnxArtifact,
    plan: Sequence[Step] = DEFAULT_PLAN,
    *,
    samples: Sequence[Tensors],
    reference: Infer | None = None,
    max_evaluations: int | None = None,
) -> Bisection:
    """Find the step of a plan that broke a graph, and the nodes that it should have spared.

    The plan is replayed, one step shorter each time, until the graph is right: the step that was
    left out last is the failing one. Where a step edits nodes one by one (`bypass`, `remove`,
    `drop_identities`), the smallest set of nodes that it must spare is searched for. A
    shortened plan whose graph does not run, as before the step that bypasses an operator that
    nothing implements, is skipped; where no shortened plan is right, the first step with a wrong
    graph is the failing one.

    Args:
        source: The graph before surgery.
        plan: The plan that failed.
        samples: See `clean`; with none, only the interface is checked.
        reference: See `clean`; by default ONNX Runtime on `source`.
        max_evaluations: See `search`; for the nodes within the step.

    Returns:
        The step in `rule`, and the nodes in `nodes`; those are empty where the step fails as a
        whole.

    Raises:
        InvalidInputError: The plan names an unknown rule or argument.
        SurgeryError: No shortened plan gives a graph that could be checked.
    """
    with TemporaryDirectory() as folder:
        replay = _Replay(source, samples, reference, Path(folder, "candidate.onnx"))
        failing = failing_step(plan, replay)
        if failing is None:
            bisection = search((), lambda _: False)
            return replace(bisection, evaluations=replay.count)
        bisection = _within(plan, failing, replay, max_evaluations)
    name = step_name(plan, failing)
    which = (
        f"; it should leave out {', '.join(bisection.nodes)}" if bisection.nodes else " as a whole"
    )
    return replace(
        bisection,
        rule=name,
        evaluations=replay.count,
        sentence=f"Step {name!r} broke the graph{which}. Evaluations: {replay.count}.",
    )


def _within(
    plan: Sequence[Step], failing: int, replay: _Replay, max_evaluations: int | None
) -> Bisection:
    """The nodes that a step should have spared; none where it fails as a whole."""
    step, edited = plan[failing], list[str]()

    def fails(keep: frozenset[str]) -> bool:
        sparing = _Sparing(rule=step.rule, arguments=step.arguments, spared=keep, edited=edited)
        return replay([*plan[:failing], sparing]) is not None

    if step.rule in _NODE_BY_NODE:
        fails(frozenset())  # sets the nodes that it edits
        try:
            return search(tuple(edited), fails, max_evaluations=max_evaluations)
        except InvalidInputError:
            pass  # sparing all of them does not help
    return Bisection(nodes=(), minimal=True, suspects=len(edited), evaluations=0, sentence="")


@dataclass(slots=True)
class _Replay:
    """Applies the first steps of a plan, and counts the runs."""

    source: OnnxArtifact
    samples: Sequence[Tensors]
    reference: Infer | None
    out: Path
    count: int = 0

    def __call__(self, steps: Sequence[Step]) -> SurgeryError | None:
        self.count += 1
        try:
            attempt(
                self.source, steps, out=self.out, samples=self.samples, reference=self.reference
            )
        except SurgeryError as error:
            return error
        return None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Sparing(Step):
    """A step that leaves some nodes alone, and records the nodes that it edited.

    Attributes:
        spared: Names of the nodes to leave alone.
        edited: Filled with the names of the nodes that were removed or got another operator.
    """

    spared: frozenset[str]
    edited: list[str]

    def bound(self) -> Rule:
        """The rule, with the operator of the spared nodes replaced by another meanwhile."""
        rule = Step.bound(self)

        def spare(graph: gs.Graph) -> int:
            before = [(node.name, node.op) for node in graph.nodes]
            self.edited[:] = [name for name, _ in before]  # if the rule fails, any may be edited
            spared = [node for node in graph.nodes if node.name in self.spared]
            for node in spared:
                node.op = f"spared {node.op}"
            edits = rule(graph)
            for node in spared:
                node.op = node.op.removeprefix("spared ")
            after = {(node.name, node.op) for node in graph.nodes}
            self.edited[:] = [name for name, op in before if (name, op) not in after]
            return edits

        return spare
