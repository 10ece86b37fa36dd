"""A plan: which rules, with which arguments, in which order."""

from __future__ import annotations

import functools
import inspect
import json
import re
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from typing import Any, cast

from mlflow_e2eai.artifacts.files import short_repr
from mlflow_e2eai.errors import InvalidInputError, nearest, shown, shown_all
from mlflow_e2eai.surgery.rules import RULES, Rule

GROUP = "mlflow_e2eai.surgery_rules"
"""The entry points by which a package offers rules: functions of a graph and keyword arguments."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One rule of a plan, with its arguments.

    Attributes:
        rule: Name of the rule: a key of `RULES`, or of an entry point of the group `GROUP`. Of a
            callable, its module and qualified name with a colon between.
        arguments: Its keyword arguments.
        required: Whether a rule that finds nothing to edit is an error. So it is too when the plan
            is applied to its own result.
        call: The rule itself, where the plan was given a callable.
    """

    rule: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    required: bool = False
    call: Rule | None = None

    def __repr__(self) -> str:
        """The rule, and what is not the default."""
        return short_repr(self)

    def resolve(self) -> Rule:
        """The rule, without its arguments.

        Raises:
            InvalidInputError: There is no such rule, or its entry point cannot be loaded.
        """
        return self.call or RULES.get(self.rule) or _installed_rule(self.rule)

    def bound(self) -> Rule:
        """The rule with its arguments, ready for a graph.

        Raises:
            InvalidInputError: There is no such rule, or it takes other arguments, or other types.
        """
        rule = self.resolve()
        try:
            inspect.signature(rule).bind(None, **self.arguments)
        except TypeError as error:
            known = list(inspect.signature(rule).parameters)[1:]
            unknown = next((name for name in self.arguments if name not in known), "")
            msg = (
                f"Rule {self.rule!r} takes {', '.join(known) or 'no arguments'}, but got "
                f"{shown_all(self.arguments)}: {_nearest(unknown, known) or f'{error}.'}"
            )
            raise InvalidInputError(msg) from error
        if rule in RULES.values():
            _check_types(self.rule, rule, self.arguments)
        return functools.partial(rule, **self.arguments)


DEFAULT_PLAN = (Step(rule="drop_identities"), Step(rule="simplify"), Step(rule="drop_unused"))
"""Default plan: rules that are safe for every model."""


def _nearest(name: str, known: Iterable[str]) -> str | None:
    """A hint at a similar known name; None where none is similar."""
    near = nearest(name, known)
    return None if near is None else f"did you mean {near!r}?"


def _check_types(name: str, rule: Rule, arguments: Mapping[str, Any]) -> None:
    """Refuse arguments of other types than a rule of this package is annotated with.

    A plan is YAML from anywhere, and a wrong value would fail somewhere inside the rule.
    """
    kinds = typing.get_type_hints(rule, localns={"gs": types.SimpleNamespace(Graph=object)})
    for argument, value in arguments.items():
        if (reason := _misfit(value, kinds[argument])) is not None:
            kind = type(value).__name__
            msg = f"Rule {name!r} has {argument}: {shown(value)}, of the type {kind}; {reason}."
            raise InvalidInputError(msg)


def _misfit(value: Any, kind: Any) -> str | None:
    """Why a value is not of an annotated type; None where it is."""
    from pydantic import TypeAdapter, ValidationError

    try:
        TypeAdapter(kind).validate_python(value, strict=True)
        json.dumps(value, ensure_ascii=False, default=str).encode()
    except UnicodeEncodeError:  # half a character, which JSON can write
        return "it is no text that UTF-8 can write"
    except ValidationError as error:
        found = dict.fromkeys(each["msg"] for each in error.errors())
        return ", or ".join(each[0].lower() + each[1:] for each in found)
    return None


