"""Which step of a plan made a graph wrong."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from mlflow_e2eai.errors import RunnerError, SurgeryError
from mlflow_e2eai.surgery.plan import Step


def guilty_step(
    plan: Sequence[Step], replay: Callable[[Sequence[Step]], SurgeryError | None]
) -> int | None:
    """Position of the step to blame; None when the plan is right.

    The plan is replayed, one step shorter each time, until the graph is right. A beginning whose
    graph does not run says nothing.

    Args:
        plan: The plan.
        replay: Applies the beginning of a plan; what is wrong with the graph, or None.

    Raises:
        SurgeryError: The graph was wrong before the first step, or no beginning could be judged.
    """
    wrong = 0
    error: SurgeryError | None = None
    for length in range(len(plan), -1, -1):
        error = replay(plan[:length])
        if error is None:
            return None if length == len(plan) else length
        if not isinstance(error.__cause__, RunnerError):
            wrong = length
    if error is not None and not wrong:
        raise error
    return wrong - 1
