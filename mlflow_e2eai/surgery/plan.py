"""A plan: which rules, with which arguments, in which order."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mlflow_e2eai.errors import InvalidInputError
from mlflow_e2eai.surgery.rules import RULES, Rule


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One rule of a plan, with its arguments.

    Attributes:
        rule: Name of the rule, a key of `RULES`.
        arguments: Its keyword arguments.
    """

    rule: str
    arguments: Mapping[str, Any] = field(default_factory=dict)

    def bound(self) -> Rule:
        """The rule with its arguments, ready for a graph.

        Raises:
            InvalidInputError: There is no such rule, or it takes other arguments.
        """
        if self.rule not in RULES:
            msg = f"There is no surgery rule {self.rule!r}; the rules are {', '.join(RULES)}."
            raise InvalidInputError(msg)
        rule = RULES[self.rule]
        try:
            inspect.signature(rule).bind(None, **self.arguments)
        except TypeError as error:
            takes = ", ".join(list(inspect.signature(rule).parameters)[1:]) or "no arguments"
            msg = f"Rule {self.rule!r} takes {takes}, but got {sorted(self.arguments)}: {error}."
            raise InvalidInputError(msg) from error
        return functools.partial(rule, **self.arguments)


DEFAULT_PLAN = (Step(rule="drop_identities"), Step(rule="simplify"), Step(rule="drop_unused"))
"""What is always safe: it needs to know nothing about the model."""


def plan_from(data: Any) -> tuple[Step, ...]:
    """Read a plan as YAML or JSON gives it: a list of rule names, or of one-key mappings.

    ``[{"bypass": {"op_type": "FooOp"}}, "drop_unused"]`` is a plan of two steps.

    Raises:
        InvalidInputError: It is something else, or names a rule or argument that there is not.
    """
    if not isinstance(data, Sequence) or isinstance(data, str):
        msg = f"A surgery plan is a list of rules, not a {type(data).__name__}."
        raise InvalidInputError(msg)
    steps = []
    for item in data:
        match item:
            case Step():
                step = item
            case str():
                step = Step(rule=item)
            case Mapping() if len(item) == 1:
                ((rule, arguments),) = item.items()
                if not isinstance(arguments or {}, Mapping):
                    msg = f"Rule {rule!r} has {arguments!r} for arguments; give names and values."
                    raise InvalidInputError(msg)
                step = Step(rule=str(rule), arguments=dict(arguments or {}))
            case _:
                msg = f"{item!r} is no step of a plan; write a rule's name, or {{rule: arguments}}."
                raise InvalidInputError(msg)
        step.bound()
        steps.append(step)
    return tuple(steps)