def plan_from(data: Any) -> tuple[Step, ...]:
    """Read a plan from parsed YAML or JSON: a list of rule names, or of one-key mappings.

    ``[{"bypass": {"op_type": "FooOp", "required": True}}, "drop_unused"]`` is a plan of two steps,
    the first of which must find something to do; see `Step`. From Python, a callable or
    ``(callable, arguments)`` stands for a rule of the caller's own; it takes a GraphSurgeon graph
    and returns its number of edits.

    Raises:
        InvalidInputError: It is something else, or names an unknown rule or argument.
    """
    if not isinstance(data, Sequence) or isinstance(data, str):
        msg = f"A surgery plan is a list of rules, not a {type(data).__name__}."
        raise InvalidInputError(msg)
    steps = []
    for item in data:
        match item:
            case Step():
                step = item
            case _ if callable(item):
                step = Step(rule=_name_of(item), call=item)
            case (call, Mapping() as arguments) if callable(call):
                step = _step(_name_of(call), dict(arguments), call=call)
            case str():
                step = Step(rule=item)
            case Mapping() if len(item) == 1:
                ((rule, arguments),) = item.items()
                if not isinstance(arguments or {}, Mapping):
                    msg = (
                        f"Rule {rule!r} has the arguments {shown(arguments)}; give names and "
                        "values."
                    )
                    raise InvalidInputError(msg)
                step = _step(str(rule), dict(arguments or {}))
            case _:
                msg = (
                    f"{shown(item)} is not a step of a plan; write a rule's name, or {{rule: "
                    "arguments}."
                )
                raise InvalidInputError(msg)
        step.bound()
        steps.append(step)
    return tuple(steps)


def named_in(plan: Sequence[Step]) -> frozenset[str]:
    """Every string in the arguments of a plan, the operators that it edits included.

    Each rule has its own way to name an operator: ``FooOp``, ``devtech::FooOp``, or in a pattern.
    """

    def words(value: Any) -> set[str]:
        match value:
            case str():
                return set(re.findall(r"\w+", value))
            case Mapping():
                return words([*value.keys(), *value.values()])
            case Iterable():
                return set().union(*map(words, value))
        return set()

    return frozenset(words([step.arguments for step in plan]))


def step_name(plan: Sequence[Step], position: int) -> str:
    """Name of a step in reports: ``rule``, or ``rule #2`` for the second of its rule."""
    rule = plan[position].rule
    earlier = sum(step.rule == rule for step in plan[:position])
    return f"{rule} #{earlier + 1}" if earlier else rule


def plan_text(plan: Sequence[Step]) -> str:
    """Write a plan as YAML that `plan_from` reads.

    Raises:
        InvalidInputError: An argument is no plain data, so that the plan could not be read again.
    """
    import yaml

    data = [
        {step.rule: {**step.arguments, **({"required": True} if step.required else {})}}
        if step.arguments or step.required
        else step.rule
        for step in plan
    ]
    try:
        return yaml.safe_dump(data, sort_keys=False)
    except yaml.YAMLError as error:
        msg = (
            f"The plan cannot be written as YAML: {error}; use strings, numbers and lists of them."
        )
        raise InvalidInputError(msg) from error


def _name_of(call: Rule) -> str:
    for name, rule in RULES.items():
        if rule is call:
            return name
    module = getattr(call, "__module__", type(call).__module__)
    return f"{module}:{getattr(call, '__qualname__', type(call).__qualname__)}"


def _installed_rule(name: str) -> Rule:
    """A rule that an installed package offers."""
    offered = {entry.name: entry for entry in entry_points(group=GROUP)}
    if name in offered:
        try:
            rule = offered[name].load()
        except Exception as error:  # an import may raise anything
            msg = f"Surgery rule {name!r} ({offered[name].value}) cannot be loaded: {error}"
            raise InvalidInputError(msg) from error
        return cast("Rule", rule)
    if ":" in name:
        # A plan is data: it must not choose what code to import.
        msg = (
            f"Rule {name!r} was a callable, and a stored plan has only its name; pass the callable "
            f"again, or register it as an entry point of the group {GROUP!r}."
        )
        raise InvalidInputError(msg)
    known = [*RULES, *offered]
    msg = f"There is no surgery rule {name!r}; "
    raise InvalidInputError(msg + (_nearest(name, known) or f"the rules are {', '.join(known)}."))


def _step(rule: str, arguments: dict[str, Any], *, call: Rule | None = None) -> Step:
    required = arguments.pop("required", False)
    if not isinstance(required, bool):
        msg = f"Rule {rule!r} has required: {required!r}; write true or false."
        raise InvalidInputError(msg)
    step = Step(rule=rule, arguments=arguments, required=required, call=call)
    try:
        named_in([step])
    except RecursionError as error:
        msg = (
            f"The arguments of rule {shown(rule)} hold themselves, or are nested too deeply; give "
            "plain values, and lists of them."
        )
        raise InvalidInputError(msg) from error
    return step
